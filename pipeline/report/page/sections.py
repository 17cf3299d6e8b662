"""What each section of the report page shows, as the values that its template and its script take."""

import base64
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import confusion_matrix

from pipeline.data.image_list import printable
from pipeline.data.splits import DataSet, Images
from pipeline.report import figures
from pipeline.report.audit import ACROSS, FAR, LABEL, OTHER_LABEL, Finding
from pipeline.report.page.thumbnails import Thumbnails
from pipeline.report.results import Results
from pipeline.report.tables import MEASURES, score_rows

MOST_MISTAKES, NEIGHBOURS = 60, 5  # that are shown, and the nearest training images of each
MOST_IN_MATRIX, MOST_CONFUSED = 30, 30  # classes in the matrix; pairs of classes in the list
MOST_FINDINGS = 24  # of each kind
EXPLANATIONS = {
    LABEL: (
        "Labels to check",
        "A classifier of the network's features before training, fitted to the other training images, finds the label "
        "improbable; the least probable first. Many of these labels are right.",
    ),
    ACROSS: (
        "Near duplicates across the split",
        "Test or validation images that are nearly equal to an image on the other side: they make scores too good.",
    ),
    OTHER_LABEL: (
        "Near duplicates with different labels",
        "One of the two labels is wrong, or the images belong to both classes.",
    ),
    FAR: ("Images far from all others", "By the network's features before training; the farthest first."),
}
MAP_WIDTH, MAP_HEIGHT, MAP_MARGIN = 1000, 700, 15  # of the map, in its own unit


def score_table(title: str, methods: dict[str, dict]) -> dict[str, Any]:
    """A table of the scores of several methods.

    Args:
        title: str.
        methods: dict from names to dicts of scores.
    """
    columns, rows = score_rows(methods)
    return {"title": title, "columns": ["", *columns], "rows": [[name, *values] for name, values in rows.items()]}


def curves(history: dict[str, list[float]], picture: Path) -> dict[str, str] | None:
    """The training curves with a description, None before the first epoch.

    Args:
        history: dict from names to one value an epoch.
        picture: path of the PNG file of the curves.
    """
    accuracies = history.get("val_accuracy", [])
    best = figures.best_epoch(accuracies)
    if not best:
        return None
    description = (
        f"Epoch {best} has the highest validation accuracy, {accuracies[best - 1]:.4f}; its weights are kept. The loss "
        f"was {history['loss'][0]:.4f} in the first epoch and {history['loss'][-1]:.4f} in the last one."
    )
    address = "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode("ascii")
    return {"address": address, "description": description}


def embedding_map(
    data: DataSet,
    results: Results,
    before: np.ndarray,
    after: np.ndarray,
    numbers: np.ndarray,
    thumbnails: Thumbnails,
) -> tuple[dict[str, Any] | None, list[dict]]:
    """The map of the embeddings.

    Args:
        data: `DataSet`.
        results: `Results`.
        before, after: places of images in two dimensions before and after training, shape `(n, 2)`; may be empty.
        numbers: which of the shown images they are (see `DataSet.shown`), shape `(n,)`.
        thumbnails: `Thumbnails`, to which the images and their neighbours are added.

    Returns:
        Tuple of what the template takes, None without places, and a dict for each point, which the script takes.
    """
    if not len(after):
        return None, []
    (shown, names), tested = data.shown(), len(results.predicted) > 0
    names, colours = [printable(name) for name in names], figures.class_colours(len(names))
    points, part = [], "test" if tested else "held_out"
    for old, new, number in zip(_on_the_map(before), _on_the_map(after), numbers.tolist(), strict=True):
        label = shown.labels[number]
        place = _thumbnail(part, shown, number, thumbnails)["place"]
        point = {"before": old, "after": new, "colour": colours[label], "place": place, "label": names[label]}
        if tested:
            point["predicted"] = names[results.predicted[number]]
            point["wrong"] = bool(results.predicted[number] != label)
            nearest = _neighbours(data, results, number, 3, thumbnails)
            point["neighbours"] = [{key: each[key] for key in ("place", "label", "same")} for each in nearest]
        points.append(point)
    description = f"t-SNE of {len(after):,} of {len(shown.labels):,} test images, coloured by class."
    if tested:
        description += " Wrong predictions have an edge."
    if len(names) > MOST_IN_MATRIX:
        description += " Of so many classes, several have the same colour."
    legend = [{"name": name, "colour": colour} for name, colour in zip(names, colours, strict=True)]
    return {"description": description, "legend": legend if len(names) <= MOST_IN_MATRIX else []}, points


def mistakes(data: DataSet, results: Results, thumbnails: Thumbnails) -> dict[str, Any] | None:
    """The wrong predictions, the most confident first, with the nearest training images; None if there are none."""
    wrong = np.flatnonzero(results.predicted != data.test.labels)
    if not len(wrong):
        return None
    votes = data.train.labels[results.indices[wrong]] == results.predicted[wrong][:, None]  # shape (wrong, neighbours)
    shares = votes.mean(axis=1)
    order = np.lexsort((results.known_distances[wrong], -shares))[:MOST_MISTAKES]
    names, shown = [printable(name) for name in data.class_names], []
    for number, share in zip(wrong[order], shares[order], strict=True):
        mistake = {"label": names[data.test.labels[number]], "predicted": names[results.predicted[number]]}
        mistake |= {"share": f"{share:.0%} of the votes", **_thumbnail("test", data.test, number, thumbnails)}
        shown.append(mistake | {"neighbours": _neighbours(data, results, number, NEIGHBOURS, thumbnails)})
    description = f"{len(wrong):,} of {len(data.test.labels):,} test images are classified wrongly. "
    which = f"the {len(shown)} with the largest shares of the votes" if len(shown) < len(wrong) else "all of them"
    description += f"Below are {which}, and their nearest training images."
    return {"description": description, "shown": shown}


