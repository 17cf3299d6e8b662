"""Kills a real run again and again, and compares its result with that of an uninterrupted run.

    python benchmarks/interruptions.py                  20 kills, five to ten minutes on two CPU cores

Both runs train on scikit-learn's digits. One is ended with SIGKILL after a random time and resumed with the same
command, until it has been killed often enough; then it may finish. Weights, predictions, history and scores of the two
runs are compared bit for bit. Exit code 1 if they differ.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
RUN = [str(ROOT / "init.py"), "--constants", str(ROOT / "examples" / "digits.json")]
RUN += ["--checkpoint-minutes", "0.01"]


def start(folder):
    command = [sys.executable, *RUN, "--run-folder", str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(folder):
    process = start(folder)
    output = process.communicate()[0]
    if process.returncode != 0:
        sys.exit(f"A run failed:\n{output}")


def kill_after(folder, seconds):
    """Kills a run after some time; returns the last line of its output, or None if it had finished before."""
    process = start(folder)
    try:
        process.communicate(timeout=seconds)
        return None
    except subprocess.TimeoutExpired:
        process.kill()
        lines = process.communicate()[0].strip().splitlines()
        return lines[-1][:100] if lines else "no output yet"


def differences(first, second):
    """Names of what differs between two finished run folders."""
    from pipeline.settings import keras_settings

    keras_settings.apply()
    import keras
    import numpy as np

    found = [
        name
        for name in ("history.csv", "report.txt", "report.json")
        if (first / name).read_bytes() != (second / name).read_bytes()
    ]
    references = [np.load(folder / "references.npz") for folder in (first, second)]
    found += [name for name in references[0].files if not np.array_equal(references[0][name], references[1][name])]
    models = [keras.saving.load_model(folder / "embedding_model.keras") for folder in (first, second)]
    pairs = zip(*(model.get_weights() for model in models), strict=True)
    different = sum(not np.array_equal(left, right) for left, right in pairs)
    return found + ([f"{different} weights"] if different else [])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--longest", type=float, default=30, help="seconds after which a run is killed at the latest")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    generator = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as place:
        uninterrupted, killed = Path(place, "uninterrupted"), Path(place, "killed")
        began = time.monotonic()
        finish(uninterrupted)
        print(f"Uninterrupted: {time.monotonic() - began:.0f} s", flush=True)
        for number in range(options.kills):
            seconds = generator.uniform(0, options.longest)
            last = kill_after(killed, seconds)
            if last is None:
                print(f"Finished before kill {number + 1}")
                break
            checkpoints = sorted(path.name for path in killed.glob("checkpoint-*"))
            print(f"Kill {number + 1} after {seconds:.1f} s; {checkpoints[-1:]}; last line: {last}", flush=True)
        finish(killed)
        found = differences(uninterrupted, killed)
    print(f"Differences: {', '.join(found)}" if found else "Weights, predictions, history and scores are identical.")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
