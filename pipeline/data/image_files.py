"""Decodes image files into arrays of one size, and names every file that cannot be read."""

import contextlib
import math
import os
import sys
import threading
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
from PIL import Image, ImageOps

from pipeline.data.folders import IMAGE_SUFFIXES, ImageFolder
from pipeline.data.splits import Images
from pipeline.errors import InputError

_LARGE = threading.Lock()  # images that take hundreds of megabytes are decoded one at a time


def read_folder(
    listed: ImageFolder, image_size: int, fit: str = "scale", unreadable: str = "stop"
) -> tuple[Images, int]:
    """Reads the images of a folder.

    Images of one size keep that size; if there are several sizes, or larger ones than `image_size`, all are resized.

    Args:
        listed: what `list_images` found.
        image_size: int, pixels.
        fit: `"scale"` or `"pad"`, as in `read_images`.
        unreadable: `"stop"` if files cannot be read, or `"skip"` them and print how many.

    Returns:
        Tuple of the `Images` in the given order, and how many of them are training images, which come first.

    Raises:
        InputError: if the folder cannot be used; the message names everything that is wrong with it.
    """
    with _threads() as pool:
        sizes = {size for size in pool.map(_returning_errors(_stored_size), listed.paths) if isinstance(size, tuple)}
    size = sizes.pop() if len(sizes) == 1 else (image_size, image_size)
    if max(size) > image_size:  # shrunk by averaging here; in the network, by picking pixels
        size = (image_size, image_size)
    memory = 3 * math.prod(size) * len(listed.paths) / 2**20
    print(f"Reading {len(listed.paths):,} images at {size[0]}×{size[1]} pixels: {memory:,.0f} MiB of memory")
    images, errors = _decode(listed.paths, size, fit)

    readable = np.array([path not in errors for path in listed.paths], bool)
    labels, in_train = np.array(listed.labels, "int32"), np.array(listed.in_train, bool)
    _check_usable(listed, errors, labels[readable & in_train], (readable & ~in_train).any(), unreadable)
    if errors:  # else without a copy of all images
        images, labels, in_train = images[readable], labels[readable], in_train[readable]
    return Images(images, labels), int(in_train.sum())


def read_images(paths: Sequence[str | os.PathLike], size: tuple[int, int], fit: str = "scale") -> np.ndarray:
    """Reads image files as RGB: JPEG, PNG, BMP, the first frame of GIF; grey, palette, RGBA on white, EXIF-rotated.

    Args:
        paths: paths of the files.
        size: `(height, width)` in pixels of the result, such as the input of a trained model.
        fit: `"scale"` stretches images to the size; `"pad"` shrinks those that are too large and centres them on black.

    Returns:
        uint8, shape `(n, 3, height, width)`.

    Raises:
        InputError: if files cannot be read; the message names them all.
    """
    images, errors = _decode(paths, size, fit)
    if errors:
        named = "".join(f"\n  {path}: {error}" for path, error in errors.items())
        raise InputError(f"Every image file must be readable. Received:{named}")
    return images


def _check_usable(listed, errors, train_labels, any_test, unreadable):
    """Raises InputError with everything that is wrong with a folder, or prints which files are skipped."""
    problems = list(listed.problems)
    if listed.is_split and not any_test:
        problems.append(f"{listed.folder / 'test'}: no image of a class that is in train/")
    counts = np.bincount(train_labels, minlength=len(listed.class_names))
    train = listed.folder / "train" if listed.is_split else listed.folder
    problems += [
        f"{train / name}: {count} image{'' if count == 1 else 's'}, but every class needs at least two"
        for name, count in zip(listed.class_names, counts, strict=True)
        if count < 2
    ]
    named = [f"{path}: {error}" for path, error in errors.items()]
    if problems or (errors and unreadable == "stop"):
        remedy = "; use --unreadable-images skip to skip files that cannot be read" if errors else ""
        raise InputError(
            f"`DATASET` must be a folder whose images ({', '.join(IMAGE_SUFFIXES)}) can all be used{remedy}. "
            "Received:\n  " + "\n  ".join(problems + named)
        )
    if errors:
        print(
            f"Skipped {len(errors):,} files that cannot be read:\n  "
            + "\n  ".join(named[:20] + ["..."] * (len(named) > 20))
        )


def _decode(paths, size, fit):
    """Image files as an array `(n, 3, height, width)`, and a dict from the unreadable ones to their errors."""
    try:
        images = np.empty((len(paths), 3, *size), "uint8")
    except MemoryError as error:
        raise InputError(
            f"`IMAGE_SIZE` must be small enough for the images to fit into memory. Received: {len(paths):,} images of "
            f"{size[0]}×{size[1]} pixels ({error})"
        ) from error
    progress = keras.utils.Progbar(len(paths), unit_name="image", verbose=1 if sys.stdout.isatty() else 0)

    def read(item):
        number, path = item
        images[number] = _rgb_pixels(path, size, fit)

    errors = {}
    with _threads() as pool:
        for number, (path, error) in enumerate(
            zip(paths, pool.map(_returning_errors(read), enumerate(paths)), strict=True), 1
        ):
            if error is not None:
                errors[path] = error
            if number % 256 == 0 or number == len(paths):
                progress.update(number)
    return images, errors


@contextlib.contextmanager
def _threads():
    """A pool of threads, without Pillow's warning about images half as large as those that it refuses."""
    with warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning):
        with ThreadPoolExecutor() as pool:
            yield pool


def _returning_errors(read):
    """Makes a function return its exception instead of raising it, so that all unreadable files can be named."""

    def read_or_error(item):
        try:
            return read(item)
        except Exception as error:  # Pillow raises many types for a corrupt file, even TypeError and struct.error
            return error

    return read_or_error


def _opened(path):
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError("not a regular file")  # reading from a pipe would wait forever
    return Image.open(path)


def _stored_size(path):
    """Displayed height and width of an image file, from its header."""
    with _opened(path) as image:
        width, height = image.size
        rotated = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)  # EXIF orientations with a turn of 90 degrees
        return (width, height) if rotated else (height, width)


def _rgb_pixels(path, size, fit):
    """An image file as uint8 RGB of shape `(3, height, width)`, resized to `size` as `fit` says."""
    with _opened(path) as image, _LARGE if image.width * image.height > 2**26 else contextlib.nullcontext():
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip, not scale
            image = Image.fromarray((np.asarray(image).astype("uint32") >> 8).clip(0, 255).astype("uint8"))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = image.convert("RGB")
        height, width = size
        if image.size != (width, height):
            if fit == "scale":
                image = image.resize((width, height), Image.Resampling.BILINEAR)
            else:
                image.thumbnail((width, height), Image.Resampling.BILINEAR, reducing_gap=None)  # never enlarges
                canvas = Image.new("RGB", (width, height))
                canvas.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
                image = canvas
        return np.asarray(image).transpose(2, 0, 1)
