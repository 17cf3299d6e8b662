"""The scores of a run as tables and as JSON, and what is wrong with them."""

import json
import math
from pathlib import Path

import numpy as np
from sklearn.metrics import precision_recall_fscore_support

from pipeline import files
from pipeline.data.image_list import shortened
from pipeline.data.splits import DataSet
from pipeline.report.class_labels import display_width, replaced_names, table_names
from pipeline.report.controls import Controls
from pipeline.report.results import Results

MEASURES = ("precision", "recall", "f1-score", "support")
MOST, WORST = 30, 20  # with more than MOST classes, the WORST of them are printed
# Of the mean squared distance between embeddings, which is 2 for vectors in random directions. Where it is smaller, two
# random images are 30 times nearer than the default MARGIN separates classes, and the nearest ones nearly arbitrary.
SMALLEST_SPREAD = 0.01
# Of the mean squared distance from anchor to negatives in the training batches, which is near 0 after a collapse.
HEALTHY_DISTANCE = 0.1


def print_report(
    folder: Path, data: DataSet, controls: Controls, results: Results, neighbours: int, rate: float, warnings: list[str]
) -> str:
    """Prints the scores, and writes them to `report.json` in the run folder.

    Of many classes, it prints only the worst. The most important, which is short, comes last.

    Args:
        folder: path of the run folder.
        data: `DataSet`.
        controls: `Controls`.
        results: `Results`.
        neighbours: int, how many training images voted.
        rate: float, the fraction of images of known classes that may be called unknown.
        warnings: list of str, one sentence or two each (see `prediction_warnings`).

    Returns:
        The text with all classes.
    """
    tested, class_names = len(data.test.labels) > 0, data.class_names
    known = {**controls.known, "after training": results.known} if tested else {}
    everything, text, printed = dict(known), "", ""
    if tested:
        text, printed, per_class = class_report(data.test.labels, results.predicted, class_names, "After training")
        everything["classes after training"] = dict(zip(class_names, per_class, strict=True))
    unknown = {"threshold": results.threshold, "false rejection rate": rate, **results.unknown}
    everything["unknown images"] = unknown
    if len(data.held_out.labels):
        unseen = {**controls.unseen, "after training": results.unseen}
        added = {
            str(count): dict(zip(("mean", "deviation"), each, strict=True)) for count, each in results.added.items()
        }
        everything["held-out classes"] = {
            "classes": data.held_out_names,
            **unseen,
            "accuracy after adding images": added,
        }
    if warnings:
        everything["warnings"] = warnings
    files.write_text(folder / "report.json", json.dumps(everything, indent=4) + "\n")

    end = _of_unknown(unknown, len(data.validation.labels)) + "\n"
    if len(data.held_out.labels):
        end += _of_held_out(data, unseen, results.added) + "\n"
    end += "".join(f"Warning: {warning}\n\n" for warning in warnings)
    if tested:
        end += f"Test images, classified by the vote of {neighbours} nearest training images\n\n"
        end += _table_of_scores(known)
    else:
        end += "No known classes in the test: the scores of the held-out classes are those of the test images.\n"
    print(f"\n{printed}{end}")
    return text + end


def class_report(
    labels: np.ndarray, predicted: np.ndarray, class_names: list[str], title: str
) -> tuple[str, str, list[dict[str, float]]]:
    """Precision, recall and f1-score of each class.

    Args:
        labels: integers, shape `(n,)`.
        predicted: integers, shape `(n,)`.
        class_names: list of str.
        title: str, the start of the text.

    Returns:
        Tuple of the text, a shorter text if there are many classes, and a dict of the measures for each class.
    """
    of_classes = {"labels": range(len(class_names)), "zero_division": 0}
    measures = precision_recall_fscore_support(labels, predicted, **of_classes)
    per_class = [dict(zip(MEASURES, map(float, values), strict=True)) for values in zip(*measures, strict=True)]
    totals = {"accuracy": ["", "", f"{np.mean(labels == predicted):.4f}", f"{len(labels)}"]}
    for average in ("macro", "weighted"):
        *values, _ = precision_recall_fscore_support(labels, predicted, **of_classes, average=average)
        totals[f"{average} avg"] = [*(f"{value:.4f}" for value in values), f"{len(labels)}"]
    replaced = [f"{text}  {name}" for text, name in replaced_names(class_names).items()]
    text = f"{title}, per class\n\n" + _class_table(class_names, per_class, range(len(class_names)), totals)
    if replaced:
        text += "\n".join(["Class numbers in the figures\n", *replaced]) + "\n\n"
    if len(class_names) <= MOST:
        return text, text, per_class
    tested = [number for number, values in enumerate(per_class) if values["support"]]
    order = sorted(tested, key=lambda number: (per_class[number]["f1-score"], class_names[number]))
    worst, others = order[:WORST], len(order[WORST:])
    printed = f"{title}, the {len(worst)} classes with the lowest f1-score\n\n"
    printed += _class_table(class_names, per_class, worst, totals)
    printed += f"{others} other classes are not shown; report.txt and report.json in the run folder have all.\n"
    if len(tested) < len(class_names):
        printed += f"Classes without a test image: {len(class_names) - len(tested)}.\n"
    if replaced:
        printed += f"Classes that figures show with a number: {len(replaced)}; report.txt lists their names.\n"
    return text, printed + "\n", per_class


