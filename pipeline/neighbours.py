"""Nearest-neighbour search, classification by vote, and the scores recall@k and MAP@R."""

import numpy as np
from sklearn.metrics import pairwise_distances_chunked
from sklearn.neighbors import NearestNeighbors


def nearest(references: np.ndarray, queries: np.ndarray, neighbours: int) -> tuple[np.ndarray, np.ndarray]:
    """Finds the nearest references of each query by Euclidean distance, exactly.

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
    return NearestNeighbors(n_neighbors=neighbours, algorithm="brute").fit(references).kneighbors(queries)


def vote(distances: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The class with most neighbours; of classes with equally many, the one with the smallest sum of distances.

    Args:
        distances: shape `(n, neighbours)`, nearest first.
        labels: classes of the neighbours, shape `(n, neighbours)`.

    Returns:
        Classes of shape `(n,)`.
    """
    same = labels[:, :, None] == labels[:, None, :]  # shape (n, neighbours, neighbours)
    votes = same.sum(axis=2)  # shape (n, neighbours)
    summed = np.where(same, distances[:, None, :], 0).sum(axis=2)  # shape (n, neighbours)
    most = votes == votes.max(axis=1, keepdims=True)
    winner = np.where(most, summed, np.inf).argmin(axis=1)  # the nearest neighbour of equals
    return labels[np.arange(len(labels)), winner]


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
    return vote(distances, reference_labels[indices])


def evaluate(
    references: np.ndarray,
    reference_labels: np.ndarray,
    queries: np.ndarray,
    query_labels: np.ndarray,
    neighbours: int,
) -> tuple[np.ndarray, dict[str, float]]:
    """Predicts the queries' classes from their nearest references, and measures how well that works.

    Args:
        references: floats, shape `(n_references, embedding_size)`.
        reference_labels: integers, shape `(n_references,)`.
        queries: floats, shape `(n_queries, embedding_size)`.
        query_labels: integers, shape `(n_queries,)`.
        neighbours: int, how many references vote.

    Returns:
        Tuple of the predicted classes `(n_queries,)` and a dict of scores from 0 to 1: `accuracy`; `recall@1`,
        `recall@5` and `recall@10`, the fraction of queries with a reference of their class among the 1, 5 or 10
        nearest; and `MAP@R` (see `mean_average_precision_at_r`).

    Raises:
        ValueError: if `neighbours` is below 1 or above the number of references.
    """
    _check_neighbours(neighbours, references)
    distances, indices = nearest(references, queries, max(neighbours, min(10, len(references))))
    labels = reference_labels[indices]
    predicted = vote(distances[:, :neighbours], labels[:, :neighbours])
    scores = {"accuracy": float(np.mean(predicted == query_labels))}
    for k in (1, 5, 10):
        scores[f"recall@{k}"] = float(np.mean((labels[:, :k] == query_labels[:, None]).any(axis=1)))
    scores["MAP@R"] = mean_average_precision_at_r(references, reference_labels, queries, query_labels)
    return predicted, scores


def mean_average_precision_at_r(
    references: np.ndarray, reference_labels: np.ndarray, queries: np.ndarray, query_labels: np.ndarray
) -> float:
    """MAP@R of Musgrave et al. 2020 ("A Metric Learning Reality Check", section 3.2).

    R is the number of references of a query's class. A query's score is the sum, over those of its R nearest references
    that have its class, of the precision at their rank, divided by R. The result is the mean over the queries. Queries
    of a class without references are not counted; without any other query it is 0.

    Args:
        references, reference_labels, queries, query_labels: as in `evaluate`.

    Returns:
        float between 0 and 1.
    """
    classes = max(reference_labels.max(), query_labels.max()) + 1
    counts = np.bincount(reference_labels, minlength=classes)[query_labels]  # R of each query, shape (n_queries,)
    most = counts.max(initial=0)
    if most == 0:
        return 0.0

    def average_precision(distances, start):
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


def _check_neighbours(neighbours, references):
    if not 1 <= neighbours <= len(references):
        raise ValueError(f"`neighbours` must be between 1 and {len(references)}. Received: {neighbours}")
