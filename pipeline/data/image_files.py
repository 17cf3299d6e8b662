"""Decodes image files into arrays of one size, and names files that cannot be read."""

import errno
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import keras
import numpy as np
from PIL import Image

from pipeline.data.image_list import in_lines
from pipeline.data.pixels import Details, Range, digest, displayed_size, rgb_and_details
from pipeline.errors import InputError
from pipeline.files import DEVICE_FAILED

NOT_THE_FILE = (*DEVICE_FAILED, errno.ENOMEM)  # errors that say nothing about the file


class Decoded(NamedTuple):
    """Image files as arrays.

    Attributes:
        images: uint8, shape `(n, 3, height, width)`; those that cannot be read are left as they are.
        digests: n checksums of the images' pixels; `b""` for images that cannot be read.
        errors: dict from indices to the errors of images that cannot be read.
        details: dict from the other indices to `Details`.
        value_range: lowest and highest value of 16-bit and floating-point images, which become 0 and 255; None without
            such images.
    """

    images: np.ndarray
    digests: list[bytes]
    errors: dict[int, Exception]
    details: dict[int, Details]
    value_range: Range | None


def read_data_set(paths: Sequence[str | os.PathLike], image_size: int, fit: str) -> Decoded:
    """Reads image files into one array, each file once.

    Images of one size keep that size; if there are several sizes, or larger ones than `image_size`, all are resized.

    Args:
        paths: paths of the files.
        image_size: int, pixels.
        fit: `"scale"` or `"pad"`, as in `read_images`.

    Returns:
        `Decoded`, in the order of `paths`.

    Raises:
        InputError: if the images do not fit into memory.
        OSError: if the disk, the network or the system fails; this says nothing about the file.
    """
    wanted, size = (image_size, image_size), _first_size(paths)
    if size is None or max(size) > image_size:  # shrunk by averaging here; in the network, by picking pixels
        size = wanted
    decoded = _announced(paths, size, fit, only_this_size=size != wanted)
    if decoded is None:
        decoded = _announced(paths, wanted, fit, only_this_size=False)
    wide = [number for number, each in decoded.details.items() if each.value_range]
    reduced = sum(each.is_reduced for each in decoded.details.values())
    if reduced:
        print(
            f"Warning: colours of 16 bits are read with the upper 8, and may be nearly black. Such images: {reduced:,}"
        )
    if not wide:
        return decoded
    lows, highs = zip(*(decoded.details[number].value_range for number in wide), strict=True)
    low, high = value_range = min(lows), max(highs)
    print(f"{len(wide):,} images have 16-bit or floating-point pixels: {low:g} becomes black and {high:g} white.")
    _decode_into(decoded, paths, wide, fit, value_range)
    return decoded._replace(value_range=value_range)


def _first_size(paths):
    """Height and width of the first image whose header can be read, None without any."""
    for path in paths:
        size = returning_errors(displayed_size)(path)
        if isinstance(size, tuple):
            return size
    return None


def _announced(paths, size, fit, only_this_size):
    """The images as `Decoded`, after a line that says how much memory they take; None if one has another size."""
    memory = 3 * math.prod(size) * len(paths) / 2**20
    print(f"Reading {len(paths):,} images at {size[0]}×{size[1]} pixels: {memory:,.0f} MiB of memory")
    decoded = _empty(len(paths), size)
    is_complete = _decode_into(decoded, paths, range(len(paths)), fit, None, only_this_size)
    return decoded if is_complete else None


def read_images(
    paths: Sequence[str | os.PathLike], size: tuple[int, int], fit: str = "scale", value_range: Range | None = None
) -> np.ndarray:
    """Reads image files as RGB: all photographs that Pillow reads, the first frame of an animation.

    Grey and palette images become RGB, transparent pixels white, and EXIF rotation is applied.

    Args:
        paths: paths of the files.
        size: `(height, width)` in pixels of the result, such as the input of a trained model.
        fit: `"scale"` stretches images to the size; `"pad"` shrinks those that are too large and centres them on black.
        value_range: the lowest and the highest value of 16-bit and floating-point images, which become 0 and 255; those
            of the training images, for a trained model. If not given, 0 to 65,535, or 0 to 1 of floating-point images.

    Returns:
        uint8, shape `(n, 3, height, width)`.

    Raises:
        InputError: if files cannot be read; the message names the first twenty.
    """
    decoded = _empty(len(paths), size)
    _decode_into(decoded, paths, range(len(paths)), fit, value_range)
    if decoded.errors:
        named = [f"{paths[number]}: {reason(paths[number], error)}" for number, error in decoded.errors.items()]
        raise InputError(f"Every image file must be readable. Received:{in_lines(named)}")
    return decoded.images


def reason(path: str | os.PathLike, error: Exception) -> str:
    """What is wrong with a file that cannot be read, in a few words."""
    if not os.path.isfile(path) or getattr(error, "errno", None):
        return str(error)
    with open(path, "rb") as file:
        start = file.read(64)
    if not start.strip(b"\0"):
        return "zeros in place of an image" if start else "an empty file"
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer in place of the image: git lfs pull"
    return str(error) or type(error).__name__


def _empty(count, size):
    try:
        images = np.empty((count, 3, *size), "uint8")
    except MemoryError as error:
        raise InputError(
            f"`IMAGE_SIZE` must be small enough for the images to fit into memory. Received: {count:,} images of "
            f"{size[0]}×{size[1]} pixels ({error})"
        ) from error
    return Decoded(images, [b""] * count, {}, {}, None)


def _decode_into(decoded, paths, numbers, fit, value_range, only_this_size=False):
    """Reads the images with these numbers; returns False as soon as one has another size, if that is not wanted."""
    size = decoded.images.shape[2:]

    def read(number):
        pixels, details = rgb_and_details(paths[number], size, fit, value_range)
        decoded.images[number] = pixels
        return digest(pixels), details

    progress = _Progress(len(numbers))
    with quiet_pillow(), ThreadPoolExecutor() as pool:
        for start in range(0, len(numbers), 4096):  # so that few wait for a thread
            part = numbers[start : start + 4096]
            for number, result in zip(part, pool.map(returning_errors(read), part), strict=True):
                progress.step()
                if isinstance(result, Exception):
                    decoded.errors[number] = result
                    continue
                decoded.digests[number], decoded.details[number] = result
                if only_this_size and result[1].size != size:
                    pool.shutdown(cancel_futures=True)
                    return False
    return True


class _Progress:
    """How many images have been read: on a terminal as a bar, else as a line a minute."""

    def __init__(self, count):
        self.count, self.number, self.last = count, 0, time.monotonic()
        self.bar = keras.utils.Progbar(count, unit_name="image") if sys.stdout.isatty() else None

    def step(self):
        self.number += 1
        if self.bar and (self.number % 256 == 0 or self.number == self.count):
            self.bar.update(self.number)
        elif not self.bar and time.monotonic() - self.last >= 60:
            self.last = time.monotonic()
            print(f"{self.number:,} of {self.count:,} images read")


def quiet_pillow():
    """A context without Pillow's warning about images half as large as those that it refuses."""
    return warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning)


def returning_errors(read: Callable) -> Callable:
    """Makes a function return its exception instead of raising it, so that all unreadable files can be named.

    Errors of the disk, the network or the system are raised: the files may be intact.
    """

    def read_or_error(item):
        try:
            return read(item)
        except Exception as error:  # Pillow raises many types for a corrupt file, even TypeError and struct.error
            if isinstance(error, MemoryError) or getattr(error, "errno", None) in NOT_THE_FILE:
                raise
            return error

    return read_or_error
