"""Decodes image files into arrays of one size, and names files that cannot be read."""

import contextlib
import errno
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from typing import NamedTuple

import keras
import numpy as np
from PIL import Image

from pipeline.data.image_list import in_lines
from pipeline.data.pixels import Range, header, rgb_pixels
from pipeline.errors import InputError
from pipeline.files import DEVICE_FAILED

NOT_THE_FILE = (*DEVICE_FAILED, errno.ENOMEM)  # errors that say nothing about the file


class Decoded(NamedTuple):
    """Image files as arrays.

    Attributes:
        images: uint8, shape `(n, 3, height, width)`; those that cannot be read are left as they are.
        digests: n checksums of the images' pixels; `b""` for images that cannot be read.
        errors: dict from indices to the errors of images that cannot be read.
        value_range: lowest and highest value of 16-bit and floating-point images, which become 0 and 255; None without
            such images.
    """

    images: np.ndarray
    digests: list[bytes]
    errors: dict[int, Exception]
    value_range: Range | None


def read_data_set(paths: Sequence[str | os.PathLike], image_size: int, fit: str) -> Decoded:
    """Reads image files into one array.

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
    with _threads() as pool:
        headers = [each for each in pool.map(returning_errors(header), paths) if isinstance(each, tuple)]
    sizes = {size for size, *_ in headers}
    size = sizes.pop() if len(sizes) == 1 else (image_size, image_size)
    if max(size) > image_size:  # shrunk by averaging here; in the network, by picking pixels
        size = (image_size, image_size)
    ranges = [value_range for _, value_range, _ in headers if value_range]
    value_range = (min(low for low, _ in ranges), max(high for _, high in ranges)) if ranges else None
    memory = 3 * math.prod(size) * len(paths) / 2**20
    print(f"Reading {len(paths):,} images at {size[0]}×{size[1]} pixels: {memory:,.0f} MiB of memory")
    if value_range:
        low, high = value_range
        print(f"{len(ranges):,} images have 16-bit or floating-point pixels: {low:g} becomes black and {high:g} white.")
    reduced = sum(is_reduced for *_, is_reduced in headers)
    if reduced:
        print(
            f"Warning: colours of 16 bits are read with the upper 8, and may be nearly black. Such images: {reduced:,}"
        )
    return _decode(paths, size, fit, value_range)


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
    decoded = _decode(paths, size, fit, value_range)
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


def _decode(paths, size, fit, value_range):
    try:
        images = np.empty((len(paths), 3, *size), "uint8")
    except MemoryError as error:
        raise InputError(
            f"`IMAGE_SIZE` must be small enough for the images to fit into memory. Received: {len(paths):,} images of "
            f"{size[0]}×{size[1]} pixels ({error})"
        ) from error

    def read(item):
        number, path = item
        images[number] = rgb_pixels(path, size, fit, value_range)
        return blake2b(images[number], digest_size=16).digest()

    with _threads() as pool:
        results = list(_with_progress(pool.map(returning_errors(read), enumerate(paths)), len(paths)))
    errors = {number: result for number, result in enumerate(results) if isinstance(result, Exception)}
    return Decoded(
        images, [b"" if number in errors else each for number, each in enumerate(results)], errors, value_range
    )


def _with_progress(items: Iterable, count: int) -> Iterator:
    """Yields items; on a terminal with a bar, else with a line a minute."""
    terminal = sys.stdout.isatty()
    bar, last = keras.utils.Progbar(count, unit_name="image", verbose=int(terminal)), time.monotonic()
    for number, item in enumerate(items, 1):
        yield item
        if terminal and (number % 256 == 0 or number == count):
            bar.update(number)
        elif time.monotonic() - last >= 60:
            last = time.monotonic()
            print(f"{number:,} of {count:,} images read")


@contextlib.contextmanager
def _threads():
    with quiet_pillow(), ThreadPoolExecutor() as pool:
        yield pool


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
