"""Measures what checkpoints cost in a real run with the default CHECKPOINT_MINUTES.

    python benchmarks/checkpoints.py                     ten minutes on two CPU cores

Trains ResNet50, whose checkpoints have 382 MB with Adam's state, on scikit-learn's digits. It times the script's `fit`,
and in it each checkpoint, from the check for finite variables to the file that is flushed to disk. Further options are
passed to init.py.
"""

import runpy
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
RUN = (
    "--dataset digits --image-size 32 --augment none --weights none --precision float32 --learning-rate 1e-3 "
    "--epochs 20"
).split()


def timed(function, seconds):
    """The function; each call appends its duration to a list."""

    def call(*arguments, **options):
        start = time.perf_counter()
        try:
            return function(*arguments, **options)
        finally:
            seconds.append(time.perf_counter() - start)

    return call


def main():
    from pipeline.settings import keras_settings

    keras_settings.apply()
    import keras

    from pipeline.checkpoint_files import checkpoint_paths
    from pipeline.training.checkpoints import Checkpoints

    training, saving, sizes = [], [], []
    save = Checkpoints.save

    def save_and_measure(checkpoints, epoch, batch):
        saved = save(checkpoints, epoch, batch)
        sizes.append(checkpoint_paths(checkpoints.folder)[0].stat().st_size)
        return saved

    Checkpoints.save = timed(save_and_measure, saving)
    keras.Model.fit = timed(keras.Model.fit, training)
    with tempfile.TemporaryDirectory() as place:
        sys.argv = [str(ROOT / "init.py"), *RUN, "--run-folder", f"{place}/run", *sys.argv[1:]]
        runpy.run_path(sys.argv[0], run_name="__main__")
    print(f"\nTraining: {sum(training):.0f} s. {len(saving)} checkpoints of up to {max(sizes) / 1e6:.0f} MB:")
    print(", ".join(f"{seconds:.2f} s" for seconds in saving))
    print(f"Their share of the training time: {sum(saving) / sum(training):.2%}")


if __name__ == "__main__":
    main()
