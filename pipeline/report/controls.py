"""What triplet loss is compared with: features without training, a linear classifier, cross-entropy."""

import json
import math
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np

from pipeline import files, system_memory
from pipeline.data.image_list import PARTS, TRAIN, VALIDATION
from pipeline.data.splits import DataSet, Images
from pipeline.errors import InputError
from pipeline.report.audit import Finding, find_doubted_labels, find_duplicates, find_far_images
from pipeline.report.linear import STRENGTHS, linear_predictions
from pipeline.report.methods import Method, by_neighbours

RAW_PIXELS, POOLED = "raw pixels", "pooled features"
LINEAR = "logistic regression"
CROSS_ENTROPY, CROSS_ENTROPY_FEATURES = "cross-entropy", "cross-entropy features"
STEP = 3  # a training step takes about three times as long as a prediction
PIXELS = 32  # height and width of the images that are compared by their pixels
LEAST_SECONDS = 60  # that a linear classifier may always take


class Controls(NamedTuple):
    """What triplet loss is compared with.

    Attributes:
        methods: dict from names to `Method`.
        notes: list of str, a sentence for each method that is missing, and each check that was of a sample.
        embeddings: the pooled features before training of the test images or, without any, of the held-out ones.
        findings: list of `Finding`, what may be wrong with the images or labels.
    """

    methods: dict[str, Method]
    notes: list[str]
    embeddings: np.ndarray
    findings: list[Finding]


def measure_controls(
    folder: Path,
    pooled_features: Callable[[Images], np.ndarray],
    data: DataSet,
    neighbours: int,
    epochs: int,
    seed: int,
) -> Controls:
    """Measures how well the classes of test images are predicted, and held-out classes told apart, without training.

    The methods are raw pixels and the network's pooled features, both by nearest neighbours, and logistic regression on
    the pooled features, unless it would take longer than the training. By the same features the images and labels are
    checked: see `audit`. The result is written to `controls.npz` in the
    run folder, and read from there when the run is resumed.

    Args:
        folder: path of the run folder.
        pooled_features: function of `Images` that returns the backbone's features, averaged over positions, before
            training: `(n, channels)`.
        data: `DataSet`; `test` or `held_out` may be empty, not both.
        neighbours: int, how many training images vote.
        epochs: int, of the training.
        seed: int, of the check.

    Returns:
        `Controls`.
    """

    def measure():
        print("Measuring how well raw pixels do, and the network's features before training ...")
        parts = dict(_parts(data))
        pixels = raw_pixels([*parts.values()], folder)
        ends = np.cumsum([len(images.labels) for images in parts.values()])[:-1]
        of_parts = dict(zip(parts, np.split(pixels, ends), strict=True))
        methods, notes = {RAW_PIXELS: by_neighbours(of_parts, data, neighbours)[0]}, []
        findings, of_duplicates = find_duplicates(pixels, data, seed)
        del pixels, of_parts
        began, features = time.monotonic(), {}
        for part, images in parts.items():
            features[part] = unit_length(pooled_features(images))
            if part == TRAIN:
                seconds = max(LEAST_SECONDS, STEP * epochs * (time.monotonic() - began))
        methods[POOLED], _ = by_neighbours(features, data, neighbours)
        print("Fitting logistic regression on these features ...")
        of_train = features[TRAIN], data.train.labels
        queries = features.get("test", features[VALIDATION])
        fitted = linear_predictions(*of_train, features[VALIDATION], data.validation.labels, queries, seconds)
        doubted = find_doubted_labels(*of_train, fitted[1], seed, seconds) if fitted else None
        if fitted and "test" in features:
            methods[LINEAR] = _predicted(fitted[0], data)
        if fitted and fitted[2] < len(STRENGTHS):
            tried = f"{fitted[2]} of {len(STRENGTHS)} regularisation strengths"
            notes.append(f"Logistic regression has tried {tried}: more would take longer than the training.")
        if doubted is None:
            what = "The search for wrong labels" if fitted else "Logistic regression, with the search for wrong labels,"
            notes.append(f"{what} is skipped: it takes longer than the training.")
        far, of_far = find_far_images(features, seed)
        findings += (doubted or []) + far
        for note in filter(None, (of_duplicates, of_far)):
            print(note)
            notes.append(note)
        shown = features["test" if "test" in features else "held_out"]
        return Controls(methods, notes, shown, findings)

    return _measured_once(folder / "controls.npz", measure)


