"""Labelled images as arrays, and splits of them."""

import math
import zlib
from typing import NamedTuple

import numpy as np

from pipeline.errors import InputError


class Images(NamedTuple):
    """Labelled images.

    Attributes:
        images: uint8, RGB from 0 to 255, shape `(n, 3, height, width)`.
        labels: int32, the index of each image's class name, shape `(n,)`.
    """

    images: np.ndarray
    labels: np.ndarray


def stratified_split(data: Images, fraction: float, seed: int) -> tuple[Images, Images]:
    """Splits images so that each class gives the same fraction.

    A class gives `fraction` of its images, rounded, and at least one if it has three or more. It keeps at least two, so
    that each of them has a positive. The result depends on the labels, the fraction and the seed alone.

    Args:
        data: `Images`.
        fraction: float between 0 and 1, the size of the second part.
        seed: int.

    Returns:
        Tuple of two `Images`, the first part and the second part, both in the given order.

    Raises:
        InputError: if no class has three images or more.
    """
    generator = np.random.default_rng((seed, 0))
    second = np.zeros(len(data.labels), bool)
    for label in np.unique(data.labels):
        members = np.flatnonzero(data.labels == label)
        count = min(max(round(len(members) * fraction), 1), max(len(members) - 2, 0))
        second[generator.permutation(members)[:count]] = True
    if not second.any():
        raise InputError(
            "`DATASET` must have a class with at least four images (three, if it has train/ and test/), so that some "
            f"can be held out for validation. Received: at most {np.bincount(data.labels).max()} in a class"
        )
    return Images(*(part[~second] for part in data)), Images(*(part[second] for part in data))


def sample(data: Images, count: int, seed: int) -> Images:
    """A random sample of about `count` images in the given order, with at least ten of each class that has ten."""
    generator = np.random.default_rng((seed, 1))
    classes = np.unique(data.labels)
    per_class = max(10, math.ceil(count / len(classes)))
    members = [generator.permutation(np.flatnonzero(data.labels == label))[:per_class] for label in classes]
    chosen = np.sort(np.concatenate(members))
    return Images(*(part[chosen] for part in data))


def checksum(parts: tuple[Images, ...], class_names: list[str]) -> int:
    """CRC-32 of images, labels and class names; it changes when any of them changes."""
    value = zlib.crc32("\0".join(class_names).encode("utf-8", "surrogateescape"))
    for part in parts:
        value = zlib.crc32(part.labels, zlib.crc32(np.ascontiguousarray(part.images), value))
    return value


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