def _of_unknown(unknown, validation_images):
    """When an image is called unknown, and how often that is wrong, in sentences."""
    rate = unknown["false rejection rate"]
    lines = [
        f"An image is called unknown if its nearest training image is farther than {unknown['threshold']:.4f}.",
    ]
    if validation_images < 1 / rate - 1:
        lines.append(
            f"That is the largest distance of the {validation_images:,} validation images, too few for "
            f"FALSE_REJECTION_RATE = {rate:g}:\nexpect {1 / (validation_images + 1):.2%} of images of known classes."
        )
    else:
        lines.append(f"At most {rate:.2%} of the {validation_images:,} validation images, of known classes, are.")
    if "known rejected" in unknown:
        lines.append(f"Test images of known classes that are called unknown: {unknown['known rejected']:.2%}.")
    if "unknown rejected" in unknown:
        lines.append(f"Images of held-out classes that are called unknown: {unknown['unknown rejected']:.2%}.")
    if "AUROC" in unknown:
        lines.append(f"AUROC of this distance, held-out against test images: {unknown['AUROC']:.4f}.")
    return "\n".join(lines) + "\n"


def _of_held_out(data, scores, added):
    """What is measured on held-out classes, as text."""
    classes, images = len(data.held_out_names), len(data.held_out.labels)
    if scores["after training"]:
        text = (
            f"Held-out classes, never trained on: {classes:,}; their {images:,} images, each compared with all others"
        )
        text += f"\n\n{_table_of_scores(scores)}"
    else:
        text = f"Held-out classes, never trained on: {classes}, {images:,} images; recall and MAP@R need two classes.\n"
    if added:
        text += "\nHow many of them are recognised after adding images of each class to the references\n\n"
        rows = {
            f"{count} image{'s' * (count > 1)}": [f"{mean:.4f}", f"{deviation:.4f}"]
            for count, (mean, deviation) in added.items()
        }
        text += table(("mean", "deviation"), rows)
    return text


def prediction_warnings(
    results: Results, data: DataSet, rate: float, history: dict[str, list[float]], diverged: bool
) -> list[str]:
    """Reasons not to trust the predictions.

    Args:
        results: `Results`.
        data: `DataSet`.
        rate: float, the fraction of images of known classes that may be called unknown.
        history: dict from names to one value an epoch; `negative_distance` may be missing.
        diverged: bool, whether training stopped early.

    Returns:
        List of str, one sentence or two each; empty if nothing is wrong.
    """
    found = []
    if diverged:
        found.append("training diverged and stopped early; these are the best epoch's scores. Lower LEARNING_RATE.")
    # Of all pairs: the mean of |x - y|² is twice the variance; for unit vectors it equals 2 (1 - |mean|²).
    spread = 2 * float(results.references.var(axis=0, dtype="float64").sum())
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
    rejected, counts = results.unknown.get("known rejected", 0), (len(data.validation.labels), len(data.test.labels))
    if rejected > 0:  # and so there are test images; three standard deviations of the difference between two samples
        expected = max(rate, 1 / (counts[0] + 1))
        if rejected > expected + 3 * math.sqrt(expected * sum(1 / count for count in counts)):
            found.append(
                f"{rejected:.1%} of the test images of known classes are called unknown, though FALSE_REJECTION_RATE "
                f"is {rate:g}: the test images differ from the training and validation images."
            )
    return found


def held_out_warnings(held_out_names: list[str], trained_names: list[str]) -> list[str]:
    """A warning if the weights come from a run that has been trained on held-out classes.

    Args:
        held_out_names: list of str, the classes that are held out.
        trained_names: list of str, the classes of the run that the weights come from.

    Returns:
        List of str, empty or of one sentence.
    """
    seen = sorted(set(held_out_names) & set(trained_names))
    if not seen:
        return []
    return [
        f"the run that WEIGHTS comes from knows held-out classes ({shortened(seen)}), so their scores are not those of "
        "classes that have never been trained on."
    ]


def _class_table(class_names, per_class, numbers, totals):
    """The measures of some classes, and those of all images."""
    rows, names = {}, table_names(class_names)
    for number in numbers:
        *values, support = per_class[number].values()
        rows[names[number]] = [*(f"{value:.4f}" for value in values), f"{support:.0f}"]
    width = max([16, *map(display_width, rows)])
    return table(MEASURES, rows, width) + "\n" + table(None, totals, width) + "\n"


def _table_of_scores(scores):
    """A table of scores from 0 to 1: a row before and after training and for raw pixels."""
    columns = list(scores["after training"])
    rows = {name: [f"{values[column]:.4f}" for column in columns] for name, values in scores.items()}
    return table(columns, rows)


def table(header, rows, width=16):
    """A table as text: names in a column `width` wide, then one column for each value."""
    lines = [] if header is None else [" " * width + "".join(f"{column:>11}" for column in header)]
    for name, values in rows.items():
        lines.append(name + " " * (width - display_width(name)) + "".join(f"{value:>11}" for value in values))
    return "\n".join(lines) + "\n"
