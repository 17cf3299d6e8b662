"""Time and memory of the in-batch loss, forward and backward, on three Keras backends, and of a peer.

    pip install -r benchmarks/requirements.txt
    python benchmarks/triplet_losses.py
    python benchmarks/triplet_losses.py --quick --folder /tmp/results    # small batches, two turns: to try the script

Ours runs on TensorFlow in a graph without XLA, on PyTorch op by op, and on JAX under jit. The peer is
pytorch-metric-learning's losses and miners; for FaceNet's semi-hard mining, an algorithm with tensors of shape
(batch², batch), as TensorFlow Addons had it, written here only to compare complexity.

Each backend and the peer have a process of their own for each case. The parent asks one after the other for one timed
step, in turns, so that noise of the machine hits all alike. Before each timed step come a pause and a step that is not
counted. A time is the median of the turns. A framework that sees a GPU uses it; a step ends when the device is done.

Added memory is the highest resident set of the process during its first step, less that before it, seen every 2 ms.
Before that step a small batch loads the libraries, and TensorFlow's graph is traced, JAX's also compiled. Memory of a
GPU is not in it. Results: two tables, `benchmarks/results/triplet_losses.md`, and a figure in the same folder.
"""

import argparse
import os
import platform
import statistics
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import lru_cache
from importlib.metadata import version
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import psutil
from matplotlib.figure import Figure

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parent))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")  # the processes share the GPU: none may reserve it all
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

BACKENDS = {"TensorFlow": "tensorflow", "PyTorch": "torch", "JAX": "jax"}
EMBEDDING_SIZE, MARGIN = 128, 0.3
PAUSE = 0.3  # seconds before each turn: PyTorch's threads keep spinning after theirs, which would slow the next down
# Mining, batch size, classes, whether the peer is measured too, turns.
CASES = (
    ("batch_all", 512, 10, True, 15),
    ("batch_all", 1024, 10, True, 7),
    ("batch_all", 2048, 10, False, 9),
    ("batch_all", 4096, 10, False, 5),
    ("batch_all", 1024, 256, True, 15),
    ("batch_hard", 1024, 10, True, 25),
    ("batch_hard", 4096, 10, True, 15),
    ("all_semi_hard", 1024, 256, True, 15),
    ("semi_hard", 512, 10, True, 25),
)
QUICK_CASES = [
    (mining, batch, 10, True, 2)
    for mining, batch in [("batch_all", 128), ("batch_all", 256), ("all_semi_hard", 256), ("semi_hard", 128)]
]


# The functions down to `timed` run in a worker process: `set_backend` first, before Keras is imported.
def set_backend(framework):
    os.environ["KERAS_BACKEND"] = framework


def our_loss(mining):
    import keras

    from triplet_loss_functions import in_batch_triplet_loss

    return lambda labels, embeddings: keras.ops.mean(in_batch_triplet_loss(labels, embeddings, MARGIN, mining))


def peer_loss(mining):
    if mining == "semi_hard":
        return facenet_loss
    from pytorch_metric_learning import distances, losses, miners, reducers

    squared = distances.LpDistance(normalize_embeddings=False, power=2)
    miner = {
        "batch_all": None,
        "batch_hard": miners.BatchHardMiner(distance=squared),
        "all_semi_hard": miners.TripletMarginMiner(MARGIN, "semihard", distance=squared),
    }[mining]
    reducer = reducers.MeanReducer() if mining == "batch_hard" else reducers.AvgNonZeroReducer()
    loss = losses.TripletMarginLoss(MARGIN, distance=squared, reducer=reducer)
    return lambda labels, embeddings: loss(embeddings, labels, miner(embeddings, labels) if miner else None)


def facenet_loss(labels, embeddings):
    import tensorflow as tf

    norms = tf.reduce_sum(embeddings**2, axis=1)
    squared = tf.maximum(norms[:, None] - 2 * tf.matmul(embeddings, embeddings, transpose_b=True) + norms, 0)
    batch, different = tf.shape(labels)[0], labels[:, None] != labels[None]
    pairs = tf.tile(squared, [batch, 1])  # shape (batch², batch), as is the next
    farther = tf.tile(different, [batch, 1]) & (pairs > tf.reshape(tf.transpose(squared), [-1, 1]))
    nearest = tf.reduce_min(tf.where(farther, pairs, np.inf), axis=1)
    outside = tf.transpose(tf.reshape(nearest, [batch, batch]))
    farthest = tf.reduce_max(tf.where(different, squared, 0), axis=1, keepdims=True)
    negative = tf.where(tf.math.is_finite(outside), outside, farthest)
    positive = tf.cast(~different, "float32") - tf.eye(batch)
    return tf.reduce_sum(tf.maximum(squared - negative + MARGIN, 0) * positive) / tf.reduce_sum(positive)