def confusion(labels: np.ndarray, predicted: np.ndarray, class_names: list[str]) -> dict[str, Any]:
    """The confusion matrix, if there are few classes, and the pairs of classes that are confused most.

    Args:
        labels: integers, shape `(n,)`.
        predicted: integers, shape `(n,)`.
        class_names: list of str.
    """
    names = [printable(name) for name in class_names]
    counts = confusion_matrix(labels, predicted, labels=np.arange(len(names)))
    of_class, rows = np.maximum(counts.sum(axis=1), 1), []
    if len(names) <= MOST_IN_MATRIX:
        rows = [[_cell(count, images) for count in row] for row, images in zip(counts.tolist(), of_class, strict=True)]
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(-wrong, axis=None, kind="stable")[:MOST_CONFUSED]
    pairs = [divmod(int(place), len(names)) for place in order if wrong.flat[place]]
    table = [[names[true], names[other], f"{wrong[true, other]} of {of_class[true]}"] for true, other in pairs]
    return {"names": names, "rows": rows, "pairs": {"columns": ["class", "predicted as", "images"], "rows": table}}


def threshold(results: Results) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """The threshold for unknown images: what the template takes, and the distances, which the script takes."""
    distances = {"known": results.known_distances, "unknown": results.unknown_distances}
    distances = {name: [float(f"{value:.7g}") for value in np.sort(each)] for name, each in distances.items()}
    largest = max([results.threshold, *distances["known"][-1:], *distances["unknown"][-1:]])
    values = {"value": repr(float(results.threshold)), "largest": repr(1.05 * largest)}
    return values | {"known": bool(distances["known"]), "unknown": bool(distances["unknown"])}, distances


def class_table(classes: dict[str, dict[str, float]]) -> dict[str, Any]:
    """A table of the measures of each class."""
    rows = [
        [printable(name), *(f"{each[measure]:.4f}" for measure in MEASURES[:-1]), f"{each['support']:.0f}"]
        for name, each in classes.items()
    ]
    return {"columns": ["class", *MEASURES], "rows": rows}


def audit(
    data: DataSet, findings: list[Finding], duplicates: dict[str, float] | None, thumbnails: Thumbnails
) -> list[dict[str, Any]]:
    """What may be wrong with the images or labels: for each kind of finding, the first ones with their images.

    Args:
        data: `DataSet`.
        findings: list of `Finding`.
        duplicates: the entry "near duplicates" of `report.json`, None without test images that have any.
        thumbnails: `Thumbnails`, to which the images are added.
    """
    parts, names = [], [printable(name) for name in data.class_names + data.held_out_names]
    for kind, (title, explanation) in EXPLANATIONS.items():
        of_kind, shown = [each for each in findings if each.kind == kind], []
        for each in of_kind[:MOST_FINDINGS]:
            images = getattr(data, each.part)
            finding = _thumbnail(each.part, images, each.index, thumbnails)
            label = names[images.labels[each.index]]
            if kind == LABEL:
                finding["text"] = f"labelled {label}, more likely {names[each.other_label]}"
            elif each.other_part:
                finding["other"] = _thumbnail(
                    each.other_part, getattr(data, each.other_part), each.other_index, thumbnails
                )
                finding["text"] = f"{label} ({each.part}), {names[each.other_label]} ({each.other_part})"
            else:
                finding["text"] = f"{label} ({each.part})"
            shown.append(finding)
        if shown:
            number = f"{len(of_kind):,}" + f", the first {len(shown)} of them here" * (len(shown) < len(of_kind))
            description = f"{explanation} Found: {number}."
            if kind == ACROSS and "accuracy without them" in (duplicates or {}):
                description += (
                    " Without the test images that have near duplicates in training or validation, of any label, "
                    f"the accuracy of triplet loss is {duplicates['accuracy without them']:.4f}."
                )
            parts.append({"title": title, "description": description, "shown": shown})
    return parts


def _cell(count, images):
    """A cell of the confusion matrix; `images` is the number of images of the class, 1 if it has none."""
    share = count / images
    text = "" if count == 0 else "<1%" if share < 0.01 else f"{share:.0%}"
    return {"share": f"{share:.3f}", "text": text, "count": f"{count} of {images}"}


def _on_the_map(places):
    """Places as coordinates of the map, shape `(n, 2)`."""
    size, low = np.array([MAP_WIDTH, MAP_HEIGHT]) - 2 * MAP_MARGIN, places.min(axis=0)
    return (MAP_MARGIN + (places - low) / np.maximum(np.ptp(places, axis=0), 1e-12) * size).round(1).tolist()


def _neighbours(data, results, number, count, thumbnails):
    """The training images nearest to a test image."""
    return [
        {
            **_thumbnail("train", data.train, index, thumbnails),
            "label": printable(data.class_names[data.train.labels[index]]),
            "same": bool(data.train.labels[index] == data.test.labels[number]),
        }
        for index in results.indices[number][:count]
    ]


def _thumbnail(part: str, images: Images, index: int, thumbnails: Thumbnails) -> dict[str, Any]:
    """The place of an image among the thumbnails, and its name."""
    place = thumbnails.add(part, index, images.pixels(index), printable(images.name_of(index)))
    return {"place": place, "name": thumbnails.names[place]}
