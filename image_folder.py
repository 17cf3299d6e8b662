"""Folders of image files as arrays of one size; what cannot be used in them is named, all of it at once."""

import contextlib
import math
import os
import sys
import threading
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import keras
import numpy as np
from PIL import Image, ImageOps

from command_line import InputError, class_folders, is_split

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif")
_LARGE = threading.Lock()  # images that take hundreds of megabytes are read one at a time


def load_folder(folder, image_size, fit="scale", unreadable="stop"):
    """Reads a folder of `CLASS/IMAGE`, or of `train/CLASS/IMAGE` and `test/CLASS/IMAGE`, in a fixed order.

    Images of one size stay at that size; of mixed sizes, or larger than `image_size`, they are brought to it.

    Args:
        folder: path.
        image_size: int, pixels.
        fit: `"scale"` or `"pad"`, as in `read_images`.
        unreadable: `"stop"`, where image files cannot be read, or `"skip"` them, with a count.

    Returns:
        Tuple of images `(n, 3, height, width)`, uint8; labels `(n,)`, int32, the indices of their class names; how
        many of them are in `train/`, which come first (0 if the folder is not split); and the list of class names.

    Raises:
        InputError: if the folder cannot be used; it names all that is wrong with it.
    """
    folder = Path(folder)
    class_names = class_folders(folder)
    split = is_split(folder)
    parts = [folder / "train", folder / "test"] if split else [folder]
    beside = [entry for entry in folder.iterdir() if entry not in parts] if split else []
    for part in parts:
        beside += [entry for entry in part.iterdir() if not entry.is_dir()]
    beside = sorted(str(entry) for entry in beside if not entry.name.startswith("."))
    if beside:
        print(f"Not read, since it is not in a class folder: {', '.join(beside[:20])}{' ...' * (len(beside) > 20)}")
    closed = []  # what is wrong with folders
    found = [
        (path, label, part)
        for part in parts
        for label, name in enumerate(class_names)
        for path in (_files_in(part / name, closed) if (part / name).is_dir() else ())
    ]
    files = [each for each in found if each[0].suffix.lower() in IMAGE_SUFFIXES]
    kinds = Counter(path.suffix.lower() or "no suffix" for path, _, _ in found)
    unread = [f"{count:,} {suffix}" for suffix, count in sorted(kinds.items()) if suffix not in IMAGE_SUFFIXES]
    if unread:
        print(
            f"Files in {folder} that are not read, of other kinds than {', '.join(IMAGE_SUFFIXES)}: {', '.join(unread)}"
        )
    paths = [path for path, _, _ in files]
    with _quiet_threads() as pool:
        sizes = {size for size in pool.map(_told(_stored_size), paths) if isinstance(size, tuple)}
    size = sizes.pop() if len(sizes) == 1 else (image_size, image_size)
    if max(size) > image_size:  # shrunk here, where fine patterns are averaged and not picked from
        size = (image_size, image_size)
    memory = 3 * math.prod(size) * len(paths) / 2**20
    print(f"Reading {len(paths):,} images at {size[0]}×{size[1]} pixels: {memory:,.0f} MiB of memory")
    images, errors = _read(paths, size, fit)

    readable = np.array([path not in errors for path in paths], bool)
    labels = np.array([label for _, label, _ in files], "int32")
    to_train = np.array([part == parts[0] for _, _, part in files], bool)
    problems = [str(error) for error in closed]
    if split:
        unknown = sorted(set(class_folders(parts[1])) - set(class_names))
        problems += [f"{parts[1] / name}: a class that {parts[0]} lacks" for name in unknown]
        problems += [] if (readable & ~to_train).any() else [f"{parts[1]}: no image of a known class"]
    counts = np.bincount(labels[readable & to_train], minlength=len(class_names))
    problems += [
        f"{parts[0] / name}: {count} image{'s' if count == 0 else ''}, where every class needs two at least"
        for name, count in zip(class_names, counts, strict=True)
        if count < 2
    ]
    _tell_of_unusable(problems, errors, unreadable)
    if errors:  # else without a copy of all the images
        images, labels, to_train = images[readable], labels[readable], to_train[readable]
    return images, labels, int(to_train.sum()) if split else 0, class_names


