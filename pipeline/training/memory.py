"""Whether a training batch fits into memory, and what to do if it does not."""

import gc
import math
import threading
import warnings

import keras
import numpy as np

from pipeline import system_memory
from pipeline.data.batches import Batches
from pipeline.errors import InputError
from pipeline.settings import devices, process
from pipeline.settings.keras_settings import on_cpu

# A training step needs at most about four times the memory of the outputs of all layers. Where a batch may so need more
# than is free, a step with at most a sixteenth of it is measured first.
LARGEST_FACTOR = 4
PART = 16
RULE = "`IMAGES_PER_CLASS` or `IMAGE_SIZE` must be smaller:"


def check_first_batch(model: keras.Model, batches: Batches) -> None:
    """Measures a step with a part of a batch, if a whole one may not fit into the memory of the host.

    Where memory runs out on a CPU, the system kills the process, or TensorFlow crashes. A GPU raises an error instead,
    for which there is `explanation`. The model's state is restored after the step. On other systems than Linux, and
    where several processes train together, it does nothing.

    Args:
        model: compiled `keras.Model`.
        batches: `Batches` for training.

    Raises:
        InputError: if the batch would not fit; the message says by how much it must be smaller.
    """
    if devices.processes()[1] > 1:  # which would have to do the same steps
        return
    free = system_memory.free_memory()
    images, labels = batches[0]
    per_row = _images_per_row(images)
    needed = 4 * LARGEST_FACTOR * _outputs(model) * len(images) * per_row  # of 4 bytes
    if free is None or not on_cpu() or needed < free:
        return
    count = _divisible(min(len(labels) // PART, int(len(labels) * free / needed / 2)))
    variables = [
        *model.variables,
        *model.optimizer.variables,
        *(v for metric in model.metrics for v in metric.variables),
    ]
    state = [np.array(keras.ops.convert_to_numpy(each)) for each in variables]
    try:
        _step(model, images, labels, _divisible(2))  # loads the libraries
        used = _highest_memory(lambda: _step(model, images, labels, count)) * len(labels) / count
    except Exception as error:
        if not process.is_out_of_memory(error):
            raise
        few = f"not even a step with {per_row * count:,} images fits into memory"
        raise InputError(f"{RULE} {few}. Received: {process.in_short(error)}") from error
    for each, value in zip(variables, state, strict=True):
        each.assign(value)
    model.train_function = None  # or TensorFlow would train with a graph for batches of any size
    if used > free:
        divisor = math.ceil(used / max(free, 1))
        raise InputError(
            f"{RULE} as a step with {per_row * count:,} images has shown, one with {per_row * len(labels):,} takes "
            f"about {used / 2**30:.1f} GiB of memory, and {free / 2**30:.1f} GiB are free. {_advice(divisor)}"
        )


def explanation(model: keras.Model, batches: Batches, error: str) -> str:
    """Says which constants to lower, and how large a batch fits, as measured by steps with fewer images.

    Args:
        model: compiled `keras.Model`, whose weights the steps change.
        batches: `Batches` for training, whose first one does not fit.
        error: str, what was raised.

    Returns:
        A sentence.
    """
    images, labels = batches[0]
    per_row, divisor = _images_per_row(images), 2
    wrong = f"a batch of {per_row * len(labels):,} images does not fit into memory"
    if devices.processes()[1] > 1:  # which would have to do the same steps
        return f"{RULE} {wrong}. Received: {error}"
    while len(labels) // divisor >= _divisible(2):
        gc.collect()
        count = _divisible(len(labels) // divisor)
        try:
            _step(model, images, labels, count)
        except Exception as raised:
            if not process.is_out_of_memory(raised):
                break
        else:
            fits = f"one of {per_row * count:,} does, as a step has shown. {_advice(divisor)}"
            return f"{RULE} {wrong}; {fits} Received: {error}"
        divisor *= 2
    return f"`IMAGE_SIZE` must be smaller: {wrong}, and no smaller one does. Received: {error}"


def _advice(divisor):
    return f"Divide IMAGES_PER_CLASS, or together with CLASSES_PER_BATCH, by {divisor}."


def _divisible(count):
    """A number near `count`, at least 2, which the number of devices divides."""
    parallel = devices.device_count()
    return max(2, count // parallel * parallel, parallel)


def _outputs(model):
    """The number of values that all layers of a model put out for one of its inputs."""
    total = 0
    for operation in getattr(model, "operations", model.layers):  # Sequential has layers alone
        if isinstance(operation, keras.Model):
            total += _outputs(operation)
        else:
            shapes = [each.shape for each in keras.tree.flatten(operation.output)]
            total += sum(math.prod(size for size in shape[1:] if size) for shape in shapes)
    return total


def _images_per_row(images):
    return 3 if images.ndim == 5 else 1  # of a triplet


def _step(model, images, labels, count):
    with warnings.catch_warnings(action="ignore"):  # about the structure of the inputs
        model.train_on_batch(images[:count], labels[:count])


def _highest_memory(function):
    """Bytes that a function adds to the memory of this process at its highest, seen every 2 ms."""
    seen, done = [system_memory.used_memory()], threading.Event()

    def watch():
        while not done.wait(0.002):
            seen.append(system_memory.used_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        function()
    finally:
        done.set()
        watcher.join()
    return max(seen) - seen[0]
