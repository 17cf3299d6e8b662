"""CIFAR-10, scikit-learn's digits or a folder of images as the same arrays, and splits of them."""

import math
import os
import sys
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
from PIL import Image, ImageOps
from sklearn.datasets import load_digits

from command_line import NO_DOWNLOAD, InputError, class_folders, is_split
from keras_settings import cache_folder

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif")
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10_ADDRESS = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
CIFAR10_FILE = "datasets/cifar-10-batches-py-target_archive"  # in Keras' cache


class Images(NamedTuple):
    """Labelled images.

    Attributes:
        images: uint8, RGB from 0 to 255, shape `(n, 3, height, width)`.
        labels: int32, the index of each image's class name, shape `(n,)`.
    """

    images: np.ndarray
    labels: np.ndarray


def load_images(dataset, image_size, fit, test_fraction, seed, unreadable="stop"):
    """Loads a data set, split into what is trained on and what is tested.

    CIFAR-10 has a test set of its own, and so has a folder of `train/CLASS/IMAGE` and `test/CLASS/IMAGE`; the digits
    and a folder of `CLASS/IMAGE` are split here, stratified. Images of one size stay at that size; a folder of mixed
    sizes, or of images larger than `image_size`, is brought to `image_size` while it is read.

    Args:
        dataset: `"cifar10"`, `"digits"` or the path of a folder.
        image_size: int, pixels; only used for a folder of mixed or larger sizes.
        fit: `"scale"` or `"pad"`, as in `fine_tuned_models`; only used for a folder of mixed or larger sizes.
        test_fraction: float, the share of images to test where the data set has no test set.
        seed: int, of the split.
        unreadable: `"stop"`, where image files of a folder cannot be read, or `"skip"` them, with a count.

    Returns:
        Tuple of the training `Images`, the test `Images`, and the list of class names.

    Raises:
        InputError: if the data set cannot be downloaded, or the folder cannot be used: all that is wrong with it.
    """
    if dataset == "cifar10":
        return *_load_cifar10(), list(CIFAR10_CLASSES)
    if dataset == "digits":
        digits = load_digits()
        grey = np.rint(digits.images * (255 / 16)).astype("uint8")  # shape (n, 8, 8)
        images = np.repeat(grey[:, None], 3, axis=1)  # shape (n, 3, 8, 8)
        class_names = [str(name) for name in digits.target_names]
        whole = Images(images, digits.target.astype("int32"))
    else:
        whole, number_of_training_images, class_names = _load_folder(Path(dataset), image_size, fit, unreadable)
        if number_of_training_images:
            cut = number_of_training_images
            return Images(*(part[:cut] for part in whole)), Images(*(part[cut:] for part in whole)), class_names
    return *stratified_split(whole, test_fraction, seed), class_names


def stratified_split(data, fraction, seed):
    """Splits images so that each class gives the same share.

    A class gives `fraction` of its images, rounded, and at least one if it has three or more; it keeps at least two,
    so that each of them has a positive. The result depends on nothing but the labels, the fraction and the seed.

    Args:
        data: `Images`.
        fraction: float between 0 and 1, the share of the second part.
        seed: int.

    Returns:
        Tuple of two `Images`, what is kept and what was split off, both in the given order.

    Raises:
        InputError: if no class has three images, of which one can be split off.
    """
    generator = np.random.default_rng((seed, 0))
    second = np.zeros(len(data.labels), bool)
    for label in np.unique(data.labels):
        members = np.flatnonzero(data.labels == label)
        share = min(max(round(len(members) * fraction), 1), max(len(members) - 2, 0))
        second[generator.permutation(members)[:share]] = True
    if not second.any():
        raise InputError(
            "`DATASET` must have a class with at least four images (three, where it is split into train and test), "
            "so that some can be held back for validation."
        )
    return Images(*(part[~second] for part in data)), Images(*(part[second] for part in data))


def sample(data, count, seed):
    """A random sample of about `count` images, at least ten of each class that has them, as `Images` in order."""
    generator = np.random.default_rng((seed, 1))
    classes = np.unique(data.labels)
    of_each_class = max(10, math.ceil(count / len(classes)))
    members = [generator.permutation(np.flatnonzero(data.labels == label))[:of_each_class] for label in classes]
    chosen = np.sort(np.concatenate(members))
    return Images(*(part[chosen] for part in data))


def checksum(parts, class_names):
    """An int by which changed images, labels or class names are noticed (CRC-32)."""
    value = zlib.crc32("\0".join(class_names).encode("utf-8", "surrogateescape"))
    for part in parts:
        value = zlib.crc32(part.labels, zlib.crc32(np.ascontiguousarray(part.images), value))
    return value


def raw_pixels(data):
    """Images as plain vectors, the simplest features there are, brought down to 32×32 pixels where they are larger.

    Args:
        data: `Images`.

    Returns:
        float32 from 0 to 1, shape `(n, 3 * height * width)`.
    """
    images = data.images
    if max(images.shape[2:]) > 32:
        shrunk = [
            keras.ops.image.resize(
                keras.ops.cast(images[start : start + 256], "float32"),
                (32, 32),
                antialias=True,
                data_format="channels_first",
            )
            for start in range(0, len(images), 256)
        ]
        images = np.concatenate([keras.ops.convert_to_numpy(batch) for batch in shrunk])
    return images.reshape(len(images), -1).astype("float32") / 255


def _load_cifar10():
    try:
        parts = keras.datasets.cifar10.load_data()
    except Exception as error:  # Keras raises a bare Exception when a download fails
        raise InputError(
            f"CIFAR-10 could not be loaded ({error}). Put {CIFAR10_ADDRESS} by hand at "
            f"{cache_folder() / CIFAR10_FILE}. {NO_DOWNLOAD}"
        ) from error
    if keras.config.image_data_format() == "channels_last":
        parts = [(images.transpose(0, 3, 1, 2), labels) for images, labels in parts]
    return [Images(images, labels.reshape(-1).astype("int32")) for images, labels in parts]


def _load_folder(folder, image_size, fit, unreadable):
    """Reads a folder of images: `Images`, how many of them are in `train/` (0 if it is not split), class names."""
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
    with ThreadPoolExecutor() as pool:
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
    return Images(images, labels), int(to_train.sum()) if split else 0, class_names


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
    with ThreadPoolExecutor() as pool:
        for number, (path, error) in enumerate(zip(paths, pool.map(_told(read), enumerate(paths)), strict=True), 1):
            if error is not None:
                errors[path] = error
            if number % 256 == 0 or number == len(paths):
                progress.update(number)
    return images, errors


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
    with _opened(path) as image:
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
