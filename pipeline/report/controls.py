"""What the trained network is compared with: raw pixels, and the network before training."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np

from pipeline import files
from pipeline.data.splits import DataSet, Images
from pipeline.neighbours import evaluate, retrieval_scores


class Controls(NamedTuple):
    """Scores without training; the keys are `"raw pixels"` and `"before training"`.

    Attributes:
        known: dict of the scores of the test images (see `evaluate`), empty without any.
        unseen: dict of the scores of the held-out classes among themselves (see `retrieval_scores`), empty without any.
        embeddings: before training, of the test images or, without any, of the held-out ones.
    """

    known: dict[str, dict[str, float]]
    unseen: dict[str, dict[str, float]]
    embeddings: np.ndarray


def measure_controls(folder: Path, embed: Callable[[Images], np.ndarray], data: DataSet, neighbours: int) -> Controls:
    """Measures how well the classes of test images are predicted, and held-out classes told apart, without training.

    The result is written to `controls.npz` in the run folder, and read from there when the run is resumed.

    Args:
        folder: path of the run folder.
        embed: function of `Images` that returns their embeddings before training, `(n, embedding_size)`.
        data: `DataSet`; `test` or `held_out` may be empty, not both.
        neighbours: int, how many training images vote.

    Returns:
        `Controls`.
    """
    path = folder / "controls.npz"
    try:
        with np.load(path, allow_pickle=False) as stored:
            scores = json.loads(str(stored["scores"]))
            return Controls(scores["known"], scores["unseen"], stored["embeddings"])
    except Exception:  # not there yet, or of an earlier version; or corrupt, which raises many types
        print("Measuring how well raw pixels do, and the network before training ...")
    known, unseen, embeddings = {}, {}, None
    for name, features_of in {"raw pixels": raw_pixels, "before training": embed}.items():
        if len(data.held_out.labels):
            embeddings = features_of(data.held_out)
            unseen[name] = retrieval_scores(embeddings, data.held_out.labels)
        if len(data.test.labels):
            embeddings = features_of(data.test)
            train = features_of(data.train), data.train.labels
            _, known[name] = evaluate(*train, embeddings, data.test.labels, neighbours)
    with files.open_atomic(path) as file:
        np.savez(file, scores=np.array(json.dumps({"known": known, "unseen": unseen})), embeddings=embeddings)
    return Controls(known, unseen, embeddings)


def raw_pixels(data: Images) -> np.ndarray:
    """Images as vectors, the simplest features there are; images above 32×32 pixels are shrunk to that size.

    Args:
        data: `Images`.

    Returns:
        float32 from 0 to 1, shape `(n, 3 * height * width)`.
    """
    images = data.images
    if max(images.shape[2:]) > 32:
        shrunk = [
            keras.ops.image.resize(
                keras.ops.cast(images[start : start + 256], "float32"),
                (32, 32),
                antialias=True,
                data_format="channels_first",
            )
            for start in range(0, len(images), 256)
        ]
        images = np.concatenate([keras.ops.convert_to_numpy(batch) for batch in shrunk])
    return images.reshape(len(images), -1).astype("float32") / 255
