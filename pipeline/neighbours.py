"""Nearest-neighbour search, classification by vote, the scores recall@k and MAP@R, and when an image is unknown."""

import math
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np
from sklearn.metrics import pairwise_distances_chunked
from sklearn.neighbors import NearestNeighbors

from pipeline import system_memory

MANY_PAIRS = 2**30  # of references and queries, from which on faiss searches
SPARE, BLOCK = 16, 256  # neighbours that faiss finds beyond those that are wanted; queries that are compared at once


def nearest(references: np.ndarray, queries: np.ndarray, neighbours: int) -> tuple[np.ndarray, np.ndarray]:
    """Finds the nearest references of each query by Euclidean distance, exactly.

    Many are searched by faiss, where it is installed.

    Args:
        references: floats, shape `(n_references, embedding_size)`.
        queries: floats, shape `(n_queries, embedding_size)`.
        neighbours: int, at most `n_references`.

    Returns:
        Tuple of distances and indices of references, nearest first, both of shape `(n_queries, neighbours)`.

    Raises:
        ValueError: if `neighbours` is below 1 or above the number of references.
    """
    _check_neighbours(neighbours, references)
    if _uses_faiss(references, queries):
        return _by_faiss(references, queries, neighbours)
    return NearestNeighbors(n_neighbors=neighbours, algorithm="brute").fit(references).kneighbors(queries)


def nearest_others(embeddings: np.ndarray, neighbours: int) -> tuple[np.ndarray, np.ndarray]:
    """Finds the nearest others of each of several embeddings by Euclidean distance, exactly.

    Args:
        embeddings: floats, shape `(n, embedding_size)`.
        neighbours: int, at least 1 and below n.

    Returns:
        Tuple of distances and indices, nearest first, both of shape `(n, neighbours)`.
    """
    if _uses_faiss(embeddings, embeddings):
        distances, indices = _by_faiss(embeddings, embeddings, neighbours + 1)
        left_out = indices == np.arange(len(embeddings))[:, None]  # itself, or the last of many equal ones
        left_out[:, -1] |= ~left_out.any(axis=1)
        return tuple(each[~left_out].reshape(len(embeddings), neighbours) for each in (distances, indices))
    return NearestNeighbors(n_neighbors=neighbours, algorithm="brute").fit(embeddings).kneighbors()


def _uses_faiss(references, queries):
    """Whether there are many, faiss is installed, and there is memory for the copies that it needs."""
    free = system_memory.free_memory()
    fits = free is None or references.nbytes + queries.nbytes < free / 4
    return len(references) * len(queries) >= MANY_PAIRS and fits and find_spec("faiss") is not None


def _by_faiss(references, queries, neighbours):
    """As `nearest`. Of equally near references, those with the smaller indices come first."""
    import faiss

    # It subtracts large numbers in float32 where vectors are far from 0 and near each other. So it gets them relative
    # to their mean, finds some more than are wanted, and the distances are then computed from differences.
    mean = references.mean(axis=0, dtype="float64").astype("float32")
    count = min(neighbours + SPARE, len(references))
    _, found = faiss.knn(
        np.subtract(queries, mean, dtype="float32"), np.subtract(references, mean, dtype="float32"), count
    )
    distances = np.empty(found.shape)  # shape (n_queries, count)
    for start in range(0, len(queries), BLOCK):
        part = slice(start, start + BLOCK)
        differences = references[found[part]].astype("float64") - queries[part, None]
        distances[part] = np.sqrt(np.einsum("nkd,nkd->nk", differences, differences))
    order = np.lexsort((found, distances), axis=1)[:, :neighbours]
    return np.take_along_axis(distances, order, axis=1), np.take_along_axis(found, order, axis=1)