def measure_cross_entropy(
    folder: Path,
    train: Callable[[], AbstractContextManager[Callable[[Images], tuple[np.ndarray, np.ndarray]]]],
    data: DataSet,
    neighbours: int,
) -> dict[str, Method]:
    """Trains the same network as a classifier, and measures its predictions, and its features by nearest neighbours.

    The result is written to `cross_entropy.npz` in the run folder, and read from there when the run is resumed.

    Args:
        folder: path of the run folder.
        train: function that trains it and returns a context manager of a function of `Images`, which returns logits
            `(n, classes)` and pooled features `(n, channels)`.
        data: `DataSet`.
        neighbours: int, how many training images vote.

    Returns:
        dict from names to `Method`.
    """

    def measure():
        methods, features = {}, {}
        with train() as outputs:
            for part, images in _parts(data, without=(VALIDATION,)):
                logits, pooled = outputs(images)
                features[part] = unit_length(pooled)
                if part == "test":
                    methods[CROSS_ENTROPY] = _predicted(logits.argmax(axis=1), data)
            methods[CROSS_ENTROPY_FEATURES], _ = by_neighbours(features, data, neighbours)
        return Controls(methods, [], np.zeros(0), [])

    return _measured_once(folder / "cross_entropy.npz", measure).methods


def _parts(data, without=()):
    """The names and images of the parts that have images."""
    for part in PARTS:
        images = getattr(data, part)
        if part not in without and len(images.labels):
            yield part, images


def _predicted(predicted, data):
    """A method that gives classes alone, no neighbours."""
    correct = predicted == data.test.labels
    return Method({"accuracy": float(correct.mean())}, {}, correct)


def _measured_once(path, measure):
    """The `Controls` in a file; or else, if it is missing or corrupt, what `measure()` returns, written there."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            scores = json.loads(str(stored["scores"]))
            methods = {
                name: Method(known, unseen, stored[f"correct {name}"])
                for name, (known, unseen) in scores["methods"].items()
            }
            findings = [Finding(*each) for each in scores["findings"]]
            return Controls(methods, scores["notes"], stored["embeddings"], findings)
    except Exception:  # not there yet, or of an earlier version; or corrupt, which raises many types
        controls = measure()
    scores = {
        "methods": {name: (each.known, each.unseen) for name, each in controls.methods.items()},
        "notes": controls.notes,
        "findings": controls.findings,
    }
    correct = {f"correct {name}": each.correct for name, each in controls.methods.items()}
    with files.open_atomic(path) as file:
        np.savez(file, scores=np.array(json.dumps(scores)), embeddings=controls.embeddings, **correct)
    return controls


def unit_length(features: np.ndarray) -> np.ndarray:
    """Features divided by their norms, so that distances compare directions, as those of embeddings do.

    Args:
        features: floats, shape `(n, size)`.

    Returns:
        The same shape; features that are all 0 stay so.
    """
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.maximum(norms, 1e-12)


def raw_pixels(parts: list[Images], folder: Path) -> np.ndarray:
    """Images as vectors, the simplest features there are; images above 32×32 pixels are shrunk to that size.

    Args:
        parts: list of `Images`, which have the same size.
        folder: path of a folder for a temporary file, which holds the vectors if they need much of the memory.

    Returns:
        float32 from 0 to 1, shape `(n, 3 * height * width)`: the images of all parts.
    """
    size, count = parts[0].array.shape[2:], sum(len(images.labels) for images in parts)
    is_large = max(size) > PIXELS
    pixels = _large_array((count, 3, *((PIXELS, PIXELS) if is_large else size)), folder)
    start, step = 0, max(1, 2**22 // math.prod(parts[0].array.shape[1:]))  # 16 MiB as float32
    for images in parts:
        for first in range(0, len(images.labels), step):
            batch = images.pixels(slice(first, first + step))
            if is_large:
                batch = keras.ops.image.resize(
                    keras.ops.cast(batch, "float32"), (PIXELS, PIXELS), antialias=True, data_format="channels_first"
                )
            pixels[start : start + len(batch)] = keras.ops.convert_to_numpy(batch) / np.float32(255)
            start += len(batch)
    return pixels.reshape(count, -1)


def _large_array(shape, folder):
    """A float32 array: in a temporary file if it would take more than a quarter of the free memory."""
    free = system_memory.free_memory()
    if free is None or 4 * math.prod(shape) < free / 4:
        return np.empty(shape, "float32")
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            files.allocate(file, 4 * math.prod(shape))
            return np.asarray(np.memmap(file, "float32", "r+", shape=shape))
    except OSError as error:
        needed = f"{4 * math.prod(shape) / 2**20:,.0f} MiB"
        raise InputError(
            f"The disk of `RUN_FOLDER`, and of TMPDIR where several processes train together, must have {needed} free, "
            f"for raw pixels that do not fit into memory. Received: {error}"
        ) from error
