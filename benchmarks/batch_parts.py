"""Does rematerialisation let a batch be larger? Memory and time of a training step, with and without it.

    python benchmarks/batch_parts.py [--backends jax,torch] [--batches 128,512,2048] [--image-size 32] [--softplus]

Compares three ways on each backend: `at once`, as init.py trains; `RematScope`, the network built inside
`keras.RematScope("full")`; and `parts`, where the loss has all embeddings of the batch, but the backbone computes it in
parts of 64 images, whose activations are not kept but computed again for the gradient (`keras.remat`). On JAX the parts
are a loop of the compiled step (`keras.ops.map`), which has one part in memory at a time; TensorFlow cannot
differentiate such a loop, so there and on PyTorch the step has each part by itself. The backbone's batch normalisation
is frozen, as with pre-trained weights, so that the gradients are those of the batch at once, which the table compares.
With `--softplus` in place of ReLU, rounding changes no gradient by much: that of ReLU jumps at 0.

Each measurement has its own process, on Linux. Time is that of the second step, memory what both add at their highest.
On a GPU, memory is that of the device, as JAX and PyTorch count it; it has not been run on one.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

PART = 64  # images
WAYS = ("at once", "RematScope", "parts")


def trained_model(way, parts, image_size, softplus):
    """The embedding model, and a model for training that computes the same in this way."""
    import keras

    from fine_tune_model import fine_tuned_models

    class Parts(keras.layers.Layer):
        def __init__(self, network):
            super().__init__(name="parts")
            self.network = network

        def compute_output_shape(self, shape):
            return shape[0], self.network.output_shape[-1]

        def call(self, images, training=None):
            features = keras.remat(lambda part: self.network(part, training=training))
            if keras.backend.backend() != "jax":
                each = [features(images[number::parts]) for number in range(parts)]
                return keras.ops.reshape(keras.ops.stack(each, axis=1), (-1, self.network.output_shape[-1]))
            split = keras.ops.reshape(images, (-1, parts, *images.shape[1:]))  # shape (64, parts, 3, height, width)
            each = keras.ops.map(features, keras.ops.moveaxis(split, 1, 0))  # shape (parts, 64, channels)
            return keras.ops.reshape(keras.ops.moveaxis(each, 0, 1), (-1, each.shape[-1]))

    with keras.RematScope("full" if way == "RematScope" else None):
        model = fine_tuned_models((3, 32, 32), image_size, weights="none")
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization) and layer.name != "pooled_batch_norm":
            layer.trainable = False
        if softplus and isinstance(layer, keras.layers.Activation):
            layer.activation = keras.activations.softplus
    embeddings = model.outputs
    if way == "parts":
        embeddings = Parts(keras.Model(model.inputs, model.get_layer("pooling").output))(model.inputs[0])
        for name in ("pooled_batch_norm", "embedding", "unit_norm"):
            embeddings = model.get_layer(name)(embeddings)
    return model, keras.Model(model.inputs, embeddings)


def mib(is_highest):
    """The memory of this process, now or at its highest so far, on the GPU if there is one."""
    import keras

    if keras.backend.backend() == "torch":
        import torch

        if torch.cuda.is_available():
            return (torch.cuda.max_memory_allocated() if is_highest else torch.cuda.memory_allocated()) / 2**20
    if keras.backend.backend() == "jax":
        import jax

        if statistics := jax.devices()[0].memory_stats():
            return statistics["peak_bytes_in_use" if is_highest else "bytes_in_use"] / 2**20
    key = "VmHWM" if is_highest else "VmRSS"
    found = int(re.search(key + r":\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024
    Path("/proc/self/clear_refs").write_text("5")  # the highest memory so far is forgotten
    return found


def measure(way, batch, image_size, softplus, updates):
    """Two steps of gradient descent in this process; saves the first one's change of the weights."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from pipeline.settings import keras_settings

    keras_settings.apply()
    import keras

    from triplet_loss_functions import InBatchTripletLoss

    keras.utils.set_random_seed(0)
    model, trained = trained_model(way, batch // PART, image_size, softplus)
    trained.compile(keras.optimizers.SGD(1.0), InBatchTripletLoss(0.3, "batch_all"))
    images = np.random.default_rng(0).integers(0, 256, (batch, 3, 32, 32)).astype("uint8")
    labels = np.arange(batch) % 8
    weights = model.trainable_variables
    before, idle = [np.array(keras.ops.convert_to_numpy(each)) for each in weights], mib(is_highest=False)
    trained.train_on_batch(images, labels)
    np.savez(updates, *[keras.ops.convert_to_numpy(new) - old for new, old in zip(weights, before, strict=True)])
    start = time.perf_counter()
    trained.train_on_batch(images, labels)
    print(json.dumps([time.perf_counter() - start, mib(is_highest=True) - idle]))


def difference(updates, expected):
    """The norm of the difference of two steps' changes of the weights, relative to the norm of the change."""
    with np.load(updates) as changed, np.load(expected) as wanted:
        squares = [(((changed[name] - wanted[name]) ** 2).sum(), (wanted[name] ** 2).sum()) for name in wanted.files]
    return np.sqrt(np.divide(*np.sum(squares, axis=0)))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--backends", default="tensorflow,jax,torch")
    parser.add_argument("--batches", default="128,512,2048", help=f"multiples of {PART}")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--softplus", action="store_true", help="in place of ReLU")
    options = parser.parse_args()
    print("| backend | batch | way | seconds | MiB | gradients differ by |\n|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for backend in options.backends.split(","):
            for batch in map(int, options.batches.split(",")):
                for way in WAYS:
                    updates = Path(folder) / f"{backend} {batch} {way}.npz"
                    settings = [str(int(each)) for each in (batch, options.image_size, options.softplus)]
                    command = [sys.executable, __file__, "--measure", way, *settings, updates]
                    environment = {**os.environ, "KERAS_BACKEND": backend}
                    done = subprocess.run(command, env=environment, capture_output=True, text=True)
                    if done.returncode:
                        lines = (done.stderr.strip() or "killed").splitlines()
                        reason = next((line for line in lines if re.match(r"\w*Error", line)), lines[-1])
                        print(f"| {backend} | {batch:,} | {way} | fails: {reason[:80]} | | |", flush=True)
                        continue
                    seconds, memory = json.loads(done.stdout.splitlines()[-1])
                    at_once = Path(folder) / f"{backend} {batch} {WAYS[0]}.npz"
                    same = f"{difference(updates, at_once):.0e}" if way != WAYS[0] and at_once.exists() else ""
                    print(f"| {backend} | {batch:,} | {way} | {seconds:.1f} | {memory:,.0f} | {same} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(sys.argv[2], *map(int, sys.argv[3:6]), sys.argv[6])
    else:
        main()
