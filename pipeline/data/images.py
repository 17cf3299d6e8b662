"""CIFAR-10, scikit-learn's digits or a folder of images as the same arrays."""

import keras
import numpy as np
from sklearn.datasets import load_digits

from pipeline import downloads
from pipeline.data.folders import list_images
from pipeline.data.image_files import read_folder
from pipeline.data.splits import Images, stratified_split

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10_ADDRESS = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
CIFAR10_FILE = "datasets/cifar-10-batches-py-target_archive"  # in Keras' cache


def load_images(
    dataset: str, image_size: int, fit: str, test_fraction: float, seed: int, unreadable: str = "stop"
) -> tuple[Images, Images, list[str]]:
    """Loads a data set, split into training images and test images.

    CIFAR-10 and a folder of `train/CLASS/IMAGE` and `test/CLASS/IMAGE` have a test set of their own. The digits and a
    folder of `CLASS/IMAGE` are split here, stratified by class. Images of one size keep that size; those of a folder
    with several sizes, or larger than `image_size`, are resized to `image_size` while they are read.

    Args:
        dataset: `"cifar10"`, `"digits"` or the path of a folder.
        image_size: int, pixels; used for a folder with several sizes, or with larger images.
        fit: `"scale"` or `"pad"`, as in `fine_tuned_models`; used like `image_size`.
        test_fraction: float, the fraction of test images if the data set has no test set.
        seed: int, of the split.
        unreadable: `"stop"` if image files of a folder cannot be read, or `"skip"` them and print how many.

    Returns:
        Tuple of the training `Images`, the test `Images`, and the list of class names.

    Raises:
        InputError: if the download fails, or the folder cannot be used; the message names everything that is wrong.
    """
    if dataset == "cifar10":
        return *_load_cifar10(), list(CIFAR10_CLASSES)
    if dataset == "digits":
        digits = load_digits()
        grey = np.rint(digits.images * (255 / 16)).astype("uint8")  # shape (n, 8, 8)
        images = np.repeat(grey[:, None], 3, axis=1)  # shape (n, 3, 8, 8)
        class_names = [str(name) for name in digits.target_names]
        everything = Images(images, digits.target.astype("int32"))
    else:
        listed = list_images(dataset)
        everything, cut = read_folder(listed, image_size, fit, unreadable)
        class_names = listed.class_names
        if listed.is_split:  # views, not copies
            return (
                Images(*(part[:cut] for part in everything)),
                Images(*(part[cut:] for part in everything)),
                class_names,
            )
    return *stratified_split(everything, test_fraction, seed), class_names


def print_summary(train: Images, validation: Images, test: Images, class_names: list[str]) -> None:
    """Prints the number of images in each split, their size and their classes."""
    height, width = train.images.shape[2:]
    print(
        f"{len(train.labels):,} images for training, {len(validation.labels):,} for validation, {len(test.labels):,} "
        f"for testing; {height}×{width} pixels; {len(class_names)} classes: {', '.join(class_names[:20])}"
        + (" ..." if len(class_names) > 20 else "")
    )


def _load_cifar10():
    try:
        parts = keras.datasets.cifar10.load_data()
    except Exception as error:  # Keras raises a bare Exception when a download fails
        place = downloads.cache_folder() / CIFAR10_FILE
        raise downloads.failed("CIFAR-10", error, CIFAR10_ADDRESS, place) from error
    if keras.config.image_data_format() == "channels_last":
        parts = [(images.transpose(0, 3, 1, 2), labels) for images, labels in parts]
    return [Images(images, labels.reshape(-1).astype("int32")) for images, labels in parts]
