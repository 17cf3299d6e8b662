"""Figures of a run: training curves, and where the map of the embeddings shows each image."""

import os

import numpy as np
from matplotlib import colormaps, colors
from matplotlib.figure import Figure
from sklearn.manifold import TSNE

from pipeline.files import atomic_path


def training_curves(history: dict[str, list[float]], path: os.PathLike) -> None:
    """Draws loss, active triplets, mean distances and validation accuracy over the epochs, with a line at the best.

    Args:
        history: dict from names to one value an epoch, as `fit` returns it.
        path: path of the image to write.
    """
    panels = (
        ("Triplet loss", {"loss": "training"}),
        ("Fraction of active triplets", {"active_triplets": "training"}),
        (
            "Mean squared distance",
            {"positive_distance": "anchor to positive", "negative_distance": "anchor to negative"},
        ),
        ("Nearest-neighbour accuracy", {"val_accuracy": "validation"}),
    )
    figure, best = Figure(figsize=(11, 7), layout="constrained"), best_epoch(history["val_accuracy"])
    for axes, (title, curves) in zip(figure.subplots(2, 2).flat, panels, strict=True):
        for name, label in curves.items():
            epochs = np.arange(1, len(history[name]) + 1)
            axes.plot(epochs, history[name], marker="o", markersize=3, label=label)
        if best:
            axes.axvline(best, color="grey", linestyle=":", label="best epoch")
        axes.set(title=title, xlabel="epoch")
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axes.grid(alpha=0.3)
        axes.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)


def best_epoch(accuracies: list[float]) -> int | None:
    """The epoch, from 1, with the highest validation accuracy, of equal ones the latest; None without any."""
    return max(range(1, len(accuracies) + 1), key=lambda epoch: (accuracies[epoch - 1], epoch), default=None)


def some_images(count: int, seed: int, most: int = 2000) -> np.ndarray:
    """Random numbers below `count`, at most `most` of them: the images of the map."""
    return np.random.default_rng(seed).permutation(count)[:most]


def map_places(embeddings: np.ndarray, numbers: np.ndarray, seed: int) -> np.ndarray:
    """Places embeddings in two dimensions by t-SNE (van der Maaten and Hinton 2008).

    Args:
        embeddings: shape `(n, size)`.
        numbers: which of them to place, shape `(m,)`.
        seed: int.

    Returns:
        Places of shape `(m, 2)`; of shape `(0, 2)` if there are too few images for t-SNE.
    """
    if len(numbers) <= 3:
        return np.zeros((0, 2))
    perplexity = min(30, (len(numbers) - 1) / 3)
    return TSNE(perplexity=perplexity, init="random", random_state=seed).fit_transform(embeddings[numbers])


def class_colours(count: int) -> list[str]:
    """Colours that are easy to tell apart, such as `"#1f77b4"`, one for each class."""
    rgba = colormaps["tab10"](np.arange(count)) if count <= 10 else colormaps["hsv"](np.arange(count) / count)
    return [colors.to_hex(colour) for colour in rgba]
