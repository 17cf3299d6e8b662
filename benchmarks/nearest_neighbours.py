"""Time and exactness of the nearest-neighbour search, compared with faiss in the same run.

    pip install -r benchmarks/requirements.txt
    python benchmarks/nearest_neighbours.py

There are as many references and queries as CIFAR-10 has training and test images: unit vectors around ten class
centres. The searches take turns; a time is the median of the turns, and includes building the index. The project uses
`pipeline.neighbours.nearest`, which is scikit-learn's `NearestNeighbors` by brute force; scikit-learn's ball tree is
measured too. The oracle computes all distances in float64, from differences, not products.

Writes a table, `benchmarks/results/nearest_neighbours.md`.
"""

import os
import platform
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parent))

import faiss
import numpy as np
from scipy.spatial.distance import cdist
from sklearn.neighbors import NearestNeighbors

from pipeline.neighbours import nearest

REFERENCES, QUERIES, EMBEDDING_SIZE, CLASSES, TURNS = 50_000, 10_000, 128, 10, 5
CHECKED = 1_000  # queries that are compared with the oracle
TREE_QUERIES = 500  # the tree is measured on so many queries, and its time scaled up


def embeddings(count, centres, generator):
    points = centres[generator.integers(0, CLASSES, count)] + generator.normal(0, 0.08, (count, EMBEDDING_SIZE))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype("float32")


def by_faiss(references, queries, k):
    index = faiss.IndexFlatL2(EMBEDDING_SIZE)
    index.add(references)
    squared, indices = index.search(queries, k)
    return np.sqrt(np.maximum(squared, 0)), indices


def by_ball_tree(references, queries, k):
    return NearestNeighbors(n_neighbors=k, algorithm="ball_tree").fit(references).kneighbors(queries)


def main():
    generator = np.random.default_rng(0)
    centres = generator.normal(0, 0.1, (CLASSES, EMBEDDING_SIZE))
    references, queries = (embeddings(count, centres, generator) for count in (REFERENCES, QUERIES))
    exact = cdist(queries[:CHECKED].astype("float64"), references.astype("float64"))  # shape (CHECKED, REFERENCES)

    rows = ["| k | search | seconds | times the project's | same neighbours as the oracle | distances differ by |"]
    rows.append("|---" * 6 + "|")
    for k in (1, 5, 20):
        order = np.argsort(exact, axis=1)[:, :k]
        nearest_exact = np.take_along_axis(exact, order, axis=1)
        searches = {"the project (scikit-learn, brute force)": nearest, "faiss-cpu IndexFlatL2": by_faiss}
        seconds, results = {name: [] for name in searches}, {}
        for _ in range(TURNS):
            for name, search in searches.items():
                start = time.perf_counter()
                results[name] = search(references, queries, k)
                seconds[name].append(time.perf_counter() - start)
        start = time.perf_counter()
        tree = by_ball_tree(references, queries[:TREE_QUERIES], k)
        seconds["scikit-learn, ball tree"] = [(time.perf_counter() - start) * QUERIES / TREE_QUERIES]
        results["scikit-learn, ball tree"] = tree
        ours = statistics.median(seconds["the project (scikit-learn, brute force)"])
        for name, (distances, indices) in results.items():
            checked = min(CHECKED, len(indices))
            same = np.mean(indices[:checked] == order[:checked])
            difference = np.abs(distances[:checked] - nearest_exact[:checked]).max()
            median = statistics.median(seconds[name])
            rows.append(f"| {k} | {name} | {median:.2f} | {median / ours:.2f} | {same:.2%} | {difference:.0e} |")
            print(rows[-1], flush=True)

    packages = ", ".join(f"{name} {version(name)}" for name in ("scikit-learn", "faiss-cpu", "numpy"))
    text = "\n".join(
        [
            "`python benchmarks/nearest_neighbours.py`: time and exactness of the nearest-neighbour search.",
            "",
            f"{os.cpu_count()} CPU cores, {platform.machine()}; {packages}; {REFERENCES:,} references, {QUERIES:,} "
            f"queries, {EMBEDDING_SIZE} dimensions, float32. Neighbours are compared for {CHECKED:,} queries, the "
            f"tree's for {TREE_QUERIES:,}, from which its time is scaled up.",
            "",
            *rows,
        ]
    )
    (FOLDER / "results").mkdir(exist_ok=True)
    (FOLDER / "results" / "nearest_neighbours.md").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
