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
from pipeline.report.near_duplicates import compared_numbers, near_duplicates

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
MOST_NUMBERS = 2**47  # that a search compares, of all pairs of a sample and all images: three hours on two cores


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


def find_duplicates(pixels: np.ndarray, data: DataSet, seed: int) -> tuple[list[Finding], str]:
    """Near duplicates among all images.

    Of very many images, not all training images are compared with all others, but a random sample; the images that are
    held out, for testing and for validation always are.

    Args:
        pixels: raw pixels of the images of all parts, in the order of `PARTS`, shape `(n, size)`.
        data: `DataSet`.
        seed: int.

    Returns:
        Tuple of a list of `Finding`, and a sentence that says how many images were compared, `""` if all were; of a
        pair across the split, the image that is held out, for testing or for validation comes first.
    """
    counts = {part: len(getattr(data, part).labels) for part in PARTS}
    chosen = _chosen(len(pixels), compared_numbers(pixels), counts[TRAIN], seed)
    pairs, correlations = near_duplicates(pixels, seed, chosen)
    found = []
    for pair, correlation in zip(pairs, correlations, strict=True):
        both = (_origin(int(number), counts) for number in pair)
        first, second = sorted(both, key=lambda each: -PARTS.index(each[0]))
        label, other = (int(getattr(data, part).labels[index]) for part, index in (first, second))
        kind = OTHER_LABEL if label != other else REPEATED if first[0] == second[0] else ACROSS
        found.append(Finding(kind, *first, *second, other, float(correlation)))
    others = len(pixels) - counts[TRAIN]
    if chosen is None:
        return found, ""
    sample = f"{len(chosen) - others:,} of {counts[TRAIN]:,} training images"
    return found, f"Near duplicates of {sample}, and of all {others:,} others, have been searched for."


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


def find_far_images(features: dict[str, np.ndarray], seed: int) -> tuple[list[Finding], str]:
    """Images that are far from all others; of very many images, among a random sample.

    Args:
        features: dict from `PARTS` to features of their images, shape `(n, size)`.
        seed: int.

    Returns:
        Tuple of a list of `Finding`, and a sentence that says how many images were compared, `""` if all were.
    """
    counts = {part: len(each) for part, each in features.items()}
    if (count := sum(counts.values())) <= FIFTH:
        return [], ""
    everything = np.concatenate([*features.values()])
    chosen = _chosen(count, everything.shape[1], count, seed)
    distances = nearest_others(everything, FIFTH, chosen)[0][:, -1]  # shape (m,)
    median = np.median(distances)
    limit = median + FAR_DEVIATIONS * np.median(np.abs(distances - median))
    far = np.flatnonzero(distances > limit)
    far = far[np.argsort(-distances[far], kind="stable")]
    numbers = np.arange(count) if chosen is None else chosen
    found = [Finding(FAR, *_origin(int(numbers[each]), counts), "", -1, -1, float(distances[each])) for each in far]
    if chosen is None:
        return found, ""
    return found, f"Images far from all others have been searched for among {len(chosen):,} of {count:,} images."


def _chosen(count, size, of_sample, seed):
    """Which of `count` images are compared with all others, by `size` numbers each: None for all.

    If there are too many, they are a random sample of the first `of_sample`, and all of the others.
    """
    wanted = max(1, MOST_NUMBERS // (count * size))
    if wanted >= of_sample:
        return None
    some = np.sort(np.random.default_rng((seed, 7)).permutation(of_sample)[:wanted])
    return np.concatenate([some, np.arange(of_sample, count)])


def _origin(number, counts):
    """The part and the place in it of an image with a number among all parts, by their numbers of images."""
    for part, count in counts.items():
        if number < count:
            return part, number
        number -= count


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