def tensorflow_step(loss_function, labels, embeddings):
    import tensorflow as tf

    @tf.function
    def loss_and_gradient(labels, embeddings):
        with tf.GradientTape() as tape:
            tape.watch(embeddings)
            loss = loss_function(labels, embeddings)
        return loss, tape.gradient(loss, embeddings)

    labels, embeddings = tf.constant(labels), tf.constant(embeddings)
    traced = loss_and_gradient.get_concrete_function(labels, embeddings)
    device = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"

    def step():
        loss, _ = traced(labels, embeddings)
        if device == "GPU":
            tf.test.experimental.sync_devices()
        return float(loss)

    return step, device


def torch_step(loss_function, labels, embeddings):
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    labels, embeddings = torch.from_numpy(labels).to(device), torch.from_numpy(embeddings).to(device)

    def step():
        inputs = embeddings.clone().requires_grad_()
        loss = loss_function(labels, inputs)
        loss.backward()
        if device == "cuda":
            torch.cuda.synchronize()
        return float(loss.detach())

    return step, torch.cuda.get_device_name() if device == "cuda" else "CPU"


def jax_step(loss_function, labels, embeddings):
    import jax

    labels, embeddings = jax.numpy.asarray(labels), jax.numpy.asarray(embeddings)
    compiled = jax.jit(jax.value_and_grad(loss_function, argnums=1)).lower(labels, embeddings).compile()
    device = "CPU" if jax.default_backend() == "cpu" else jax.devices()[0].device_kind
    return lambda: float(jax.block_until_ready(compiled(labels, embeddings))[0]), device


@lru_cache(maxsize=1)
def step_and_device(name, framework, mining, batch, classes):
    generator = np.random.default_rng(0)
    embeddings = generator.normal(size=(batch, EMBEDDING_SIZE)).astype("float32")
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    loss_function = peer_loss(mining) if name == "peer" else our_loss(mining)
    make = {"tensorflow": tensorflow_step, "torch": torch_step, "jax": jax_step}[framework]
    return make(loss_function, np.arange(batch) % classes, embeddings)


def loaded(name, framework, mining, *_):
    """Runs a small batch, which loads the libraries; returns the device."""
    step, device = step_and_device(name, framework, mining, 64, 10)
    step()
    return device