def vote(distances: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The class with most votes; of classes with equally many, the one with the smallest sum of distances.

    All neighbours vote, with one exception: if a class has n references, fewer than there are neighbours, and one of
    them is among the n nearest, only these n vote. So a class with a single reference, which could never have a
    majority, wins where this reference is the nearest one.

    Args:
        distances: shape `(n, neighbours)`, nearest first.
        labels: classes of the neighbours, shape `(n, neighbours)`.
        counts: number of references of each class, shape `(classes,)`.

    Returns:
        Tuple of the classes, and the winners' shares of the votes, both of shape `(n,)`.
    """
    classes, shares = np.empty(len(labels), labels.dtype), np.empty(len(labels))
    step = max(1, 2**22 // labels.shape[1] ** 2)
    for start in range(0, len(labels), step):
        part = slice(start, start + step)
        classes[part], shares[part] = _vote(distances[part], labels[part], counts)
    return classes, shares


def _vote(distances, labels, counts):
    neighbours = labels.shape[1]
    ranks, sizes = np.arange(neighbours), counts[labels]  # of shape (n, neighbours)
    voters = np.where(ranks < sizes, np.minimum(sizes, neighbours), neighbours).min(axis=1)  # shape (n,)
    is_voter = ranks < voters[:, None]  # shape (n, neighbours)
    same = (labels[:, :, None] == labels[:, None, :]) & is_voter[:, None, :]  # shape (n, neighbours, neighbours)
    votes = same.sum(axis=2)  # shape (n, neighbours)
    summed = np.where(same, distances[:, None, :], 0).sum(axis=2)  # shape (n, neighbours)
    most = votes == votes.max(axis=1, keepdims=True)
    winner = np.where(most, summed, np.inf).argmin(axis=1)  # the nearest neighbour of equals
    return labels[np.arange(len(labels)), winner], votes.max(axis=1) / voters


def predict_classes(
    references: np.ndarray, reference_labels: np.ndarray, queries: np.ndarray, neighbours: int
) -> np.ndarray:
    """Predicts each query's class by the vote of its nearest references.

    Args:
        references: embeddings of labelled images, shape `(n_references, embedding_size)`.
        reference_labels: integers, shape `(n_references,)`.
        queries: embeddings, shape `(n_queries, embedding_size)`.
        neighbours: int, how many references vote.

    Returns:
        Classes of shape `(n_queries,)`.
    """
    distances, indices = nearest(references, queries, neighbours)
    return vote(distances, reference_labels[indices], np.bincount(reference_labels))[0]


class Evaluation(NamedTuple):
    """What `evaluate` returns.

    Attributes:
        predicted: classes, shape `(n_queries,)`.
        distances: to the nearest references, nearest first, shape `(n_queries, neighbours)`.
        indices: of these references, of the same shape.
        scores: dict of scores from 0 to 1: `accuracy`; `recall@1`, `recall@5` and `recall@10`, the fraction of queries
            with a reference of their class among the 1, 5 or 10 nearest; and `MAP@R` (see
            `mean_average_precision_at_r`).
    """

    predicted: np.ndarray
    distances: np.ndarray
    indices: np.ndarray
    scores: dict[str, float]


def evaluate(
    references: np.ndarray,
    reference_labels: np.ndarray,
    queries: np.ndarray,
    query_labels: np.ndarray,
    neighbours: int,
) -> Evaluation:
    """Predicts the queries' classes from their nearest references, and measures how well that works.

    Args:
        references: floats, shape `(n_references, embedding_size)`.
        reference_labels: integers, shape `(n_references,)`.
        queries: floats, shape `(n_queries, embedding_size)`.
        query_labels: integers, shape `(n_queries,)`.
        neighbours: int, how many references vote.

    Returns:
        `Evaluation`.

    Raises:
        ValueError: if `neighbours` is below 1 or above the number of references.
    """
    _check_neighbours(neighbours, references)
    distances, indices = nearest(references, queries, max(neighbours, min(10, len(references))))
    labels = reference_labels[indices]
    predicted, _ = vote(distances[:, :neighbours], labels[:, :neighbours], np.bincount(reference_labels))
    scores = {"accuracy": float(np.mean(predicted == query_labels)), **_recall(labels, query_labels)}
    scores["MAP@R"] = mean_average_precision_at_r(references, reference_labels, queries, query_labels)
    return Evaluation(predicted, distances[:, :neighbours], indices[:, :neighbours], scores)


def nearest_neighbour_accuracy(
    references: np.ndarray,
    reference_labels: np.ndarray,
    queries: np.ndarray,
    query_labels: np.ndarray,
    neighbours: int,
) -> float:
    """The fraction of queries whose class is predicted; NaN if not all embeddings are finite.

    Args:
        references, reference_labels, queries, query_labels: as in `evaluate`.
        neighbours: int, how many references vote; of fewer references, all do.
    """
    if not (np.isfinite(references).all() and np.isfinite(queries).all()):
        return float("nan")
    predicted = predict_classes(references, reference_labels, queries, min(neighbours, len(references)))
    return float(np.mean(predicted == query_labels))


def retrieval_scores(embeddings: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
    """Measures how near images of one class are: each image is compared with all others (itself left out).

    It is the usual protocol for classes that have not been trained on (Musgrave et al. 2020, section 3).

    Args:
        embeddings: floats, shape `(n, embedding_size)`.
        labels: integers, shape `(n,)`.

    Returns:
        Tuple of bool `(n,)`, whether each image's nearest other image is of its class, and a dict of `recall@1`,
        `recall@5`, `recall@10` and `MAP@R`, as in `Evaluation`. The only image of a class counts as not found for
        recall, and is not counted for MAP@R. Both are empty for fewer than two classes, which would be trivial.
    """
    if len(np.unique(labels)) < 2:
        return np.zeros(0, bool), {}
    _, indices = nearest_others(embeddings, min(10, len(labels) - 1))
    scores = _recall(labels[indices], labels)
    scores["MAP@R"] = mean_average_precision_at_r(embeddings, labels)
    return labels[indices[:, 0]] == labels, scores


def unknown_threshold(distances: np.ndarray, rate: float) -> float:
    """The distance to the nearest reference above which an image is called unknown.

    It is calibrated on images of known classes that are not among the references, as in split conformal prediction
    (Angelopoulos and Bates 2021, section 1): a further such image is rejected with a probability of at most `rate`.
    Below 1 / rate - 1 images, no distance can promise that; then it is the largest one.

    Args:
        distances: from each image to its nearest reference, shape `(n,)`, n at least 1.
        rate: float between 0 and 1, the fraction of images of known classes that may be called unknown.

    Returns:
        float, in the unit of the distances.
    """
    rank = math.ceil((len(distances) + 1) * (1 - rate) - 1e-9)  # less than any rounding error of the product
    return float(np.sort(distances)[min(rank, len(distances)) - 1])


def mean_average_precision_at_r(
    references: np.ndarray,
    reference_labels: np.ndarray,
    queries: np.ndarray | None = None,
    query_labels: np.ndarray | None = None,
) -> float:
    """MAP@R of Musgrave et al. 2020 ("A Metric Learning Reality Check", section 3.2).

    R is the number of references of a query's class. A query's score is the sum, over those of its R nearest references
    that have its class, of the precision at their rank, divided by R. The result is the mean over the queries. Queries
    of a class without references are not counted; without any other query it is 0.

    Args:
        references, reference_labels, queries, query_labels: as in `evaluate`. Without queries, each reference is
            compared with all others.

    Returns:
        float between 0 and 1.
    """
    among_themselves = queries is None
    if among_themselves:
        queries, query_labels = references, reference_labels
    classes = max(reference_labels.max(), query_labels.max()) + 1
    counts = np.bincount(reference_labels, minlength=classes)[query_labels] - among_themselves  # R, shape (n_queries,)
    most = counts.max(initial=0)
    if most == 0:
        return 0.0

    def average_precision(distances, start):
        if among_themselves:
            distances[np.arange(len(distances)), start + np.arange(len(distances))] = np.inf
        wanted = counts[start : start + len(distances), None]
        candidates = np.argpartition(distances, most - 1, axis=1)[:, :most]  # shape (chunk, most)
        order = np.take_along_axis(distances, candidates, axis=1).argsort(axis=1)
        ranked = np.take_along_axis(candidates, order, axis=1)
        rank = np.arange(1, most + 1)
        hit = reference_labels[ranked] == query_labels[start : start + len(distances), None]
        hit &= rank <= wanted
        precision = hit.cumsum(axis=1) / rank
        return np.where(hit, precision, 0).sum(axis=1) / np.maximum(wanted[:, 0], 1)

    chunks = pairwise_distances_chunked(
        queries, references, reduce_func=average_precision, working_memory=128, metric="euclidean", squared=True
    )
    return float(np.concatenate(list(chunks))[counts > 0].mean())


def _recall(neighbour_labels, labels):
    """Fractions of images of which one of the 1, 5 or 10 nearest neighbours has their class."""
    found = neighbour_labels == labels[:, None]  # shape (n, neighbours)
    return {f"recall@{k}": float(np.mean(found[:, :k].any(axis=1))) for k in (1, 5, 10)}


def _check_neighbours(neighbours, references):
    if not 1 <= neighbours <= len(references):
        raise ValueError(f"`neighbours` must be between 1 and {len(references)}. Received: {neighbours}")
