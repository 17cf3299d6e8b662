"""CIFAR-10, scikit-learn's digits or a folder of images as the same arrays, and splits of them."""

import math
import zlib
from typing import NamedTuple

import keras
import numpy as np
from sklearn.datasets import load_digits

from command_line import NO_DOWNLOAD, InputError
from image_folder import load_folder
from keras_settings import cache_folder

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
        images, labels, cut, class_names = load_folder(dataset, image_size, fit, unreadable)
        whole = Images(images, labels)
        if cut:  # between train/ and test/
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
