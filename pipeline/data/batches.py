"""Batches for training: P classes × K images, or triplets; shifted and mirrored; reproducible from the seed."""

import math
from collections.abc import Callable

import keras
import numpy as np

from pipeline.data.image_list import shortened
from pipeline.data.splits import Images, at_most

MANY_USES = 20  # of an image in an epoch, from which on there is a warning
Rows = Callable[[int], slice]
Plan = Callable[[np.random.Generator], list[np.ndarray]]


class Batches(keras.utils.PyDataset):
    """Batches of images for `fit` and `predict`, chosen by a plan of indices.

    The plan and the augmentation of an epoch depend on the seed and the epoch's number alone, so that a run can be
    repeated, or resumed in any epoch. Call `start_epoch` before each one, and `fit` with `shuffle=False`.

    Args:
        data: `Images`.
        plan: function of a `numpy.random.Generator` that returns the epoch's batches, a list of integer arrays:
            indices of shape `(batch,)`, or of triplets, shape `(batch, 3)`.
        seed: int.
        augment: `"none"`; `"shift"`, by up to an eighth of height and width, the border mirrored; or
            `"shift_flip"`, which also mirrors half of the images left to right.
        rows: function of the size of a batch that returns which of its rows this object gives, a slice; all if not
            given. They are the same images, shifted and mirrored alike, for any rows.
    """

    def __init__(self, data: Images, plan: Plan, seed: int = 0, augment: str = "none", rows: Rows = slice):
        # With one worker Keras leaves tf.data's autotuning on, and `fit` and `predict` wait up to a minute for its
        # sleeping thread; with two workers, Keras trains PyTorch on batches of the previous epoch.
        super().__init__(workers=2 if keras.backend.backend() == "tensorflow" else 1)
        self.data, self.plan, self.seed, self.augment, self.rows = data, plan, seed, augment, rows
        self.start_epoch(0)

    def start_epoch(self, epoch: int, first_batch: int = 0) -> None:
        """Plans an epoch, or the rest of it from a batch on; both are counted from 0."""
        self.epoch, self.first_batch = epoch, first_batch
        self.batches = self.plan(np.random.default_rng((self.seed, 2, epoch)))[first_batch:]

    def of_single_images(self) -> "Batches":
        """The same images in the same batches, without an axis for triplets; from the first epoch on."""

        def plan(generator):
            return [each.reshape(-1) for each in self.plan(generator)]

        return Batches(self.data, plan, self.seed, self.augment, self.rows)

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, number):
        """Returns images `(batch, [3,] 3, height, width)`, uint8, and their labels (of triplets, the anchors')."""
        batch = self.batches[number]
        rows = self.rows(len(batch))
        indices = batch[rows]
        labels = self.data.labels[indices]
        if self.augment == "none":
            images = self.data.pixels(indices)
        else:
            generator = np.random.default_rng((self.seed, 3, self.epoch, self.first_batch + number))
            drawn = _shifts(batch.shape, self.data.array.shape[2:], self.augment == "shift_flip", generator)
            images = _shifted(self.data, indices.reshape(-1), *(each[rows].reshape(-1) for each in drawn))
            images = images.reshape(*indices.shape, *images.shape[1:])
        return images, labels if labels.ndim == 1 else labels[:, 0]


def training_batches(
    train: Images,
    class_names: list[str],
    triplet_loss: str,
    classes_per_batch: int,
    images_per_class: int,
    seed: int,
    augment: str,
    rows: Rows = slice,
) -> Batches:
    """Batches for one of the two losses; prints where the images limit the batches.

    Args:
        train: `Images`.
        class_names: names of the classes.
        triplet_loss: `"in_batch"`, batches of P classes and K images of each; or `"merge"`, random triplets, as many as
            P * K images give.
        classes_per_batch: int, P; of fewer classes each batch has all.
        images_per_class: int, K.
        seed: int.
        augment, rows: as in `Batches`.
    """
    if triplet_loss == "merge":
        triplets = rows_of_a_batch(len(class_names), triplet_loss, classes_per_batch, images_per_class)
        return Batches(train, random_triplets(train.labels, triplets), seed, augment, rows)
    classes = at_most("CLASSES_PER_BATCH", classes_per_batch, len(class_names), "the number of classes")
    counts = np.bincount(train.labels, minlength=len(class_names))
    small = [f"{name} ({count})" for name, count in zip(class_names, counts, strict=True) if count < images_per_class]
    if small:
        print(
            f"Classes with fewer than IMAGES_PER_CLASS = {images_per_class} training images, which are repeated within "
            f"a batch: {shortened(small)}"
        )
    batches = Batches(train, classes_and_images(train.labels, classes, images_per_class), seed, augment, rows)
    uses = np.bincount(train.labels[np.concatenate(batches.batches)], minlength=len(class_names)) / counts
    if uses.max() >= MANY_USES:
        smallest, largest = uses.argmax(), uses.argmin()
        print(
            "Warning: the classes are imbalanced. To fill the batches, an epoch uses each image of "
            f"{class_names[smallest]} ({counts[smallest]:,} images) {uses.max():,.0f} times, each of "
            f"{class_names[largest]} ({counts[largest]:,}) {uses.min():,.0f} times, so that small classes overfit: "
            "collect more images of them, or remove some of the large ones, which also makes epochs shorter."
        )
    return batches


