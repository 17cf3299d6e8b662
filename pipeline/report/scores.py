"""The scores of a run as a table and as JSON."""

import json
from pathlib import Path

import numpy as np
from sklearn.metrics import classification_report, precision_recall_fscore_support

from pipeline import files


def print_report(
    folder: Path,
    scores: dict[str, dict[str, float]],
    labels: np.ndarray,
    predicted: np.ndarray,
    class_names: list[str],
    neighbours: int,
    diverged: bool,
) -> str:
    """Prints the scores, and writes them to `report.json` in the run folder.

    Args:
        folder: path of the run folder.
        scores: dict of the scores (see `evaluate`) of the controls, and `"after training"`.
        labels: integers, the test images' classes, shape `(n,)`.
        predicted: integers, the predicted classes, shape `(n,)`.
        class_names: list of str.
        neighbours: int, how many training images voted.
        diverged: bool, whether training stopped early.

    Returns:
        The text that it printed.
    """
    columns = list(scores["after training"])
    lines = [" " * 16 + "".join(f"{column:>11}" for column in columns)]
    for name, values in scores.items():
        lines.append(f"{name:<16}" + "".join(f"{values[column]:>11.4f}" for column in columns))
    of_classes = {"labels": range(len(class_names)), "zero_division": 0}
    measures = precision_recall_fscore_support(labels, predicted, **of_classes)
    names = ("precision", "recall", "f1-score", "support")
    per_class = [dict(zip(names, map(float, values), strict=True)) for values in zip(*measures, strict=True)]
    everything = {**scores, "classes after training": dict(zip(class_names, per_class, strict=True))}
    files.write_text(folder / "report.json", json.dumps(everything, indent=4) + "\n")
    text = (
        "Warning: training diverged and stopped early; these are the best epoch's. Lower LEARNING_RATE.\n\n" * diverged
    )
    text += f"Test images, classified by the vote of {neighbours} nearest training images\n\n" + "\n".join(lines)
    text += "\n\nAfter training, per class\n\n"
    text += classification_report(labels, predicted, **of_classes, target_names=class_names, digits=4)
    print(f"\n{text}")
    return text
