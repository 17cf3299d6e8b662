"""Reads the images of a folder or a CSV file, and names everything that is wrong or doubtful with them."""

import os
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from pipeline.data.image_files import in_lines, read_data_set, reason
from pipeline.data.image_list import PARTS, TEST, TRAIN, ImageList
from pipeline.data.splits import DataSet, Images, in_parts, repeated_images, split
from pipeline.errors import InputError


def read_listed(
    listed: ImageList,
    image_size: int,
    fit: str,
    fractions: tuple[float, float, int],
    unreadable: str,
    small_classes: str,
) -> DataSet:
    """Reads images in three parts, and prints what is left out.

    Args:
        listed: the images of a folder or a CSV file.
        image_size, fit, unreadable, small_classes: as in `images.load_images`.
        fractions: `test_fraction`, `validation_fraction` and `seed` of `splits.split`.

    Returns:
        `DataSet`, whose parts are views of one array.

    Raises:
        InputError: if images or classes cannot be used; the message names everything that is wrong.
    """
    wrong, parts, kept = list(listed.problems), listed.parts, []
    try:
        parts, kept = split(listed.keys, listed.labels, listed.parts, *fractions)
    except InputError as error:
        wrong.append(str(error))
    order = sorted(range(len(parts)), key=lambda index: PARTS.index(parts[index]))
    paths, labels, parts = ([each[index] for index in order] for each in (listed.paths, listed.labels, parts))
    decoded = read_data_set(paths, image_size, fit)

    readable = [number for number in range(len(paths)) if number not in decoded.errors]
    pairs = repeated_images([decoded.digests[number] for number in readable], [parts[number] for number in readable])
    repeated = {readable[left_out]: readable[stays] for left_out, stays in pairs}
    used = [number for number in readable if number not in repeated]
    counts = Counter(labels[number] for number in used if parts[number] == TRAIN)
    small = [label for label in range(len(listed.class_names)) if counts[label] < 2]
    small_names = [f"{listed.class_names[label]} ({counts[label]})" for label in small]
    unread = sorted(f"{paths[number]}: {reason(paths[number], error)}" for number, error in decoded.errors.items())
    if small and small_classes == "stop":
        wrong.append(
            "every class needs two training images; --small-classes skip leaves out those with fewer: "
            + shortened(small_names)
        )
    if unread and unreadable == "stop":
        wrong.append(f"files that cannot be read; --unreadable-images skip leaves them out: {len(unread):,}")
        wrong += unread
    remaining = [label for label in range(len(listed.class_names)) if label not in small]
    if len(remaining) < 2 and not wrong:
        wrong.append(f"classes with two training images: {len(remaining)}, of at least two")
    used = [number for number in used if labels[number] in set(remaining)]
    if not wrong and not any(parts[number] == TEST for number in used):
        wrong.append("test images of classes that are trained: none")
    if wrong:
        raise InputError(f"`DATASET` must have images that can all be used. Received: {listed.source}{in_lines(wrong)}")

    if unread:
        print(f"Skipped {len(unread):,} files that cannot be read:{in_lines(unread)}")
    if small:
        print(f"Skipped {len(small):,} classes with fewer than two training images: {shortened(small_names)}")
    if listed.has_groups:
        groups = f"{len(set(listed.keys)):,} groups (subfolders of the classes, or the column group)"
        print(f"{len(paths):,} images in {groups}: those of one are all for training, for validation or for testing.")
    if kept:
        classes = sorted({listed.class_names[listed.labels[index]] for index in kept})
        print(
            f"Used for training, though their names are among the test images, since each class needs two training "
            f"images: {len(kept):,} images of {shortened(classes)}"
        )
    top = listed.source if listed.source.is_dir() else listed.source.parent
    names = [os.path.relpath(path, top) for path in paths]
    _print_equal_images(names, labels, parts, repeated, decoded.digests)
    images = decoded.images if len(used) == len(paths) else decoded.images[used]
    new_labels = {label: number for number, label in enumerate(remaining)}
    everything = Images(images, np.array([new_labels[labels[number]] for number in used], "int32"))
    class_names = [listed.class_names[label] for label in remaining]
    return in_parts(everything, [parts[number] for number in used], class_names, decoded.value_range)


def shortened(names: Sequence[str]) -> str:
    """The first twenty names, with commas."""
    return ", ".join(names[:20]) + " ..." * (len(names) > 20)


def _print_equal_images(names, labels, parts, repeated, digests):
    """Prints which images are in two parts, and which are in two classes."""
    if repeated:
        pairs = [f"{names[number]} = {names[other]} ({parts[other]})" for number, other in repeated.items()]
        print(
            f"Warning: {len(pairs):,} images are equal to test or validation images, and are left out of training or "
            f"validation:{in_lines(pairs)}"
        )
    equal = defaultdict(list)
    for number, digest in enumerate(digests):
        if digest:
            equal[digest].append(number)
    in_two_classes = [numbers for numbers in equal.values() if len({labels[number] for number in numbers}) > 1]
    if in_two_classes:
        sets = [" = ".join(names[number] for number in numbers[:5]) for numbers in in_two_classes]
        print(f"Warning: {len(sets):,} images are in more than one class:{in_lines(sets)}")
