"""Shows when the watch on the training speaks: settings that go wrong, and ten healthy runs of different seeds.

    python benchmarks/alarms.py                  12 short runs on scikit-learn's digits

Ends in exit code 1 if a run that goes wrong is not told, or a healthy one is.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent
RUN = (
    "--dataset digits --backbone MobileNet --image-size 32 --augment none --weights none --frozen-layers 0 "
    "--precision float32 --images-per-class 4 --learning-rate 1e-3 --epochs 4"
).split()
ALARMS = ("collapse", "stuck at its margin", "no triplet had a loss", "not finite")
WRONG = {
    "batch-hard, high learning rate": ("collapse", "--mining batch_hard --learning-rate 0.3"),
    "learning rate beyond all measure": ("stuck at its margin", "--learning-rate 9.9 --warm-up 0"),
}


def alarms_of(options, folder):
    """Which alarms a run raised, how often, and its last validation accuracy."""
    command = [sys.executable, str(FOLDER / "init.py"), *RUN, *options, "--run-folder", str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    raised = {alarm: done.stdout.count(alarm) for alarm in ALARMS if alarm in done.stdout}
    accuracies = [line.rsplit("val_accuracy: ", 1)[1] for line in done.stdout.splitlines() if "val_accuracy: " in line]
    said = [line for line in done.stdout.splitlines() if any(alarm in line for alarm in ALARMS)]
    return raised, accuracies[-1] if accuracies else "none", said


def main():
    as_expected = True
    healthy = {f"healthy, seed {seed}": (None, f"--seed {seed}") for seed in range(10)}
    with tempfile.TemporaryDirectory() as place:
        for number, (name, (alarm, options)) in enumerate({**WRONG, **healthy}.items()):
            raised, accuracy, said = alarms_of(options.split(), Path(place, str(number)))
            as_expected &= raised.get(alarm) == 1 if alarm else not raised
            outcome = f"{name} ({options}): {raised or 'no alarm'}, val_accuracy {accuracy}"
            print(outcome, *said, sep="\n    ", flush=True)
    return 0 if as_expected else 1


if __name__ == "__main__":
    sys.exit(main())