def rows_of_a_batch(classes: int, triplet_loss: str, classes_per_batch: int, images_per_class: int) -> int:
    """The number of images in a batch or, with `"merge"`, of triplets; the arguments are as in `training_batches`."""
    if triplet_loss == "merge":
        return classes_per_batch * images_per_class // 3
    return min(classes_per_batch, classes) * images_per_class


def in_order(count: int, batch_size: int, devices: int = 1) -> Plan:
    """A plan for `Batches`: all of `count` images, in order.

    Args:
        count: int.
        batch_size: int, of each device; the last batch may be smaller.
        devices: int, between which batches are divided: to the last one, the last image is added as often as is needed.
    """
    batch_size *= devices
    indices = np.minimum(np.arange(count + -count % devices), count - 1)
    return lambda generator: np.split(indices, range(batch_size, len(indices), batch_size))


def classes_and_images(labels: np.ndarray, classes_per_batch: int, images_per_class: int) -> Plan:
    """A plan for `Batches`: every batch has P classes and K images of each (Hermans et al. 2017, section 2).

    Every image is in at least one batch of an epoch, and as few as possible are in more. The images of each class are
    divided into groups of K; a batch takes one group of each of the P classes with most groups left. A last group with
    fewer than K images is filled with other images of its class, repeated if the class has fewer than K. A last batch
    with fewer than P classes is filled with groups of other classes. All batches have the same shape.

    Args:
        labels: integers, shape `(n,)`.
        classes_per_batch: int, P, at most the number of classes.
        images_per_class: int, K.

    Returns:
        A function of a `numpy.random.Generator` that returns a list of index arrays of shape `(P * K,)`.
    """
    members_of = [np.flatnonzero(labels == label) for label in np.unique(labels)]

    def groups_of(members, generator):
        shuffled = generator.permutation(members)
        missing = -len(shuffled) % images_per_class
        last = len(shuffled) - (images_per_class - missing) if missing else len(shuffled)
        others = generator.permutation(shuffled[:last])  # of this class, and not in the last group
        fillers = np.resize(others if len(others) else shuffled, missing)
        return list(np.concatenate([shuffled, fillers]).reshape(-1, images_per_class))

    def plan(generator):
        groups = [groups_of(members, generator) for members in members_of]
        batches = []
        while any(groups):
            left = np.array([len(each) for each in groups])
            chosen = np.argsort(-(left + generator.random(len(left))))[:classes_per_batch]
            taken = []
            for number in chosen:
                finished = not groups[number]
                taken.append((groups_of(members_of[number], generator) if finished else groups[number]).pop())
            batches.append(np.concatenate(taken))
        return [batches[number] for number in generator.permutation(len(batches))]

    return plan


def random_triplets(labels: np.ndarray, triplets_per_batch: int) -> Plan:
    """A plan for `Batches`: every image is the anchor once, with a random positive and a random negative.

    The only image of a class has no positive, and is no anchor. The epoch's first triplets fill its last batch.

    Args:
        labels: integers, shape `(n,)`, of at least two classes.
        triplets_per_batch: int.

    Returns:
        A function of a `numpy.random.Generator` that returns a list of index arrays of shape `(batch, 3)`:
        anchor, positive, negative.
    """
    by_class = np.argsort(labels, kind="stable")
    _, start, size = np.unique(labels[by_class], return_index=True, return_counts=True)
    start, size = np.repeat(start, size), np.repeat(size, size)  # of each place's class in `by_class`, shape (n,)
    places = np.flatnonzero(size > 1)

    def plan(generator):
        anchor = generator.permutation(places)
        steps = generator.integers(1, size[anchor])  # to another image of the class; after the last comes the first
        positive = start[anchor] + (anchor - start[anchor] + steps) % size[anchor]
        negative = generator.integers(0, len(by_class) - size[anchor])  # among the images of other classes
        negative = negative + np.where(negative >= start[anchor], size[anchor], 0)
        triplets = by_class[np.stack([anchor, positive, negative], axis=1)]  # shape (n, 3)
        batches = -(-len(triplets) // triplets_per_batch)
        return list(np.resize(triplets, (batches, triplets_per_batch, 3)))

    return plan


def _shifts(shape, size, flip, generator):
    """By how many pixels images are shifted, downward and to the right, and which are mirrored: three such arrays."""
    height, width = size
    down, right = math.ceil(height / 8), math.ceil(width / 8)
    downward = generator.integers(-down, down + 1, shape) * (height > 1)
    rightward = generator.integers(-right, right + 1, shape) * (width > 1)
    return downward, rightward, generator.random(shape) < (0.5 if flip else 0)


def _shifted(data, indices, downward, rightward, mirrored):
    """Images, each shifted and mirrored while it is copied into the batch."""
    height, width = data.array.shape[2:]
    batch, rows = np.empty((len(indices), *data.array.shape[1:]), "uint8"), np.arange(height)
    for number, (y, x) in enumerate(zip(downward.tolist(), rightward.tolist(), strict=True)):
        image, target = data.pixels(indices[number]), batch[number]
        if mirrored[number]:
            target = target[..., ::-1]
        if y:
            from_row = np.abs(rows + y)
            image = image.take(np.minimum(from_row, 2 * (height - 1) - from_row), axis=1)
        inside = width - abs(x)  # columns that do not come from the mirrored border
        if x >= 0:
            target[..., :inside] = image[..., x:]
            target[..., inside:] = image[..., inside - 1 : width - 1][..., ::-1]
        else:
            target[..., -inside:] = image[..., :inside]
            target[..., :-inside] = image[..., 1 : 1 - x][..., ::-1]
    return batch
