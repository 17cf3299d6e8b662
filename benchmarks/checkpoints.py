"""Shows what checkpoints cost in a real run, with the default CHECKPOINT_MINUTES.

    python benchmarks/checkpoints.py                     ten minutes on two CPU cores

Trains ResNet50, with Adam's state 382 MB a checkpoint, on scikit-learn's digits, and times the real script's `fit`
and, inside it, each checkpoint: from the check for finite variables to the file that is flushed to the disk. Other
options go on to init.py.
"""

import runpy
import sys
import tempfile
import time
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(FOLDER))
RUN = (
    "--dataset digits --backbone ResNet50 --image-size 32 --augment none --weights none --frozen-layers 0 "
    "--precision float32 --learning-rate 1e-3 --epochs 20"
).split()


def timed(function, seconds):
    """The function, with the time of each call added to a list."""

    def call(*given, **named):
        began = time.perf_counter()
        try:
            return function(*given, **named)
        finally:
            seconds.append(time.perf_counter() - began)

    return call


def main():
    import keras_settings

    keras_settings.apply()
    import keras

    import run_folder
    from training_checkpoints import Checkpoints

    training, writing, sizes = [], [], []
    save = Checkpoints.save

    def save_and_measure(checkpoints, epoch, batch):
        saved = save(checkpoints, epoch, batch)
        sizes.append(run_folder.checkpoints(checkpoints.folder)[0].stat().st_size)
        return saved

    Checkpoints.save = timed(save_and_measure, writing)
    keras.Model.fit = timed(keras.Model.fit, training)
    with tempfile.TemporaryDirectory() as place:
        sys.argv = [str(FOLDER / "init.py"), *RUN, "--run-folder", f"{place}/run", *sys.argv[1:]]
        runpy.run_path(sys.argv[0], run_name="__main__")
    print(f"\nTraining: {sum(training):.0f} s. {len(writing)} checkpoints of up to {max(sizes) / 1e6:.0f} MB:")
    print(", ".join(f"{seconds:.2f} s" for seconds in writing))
    print(f"Their share of the training: {sum(writing) / sum(training):.2%}")


if __name__ == "__main__":
    main()
