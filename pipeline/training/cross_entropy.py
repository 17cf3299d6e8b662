"""Fine-tuning of the same network with cross-entropy, to compare triplet loss with."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import keras
import numpy as np

from pipeline.checkpoint_files import CROSS_ENTROPY_FOLDER
from pipeline.data.batches import Batches
from pipeline.data.splits import Images
from pipeline.training.callbacks import TimeEstimate, ValidationAccuracy
from pipeline.training.checkpoints import Checkpoints


@contextlib.contextmanager
def trained_classifier(
    embedding_model: keras.Model,
    batches: Batches,
    validation: Images,
    classes: int,
    predict: Callable[[keras.Model, Images], list[np.ndarray]],
    optimizer: keras.optimizers.Optimizer,
    epochs: int,
    folder: Path,
    minutes: float,
) -> Iterator[Callable[[Images], list[np.ndarray]]]:
    """Trains a classifier on the backbone of an embedding network, and gives the network its weights back at the end.

    A dense layer with a logit for each class takes the place of the embedding. Everything else is that of the training
    with triplet loss: the weights at the start, the images of each batch, the augmentation, the steps, and the choice
    of the best epoch on the validation images. Until the run is finished, checkpoints are in a folder of their own in
    the run folder.

    Args:
        embedding_model: what `fine_tuned_models` has built.
        batches: `Batches` of the training with triplet loss; of triplets, all three images count.
        validation: `Images`.
        classes: int, the number of classes.
        predict: function of a model and `Images` that returns the model's outputs.
        optimizer: a new one, with a learning rate for as many steps.
        epochs: int.
        folder: path of the run folder.
        minutes: float, time between checkpoints.

    Yields:
        A function of `Images` that returns logits `(n, classes)` and pooled features `(n, channels)`.

    Raises:
        Interrupted, InputError: as `Checkpoints.fit`.
    """
    print("Fine-tuning the same network with cross-entropy, to compare with (CONTROL) ...")
    start = [np.array(keras.ops.convert_to_numpy(each)) for each in embedding_model.variables]
    pooled, normalised = (embedding_model.get_layer(name).output for name in ("pooling", "pooled_batch_norm"))
    logits = keras.layers.Dense(classes, dtype="float32", name="logits")(normalised)  # shape (batch, classes)
    classifier = keras.Model(embedding_model.inputs, logits)
    classifier.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))

    def measure():
        outputs = predict(classifier, validation)  # shape (n, classes)
        if not np.isfinite(outputs).all():
            return float("nan")
        return float(np.mean(outputs.argmax(axis=1) == validation.labels))

    accuracy = ValidationAccuracy(classifier, measure)
    folder = folder / CROSS_ENTROPY_FOLDER
    folder.mkdir(exist_ok=True)
    single = batches.of_single_images()
    checkpoints = Checkpoints(classifier, [], single, {"accuracy": accuracy}, folder, minutes)
    checkpoints.resume()
    checkpoints.fit(epochs, [keras.callbacks.TerminateOnNaN(), TimeEstimate(single), accuracy])
    accuracy.load_best_weights()
    both = keras.Model(embedding_model.inputs, [logits, pooled])
    yield lambda images: predict(both, images)
    for variable, value in zip(embedding_model.variables, start, strict=True):
        variable.assign(value)
