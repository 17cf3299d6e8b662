"""Batches for training: P classes × K images, or triplets; shifted and mirrored; the same for the same seed."""

import math

import keras
import numpy as np


class Batches(keras.utils.PyDataset):
    """Batches of images for `fit` and `predict`, cut from memory as a plan of indices says.

    The plan and the augmentation of an epoch depend on the seed and the epoch's number alone, so that a run can be
    repeated, or continued in any epoch. Call `start_epoch` before each one, and `fit` with `shuffle=False`.

    Args:
        data: `Images`.
        plan: function of a `numpy.random.Generator` that returns the epoch's batches, a list of integer arrays:
            indices of shape `(batch,)`, or of triplets, shape `(batch, 3)`.
        seed: int.
        augment: `"none"`; `"shift"`, by up to an eighth of height and width, the border mirrored; or
            `"shift_flip"`, which also mirrors half of the images left to right.
    """

    def __init__(self, data, plan, seed=0, augment="none"):
        # With one worker Keras leaves tf.data's autotuning on, for whose thread `fit` and `predict` wait at their end
        # while it sleeps, up to a minute; with two, Keras trains PyTorch on batches of the epoch before.
        super().__init__(workers=2 if keras.backend.backend() == "tensorflow" else 1)
        self.data, self.plan, self.seed, self.augment = data, plan, seed, augment
        self.start_epoch(0)

    def start_epoch(self, epoch, first_batch=0):
        """Makes the plan of an epoch, or of what is left of it from a batch on, both counted from 0."""
        self.epoch, self.first_batch = epoch, first_batch
        self.batches = self.plan(np.random.default_rng((self.seed, 2, epoch)))[first_batch:]

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, number):
        """Returns images `(batch, [3,] 3, height, width)`, uint8, and their labels (of triplets, the anchors')."""
        indices = self.batches[number]
        images = self.data.images[indices]
        if self.augment != "none":
            generator = np.random.default_rng((self.seed, 3, self.epoch, self.first_batch + number))
            single = images.reshape(-1, *images.shape[-3:])
            images = _augmented(single, self.augment == "shift_flip", generator).reshape(images.shape)
        labels = self.data.labels[indices]
        return images, labels if labels.ndim == 1 else labels[:, 0]


def in_order(count, batch_size):
    """A plan for `Batches`: all of `count` images, in order."""
    return lambda generator: [np.arange(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]


def classes_and_images(labels, classes_per_batch, images_per_class):
    """A plan for `Batches`: every batch has P classes and K images of each (Hermans et al. 2017, section 2).

    Every image is in at least one batch of an epoch, and as few as possible are in more: a class's images are dealt
    out in groups of K, of which each batch takes those of the classes with most groups left. A last group short of K
    is filled with other images of its class, repeated where the class has fewer than K; the last batches, short of
    P classes, with groups of classes that are finished. All batches have the same shape.

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
        others = generator.permutation(shuffled[:last])  # of the class, and not in the short group
        filling = np.resize(others if len(others) else shuffled, missing)
        return list(np.concatenate([shuffled, filling]).reshape(-1, images_per_class))

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


def random_triplets(labels, triplets_per_batch):
    """A plan for `Batches`: every image once as the anchor, with a random positive and a random negative.

    Images that are alone in their class have no positive and are no anchors.

    Args:
        labels: integers, shape `(n,)`, of at least two classes.
        triplets_per_batch: int; the last batch of an epoch may have fewer.

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
        others = generator.integers(1, size[anchor])  # steps to another image of the class, around the end
        positive = start[anchor] + (anchor - start[anchor] + others) % size[anchor]
        negative = generator.integers(0, len(by_class) - size[anchor])  # among the images of other classes
        negative = negative + np.where(negative >= start[anchor], size[anchor], 0)
        triplets = by_class[np.stack([anchor, positive, negative], axis=1)]  # shape (n, 3)
        return [triplets[first : first + triplets_per_batch] for first in range(0, len(triplets), triplets_per_batch)]

    return plan


def _augmented(images, flip, generator):
    """Shifts images at random, and mirrors half of them if asked; shape and dtype stay."""
    count, _, height, width = images.shape
    down, right = math.ceil(height / 8), math.ceil(width / 8)
    padded = np.pad(images, ((0, 0), (0, 0), (down, down), (right, right)), mode="reflect")
    tops = generator.integers(0, 2 * down + 1, count)
    lefts = generator.integers(0, 2 * right + 1, count)
    mirrored = generator.random(count) < (0.5 if flip else 0)
    shifted = np.empty_like(images)
    for number, (top, left) in enumerate(zip(tops, lefts, strict=True)):
        cut = padded[number, :, top : top + height, left : left + width]
        shifted[number] = cut[:, :, ::-1] if mirrored[number] else cut
    return shifted
