"""Nearest-neighbour search, classification by vote, and when an image is unknown."""

import math
from importlib.util import find_spec

import numpy as np
from sklearn.neighbors import NearestNeighbors

from pipeline import system_memory

MANY_PAIRS = 2**30  # of references and queries, from which on faiss searches
SPARE, BLOCK = 16, 256  # neighbours that faiss finds beyond those that are wanted; queries that are compared at once
MOST_ON_GPU = 2048  # neighbours that faiss finds on a GPU
ROUNDING = 2 * float(np.finfo("float32").eps)  # of a square in float32, relative to the squared norms and √size


def nearest(references: np.ndarray, queries: np.ndarray, neighbours: int) -> tuple[np.ndarray, np.ndarray]:
    """Finds the nearest references of each query by Euclidean distance, exactly.

    Many are searched by faiss, where it is installed, on all GPUs that it has been built for.

    Args:
        references: floats, shape `(n_references, embedding_size)`.
        queries: floats, shape `(n_queries, embedding_size)`.
        neighbours: int, at most `n_references`.

    Returns:
        Tuple of distances and indices of references, nearest first, both of shape `(n_queries, neighbours)`.

    Raises:
        ValueError: if `neighbours` is below 1 or above the number of references, or embeddings are not finite.
    """
    check_neighbours(neighbours, references)
    search = _by_faiss if _uses_faiss(references, queries) else _by_scikit_learn
    return search(references, queries, neighbours)


def nearest_others(
    embeddings: np.ndarray, neighbours: int, chosen: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the nearest others of some of several embeddings by Euclidean distance, exactly.

    Args:
        embeddings: floats, shape `(n, embedding_size)`.
        neighbours: int, at least 1 and below n.
        chosen: indices of the m embeddings whose nearest others are found, shape `(m,)`; if not given, of all.

    Returns:
        Tuple of distances and indices, nearest first, both of shape `(m, neighbours)`.
    """
    queries = embeddings if chosen is None else embeddings[chosen]
    own = np.arange(len(embeddings)) if chosen is None else chosen
    distances, indices = nearest(embeddings, queries, neighbours + 1)
    left_out = indices == own[:, None]  # itself, or the last of many equal ones
    left_out[:, -1] |= ~left_out.any(axis=1)
    return tuple(each[~left_out].reshape(len(own), neighbours) for each in (distances, indices))


def _uses_faiss(references, queries):
    """Whether there are many, faiss is installed, and there is memory for the copies that it needs."""
    free = system_memory.free_memory()
    fits = free is None or references.nbytes + queries.nbytes < free / 4
    return len(references) * len(queries) >= MANY_PAIRS and fits and find_spec("faiss") is not None


def _by_scikit_learn(references, queries, neighbours):
    """As `nearest`."""
    found = NearestNeighbors(n_neighbors=neighbours, algorithm="brute").fit(references).kneighbors(queries)
    return _sorted(*found)


def _sorted(distances, indices):
    """Nearest first, and of equally near ones the smaller index."""
    order = np.lexsort((indices, distances), axis=1)
    return np.take_along_axis(distances, order, axis=1), np.take_along_axis(indices, order, axis=1)


def _by_faiss(references, queries, neighbours):
    """As `nearest`."""
    import faiss

    if not (np.isfinite(references).all() and np.isfinite(queries).all()):
        raise ValueError("Embeddings must be finite.")
    # It subtracts large numbers in float32 where vectors are far from 0 and near each other. So it gets them relative
    # to their mean, finds some more than are wanted, and the distances are then computed from differences.
    mean = references.mean(axis=0, dtype="float64").astype("float32")
    count = min(neighbours + SPARE, len(references))
    centred = np.subtract(references, mean, dtype="float32")
    both = centred if queries is references else np.subtract(queries, mean, dtype="float32"), centred
    found = _found_on_gpus(*both, count) if faiss.get_num_gpus() and count <= MOST_ON_GPU else None
    rounded, found = found or faiss.knn(*both, count)  # squares of the distances, in float32
    distances = np.empty(found.shape)  # shape (n_queries, count)
    for start in range(0, len(queries), BLOCK):
        part = slice(start, start + BLOCK)
        differences = references[found[part]].astype("float64") - queries[part, None]
        distances[part] = np.sqrt(np.einsum("nkd,nkd->nk", differences, differences))
    distances, found = (each[:, :neighbours] for each in _sorted(distances, found))
    # Where rounding may have hidden a nearer reference behind the farthest that was found, search again.
    norms, farthest = np.linalg.norm(both[0], axis=1), rounded[:, -1].astype("float64")
    error = ROUNDING * math.sqrt(references.shape[1]) * (norms**2 + (norms + np.sqrt(np.maximum(farthest, 0))) ** 2)
    unsure = np.flatnonzero(~(distances[:, -1] ** 2 < farthest - error)) if count < len(references) else []
    if len(unsure):
        distances[unsure], found[unsure] = _by_scikit_learn(references, queries[unsure], neighbours)
    return distances, found


def _found_on_gpus(queries, references, count):
    """As `faiss.knn`, of references that all GPUs share; None if that fails, as with too little memory."""
    import faiss

    options = faiss.GpuMultipleClonerOptions()
    options.shard = True
    try:
        index = faiss.index_cpu_to_all_gpus(faiss.IndexFlatL2(references.shape[1]), options)
        index.add(references)
        return index.search(queries, count)
    except RuntimeError as error:
        print(f"faiss searches on the CPU, since it failed on the GPUs: {' '.join(str(error).split())[-200:]}")
        return None


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


def check_neighbours(neighbours: int, references: np.ndarray) -> None:
    """Raises ValueError if `neighbours` is below 1 or above the number of references."""
    if not 1 <= neighbours <= len(references):
        raise ValueError(f"`neighbours` must be between 1 and {len(references)}. Received: {neighbours}")