def read_images(paths, size, fit="scale"):
    """Reads image files (JPEG, PNG, BMP, GIF's first frame; grey, palette, RGBA on white, EXIF-rotated) as RGB.

    Args:
        paths: list of paths.
        size: `(height, width)` in pixels that every image is brought to, such as a trained model's.
        fit: `"scale"`, stretched to the size, or `"pad"`, made smaller where too large and centred on black.

    Returns:
        uint8, shape `(n, 3, height, width)`.

    Raises:
        InputError: if files cannot be read as images; it names them all.
    """
    images, errors = _read(paths, size, fit)
    if errors:
        named = "".join(f"\n  {path}: {error}" for path, error in errors.items())
        raise InputError(f"Every image file must be readable. Received:{named}")
    return images


def _tell_of_unusable(problems, errors, unreadable):
    """Raises InputError with all that is wrong with a folder, or prints which files are left out."""
    named = [f"{path}: {error}" for path, error in errors.items()]
    if problems or (errors and unreadable == "stop"):
        remedy = "; --unreadable-images skip leaves out files that cannot be read" if errors else ""
        raise InputError(
            f"`DATASET` must be a folder of images ({', '.join(IMAGE_SUFFIXES)}) that can all be used{remedy}. "
            "Received:\n  " + "\n  ".join(problems + named)
        )
    if errors:
        print(
            f"Left out {len(errors):,} files that cannot be read:\n  "
            + "\n  ".join(named[:20] + ["..."] * (len(named) > 20))
        )


def _files_in(folder, closed):
    """Paths of the files below a folder, in a fixed order, those of hidden folders and hidden files left out.

    Symbolic links are followed, each folder once. Folders that cannot be listed, and links to a folder above, which
    holds other classes, are added to `closed`.
    """
    paths, seen, top = [], set(), Path(os.path.realpath(folder))
    for place, folders, names in os.walk(folder, onerror=closed.append, followlinks=True):
        real = os.path.realpath(place)
        if real in seen or (real != str(top) and top.is_relative_to(real)):
            folders.clear()
            if real not in seen:
                closed.append(f"{place}: a link to a folder above it")
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths += [Path(place, name) for name in sorted(names) if not name.startswith(".")]
    return paths


def _read(paths, size, fit):
    """Image files as an array `(n, 3, height, width)`, and a dict of the errors of those that cannot be read."""
    try:
        images = np.empty((len(paths), 3, *size), "uint8")
    except MemoryError as error:
        raise InputError(
            f"`IMAGE_SIZE` must be so small that the images fit into memory. Received {len(paths):,} images of "
            f"{size[0]}×{size[1]} pixels ({error})"
        ) from error
    progress = keras.utils.Progbar(len(paths), unit_name="image", verbose=1 if sys.stdout.isatty() else 0)

    def read(item):
        number, path = item
        images[number] = _rgb_pixels(path, size, fit)

    errors = {}
    with _quiet_threads() as pool:
        for number, (path, error) in enumerate(zip(paths, pool.map(_told(read), enumerate(paths)), strict=True), 1):
            if error is not None:
                errors[path] = error
            if number % 256 == 0 or number == len(paths):
                progress.update(number)
    return images, errors


@contextlib.contextmanager
def _quiet_threads():
    """Threads to read images in, without Pillow's warning of those half as large as those that it refuses."""
    with warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning):
        with ThreadPoolExecutor() as pool:
            yield pool


def _told(read):
    """Makes a function of a file return its error, not raise it, so that all bad files can be named at once."""

    def read_or_error(item):
        try:
            return read(item)
        except Exception as error:  # Pillow raises many kinds for a damaged file, also TypeError and struct.error
            return error

    return read_or_error


def _opened(path):
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError("not a regular file")  # but a pipe, say, from which reading would wait for ever
    return Image.open(path)


def _stored_size(path):
    """Height and width of an image file as it is to be seen, from its header."""
    with _opened(path) as image:
        width, height = image.size
        sideways = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)  # orientations that are turned by 90 degrees
        return (width, height) if sideways else (height, width)


def _rgb_pixels(path, size, fit):
    """An image file as uint8 RGB of shape `(3, height, width)`, brought to `size` as `fit` says."""
    with _opened(path) as image, _LARGE if image.width * image.height > 2**26 else contextlib.nullcontext():
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would clip rather than scale
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
                image.thumbnail((width, height), Image.Resampling.BILINEAR, reducing_gap=None)  # never larger
                onto = Image.new("RGB", (width, height))
                onto.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
                image = onto
        return np.asarray(image).transpose(2, 0, 1)
