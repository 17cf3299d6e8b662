"""Shows when training raises an alarm: settings that fail, and ten healthy runs with different seeds.

    python benchmarks/alarms.py                  12 short runs on scikit-learn's digits

Exit code 1 if a failing run raises no alarm, or a healthy one does.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RUN = [str(ROOT / "init.py"), "--constants", str(ROOT / "examples" / "digits.json"), "--epochs", "4"]
ALARMS = ("collapse", "stuck at its margin", "no triplet is active", "not finite")
FAILING = {
    "batch-hard, high learning rate": ("collapse", "--mining batch_hard --learning-rate 0.3"),
    "far too high a learning rate": (
        "stuck at its margin",
        "--backbone MobileNet --image-size 32 --learning-rate 9.9 --warm-up 0",
    ),
}


def run(options, folder):
    """The number of times each alarm was raised, the last validation accuracy, and the lines of the alarms."""
    command = [sys.executable, *RUN, *options, "--run-folder", str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    raised = {alarm: done.stdout.count(alarm) for alarm in ALARMS if alarm in done.stdout}
    accuracies = [line.rsplit("val_accuracy: ", 1)[1] for line in done.stdout.splitlines() if "val_accuracy: " in line]
    lines = [line for line in done.stdout.splitlines() if any(alarm in line for alarm in ALARMS)]
    return raised, accuracies[-1] if accuracies else "none", lines


def main():
    as_expected = True
    healthy = {f"healthy, seed {seed}": (None, f"--seed {seed}") for seed in range(10)}
    with tempfile.TemporaryDirectory() as place:
        for number, (name, (alarm, options)) in enumerate({**FAILING, **healthy}.items()):
            raised, accuracy, lines = run(options.split(), Path(place, str(number)))
            as_expected &= raised.get(alarm) == 1 if alarm else not raised
            outcome = f"{name} ({options}): {raised or 'no alarm'}, val_accuracy {accuracy}"
            print(outcome, *lines, sep="\n    ", flush=True)
    return 0 if as_expected else 1


if __name__ == "__main__":
    sys.exit(main())
