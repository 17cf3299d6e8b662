"""What to do when a training batch does not fit into memory."""

import gc

import keras

from pipeline.data.batches import Batches
from pipeline.settings import process


def explanation(model: keras.Model, batches: Batches, error: str) -> str:
    """Says which constants to lower, and how large a batch fits, as measured by steps with fewer images.

    Args:
        model: compiled `keras.Model`, whose weights the steps change.
        batches: `Batches` for training, whose first one does not fit.
        error: str, what was raised.
    """
    images, labels = batches[0]
    per_row = 3 if images.ndim == 5 else 1  # of a triplet
    rule = f"a batch of {per_row * len(labels):,} images does not fit into memory"
    divisor = 2
    while len(labels) // divisor >= 2:
        gc.collect()
        count = len(labels) // divisor
        try:
            model.train_on_batch(images[:count], labels[:count])
        except Exception as raised:
            if not process.is_out_of_memory(raised):
                break
        else:
            advice = f"one of {per_row * count:,} does, as a step has shown: divide IMAGES_PER_CLASS by {divisor}"
            return f"`IMAGES_PER_CLASS` or `IMAGE_SIZE` must be smaller: {rule}; {advice}. Received: {error}"
        divisor *= 2
    return f"`IMAGE_SIZE` must be smaller: {rule}, and no smaller one does. Received: {error}"
