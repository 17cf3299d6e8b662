"""Reads the images of a folder or a CSV file, and names everything that is wrong or doubtful with them."""

import os
from collections import Counter, defaultdict

import numpy as np

from pipeline.data.held_out import with_held_out
from pipeline.data.image_files import read_data_set, reason
from pipeline.data.image_list import HELD_OUT, TEST, TRAIN, VALIDATION, ImageList, in_lines, shortened
from pipeline.data.splits import DataSet, Images, in_parts, repeated_images, split
from pipeline.errors import InputError


def read_listed(
    listed: ImageList,
    image_size: int,
    fit: str,
    fractions: tuple[float, float, int],
    unreadable: str,
    small_classes: str,
    held_out_classes: str = "none",
    images_in: str = "memory",
    cache: str = "auto",
) -> DataSet:
    """Reads images in their parts, and prints what is left out.

    Args:
        listed: the images of a folder or a CSV file.
        image_size, fit, unreadable, small_classes, held_out_classes, images_in, cache: as in `images.load_images`.
        fractions: `test_fraction`, `validation_fraction` and `seed` of `splits.split`.

    Returns:
        `DataSet`.

    Raises:
        InputError: if images or classes cannot be used; the message says all that is wrong, and names the first twenty.
    """
    test_fraction, validation_fraction, seed = fractions
    classes = listed.class_names, listed.labels, listed.parts
    parts, test_fraction = with_held_out(*classes, test_fraction, held_out_classes, seed)
    listed, fractions = listed._replace(parts=parts), (test_fraction, validation_fraction, seed)
    keys = [group or name for group, name in zip(listed.groups, listed.names, strict=True)]
    decoded = read_data_set(listed.paths, image_size, fit, images_in, cache)
    digests, errors = decoded.digests, decoded.errors
    unread = sorted(f"{listed.paths[index]}: {reason(listed.paths[index], error)}" for index, error in errors.items())
    readable = [index for index in range(len(keys)) if index not in errors]
    # Each class keeps two images that can be read.
    parts, kept, wrong = _split(range(len(keys)) if unreadable == "stop" else readable, keys, listed, fractions)
    if unread and unreadable == "stop":
        wrong += [f"files that cannot be read; --unreadable-images skip leaves them out: {len(unread):,}", *unread]
        parts = {index: parts[index] for index in readable}

    repeated = repeated_images(digests, parts)
    counts = Counter(listed.labels[index] for index, part in parts.items() if part == TRAIN and index not in repeated)
    held_out = {label for label, part in zip(listed.labels, listed.parts, strict=True) if part == HELD_OUT}
    known = [label for label in range(len(listed.class_names)) if label not in held_out]
    small = {label: counts[label] for label in known if counts[label] < 2}
    if small and small_classes == "skip":  # whose images do not count
        parts = {index: part for index, part in parts.items() if listed.labels[index] not in small}
        repeated = repeated_images(digests, parts)
    _print_equal_images(listed, parts, repeated, digests)
    small_names = [f"{listed.class_names[label]} ({count})" for label, count in small.items()]
    if small and small_classes == "stop":
        wrong.insert(
            len(listed.problems),
            "every class needs two training images; --small-classes skip leaves out those with fewer: "
            + shortened(small_names),
        )
    chosen = [index for index in parts if index not in repeated]
    left = {parts[index] for index in chosen}
    wants_test = test_fraction or TEST in listed.parts or not held_out  # else all its test images are held out
    needed = [TRAIN, VALIDATION, *([TEST] if wants_test else []), *([HELD_OUT] if held_out else [])]
    if not wrong and (len(small) > len(known) - 2 or not left.issuperset(needed)):
        missing = [f"{part.replace('_', '-')} images" for part in needed if part not in left] or ["a second class"]
        wrong.append(f"after leaving out images and classes, there are no {' and no '.join(missing)}")
    if len(wrong) == 1 and wrong[0].startswith("`"):  # a rule of its own
        raise InputError(wrong[0])
    if wrong:
        raise InputError(f"`DATASET` must have images that can all be used. Received: {listed.source}{in_lines(wrong)}")

    if unread:
        print(f"Skipped files that cannot be read: {len(unread):,}{in_lines(unread)}")
    if small:
        print(f"Skipped classes with fewer than two training images: {len(small):,}, {shortened(small_names)}")
    used = {index: parts[index] for index in chosen}
    _print_notes(listed, used, [index for index in kept if index in used])
    labels = np.array([listed.labels[index] for index in chosen], "int32")
    everything = Images(decoded.images, labels, np.array(_names(listed, chosen), object), np.array(chosen))
    parts, digests = [parts[index] for index in chosen], [digests[index] for index in chosen]
    return in_parts(everything, parts, listed.class_names, digests, decoded.value_range)


def _names(listed, indices):
    """The paths of images in their data set, with `/`."""
    top = listed.source if listed.source.is_dir() else listed.source.parent
    return [os.path.relpath(listed.paths[index], top).replace(os.sep, "/") for index in indices]


def _split(indices, keys, listed, fractions):
    """The part of each of the indices, those that train to keep their classes large enough, and all that is wrong."""
    indices, wrong = list(indices), list(listed.problems)
    given = [listed.parts[index] for index in indices]
    kept = []
    if set(given) == set(listed.parts):  # else no image of a whole part can be read, and another must not replace it
        try:
            chosen = [[each[index] for index in indices] for each in (keys, listed.labels)]
            given, kept = split(*chosen, given, *fractions)
        except InputError as error:
            wrong.append(str(error))
    return dict(zip(indices, given, strict=True)), [indices[place] for place in kept], wrong


def _print_notes(listed, parts, kept):
    """Prints whether groups are in one part each, and which images train to keep their classes large enough."""
    parts_of = defaultdict(set)
    for index, part in parts.items():
        if listed.groups[index]:
            parts_of[listed.groups[index]].add(part)
    if parts_of:
        print(f"Groups (subfolders of the classes, or the column group): {len(parts_of):,}")
    mixed = sorted(group for group, each in parts_of.items() if len(each) > 1)
    if mixed:
        print(
            "Warning: groups in more than one of training, validation and testing, whose scores may be too good: "
            f"{len(mixed):,}, {shortened(mixed)}"
        )
    if kept:
        classes = sorted({listed.class_names[listed.labels[index]] for index in kept})
        print(
            "Images that train, though their names are among the test images, since each class needs two training "
            f"images: {len(kept):,}, in {shortened(classes)}"
        )


def _print_equal_images(listed, parts, repeated, digests):
    """Prints which images are in two parts, and which are in two classes."""
    if repeated:
        names, others = _names(listed, repeated), _names(listed, repeated.values())
        places = [parts[other].replace("_", " ") for other in repeated.values()]
        pairs = [f"{name} = {other} ({place})" for name, other, place in zip(names, others, places, strict=True)]
        print(
            "Warning: images that equal a test, validation or held-out image, and are left out of training or "
            f"validation, or of testing if they equal a held-out one: {len(pairs):,}{in_lines(pairs)}"
        )
    equal = defaultdict(list)
    for index in parts:
        equal[digests[index]].append(index)
    in_two_classes = [each for each in equal.values() if len({listed.labels[index] for index in each}) > 1]
    if in_two_classes:
        sets = [" = ".join(_names(listed, each[:5])) for each in in_two_classes]
        print(f"Warning: images that are in more than one class: {len(sets):,}{in_lines(sets)}")
