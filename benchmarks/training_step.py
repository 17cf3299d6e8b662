"""Measures the parts of a training step: network, data, resizing, loss and metrics.

    python benchmarks/training_step.py                                  ResNet50 at 224 pixels, 32 images, float32
    python benchmarks/training_step.py --images 128 --precision mixed_float16               on a GPU

Works on any backend (`KERAS_BACKEND`). Each part is measured separately, as the median of several steps: making a
batch; a step of the bare network, on resized images and with a mean as its loss; resizing and preprocessing; the loss,
and the loss with its three metrics, on embeddings that are the only weights, minus the same with a mean as the loss. In
the complete step the parts may overlap.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from pipeline.settings import keras_settings

keras_settings.apply()

import keras
import numpy as np

from fine_tune_model import fine_tuned_models
from pipeline.data.batches import Batches, classes_and_images
from pipeline.data.splits import Images
from triplet_loss_functions import InBatchTripletLoss

SIZE, CLASSES = 32, 8  # of CIFAR-10's images, in pixels; and of a batch


def median_seconds(step, turns, warm_up=2):
    seconds = []
    for _ in range(warm_up + turns):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[warm_up:])


def training(model, loss, metrics, images, labels):
    """A function that runs one training step and waits for it."""
    model.compile(keras.optimizers.Adam(1e-4), loss, metrics=metrics)
    return lambda: model.train_on_batch(images, labels)


def mean_of(labels, embeddings):
    return keras.ops.mean(embeddings, axis=-1)


class Table(keras.layers.Layer):
    """Embeddings that are weights and do not depend on the input."""

    def __init__(self, count, size):
        super().__init__(dtype="float32")
        self.embeddings = self.add_weight(shape=(count, size), initializer="random_normal")

    def call(self, inputs):
        return self.embeddings + 0 * inputs


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--images", type=int, default=32, help="of a batch, a multiple of 8")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--backbone", default="ResNet50")
    parser.add_argument("--mining", default="semi_hard")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    keras.config.set_dtype_policy(options.precision)
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(CLASSES), 50 * options.images // CLASSES).astype("int32")
    data = Images(generator.integers(0, 256, (len(labels), 3, SIZE, SIZE)).astype("uint8"), labels)
    batches = Batches(data, classes_and_images(labels, CLASSES, options.images // CLASSES), 0, "shift_flip")
    images, classes = batches[0]
    loss, size = InBatchTripletLoss(mining=options.mining), options.image_size

    model = fine_tuned_models((3, SIZE, SIZE), size, "scale", options.backbone, "none", 15)
    backbone = next(layer for layer in model.layers if isinstance(layer, keras.Model))
    resized_images = model.operations[model.operations.index(backbone) - 1].output  # shape (images, 3, size, size)
    resizing = keras.Model(model.inputs, keras.ops.mean(resized_images, axis=(1, 2, 3)))
    resized = keras.ops.convert_to_numpy(keras.Model(model.inputs, resized_images)(images))
    inputs = keras.Input((3, size, size))
    outputs = backbone(inputs)
    for layer in model.layers[model.layers.index(backbone) + 1 :]:
        outputs = layer(outputs)
    bare = keras.Model(inputs, outputs)

    def table(loss, metrics):
        inputs = keras.Input((1,))
        model = keras.Model(inputs, Table(options.images, 128)(inputs))
        return median_seconds(
            training(model, loss, metrics, np.zeros((options.images, 1)), classes), 10 * options.turns
        )

    numbers = iter(range(10**9))
    complete = median_seconds(training(model, loss, loss.metrics(), images, classes), options.turns)
    without_loss = table(mean_of, [])
    parts = {
        "complete step": complete,
        "bare network": median_seconds(training(bare, mean_of, [], resized, classes), options.turns),
        "batch, one thread": median_seconds(lambda: batches[next(numbers) % len(batches)], 10 * options.turns),
        "resizing and preprocessing": median_seconds(lambda: resizing.predict_on_batch(images), 10 * options.turns),
        "loss": table(loss, []) - without_loss,
        "loss and metrics": table(loss, loss.metrics()) - without_loss,
    }
    print(
        f"\n{options.backbone}, {size} pixels, {options.images} images, {options.mining}, {options.precision}, "
        f"Keras {keras.__version__} on {keras.backend.backend()}; {options.images / complete:.1f} images/s\n"
    )
    print("| part | ms | share of the step |\n|---|---|---|")
    for name, seconds in parts.items():
        print(f"| {name} | {1000 * seconds:.2f} | {seconds / complete:.2%} |")


if __name__ == "__main__":
    main()
