"""What people would rather look at than read: curves, confusions, a map of the embeddings, neighbours."""

import warnings

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from sklearn.manifold import TSNE
from sklearn.metrics import ConfusionMatrixDisplay

from run_folder import whole

RIGHT, WRONG = "tab:green", "tab:red"


def training_curves(history, path):
    """Draws loss, active triplets, mean distances and validation accuracy over the epochs.

    Args:
        history: dict from names to one number an epoch, as `fit` returns it.
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


def confusion_matrix(labels, predicted, class_names, path):
    """Draws how often images of each class (rows) were predicted as each class (columns), in percent of the row.

    Args:
        labels: integers, shape `(n,)`.
        predicted: integers, shape `(n,)`.
        class_names: list of str.
        path: path of the image to write.
    """
    few = len(class_names) <= 30  # beyond that, names and numbers would lie over one another
    side = 3 + 0.6 * len(class_names) if few else 12
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    display = ConfusionMatrixDisplay.from_predictions(
        labels,
        predicted,
        labels=np.arange(len(class_names)),
        display_labels=[_as_written(name) for name in class_names],
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
    axes.set(title=f"Test images: {np.mean(labels == predicted):.1%} right", xlabel="predicted", ylabel="class")
    _save(figure, path)


def embedding_map(embeddings, labels, class_names, path, seed=0, most=2000):
    """Draws embeddings in two dimensions (t-SNE, van der Maaten and Hinton 2008), coloured by class.

    Args:
        embeddings: floats, shape `(n, embedding_size)`; a random `most` of them are drawn.
        labels: integers, shape `(n,)`.
        class_names: list of str.
        path: path of the image to write.
        seed: int.
        most: int.
    """
    shown = np.random.default_rng(seed).permutation(len(embeddings))[:most]
    figure = Figure(figsize=(9, 7), layout="constrained")
    axes = figure.subplots()
    if len(shown) > 3:
        perplexity = min(30, (len(shown) - 1) / 3)
        places = TSNE(perplexity=perplexity, init="random", random_state=seed).fit_transform(embeddings[shown])
        colours = _class_colours(len(class_names))[labels[shown]]
        axes.scatter(*places.T, s=8, c=colours)
    if len(class_names) <= 30:
        for name, colour in zip(class_names, _class_colours(len(class_names)), strict=True):
            axes.scatter([], [], s=30, color=colour, label=" " + _as_written(name))  # "_" would be left out
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    axes.set(title=f"t-SNE of the embeddings of {len(shown):,} test images", xticks=[], yticks=[])
    _save(figure, path)


def neighbour_page(test, predicted, train, indices, class_names, path, seed=0):
    """Draws test images with their nearest training images, framed green if of the test image's class, else red.

    Half of the rows are wrongly predicted images, if there are as many.

    Args:
        test: `Images`, n of them.
        predicted: integers, shape `(n,)`.
        train: `Images`.
        indices: of the training images nearest to each test image, shape `(n, neighbours)`.
        class_names: list of str.
        path: path of the image to write.
        seed: int, of the choice of test images.
    """
    rows, columns = min(10, len(predicted)), min(8, indices.shape[1])
    order = np.random.default_rng(seed).permutation(len(predicted))
    wrong = order[predicted[order] != test.labels[order]]
    right = order[predicted[order] == test.labels[order]]
    wrong = wrong[: max(rows // 2, rows - len(right))]
    shown = np.concatenate([right[: rows - len(wrong)], wrong])
    figure = Figure(figsize=(1.5 * (columns + 1.2), 1.5 * rows + 0.5), layout="constrained")
    grid = figure.subplots(rows, columns + 1, squeeze=False)
    for row, query in zip(grid, shown, strict=True):
        verdict = RIGHT if predicted[query] == test.labels[query] else WRONG
        _show(row[0], test.images[query], "black", class_names[test.labels[query]])
        row[0].set_xlabel(f"→ {_as_written(class_names[predicted[query]])}", color=verdict, fontsize=8)
        for axes, reference in zip(row[1:], indices[query], strict=False):
            same = train.labels[reference] == test.labels[query]
            _show(axes, train.images[reference], RIGHT if same else WRONG, class_names[train.labels[reference]])
    figure.suptitle("Test images (left, with the predicted class) and their nearest training images")
    _save(figure, path)


def _show(axes, image, frame, title):
    axes.imshow(image.transpose(1, 2, 0))
    axes.set_title(_as_written(title), fontsize=8)
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(color=frame, linewidth=3)


def _as_written(name):
    """A class name that Matplotlib does not take for a formula, whatever `$` are in it."""
    return name.replace("$", r"\$")


def _class_colours(count):
    """RGBA colours, as unlike each other as their number allows; shape `(count, 4)`."""
    return colormaps["tab10"](np.arange(count)) if count <= 10 else colormaps["hsv"](np.arange(count) / count)


def _save(figure, path):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # of a script that the font lacks: boxes, no warnings
        with whole(path) as beside:
            figure.savefig(beside, dpi=120)