def added_memory(*case):
    """MiB of memory that the first step adds at its highest."""
    step, _ = step_and_device(*case)
    process, seen, done = psutil.Process(), [], threading.Event()
    before = process.memory_info().rss

    def watch():
        while not done.wait(0.002):
            seen.append(process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    step()
    done.set()
    watcher.join()
    return max(0, max(seen, default=before) - before) / 2**20


def timed(*case):
    """Seconds and loss of one step."""
    step, _ = step_and_device(*case)
    time.sleep(PAUSE)
    step()  # which finds its threads asleep and the others' data in the caches, as in no training
    start = time.perf_counter()
    value = step()
    return time.perf_counter() - start, value


def measured(mining, batch, classes, with_peer, turns):
    """Median seconds, added MiB, losses and devices: dicts with a key for each backend and for the peer."""
    workers = {name: framework for name, framework in BACKENDS.items() if find_spec(framework)}
    needed = ["tensorflow"] if mining == "semi_hard" else ["torch", "pytorch_metric_learning"]
    if with_peer and all(map(find_spec, needed)):
        workers["peer"] = needed[0]
    with ExitStack() as stack:
        pools = {
            name: stack.enter_context(ProcessPoolExecutor(1, get_context("spawn"), set_backend, (framework,)))
            for name, framework in workers.items()
        }

        def submit(function, name):
            return pools[name].submit(function, name, workers[name], mining, batch, classes)

        loading = {name: submit(loaded, name) for name in workers}  # at the same time; then one after the other
        devices = {name: future.result() for name, future in loading.items()}
        memory = {name: submit(added_memory, name).result() for name in workers}
        results = [{name: submit(timed, name).result() for name in workers} for _ in range(turns)]
    seconds = {name: statistics.median(turn[name][0] for turn in results) for name in workers}
    return seconds, memory, {name: results[-1][name][1] for name in workers}, devices


def header(devices):
    cpu = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    processor = [line.split(": ")[1] for line in cpu if line.startswith("model name")] or [platform.machine()]
    packages = ("tensorflow", "torch", "jax", "keras", "pytorch-metric-learning")
    missing = [name for name in packages if not find_spec(name.replace("-", "_"))]
    versions = ", ".join(f"{name} {version(name)}" for name in packages if name not in missing)
    lines = [
        f"`python {' '.join(['benchmarks/triplet_losses.py', *sys.argv[1:]])}`: {os.cpu_count()} CPU cores, "
        f"{processor[0]}; {versions}; {EMBEDDING_SIZE} dimensions, float32. Devices: "
        + ", ".join(f"{name} {device}" for name, device in devices.items())
        + ". Peer: pytorch-metric-learning; for `semi_hard`, the algorithm of TensorFlow Addons."
    ]
    return lines + [f"Not installed and left out: {', '.join(missing)}."] * bool(missing)


def table(columns, rows):
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in (columns, ["---"] * len(columns), *rows))


def draw(curves, path):
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name, times in curves.items():
        label = "peer: pytorch-metric-learning" if name == "peer" else f"ours, {name}"
        axes.loglog(list(times), [1e3 * each for each in times.values()], marker="o", label=label)
    batches = sorted(set().union(*curves.values()))
    axes.set_xticks(batches, map(str, batches))
    axes.set_xticks([], minor=True)
    axes.set(xlabel="batch size", ylabel="milliseconds, forward and backward", title="batch-all, 10 classes")
    axes.legend()
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="small batches and two turns, to try the script")
    parser.add_argument("--folder", type=Path, default=FOLDER / "results", help="where the results are written")
    arguments = parser.parse_args()
    backends = [name for name, framework in BACKENDS.items() if find_spec(framework)]
    names = ["peer", *backends]
    times, memories, curves, devices = [], [], {}, {}
    for case in QUICK_CASES if arguments.quick else CASES:
        seconds, memory, values, found = measured(*case)
        devices |= found
        if case[0] == "batch_all" and case[2] == 10:
            for name, each in seconds.items():
                curves.setdefault(name, {})[case[1]] = each
        cells = [f"{1e3 * seconds[name]:,.1f}" if name in seconds else "–" for name in names]
        ratios = [f"{seconds['peer'] / seconds[name]:,.1f}" if "peer" in seconds else "–" for name in backends]
        times.append([*case[:3], *cells, *ratios, f"{max(values.values()) / min(values.values()) - 1:.0e}"])
        memories.append([*case[:3], *(f"{memory[name]:,.0f}" if name in memory else "–" for name in names)])
        print(*times[-1], sep=" | ", flush=True)
    smallest, *_, largest = sorted(curves[backends[0]])
    exponents = {
        name: np.log(curves[name][largest] / curves[name][smallest]) / np.log(largest / smallest) for name in backends
    }
    columns = ["mining", "batch", "classes"]
    ratio_columns = [f"peer / {name}" for name in backends]
    parts = [
        *header(devices),
        "Time of a forward and backward pass, median, and the largest relative difference between losses in a row:",
        table([*columns, *(f"{name}, ms" for name in names), *ratio_columns, "losses differ by"], times),
        "Memory of the host that the first step adds at its highest:",
        table([*columns, *(f"{name}, MiB" for name in names)], memories),
        f"Time of batch-all with 10 classes, from a batch of {smallest} to {largest}, grows as "
        + ", ".join(f"batch^{exponent:.2f} ({name})" for name, exponent in exponents.items())
        + ".",
    ]
    text = "\n\n".join(parts)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    (arguments.folder / "triplet_losses.md").write_text(text + "\n", encoding="utf-8")
    print(text)
    draw(curves, arguments.folder / "triplet_losses.png")


if __name__ == "__main__":
    main()
