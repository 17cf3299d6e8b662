"""The scores of a run as tables and as JSON, and what is wrong with them."""

import json
from pathlib import Path

import numpy as np
from sklearn.metrics import precision_recall_fscore_support

from pipeline import files
from pipeline.report.class_labels import display_width, replaced_names, table_names

MEASURES = ("precision", "recall", "f1-score", "support")
MOST, WORST = 30, 20  # with more than MOST classes, the WORST of them are printed
# Of the mean squared distance between embeddings, which is 2 for vectors in random directions. Where it is smaller, two
# random images are 30 times nearer than the default MARGIN separates classes, and the nearest ones nearly arbitrary.
SMALLEST_SPREAD = 0.01
# Of the mean squared distance from anchor to negatives in the training batches, which is near 0 after a collapse.
HEALTHY_DISTANCE = 0.1


def print_report(
    folder: Path,
    scores: dict[str, dict[str, float]],
    labels: np.ndarray,
    predicted: np.ndarray,
    class_names: list[str],
    neighbours: int,
    warnings: list[str],
) -> str:
    """Prints the scores, and writes them to `report.json` in the run folder.

    Of many classes, it prints only the worst. The most important, which is short, comes last.

    Args:
        folder: path of the run folder.
        scores: dict of the scores (see `evaluate`) of the controls, and `"after training"`.
        labels: integers, the test images' classes, shape `(n,)`.
        predicted: integers, the predicted classes, shape `(n,)`.
        class_names: list of str.
        neighbours: int, how many training images voted.
        warnings: list of str, one sentence or two each (see `prediction_warnings`).

    Returns:
        The text with all classes.
    """
    of_classes = {"labels": range(len(class_names)), "zero_division": 0}
    measures = precision_recall_fscore_support(labels, predicted, **of_classes)
    per_class = [dict(zip(MEASURES, map(float, values), strict=True)) for values in zip(*measures, strict=True)]
    everything = {**scores, "classes after training": dict(zip(class_names, per_class, strict=True))}
    if warnings:
        everything["warnings"] = warnings
    files.write_text(folder / "report.json", json.dumps(everything, indent=4) + "\n")

    totals = {"accuracy": ["", "", f"{np.mean(labels == predicted):.4f}", f"{len(labels)}"]}
    for average in ("macro", "weighted"):
        *values, _ = precision_recall_fscore_support(labels, predicted, **of_classes, average=average)
        totals[f"{average} avg"] = [*(f"{value:.4f}" for value in values), f"{len(labels)}"]
    replaced = [f"{text}  {name}" for text, name in replaced_names(class_names).items()]
    end = "".join(f"Warning: {warning}\n\n" for warning in warnings)
    end += f"Test images, classified by the vote of {neighbours} nearest training images\n\n"
    columns = list(scores["after training"])
    of_all = {name: [f"{values[column]:.4f}" for column in columns] for name, values in scores.items()}
    end += _table(columns, of_all)

    text = "After training, per class\n\n" + _class_table(class_names, per_class, range(len(class_names)), totals)
    if replaced:
        text += "\n".join(["Class numbers in the figures\n", *replaced]) + "\n\n"
    text += end
    if len(class_names) <= MOST:
        printed = text
    else:
        tested = [number for number, values in enumerate(per_class) if values["support"]]
        order = sorted(tested, key=lambda number: (per_class[number]["f1-score"], class_names[number]))
        worst, others = order[:WORST], len(order[WORST:])
        printed = f"After training, the {len(worst)} classes with the lowest f1-score\n\n"
        printed += _class_table(class_names, per_class, worst, totals)
        printed += f"{others} other classes are not shown; report.txt and report.json in the run folder have all.\n"
        if len(tested) < len(class_names):
            printed += f"Classes without a test image: {len(class_names) - len(tested)}.\n"
        if replaced:
            printed += f"Classes that figures show with a number: {len(replaced)}; report.txt lists their names.\n"
        printed += "\n" + end
    print(f"\n{printed}")
    return text


def prediction_warnings(references: np.ndarray, history: dict[str, list[float]], diverged: bool) -> list[str]:
    """Reasons not to trust the predictions.

    Args:
        references: embeddings of the training images after training, shape `(n, embedding_size)`.
        history: dict from names to one value an epoch; `negative_distance` may be missing.
        diverged: bool, whether training stopped early.

    Returns:
        List of str, one sentence or two each; empty if nothing is wrong.
    """
    found = []
    if diverged:
        found.append("training diverged and stopped early; these are the best epoch's scores. Lower LEARNING_RATE.")
    # Of all pairs: the mean of |x - y|² is twice the variance; for unit vectors it equals 2 (1 - |mean|²).
    spread = 2 * float(references.var(axis=0, dtype="float64").sum())
    if spread < SMALLEST_SPREAD:
        if [0, *history.get("negative_distance", [])][-1] > HEALTHY_DISTANCE:
            why = (
                "in the training batches they were not, so the moving statistics of batch normalisation lag behind "
                "those of the batches: more steps (EPOCHS, or images) or pre-trained WEIGHTS help"
            )
        else:
            why = "training collapsed: a lower LEARNING_RATE helps"
        found.append(
            "the predictions and scores cannot be trusted, because the embeddings of all images are nearly equal "
            f"(mean squared distance {spread:.2g} of at most 2); {why}."
        )
    return found


def _class_table(class_names, per_class, numbers, totals):
    """The measures of some classes, and those of all images."""
    rows, names = {}, table_names(class_names)
    for number in numbers:
        *values, support = per_class[number].values()
        rows[names[number]] = [*(f"{value:.4f}" for value in values), f"{support:.0f}"]
    width = max([16, *map(display_width, rows)])
    return _table(MEASURES, rows, width) + "\n" + _table(None, totals, width) + "\n"


def _table(header, rows, width=16):
    """A table as text: names in a column `width` wide, then one column for each value."""
    lines = [] if header is None else [" " * width + "".join(f"{column:>11}" for column in header)]
    for name, values in rows.items():
        lines.append(name + " " * (width - display_width(name)) + "".join(f"{value:>11}" for value in values))
    return "\n".join(lines) + "\n"
