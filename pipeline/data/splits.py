"""Labelled images as arrays; which of them are for training, validation and testing; samples of them."""

import math
import zlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from pipeline.data.image_list import HELD_OUT, PARTS, TEST, TRAIN, VALIDATION, number_of
from pipeline.errors import InputError


class Images(NamedTuple):
    """Labelled images, which are some of the images of an array that all parts of a data set share.

    Attributes:
        array: uint8, RGB from 0 to 255, shape `(all, 3, height, width)`.
        labels: int32, the index of each image's class name, shape `(n,)`.
        names: str, where each image comes from: its path in the data set; shape `(n,)`. None if that is unknown.
        places: integers, where each image is in the array, shape `(n,)`. None if they are all of its images, in order.
    """

    array: np.ndarray
    labels: np.ndarray
    names: np.ndarray | None = None
    places: np.ndarray | None = None

    def of(self, chosen: np.ndarray) -> "Images":
        """Some of the images; their pixels are not copied."""
        places = np.arange(len(self.labels)) if self.places is None else self.places
        names = None if self.names is None else self.names[chosen]
        return Images(self.array, self.labels[chosen], names, places[chosen])

    def pixels(self, chosen: Any = slice(None)) -> np.ndarray:
        """The pixels of some of the images, chosen as by an index of NumPy; of all images if not given."""
        return self.array[chosen if self.places is None else self.places[chosen]]

    def name_of(self, index: int) -> str:
        """Where an image comes from; its number if that is unknown."""
        return f"image {index}" if self.names is None else str(self.names[index])


class DataSet(NamedTuple):
    """A data set in its parts.

    Attributes:
        train, validation, test: `Images` of the classes that train. If the data set's own test set has none of them,
            `test` is empty.
        held_out: `Images` of the classes that do not train at all.
        class_names: list of str, the classes that train.
        held_out_names: list of str, the others. A label is an index into `class_names + held_out_names`.
        value_range: lowest and highest value of 16-bit and floating-point image files, None without such files.
        checksum: int, CRC-32; it changes with every pixel, label and class name, and with the order.
    """

    train: Images
    validation: Images
    test: Images
    held_out: Images
    class_names: list[str]
    held_out_names: list[str]
    value_range: tuple[float, float] | None = None
    checksum: int = 0

    def shown(self) -> tuple[Images, list[str]]:
        """The images that figures show, and their classes: for testing or, without any, the held-out ones."""
        if len(self.test.labels):
            return self.test, self.class_names
        held_out = self.held_out._replace(labels=self.held_out.labels - len(self.class_names))
        return held_out, self.held_out_names


def in_parts(
    everything: Images,
    parts: Sequence[str],
    class_names: list[str],
    digests: Sequence[bytes],
    value_range: tuple[float, float] | None = None,
) -> DataSet:
    """Divides images into their parts.

    Args:
        everything: `Images`, whose labels are indices into `class_names`.
        parts: one of `PARTS` for each image.
        class_names: list of str. Classes without an image are left out, and the labels change accordingly.
        digests: a checksum of the pixels of each image.
        value_range: as in `DataSet`.
    """
    numbers, divided = np.array([PARTS.index(part) for part in parts]), {}
    is_held_out = numbers == PARTS.index(HELD_OUT)
    known, held_out = (np.unique(everything.labels[chosen]) for chosen in (~is_held_out, is_held_out))
    new_labels = np.zeros(len(class_names), "int32")
    new_labels[np.concatenate([known, held_out])] = np.arange(len(known) + len(held_out))
    everything = everything._replace(labels=new_labels[everything.labels])
    names = [[class_names[label] for label in labels] for labels in (known, held_out)]
    checksum = zlib.crc32("\0".join(names[0] + names[1]).encode("utf-8", "surrogateescape"))
    for number, part in enumerate(PARTS):
        chosen = np.flatnonzero(numbers == number)
        divided[part] = everything.of(chosen)
        checksum = zlib.crc32(divided[part].labels, zlib.crc32(b"".join(digests[place] for place in chosen), checksum))
    return DataSet(*divided.values(), *names, value_range, checksum)


