"""How good nearest neighbours are: accuracy of their vote, recall@k and MAP@R."""

from typing import NamedTuple

import numpy as np
from sklearn.metrics import pairwise_distances_chunked

from pipeline.neighbours import check_neighbours, nearest, nearest_others, predict_classes, vote

MOST_PAIRS, FEWEST_QUERIES = 2**33, 1000  # of queries and references whose distances MAP@R sorts
AT_ONCE, LEAST_MIB = 32, 128  # queries whose distances it has in memory at least, and how much memory they may take


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
    check_neighbours(neighbours, references)
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


def mean_average_precision_at_r(
    references: np.ndarray,
    reference_labels: np.ndarray,
    queries: np.ndarray | None = None,
    query_labels: np.ndarray | None = None,
) -> float:
    """MAP@R of Musgrave et al. 2020 ("A Metric Learning Reality Check", section 3.2).

    R is the number of references of a query's class. A query's score is the sum, over those of its R nearest references
    that have its class, of the precision at their rank, divided by R. The result is the mean over the queries. Queries
    of a class without references are not counted; without any other query it is 0. Of very many queries, a random
    sample is measured (`queries_of_map`), always the same one.

    Args:
        references, reference_labels, queries, query_labels: as in `evaluate`. Without queries, each reference is
            compared with all others.

    Returns:
        float between 0 and 1.
    """
    among_themselves = queries is None
    if among_themselves:
        queries, query_labels = references, reference_labels
    chosen = np.arange(len(queries))
    if (most := queries_of_map(len(references), len(queries))) < len(queries):
        chosen = np.sort(np.random.default_rng(0).permutation(chosen)[:most])
        queries, query_labels = queries[chosen], query_labels[chosen]
    classes = max(reference_labels.max(), query_labels.max()) + 1
    counts = np.bincount(reference_labels, minlength=classes)[query_labels] - among_themselves  # R, shape (n_queries,)
    most = counts.max(initial=0)
    if most == 0:
        return 0.0

    def average_precision(distances, start):
        if among_themselves:
            distances[np.arange(len(distances)), chosen[start : start + len(distances)]] = np.inf
        wanted = counts[start : start + len(distances), None]
        candidates = np.argpartition(distances, most - 1, axis=1)[:, :most]  # shape (chunk, most)
        order = np.take_along_axis(distances, candidates, axis=1).argsort(axis=1)
        ranked = np.take_along_axis(candidates, order, axis=1)
        rank = np.arange(1, most + 1)
        hit = reference_labels[ranked] == query_labels[start : start + len(distances), None]
        hit &= rank <= wanted
        precision = hit.cumsum(axis=1) / rank
        return np.where(hit, precision, 0).sum(axis=1) / np.maximum(wanted[:, 0], 1)

    mib = max(LEAST_MIB, AT_ONCE * 8 * len(references) / 2**20)  # each chunk reads all references
    chunks = pairwise_distances_chunked(
        queries, references, reduce_func=average_precision, working_memory=mib, metric="euclidean", squared=True
    )
    return float(np.concatenate(list(chunks))[counts > 0].mean())


def queries_of_map(references: int, queries: int) -> int:
    """The number of queries on which MAP@R is measured: all, or as many as `MOST_PAIRS` allows, at least 1,000."""
    return min(queries, max(FEWEST_QUERIES, MOST_PAIRS // references))


def _recall(neighbour_labels, labels):
    """Fractions of images of which one of the 1, 5 or 10 nearest neighbours has their class."""
    found = neighbour_labels == labels[:, None]  # shape (n, neighbours)
    return {f"recall@{k}": float(np.mean(found[:, :k].any(axis=1))) for k in (1, 5, 10)}
