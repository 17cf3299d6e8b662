"""What the trained network is compared with: raw pixels, and the network before training."""

import json
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np

from pipeline import files
from pipeline.data.splits import Images
from pipeline.neighbours import evaluate


def measure_controls(
    folder: Path, embed: Callable[[Images], np.ndarray], train: Images, test: Images, neighbours: int
) -> tuple[dict[str, dict[str, float]], np.ndarray]:
    """Measures how well the test images' classes are predicted without training.

    The result is written to `controls.npz` in the run folder, and read from there when the run is resumed.

    Args:
        folder: path of the run folder.
        embed: function of `Images` that returns their embeddings before training, `(n, embedding_size)`.
        train: `Images` that vote.
        test: `Images` to predict.
        neighbours: int, how many training images vote.

    Returns:
        Tuple of a dict from the controls' names to their scores (see `evaluate`), and the test images' embeddings
        before training, `(n, embedding_size)`.
    """
    path = folder / "controls.npz"
    try:
        with np.load(path, allow_pickle=False) as stored:
            return json.loads(str(stored["scores"])), stored["embeddings"]
    except Exception:  # not there yet; or corrupt, for which NumPy and zipfile raise many types
        print("Predicting the test images' classes from raw pixels, and with the network before training ...")
    labels = train.labels, test.labels
    _, of_pixels = evaluate(raw_pixels(train), labels[0], raw_pixels(test), labels[1], neighbours)
    embeddings = embed(test)
    _, of_network = evaluate(embed(train), labels[0], embeddings, labels[1], neighbours)
    scores = {"raw pixels": of_pixels, "before training": of_network}
    with files.open_atomic(path) as file:
        np.savez(file, scores=np.array(json.dumps(scores)), embeddings=embeddings)
    return scores, embeddings


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
