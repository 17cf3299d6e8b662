"""CIFAR-10, scikit-learn's digits or a user's images as the same arrays, in three parts."""

import os

import keras
import numpy as np
from sklearn.datasets import load_digits

from pipeline import downloads
from pipeline.data.csv_files import list_csv
from pipeline.data.folders import list_folder
from pipeline.data.image_list import BUILT_IN_DATASETS, TEST, TRAIN, shortened
from pipeline.data.pixels import image_suffixes
from pipeline.data.reading import read_listed
from pipeline.data.splits import DataSet, Images, in_parts, split

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10_ADDRESS = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
CIFAR10_FILE = "datasets/cifar-10-batches-py-target_archive"  # in Keras' cache


def load_images(
    dataset: str,
    image_size: int,
    fit: str,
    test_fraction: float,
    validation_fraction: float,
    seed: int,
    unreadable: str = "stop",
    small_classes: str = "stop",
) -> DataSet:
    """Loads a data set in three parts.

    CIFAR-10 has a test set of its own; a folder or a CSV file may have one, and a validation set too. Otherwise
    `splits.split` chooses the parts. Images of one size keep that size; those of a folder or CSV file with several
    sizes, or larger than `image_size`, are resized to `image_size` while they are read.

    An image that is in two parts is left out of training, or of validation, with a warning that names it.

    Args:
        dataset: `"cifar10"`, `"digits"` or the path of a folder or a CSV file.
        image_size: int, pixels; used if there are several sizes, or larger images.
        fit: `"scale"` or `"pad"`, as in `fine_tuned_models`; used like `image_size`.
        test_fraction: float, the fraction of test images if the data set has no test set.
        validation_fraction: float, the fraction of the other images for validation, if it has no validation set.
        seed: int, of the choice.
        unreadable: `"stop"` if image files cannot be read, or `"skip"` them.
        small_classes: `"stop"` if classes have fewer than two training images, or `"skip"` them.

    Returns:
        `DataSet`.

    Raises:
        InputError: if the download fails, or images cannot be used; as `read_listed`.
    """
    fractions = test_fraction, validation_fraction, seed
    if dataset not in BUILT_IN_DATASETS:
        listed = list_csv(dataset) if os.path.isfile(dataset) else list_folder(dataset, image_suffixes())
        return read_listed(listed, image_size, fit, fractions, unreadable, small_classes)
    everything, parts = _load_cifar10() if dataset == "cifar10" else _load_digits()
    class_names = CIFAR10_CLASSES if dataset == "cifar10" else [str(digit) for digit in range(10)]
    numbers = [str(index) for index in range(len(parts))]  # in place of names
    parts, _ = split(numbers, everything.labels.tolist(), parts, *fractions)
    return in_parts(everything, parts, list(class_names))


def print_summary(data: DataSet) -> None:
    """Prints the number of images in each part, their size and their classes."""
    height, width = data.train.images.shape[2:]
    names = data.class_names
    print(
        f"{len(data.train.labels):,} images for training, {len(data.validation.labels):,} for validation, "
        f"{len(data.test.labels):,} for testing; {height}×{width} pixels; {len(names)} classes: {shortened(names)}"
    )
    without = [name for label, name in enumerate(names) if label not in data.test.labels]
    if without:
        print(f"Classes without a test image: {len(without):,}, {shortened(without)}")


def _load_cifar10():
    """All images of CIFAR-10, and the part of each."""
    try:
        loaded = keras.datasets.cifar10.load_data()
    except Exception as error:  # Keras raises a bare Exception when a download fails
        place = downloads.cache_folder() / CIFAR10_FILE
        raise downloads.failed("CIFAR-10", error, CIFAR10_ADDRESS, place) from error
    images, labels = (np.concatenate(each) for each in zip(*loaded, strict=True))
    if keras.config.image_data_format() == "channels_last":
        images = images.transpose(0, 3, 1, 2)
    parts = [part for part, (_, each) in zip((TRAIN, TEST), loaded, strict=True) for _ in each]
    return Images(images, labels.reshape(-1).astype("int32")), parts


def _load_digits():
    digits = load_digits()
    grey = np.rint(digits.images * (255 / 16)).astype("uint8")  # shape (n, 8, 8)
    images = np.repeat(grey[:, None], 3, axis=1)  # shape (n, 3, 8, 8)
    return Images(images, digits.target.astype("int32")), [TRAIN] * len(images)
