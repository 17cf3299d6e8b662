"""Time and memory of the in-batch losses, forward and backward, compared with peers in the same run.

    pip install -r benchmarks/requirements.txt
    python benchmarks/triplet_losses.py

Peers: pytorch-metric-learning's losses and miners, and for FaceNet's semi-hard mining an algorithm with tensors of
shape (batch², batch), as TensorFlow Addons had it, written here only to compare complexity. Ours runs on
TensorFlow, in a graph without XLA. The two are measured in turns, each after a pause and a step that is not counted; a
time is the median of the turns. Memory is the highest resident set while a step runs, less that before it, seen every
2 ms.

Writes a table, `benchmarks/results/triplet_losses.md`, and a figure in the same folder.
"""

import os
import platform
import statistics
import sys
import threading
import time
from importlib.metadata import version
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parent))
os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import psutil
import tensorflow as tf
import torch
from matplotlib.figure import Figure
from pytorch_metric_learning import distances, losses, miners, reducers

from triplet_loss_functions import in_batch_triplet_loss

EMBEDDING_SIZE, MARGIN = 128, 0.3
PAUSE = 0.3  # seconds before each turn: PyTorch's threads keep spinning after theirs, which would slow ours down
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


def our_step(mining, labels, embeddings):
    @tf.function
    def step(labels, embeddings):
        with tf.GradientTape() as tape:
            tape.watch(embeddings)
            loss = keras.ops.mean(in_batch_triplet_loss(labels, embeddings, MARGIN, mining))
        return loss, tape.gradient(loss, embeddings)

    labels, embeddings = tf.constant(labels), tf.constant(embeddings)
    return lambda: float(step(labels, embeddings)[0])


def peer_step(mining, labels, embeddings):
    if mining == "semi_hard":
        return facenet_step(labels, embeddings)
    squared = distances.LpDistance(normalize_embeddings=False, power=2)
    miner = {
        "batch_all": None,
        "batch_hard": miners.BatchHardMiner(distance=squared),
        "all_semi_hard": miners.TripletMarginMiner(MARGIN, "semihard", distance=squared),
    }[mining]
    reducer = reducers.MeanReducer() if mining == "batch_hard" else reducers.AvgNonZeroReducer()
    loss_function = losses.TripletMarginLoss(MARGIN, distance=squared, reducer=reducer)
    labels = torch.from_numpy(labels)

    def step():
        given = torch.tensor(embeddings, requires_grad=True)
        loss = loss_function(given, labels, miner(given, labels) if miner else None)
        loss.backward()
        return float(loss.detach())

    return step


def facenet_step(labels, embeddings):
    @tf.function
    def step(labels, embeddings):
        with tf.GradientTape() as tape:
            tape.watch(embeddings)
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
            loss = tf.reduce_sum(tf.maximum(squared - negative + MARGIN, 0) * positive) / tf.reduce_sum(positive)
        return loss, tape.gradient(loss, embeddings)

    labels, embeddings = tf.constant(labels), tf.constant(embeddings)
    return lambda: float(step(labels, embeddings)[0])


def timed(step):
    time.sleep(PAUSE)
    step()  # which finds its threads asleep and the other's data in the caches, as in no training
    start = time.perf_counter()
    value = step()
    return time.perf_counter() - start, value


def added_memory(step):
    """MiB of memory that a step adds at its highest."""
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
    return (max(seen, default=before) - before) / 2**20


def measured(mining, batch, classes, with_peer, turns):
    generator = np.random.default_rng(0)
    embeddings = generator.normal(size=(batch, EMBEDDING_SIZE)).astype("float32")
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    labels = np.arange(batch) % classes
    steps = {"ours": our_step(mining, labels, embeddings)}
    if with_peer:
        steps["peer"] = peer_step(mining, labels, embeddings)
    memory = {name: added_memory(step) for name, step in steps.items()}  # the first step: graphs and pools included
    times = {name: [] for name in steps}
    values = {}
    for _ in range(turns):
        for name, step in steps.items():
            seconds, values[name] = timed(step)
            times[name].append(seconds)
    return {name: statistics.median(each) for name, each in times.items()}, memory, values


def main():
    rows = ["| mining | batch | classes | ours, ms | peer, ms | ratio | ours, MiB | peer, MiB | values differ by |"]
    rows.append("|---" * 9 + "|")
    growth = {}
    for case in CASES:
        mining, batch, classes, *_ = case
        seconds, memory, values = measured(*case)
        if (mining, classes) == ("batch_all", 10):
            growth[batch] = seconds["ours"]
        peer = ["–"] * 4
        if "peer" in seconds:
            difference = abs(values["ours"] / values["peer"] - 1)
            ratio = seconds["peer"] / seconds["ours"]
            peer = [f"{seconds['peer'] * 1e3:,.0f}", f"{ratio:,.1f}", f"{memory['peer']:,.0f}", f"{difference:.0e}"]
        cells = [
            mining,
            batch,
            classes,
            f"{seconds['ours'] * 1e3:,.1f}",
            *peer[:2],
            f"{memory['ours']:,.0f}",
            *peer[2:],
        ]
        rows.append("| " + " | ".join(map(str, cells)) + " |")
        print(rows[-1], flush=True)
    exponent = np.log(growth[4096] / growth[512]) / np.log(4096 / 512)
    packages = ", ".join(
        f"{name} {version(name)}" for name in ("tensorflow", "keras", "torch", "pytorch-metric-learning")
    )
    text = "\n".join(
        [
            "`python benchmarks/triplet_losses.py`: " + __doc__.split("\n\n")[0][:-1].lower() + ".",
            "",
            f"{os.cpu_count()} CPU cores, {platform.machine()}; {packages}; {EMBEDDING_SIZE} dimensions, float32.",
            "",
            *rows,
            "",
            f"Batch-all with 10 classes grows as batch^{exponent:.2f} from 512 to 4096.",
        ]
    )
    (FOLDER / "results").mkdir(exist_ok=True)
    (FOLDER / "results" / "triplet_losses.md").write_text(text + "\n", encoding="utf-8")
    print(text)
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.loglog(list(growth), [1e3 * each for each in growth.values()], marker="o", label="ours, batch-all, 10 classes")
    axes.set(xlabel="batch", ylabel="milliseconds, forward and backward")
    axes.legend()
    figure.savefig(FOLDER / "results" / "triplet_losses.png", dpi=120)


if __name__ == "__main__":
    main()
