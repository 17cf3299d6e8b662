"""Images that are nearly equal: copies that were re-encoded, resized or recoloured, or shots of one scene."""

import numpy as np
from sklearn.decomposition import PCA

from pipeline.neighbours import nearest_others

# The distance of two images is that of their normalised pixels, whose square is 2 (1 - correlation). Another image is a
# near duplicate if it is at most half as far as the tenth nearest: where all images look alike, as digits or photos of
# one scene do, a small distance alone means nothing. Of ten copies and more, the tenth nearest is near too; so another
# image may also be at most a quarter as far as the tenth nearest is for most images.
RANK, OF_OWN, OF_MOST, LEAST_CORRELATION = 10, 1 / 2, 1 / 4, 0.8
BLOCK = 50  # images that are compared at once
COMPONENTS, MOST_FITTED = 128, 10_000  # principal components for the search; images that they are fitted to


def compared_numbers(pixels: np.ndarray) -> int:
    """How many numbers of two images the search compares, at most; `pixels` as in `near_duplicates`."""
    return min(COMPONENTS, pixels.shape[1])


def near_duplicates(pixels: np.ndarray, seed: int, chosen: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Finds pairs of nearly equal images.

    The ten nearest of each image are found by the first principal components, and compared by all pixels.

    Args:
        pixels: float32, shape `(n, size)`, as of `raw_pixels`.
        seed: int, of the choice of images that the components are fitted to.
        chosen: indices of the images that are compared with all others, shape `(m,)`; if not given, all are.

    Returns:
        Tuple of pairs of indices, the smaller first, shape `(pairs, 2)`, and the correlations of their pixels, shape
        `(pairs,)`; the most similar first.
    """
    count = len(pixels)
    if count <= RANK:
        return np.zeros((0, 2), int), np.zeros(0)
    means, norms = np.empty((count, 1), "float32"), np.empty((count, 1), "float32")
    for start in range(0, count, BLOCK):
        part = slice(start, start + BLOCK)
        means[part] = pixels[part].mean(axis=1, keepdims=True)
        norms[part] = np.linalg.norm(pixels[part] - means[part], axis=1, keepdims=True)

    def normalised(numbers):  # shape (numbers, size)
        rows = pixels[numbers] - means[numbers]
        rows /= np.maximum(norms[numbers], 1e-12)
        return rows

    fitted = np.sort(np.random.default_rng((seed, 6)).permutation(count)[:MOST_FITTED])
    components = min(compared_numbers(pixels), len(fitted))
    search = PCA(components, svd_solver="randomized", random_state=seed).fit(normalised(fitted))
    projected = np.empty((count, components), "float32")
    for start in range(0, count, BLOCK):
        projected[start : start + BLOCK] = search.transform(normalised(slice(start, start + BLOCK)))
    _, candidates = nearest_others(projected, RANK, chosen)  # shape (m, RANK)
    compared = np.arange(count) if chosen is None else chosen  # shape (m,)
    correlations = np.empty(candidates.shape)
    for start in range(0, len(compared), BLOCK):
        own, others = slice(start, start + BLOCK), candidates[start : start + BLOCK]
        of_others = normalised(others.reshape(-1)).reshape(*others.shape, -1)
        correlations[own] = np.einsum("nd,nkd->nk", normalised(compared[own]), of_others)
    squares = 2 - 2 * correlations  # of the distances
    tenth = squares.max(axis=1, keepdims=True)
    is_near = squares <= np.maximum(OF_OWN**2 * tenth, OF_MOST**2 * np.median(tenth))
    rows, columns = np.nonzero(is_near & (correlations >= LEAST_CORRELATION))
    pairs = np.sort(np.stack([compared[rows], candidates[rows, columns]], axis=1), axis=1)
    pairs, first = np.unique(pairs, axis=0, return_index=True)
    values = correlations[rows, columns][first]
    order = np.argsort(-values, kind="stable")
    return pairs[order], values[order]
