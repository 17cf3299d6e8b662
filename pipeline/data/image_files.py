"""Decodes image files into arrays of one size, and names files that cannot be read."""

import contextlib
import errno
import os
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import keras
import numpy as np
from PIL import Image

from pipeline.data import image_store
from pipeline.data.image_list import in_lines
from pipeline.data.image_store import READ, UNREADABLE
from pipeline.data.pixels import Range, digest, displayed_size, rgb_and_details
from pipeline.errors import InputError
from pipeline.files import DEVICE_FAILED

CHUNK, SAVE_SECONDS = 256, 10  # images that threads get at once; seconds between saves of what has been decoded
HEADERS = 100  # files whose sizes are compared before decoding
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


def read_data_set(
    paths: Sequence[str | os.PathLike], image_size: int, fit: str, images_in: str = "memory", cache: str = "auto"
) -> Decoded:
    """Reads image files into one array.

    Images of one size keep that size; if there are several sizes, or larger ones than `image_size`, all are resized.
    The headers of about a hundred files say whether there are several. If only others have another size, it shows while
    files are decoded, which then starts again.

    Args:
        paths: paths of the files.
        image_size: int, pixels.
        fit: `"scale"` or `"pad"`, as in `read_images`.
        images_in, cache: where the array is, as in `image_store.Place`.

    Returns:
        `Decoded`, in the order of `paths`.

    Raises:
        InputError: if there is not enough space for the images.
        OSError: if the disk, the network or the system fails; this says nothing about the file.
    """
    wanted, place = (image_size, image_size), image_store.Place(paths, fit, images_in, cache)
    # If there is a folder for images of the wanted size, an earlier run has found that they are to be resized.
    is_known = place.is_disk(wanted) and place.folder(wanted).exists()
    common = None if is_known else _common_size(paths)
    # Larger images are shrunk here, where pixels are averaged; the network would pick some.
    own_size = common not in (None, wanted) and max(common) <= image_size
    decoded = _read(place, paths, common, fit, only_this_size=True) if own_size else None
    return decoded or _read(place, paths, wanted, fit)


def _read(place, paths, size, fit, only_this_size=False):
    """Image files as `Decoded`, or None as soon as one has another size, if that is not wanted."""
    with contextlib.closing(place.opened(size)) as store:
        missing = np.flatnonzero(store.records["state"] != READ).tolist()
        errors = _decode(store, paths, missing, fit, store.value_range, only_this_size)
        if errors is None:
            store.remove()
            return None
        value_range = _decode_wide(store, paths, fit, errors)
        if not store.is_complete or store.value_range != value_range:
            store.finish(value_range)
        return Decoded(store.array, store.records["digest"].tolist(), errors, value_range)


def _common_size(paths):
    """Height and width of all images, judged by the headers of some files; None if sizes differ or none can be read."""
    of_size = defaultdict(list)
    with quiet_pillow():
        for path in paths[:: max(1, len(paths) // HEADERS)]:
            if isinstance(size := returning_errors(displayed_size)(path), tuple):
                of_size[size].append(path)
        # Files that cannot be read do not count, though their headers can be.
        sizes = (size for size, some in of_size.items() if len(of_size) == 1 or any(map(_is_readable, some)))
        first, second = next(sizes, None), next(sizes, None)
    return None if second else first


def _is_readable(path):
    """Whether an image file can be decoded."""
    read = returning_errors(lambda path: rgb_and_details(path, (1, 1), "scale", None))
    return not isinstance(read(path), Exception)


def _decode_wide(store, paths, fit, errors):
    """Decodes images of more than 8 bits by the range of all their values, which is returned; None without any.

    Errors are added to those of the other images.
    """
    known = store.records[store.records["state"] == READ]
    if reduced := np.count_nonzero(known["is_reduced"]):
        print(
            f"Warning: colours of 16 bits are read with the upper 8, and may be nearly black. Such images: {reduced:,}"
        )
    wide = np.flatnonzero((store.records["state"] == READ) & store.records["is_wide"])
    if not len(wide):
        return None
    low, high = value_range = float(store.records["low"][wide].min()), float(store.records["high"][wide].max())
    print(f"{len(wide):,} images have 16-bit or floating-point pixels: {low:g} becomes black and {high:g} white.")
    if store.value_range != value_range:
        store.records["state"][wide] = 0  # if this is interrupted, they are decoded again
        store.save([wide[0], wide[-1]])
        errors |= _decode(store, paths, wide.tolist(), fit, value_range)
    return value_range


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
    store = image_store.Memory(len(paths), size)
    errors = _decode(store, paths, range(len(paths)), fit, value_range)
    if errors:
        named = [f"{paths[number]}: {reason(paths[number], error)}" for number, error in errors.items()]
        raise InputError(f"Every image file must be readable. Received:{in_lines(named)}")
    return store.array


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


def _decode(store, paths, numbers, fit, value_range, only_this_size=False):
    """Decodes the images with these numbers, which ascend, in threads.

    Returns:
        dict from the numbers of images that cannot be read to their errors; or None as soon as an image has another
        size, if that is not wanted.
    """
    size, errors, progress = store.array.shape[2:], {}, _Progress(len(numbers))

    def read(number):
        result = decoded(paths[number])
        if isinstance(result, Exception):
            return result
        pixels = np.ascontiguousarray(result[0])  # once, for both
        store.write(number, pixels)
        return digest(pixels), result[1]

    decoded = returning_errors(lambda path: rgb_and_details(path, size, fit, value_range))
    unsaved, saved = [], time.monotonic()
    with quiet_pillow(), ThreadPoolExecutor() as pool:
        for start in range(0, len(numbers), CHUNK):
            chunk = numbers[start : start + CHUNK]
            for number, result in zip(chunk, pool.map(read, chunk), strict=True):
                progress.step()
                if isinstance(result, Exception):
                    errors[number] = result
                    store.records[number] = UNREADABLE, b"", False, False, 0, 0
                    continue
                checksum, details = result
                if only_this_size and details.size != size:
                    pool.shutdown(cancel_futures=True)
                    return None
                low, high = details.value_range or (0, 0)
                store.records[number] = READ, checksum, details.is_reduced, bool(details.value_range), low, high
            unsaved += chunk
            if time.monotonic() - saved >= SAVE_SECONDS or start + CHUNK >= len(numbers):
                store.save(unsaved)
                unsaved, saved = [], time.monotonic()
    return errors


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
