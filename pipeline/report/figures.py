"""Figures of a run: training curves, confusion matrix, map of the embeddings, nearest neighbours."""

import os

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from sklearn.manifold import TSNE
from sklearn.metrics import ConfusionMatrixDisplay

from pipeline.data.splits import Images
from pipeline.files import atomic_path
from pipeline.report.class_labels import display_width, drawing

CORRECT, WRONG = "tab:green", "tab:red"


def training_curves(history: dict[str, list[float]], path: os.PathLike) -> None:
    """Draws loss, active triplets, mean distances and validation accuracy over the epochs.

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
    figure = Figure(figsize=(11, 7), layout="constrained")
    for axes, (title, curves) in zip(figure.subplots(2, 2).flat, panels, strict=True):
        for name, label in curves.items():
            epochs = np.arange(1, len(history[name]) + 1)
            axes.plot(epochs, history[name], marker="o", markersize=3, label=label)
        axes.set(title=title, xlabel="epoch")
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axes.grid(alpha=0.3)
        axes.legend()
    _save(figure, path)


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, class_names: list[str], path: os.PathLike) -> None:
    """Draws how often images of each class (rows) were predicted as each class (columns), in percent of the row.

    Args:
        labels: integers, shape `(n,)`.
        predicted: integers, shape `(n,)`.
        class_names: list of str.
        path: path of the image to write.
    """
    few = len(class_names) <= 30  # with more, names and numbers would overlap
    side = 3 + 0.6 * len(class_names) if few else 12
    with drawing(class_names) as names:
        figure = Figure(figsize=(side + 1, side), layout="constrained")
        axes = figure.subplots()
        display = ConfusionMatrixDisplay.from_predictions(
            labels,
            predicted,
            labels=np.arange(len(class_names)),
            display_labels=names,
            normalize="true",
            include_values=few,
            values_format=".0%",
            xticks_rotation="vertical",
            cmap="Blues",
            colorbar=not few,
            ax=axes,
        )
        if not few:
            display.ax_.set(xticks=[], yticks=[])
        title = f"Test images: {np.mean(labels == predicted):.1%} correct"
        axes.set(title=title, xlabel="predicted class", ylabel="true class")
        _save(figure, path)


def embedding_map(
    before: np.ndarray,
    after: np.ndarray,
    labels: np.ndarray,
    class_names: list[str],
    path: os.PathLike,
    seed: int = 0,
    most: int = 2000,
) -> None:
    """Draws images in two dimensions (t-SNE, van der Maaten and Hinton 2008), by features before and after training.

    Args:
        before: features before training, shape `(n, size)`; a random `most` of them are drawn.
        after: embeddings of the same images after training, shape `(n, embedding_size)`.
        labels: integers, shape `(n,)`.
        class_names: list of str.
        path: path of the image to write.
        seed: int.
        most: int.
    """
    shown = np.random.default_rng(seed).permutation(len(after))[:most]
    colours = _class_colours(len(class_names))
    figure = Figure(figsize=(13, 6), layout="constrained")
    titles = "Before training: pooled features", "After training: embeddings"
    panels = zip(figure.subplots(1, 2), titles, (before, after), strict=True)
    for axes, title, embeddings in panels:
        if len(shown) > 3:
            perplexity = min(30, (len(shown) - 1) / 3)
            places = TSNE(perplexity=perplexity, init="random", random_state=seed).fit_transform(embeddings[shown])
            axes.scatter(*places.T, s=8, c=colours[labels[shown]])
        else:
            title += " (too few images for t-SNE)"
        axes.set(title=title, xticks=[], yticks=[])
    figure.suptitle(f"t-SNE of {len(shown):,} test images, coloured by class")
    with drawing(class_names) as names:
        if len(names) <= 30:
            for name, colour in zip(names, colours, strict=True):
                axes.scatter([], [], s=30, color=colour, label=" " + name)  # a leading "_" would hide it
            axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
        _save(figure, path)


def neighbour_page(
    test: Images,
    predicted: np.ndarray,
    train: Images,
    indices: np.ndarray,
    class_names: list[str],
    path: os.PathLike,
    seed: int = 0,
    rows: int = 6,
) -> None:
    """Draws test images with their nearest training images, framed green if of the test image's class, else red.

    The first part is a random sample, in which wrong predictions are at most as frequent as among all test images. The
    second part, if there are wrong predictions, shows some of them.

    Args:
        test: `Images`, n of them.
        predicted: integers, shape `(n,)`.
        train: `Images`.
        indices: of the training images nearest to each test image, shape `(n, neighbours)`.
        class_names: list of str.
        path: path of the image to write.
        seed: int, of the choice of test images.
        rows: int, the number of test images in each part.
    """
    order = np.random.default_rng(seed).permutation(len(predicted))
    is_wrong = predicted[order] != test.labels[order]
    correct, wrong = order[~is_wrong], order[is_wrong]
    count = min(rows, len(order))
    wrong_count = count * len(wrong) // len(order)
    parts = {"Random sample of the test images": np.concatenate([correct[: count - wrong_count], wrong[:wrong_count]])}
    if len(wrong):
        parts[f"Wrong predictions: {len(wrong):,} of {len(order):,} test images"] = wrong[:rows]

    columns, heights = min(8, indices.shape[1]), [len(part) for part in parts.values()]
    figure = Figure(figsize=(1.5 * (columns + 1.2), 1.6 * sum(heights) + 0.6 * len(parts)), layout="constrained")
    subfigures = figure.subfigures(len(parts), 1, squeeze=False, height_ratios=heights)[:, 0]
    with drawing(class_names) as names:
        for subfigure, (title, queries) in zip(subfigures, parts.items(), strict=True):
            subfigure.suptitle(
                f"{title} (left; → predicted class) and their nearest training images (green: the same class)",
                fontsize=10,
            )
            grid = subfigure.subplots(len(queries), columns + 1, squeeze=False)
            for row, query in zip(grid, queries, strict=True):
                verdict = CORRECT if predicted[query] == test.labels[query] else WRONG
                _show(row[0], test.images[query], "black", names[test.labels[query]])
                answer = f"→ {names[predicted[query]]}"
                row[0].set_xlabel(answer, color=verdict, fontsize=_font_size(answer))
                for axes, reference in zip(row[1:], indices[query], strict=False):
                    same = train.labels[reference] == test.labels[query]
                    _show(axes, train.images[reference], CORRECT if same else WRONG, names[train.labels[reference]])
        _save(figure, path)


def _show(axes, image, frame, title):
    axes.imshow(image.transpose(1, 2, 0))
    axes.set_title(title, fontsize=_font_size(title))
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(color=frame, linewidth=3)


def _font_size(name):
    """The font size, in points, at which the names of neighbouring images of the page do not overlap."""
    return 8 * min(1, 20 / display_width(name))


def _class_colours(count):
    """RGBA colours that are easy to tell apart; shape `(count, 4)`."""
    return colormaps["tab10"](np.arange(count)) if count <= 10 else colormaps["hsv"](np.arange(count) / count)


def _save(figure, path):
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)
