"""Time, memory and exactness of the nearest-neighbour search, by scikit-learn and by faiss, in turns.

    pip install -r benchmarks/requirements.txt
    python benchmarks/nearest_neighbours.py
    python benchmarks/nearest_neighbours.py --references 1000000 --neighbours 5 --turns 1

By default there are as many references and queries as CIFAR-10 has training and test images: unit vectors around ten
class centres. The project's `nearest` takes scikit-learn, or faiss where that is installed and pairs are many. Both
ways are measured, and the bare `faiss.IndexFlatL2`. A time is the median of the turns, and includes building the index;
memory is what the search adds at its highest, on Linux. The oracle computes distances in float64, from differences, not
products.
"""

import argparse
import os
import platform
import re
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import faiss
import numpy as np
from scipy.spatial.distance import cdist

from pipeline import neighbours as project

EMBEDDING_SIZE, CLASSES = 128, 10
CHECKED_PAIRS = 2**26  # queries times references that are compared with the oracle


def embeddings(count, centres, generator):
    points = centres[generator.integers(0, CLASSES, count)] + generator.normal(0, 0.08, (count, EMBEDDING_SIZE))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype("float32")


def by_project(many_pairs):
    """The project's search, which takes faiss from so many pairs on."""

    def search(references, queries, k):
        project.MANY_PAIRS = many_pairs
        return project.nearest(references, queries, k)

    return search


def by_faiss(references, queries, k):
    index = faiss.IndexFlatL2(EMBEDDING_SIZE)
    index.add(references)
    squared, indices = index.search(queries, k)
    return np.sqrt(np.maximum(squared, 0)), indices


def mib(key):
    return int(re.search(key + r":\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def measured(search, *arguments):
    """The result, seconds, and the MiB of memory that it adds at its highest."""
    Path("/proc/self/clear_refs").write_text("5")  # the highest memory so far is forgotten
    before, start = mib("VmRSS"), time.perf_counter()
    result = search(*arguments)
    return result, time.perf_counter() - start, mib("VmHWM") - before


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--references", type=int, default=50_000)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--neighbours", default="1,5,20")
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    generator = np.random.default_rng(0)
    centres = generator.normal(0, 0.1, (CLASSES, EMBEDDING_SIZE))
    references, queries = (embeddings(count, centres, generator) for count in (options.references, options.queries))
    checked = min(1_000, len(queries), max(1, CHECKED_PAIRS // len(references)))
    exact = cdist(queries[:checked].astype("float64"), references.astype("float64"))  # shape (checked, n_references)

    packages = f"scikit-learn {version('scikit-learn')}, faiss {faiss.__version__}, numpy {np.__version__}"
    print(
        f"{os.cpu_count()} CPU cores, {platform.machine()}; {packages}; {len(references):,} references, "
        f"{len(queries):,} queries, {EMBEDDING_SIZE} dimensions, float32; {checked:,} compared with the oracle\n"
    )
    print("| k | search | seconds | times scikit-learn's | MiB | same neighbours as the oracle | distances differ by |")
    print("|---" * 7 + "|")
    searches = {
        "the project, scikit-learn": by_project(float("inf")),
        "the project, faiss": by_project(0),
        "faiss.IndexFlatL2": by_faiss,
    }
    for k in map(int, options.neighbours.split(",")):
        order = np.argsort(exact, axis=1)[:, :k]
        nearest_exact = np.take_along_axis(exact, order, axis=1)
        seconds, memory, results = ({name: [] for name in searches} for _ in range(3))
        for _ in range(options.turns):
            for name, search in searches.items():
                results[name], *figures = measured(search, references, queries, k)
                for each, figure in zip((seconds, memory), figures, strict=True):
                    each[name].append(figure)
        for name, (distances, indices) in results.items():
            median, highest = statistics.median(seconds[name]), max(memory[name])
            ratio = median / statistics.median(seconds["the project, scikit-learn"])
            same = np.mean(indices[:checked] == order)
            difference = np.abs(distances[:checked] - nearest_exact).max()
            print(f"| {k} | {name} | {median:.2f} | {ratio:.2f} | {highest:,.0f} | {same:.2%} | {difference:.0e} |")


if __name__ == "__main__":
    main()
