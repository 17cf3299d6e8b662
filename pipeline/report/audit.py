"""What may be wrong with the images or the labels of a data set, found before training."""

import csv
import io
import os
from collections import Counter
from typing import NamedTuple

import numpy as np

from pipeline import files
from pipeline.data.image_list import PARTS, TEST, TRAIN, VALIDATION
from pipeline.data.splits import DataSet
from pipeline.neighbours import nearest_others
from pipeline.report.linear import doubted_labels
from pipeline.report.near_duplicates import near_duplicates

LABEL, ACROSS, OTHER_LABEL, REPEATED, FAR = KINDS = (
    "label",
    "near duplicates across the split",
    "near duplicates with different labels",
    "near duplicates",
    "far from all others",
)
SENTENCES = {
    ACROSS: "pairs of near duplicates across the split",
    OTHER_LABEL: "pairs of near duplicates with different labels",
    REPEATED: "other pairs of near duplicates",
    LABEL: "labels of training images",
    FAR: "images that are far from all others",
}
# An image is far from all others if its distance to the fifth nearest exceeds the median by so many times the median
# deviation from the median.
FIFTH, FAR_DEVIATIONS = 5, 8


class Finding(NamedTuple):
    """Something that may be wrong.

    Attributes:
        kind: one of `KINDS`.
        part, index: the image: one of `PARTS`, and its place in that part of the data set.
        other_part, other_index: the near duplicate; `""` and -1 without any.
        other_label: int, the class that is more probable, or the label of the near duplicate; -1 without any.
        value: float, what the findings of a kind are ranked by: the probability of the label, the lowest first; the
            correlation of near duplicates, the highest first; the distance, the largest first.
    """

    kind: str
    part: str
    index: int
    other_part: str
    other_index: int
    other_label: int
    value: float


def find_duplicates(pixels: np.ndarray, data: DataSet, seed: int) -> list[Finding]:
    """Near duplicates among all images.

    Args:
        pixels: raw pixels of the images of all parts, in the order of `PARTS`, shape `(n, size)`.
        data: `DataSet`.
        seed: int.

    Returns:
        List of `Finding`; of a pair across the split, the image that is held out, for testing or for validation comes
        first.
    """
    origin = [(part, index) for part in PARTS for index in range(len(getattr(data, part).labels))]
    pairs, correlations = near_duplicates(pixels, seed)
    found = []
    for pair, correlation in zip(pairs, correlations, strict=True):
        first, second = sorted((origin[number] for number in pair), key=lambda each: -PARTS.index(each[0]))
        label, other = (int(getattr(data, part).labels[index]) for part, index in (first, second))
        kind = OTHER_LABEL if label != other else REPEATED if first[0] == second[0] else ACROSS
        found.append(Finding(kind, *first, *second, other, float(correlation)))
    return found


def find_doubted_labels(
    features: np.ndarray, labels: np.ndarray, strength: float, seed: int, seconds: float
) -> list[Finding] | None:
    """Training images whose labels are doubtful; None if it takes longer. The arguments are those of
    `doubted_labels`."""
    doubted = doubted_labels(features, labels, strength, seed, seconds)
    if doubted is None:
        return None
    return [
        Finding(LABEL, TRAIN, int(index), "", -1, int(better), float(probability))
        for index, better, probability in zip(*doubted, strict=True)
    ]


def find_far_images(features: dict[str, np.ndarray]) -> list[Finding]:
    """Images that are far from all others, by features of each part, shape `(n, size)`."""
    origin = [(part, index) for part, each in features.items() for index in range(len(each))]
    if len(origin) <= FIFTH:
        return []
    distances = nearest_others(np.concatenate([*features.values()]), FIFTH)[0][:, -1]  # shape (n,)
    median = np.median(distances)
    limit = median + FAR_DEVIATIONS * np.median(np.abs(distances - median))
    far = np.flatnonzero(distances > limit)
    far = far[np.argsort(-distances[far], kind="stable")]
    return [Finding(FAR, *origin[number], "", -1, -1, float(distances[number])) for number in far]


def duplicated_in_test(findings: list[Finding], count: int) -> np.ndarray:
    """Which of `count` test images have a near duplicate among the training or validation images."""
    found = np.zeros(count, bool)
    pairs = [each for each in findings if each.part == TEST and each.other_part in (TRAIN, VALIDATION)]
    found[[each.index for each in pairs]] = True
    return found


def print_audit(findings: list[Finding], data: DataSet, path: os.PathLike) -> None:
    """Prints how much was found, and writes all of it as CSV, one finding a row.

    Args:
        findings: list of `Finding`.
        data: `DataSet`.
        path: path of the file.
    """
    file, names = io.StringIO(), data.class_names + data.held_out_names
    rows = csv.writer(file, lineterminator="\n")
    rows.writerow(("finding", "part", "path", "label", "other part", "other path", "other label", "value"))
    for each in findings:
        images = getattr(data, each.part)
        other = getattr(data, each.other_part).name_of(each.other_index) if each.other_part else ""
        other_label = names[each.other_label] if each.other_label >= 0 else ""
        own = each.kind, each.part, images.name_of(each.index), names[images.labels[each.index]]
        rows.writerow((*own, each.other_part, other, other_label, f"{each.value:.4f}"))
    files.write_text(path, file.getvalue())
    counts = Counter(each.kind for each in findings)
    found = [f"{counts[kind]:,} {text}" for kind, text in SENTENCES.items() if counts[kind]]
    if found:
        print(f"To check, in {path}: {'; '.join(found)}.")
