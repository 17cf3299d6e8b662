"""How well the trained network does: on the test images, on unknown images, and on classes that it has never seen."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from sklearn.metrics import roc_auc_score

from pipeline.data.image_list import PARTS
from pipeline.data.splits import DataSet, Images
from pipeline.neighbours import nearest, unknown_threshold, vote
from pipeline.report.methods import Method, by_neighbours

ADDED, DRAWS = (1, 5, 20, 100), 10  # images of each class that are added to the references; random choices of them


class Results(NamedTuple):
    """What is measured after training.

    Attributes:
        references: embeddings of the training images, shape `(n_train, embedding_size)`.
        embeddings: of the test images or, without any, of the held-out ones.
        predicted: class of each test image, shape `(n_test,)`.
        indices: of each test image's nearest training images, nearest first, shape `(n_test, neighbours)`.
        known_distances: from each test image to its nearest training image, shape `(n_test,)`.
        unknown_distances: the same of the held-out images, shape `(n_held_out,)`.
        method: `Method`.
        threshold: float, the distance to the nearest training image above which an image is called unknown.
        unknown: what `unknown_scores` returns for test and held-out images.
        added: what `accuracy_after_adding` returns for the held-out classes, empty without any.
    """

    references: np.ndarray
    embeddings: np.ndarray
    predicted: np.ndarray
    indices: np.ndarray
    known_distances: np.ndarray
    unknown_distances: np.ndarray
    method: Method
    threshold: float
    unknown: dict[str, float]
    added: dict[int, tuple[float, float]]


def measure_results(
    embed: Callable[[Images], np.ndarray], data: DataSet, neighbours: int, false_rejection_rate: float, seed: int
) -> Results:
    """Predicts the classes of the test images by nearest neighbours among the training images, and measures everything.

    Args:
        embed: function of `Images` that returns their embeddings, `(n, embedding_size)`.
        data: `DataSet`; `test` or `held_out` may be empty, not both.
        neighbours: int, how many training images vote.
        false_rejection_rate: float, as in `unknown_threshold`, which the validation images set.
        seed: int.

    Returns:
        `Results`.
    """
    features = {part: embed(getattr(data, part)) for part in PARTS if len(getattr(data, part).labels)}
    references, labels = features["train"], data.train.labels
    threshold = unknown_threshold(nearest(references, features["validation"], 1)[0][:, 0], false_rejection_rate)
    method, evaluation = by_neighbours(features, data, neighbours)
    added, to_unseen = {}, np.zeros(0)
    if "held_out" in features:
        of_held_out = features["held_out"], data.held_out.labels
        to_unseen = nearest(references, features["held_out"], 1)[0][:, 0]
        added = accuracy_after_adding(references, labels, *of_held_out, neighbours, threshold, seed)
    if evaluation:
        shown, predicted, indices = features["test"], evaluation.predicted, evaluation.indices
        to_known = evaluation.distances[:, 0]
    else:
        shown, predicted, indices = features["held_out"], np.zeros(0, "int32"), np.zeros((0, neighbours), int)
        to_known = np.zeros(0)
    unknown = unknown_scores(to_known, to_unseen, threshold)
    return Results(references, shown, predicted, indices, to_known, to_unseen, method, threshold, unknown, added)


def unknown_scores(known: np.ndarray, unknown: np.ndarray, threshold: float) -> dict[str, float]:
    """How well the distance to the nearest reference separates known from unknown images.

    Args:
        known: these distances of images of known classes, shape `(n,)`; may be empty.
        unknown: these distances of images of other classes, shape `(m,)`; may be empty.
        threshold: float, the distance above which an image is called unknown.

    Returns:
        dict of `AUROC`, the probability that an unknown image is farther than a known one; `known rejected`, the
        fraction of known images that are called unknown; and `unknown rejected`, that of unknown images. What needs
        images that there are not is missing.
    """
    scores = {}
    if len(known) and len(unknown):
        is_unknown = np.repeat([0, 1], [len(known), len(unknown)])
        scores["AUROC"] = float(roc_auc_score(is_unknown, np.concatenate([known, unknown])))
    for name, distances in {"known rejected": known, "unknown rejected": unknown}.items():
        if len(distances):
            scores[name] = float(np.mean(distances > threshold))
    return scores


def accuracy_after_adding(
    references: np.ndarray,
    reference_labels: np.ndarray,
    embeddings: np.ndarray,
    labels: np.ndarray,
    neighbours: int,
    threshold: float,
    seed: int,
) -> dict[int, tuple[float, float]]:
    """How well held-out classes are recognised once some of their images are among the references.

    For each number of images, ten times that many random images of each class are added, and the others are classified.
    An image that is called unknown counts as not recognised.

    Args:
        references: embeddings of the training images, shape `(n_references, embedding_size)`.
        reference_labels: integers, shape `(n_references,)`.
        embeddings: of the images of the held-out classes, shape `(n, embedding_size)`.
        labels: integers, none of them among `reference_labels`, shape `(n,)`.
        neighbours: int, how many references vote.
        threshold: float, the distance above which an image is called unknown.
        seed: int.

    Returns:
        dict from the number of added images to the mean and the standard deviation of the accuracy over ten draws; only
        numbers of which every class has more images.
    """
    smallest = np.unique(labels, return_counts=True)[1].min()
    distances, indices = nearest(references, embeddings, neighbours)
    trained_labels, generator, result = reference_labels[indices], np.random.default_rng((seed, 4)), {}
    for count in (count for count in ADDED if count < smallest):
        accuracies = []
        for _ in range(DRAWS):
            added = _some_of_each(labels, count, generator)
            rest = np.setdiff1d(np.arange(len(labels)), added)
            nearest_added = nearest(embeddings[added], embeddings[rest], min(neighbours, len(added)))
            both = np.concatenate([distances[rest], nearest_added[0]], axis=1)
            both_labels = np.concatenate([trained_labels[rest], labels[added][nearest_added[1]]], axis=1)
            order = both.argsort(axis=1, kind="stable")[:, :neighbours]  # shape (n_rest, neighbours)
            both, both_labels = (np.take_along_axis(each, order, axis=1) for each in (both, both_labels))
            counts = np.bincount(np.concatenate([reference_labels, labels[added]]))
            recognised = (vote(both, both_labels, counts)[0] == labels[rest]) & (both[:, 0] <= threshold)
            accuracies.append(recognised.mean())
        result[count] = float(np.mean(accuracies)), float(np.std(accuracies))
    return result


def _some_of_each(labels, count, generator):
    """Indices of `count` random images of each class."""
    classes = np.unique(labels)
    return np.concatenate([generator.permutation(np.flatnonzero(labels == label))[:count] for label in classes])
