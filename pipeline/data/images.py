"""CIFAR-10, scikit-learn's digits or a user's images as the same arrays, in three parts."""

import os

import keras
import numpy as np
from sklearn.datasets import load_digits

from pipeline import downloads
from pipeline.data.csv_files import list_csv
from pipeline.data.folders import list_folder
from pipeline.data.held_out import with_held_out
from pipeline.data.image_list import BUILT_IN_DATASETS, TEST, TRAIN, shortened
from pipeline.data.pixels import digest, image_suffixes
from pipeline.data.reading import read_listed
from pipeline.data.splits import DataSet, Images, in_parts, split

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
    held_out_classes: str = "none",
    images_in: str = "memory",
    cache: str = "auto",
) -> DataSet:
    """Loads a data set in its parts.

    CIFAR-10 has a test set of its own; a folder or a CSV file may have one, and a validation set too. Otherwise
    `splits.split` chooses the parts. Images of one size keep that size; those of a folder or CSV file with several
    sizes, or larger than `image_size`, are resized to `image_size` while they are read.

    An image that is in two parts is left out of training, or of validation, with a warning that names it.

    All images of held-out classes are in a part of their own. Classes of which the data set has only test images are
    held out too.

    Args:
        dataset: `"cifar10"`, `"digits"` or the path of a folder or a CSV file.
        image_size: int, pixels; used if there are several sizes, or larger images.
        fit: `"scale"` or `"pad"`, as in `fine_tuned_models`; used like `image_size`.
        test_fraction: float, the fraction of test images if the data set has no test set.
        validation_fraction: float, the fraction of the other images for validation, if it has no validation set.
        seed: int, of the choice.
        unreadable: `"stop"` if image files cannot be read, or `"skip"` them.
        small_classes: `"stop"` if classes have fewer than two training images, or `"skip"` them.
        held_out_classes: `"none"`, or a number or names of classes, as in `held_out.with_held_out`.
        images_in, cache: where the images of files are kept, as in `image_store.Place`.

    Returns:
        `DataSet`.

    Raises:
        InputError: if the download fails, or images cannot be used; as `read_listed`.
    """
    fractions = test_fraction, validation_fraction, seed
    if dataset not in BUILT_IN_DATASETS:
        listed = list_csv(dataset) if os.path.isfile(dataset) else list_folder(dataset, image_suffixes())
        settings = unreadable, small_classes, held_out_classes, images_in, cache
        return read_listed(listed, image_size, fit, fractions, *settings)
    everything, parts = _load_cifar10() if dataset == "cifar10" else _load_digits()
    class_names, labels = list(BUILT_IN_DATASETS[dataset]), everything.labels.tolist()
    parts, test_fraction = with_held_out(class_names, labels, parts, test_fraction, held_out_classes, seed)
    numbers = [str(index) for index in range(len(parts))]  # in place of names
    parts, _ = split(numbers, labels, parts, test_fraction, validation_fraction, seed)
    return in_parts(everything, parts, class_names, [digest(image) for image in everything.array])


def print_summary(data: DataSet) -> None:
    """Prints the number of images in each part, their size and their classes."""
    height, width = data.train.array.shape[2:]
    names = data.class_names
    print(
        f"{len(data.train.labels):,} images for training, {len(data.validation.labels):,} for validation, "
        f"{len(data.test.labels):,} for testing; {height}×{width} pixels; {len(names)} classes: {shortened(names)}"
    )
    held_out = data.held_out_names
    if held_out:
        print(
            f"Held-out classes, never trained on: {len(held_out):,}, with {len(data.held_out.labels):,} images: "
            f"{shortened(held_out)}"
        )
    without = [name for label, name in enumerate(names) if label not in data.test.labels]
    if not len(data.test.labels):
        print("No known classes in the test: all test images are of classes that do not train.")
    elif without:
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
    names = [
        f"{part} image {number}"
        for part, (_, each) in zip((TRAIN, TEST), loaded, strict=True)
        for number in range(len(each))
    ]
    return Images(images, labels.reshape(-1).astype("int32"), np.array(names, object)), parts


def _load_digits():
    digits = load_digits()
    grey = np.rint(digits.images * (255 / 16)).astype("uint8")  # shape (n, 8, 8)
    images = np.repeat(grey[:, None], 3, axis=1)  # shape (n, 3, 8, 8)
    names = np.array([f"image {number}" for number in range(len(images))], object)
    return Images(images, digits.target.astype("int32"), names), [TRAIN] * len(images)