def split(
    keys: Sequence[str],
    labels: Sequence[int],
    parts: Sequence[str],
    test_fraction: float,
    validation_fraction: float,
    seed: int,
) -> tuple[list[str], list[int]]:
    """Chooses test images and validation images among training images, where the data set has none.

    Each key has a number from 0 to 1, `number_of(key, seed)`. Images whose number is below `test_fraction` are for
    testing, whichever other images there are: so no test image becomes a training image when images are added. Of the
    other images, those with the lowest numbers are for validation. Images with one key stay together. The exception:
    of a class that would keep fewer than two training images, those with the lowest numbers are held out as long as two
    are left.

    Args:
        keys: str, the name or group of each image.
        labels: int, the class of each image.
        parts: the part of each image, as the data set has them. If there is no test image, or no validation image, they
            are chosen among the training images.
        test_fraction: float between 0 and 1; 0 if no test image is wanted.
        validation_fraction: float between 0 and 1, of the images that are not for testing.
        seed: int.

    Returns:
        Tuple of the new parts, and the indices of images that are for training, though their numbers are below
        `test_fraction`, since their classes have too few.

    Raises:
        InputError: if no image would be for testing, or none for validation.
    """
    parts = list(parts)
    members = defaultdict(list)  # (number, key, class) -> indices of its training images
    for index, (key, label, part) in enumerate(zip(keys, labels, parts, strict=True)):
        if part == TRAIN:
            members[number_of(key, seed), key, label].append(index)
    left = Counter(label for label, part in zip(labels, parts, strict=True) if part == TRAIN)  # of each class
    ordered, kept, full = sorted(members), [], set()

    def hold_out(member, part):
        """Gives images to a part, unless their class would keep fewer than two, or had to keep some before."""
        label, indices = member[2], members[member]
        if label in full or left[label] - len(indices) < 2:
            full.add(label)
            return 0
        left[label] -= len(indices)
        for index in indices:
            parts[index] = part
        return len(indices)

    if TEST not in parts and test_fraction:
        below = [member for member in ordered if member[0] < test_fraction]
        kept = [index for member in below if not hold_out(member, TEST) for index in members[member]]
        ordered = ordered[len(below) :]
        if TEST not in parts:
            names = len({key for _, key, _ in members})
            raise InputError(
                f"`TEST_FRACTION` must be larger, `SEED` another one, or `DATASET` larger: of {len(parts):,} images "
                f"with {names:,} different names or groups, none is for testing. Received: {test_fraction} and {seed}"
            )
    if VALIDATION not in parts:
        missing, last = max(1, round(validation_fraction * left.total())), None
        for member in ordered:
            if missing <= 0 and member[1] != last:  # the same key in other classes stays together
                break
            missing, last = missing - hold_out(member, VALIDATION), member[1]
        if VALIDATION not in parts:
            raise InputError(
                "`DATASET` must have more images, or more groups, so that some can be held out for validation and each "
                f"class keeps two for training. Received: at most {max(left.values(), default=0)} in a class"
            )
    return parts, sorted(kept)


def repeated_images(digests: dict[int, bytes], parts: dict[int, str]) -> dict[int, int]:
    """Which images equal one of a part that matters more: held out, for testing, for validation, for training.

    Args:
        digests: checksums of the images' pixels, by index.
        parts: the parts of the images, by index; images without a part are ignored.

    Returns:
        dict from the image to leave out to the equal image that stays.
    """
    rank, stays = {part: place for place, part in enumerate(reversed(PARTS))}, {}
    for index in sorted(parts, key=lambda index: rank[parts[index]]):
        stays.setdefault(digests[index], index)
    first = {index: stays[digests[index]] for index in parts}
    return {index: other for index, other in first.items() if parts[index] != parts[other]}


def sample(data: Images, count: int, seed: int) -> Images:
    """A random sample of about `count` images in the given order, with at least ten of each class that has ten."""
    generator = np.random.default_rng((seed, 1))
    classes = np.unique(data.labels)
    per_class = max(10, math.ceil(count / len(classes)))
    members = [generator.permutation(np.flatnonzero(data.labels == label))[:per_class] for label in classes]
    chosen = np.sort(np.concatenate(members))
    return data.of(chosen)


def at_most(name: str, value: int, limit: int, limit_is: str) -> int:
    """The smaller of a constant's value and a limit that the images set; prints a line if it is the limit.

    Args:
        name: the constant.
        value: its value.
        limit: the largest value that is possible.
        limit_is: what the limit is, such as `"the number of classes"`.
    """
    if value > limit:
        print(f"{name} = {value} is reduced to {limit}, {limit_is}.")
    return min(value, limit)
