"""The triplet losses against plain loops, finite differences and hand-computed values.

Runs on any backend: `KERAS_BACKEND=jax python -m pytest tests/test_triplet_loss_functions.py`.
"""

import functools
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import triplet_loss_functions as losses
from triplet_loss_functions import (
    InBatchTripletLoss,
    MergeTripletLoss,
    in_batch_triplet_loss,
    in_batch_triplet_statistics,
    merge_triplet_loss,
)

FOLDER = Path(__file__).resolve().parent.parent
BACKEND = keras.backend.backend()


def all_distances(embeddings, distance="squared"):
    """The oracle's distances, by differences in float64."""
    embeddings = np.asarray(embeddings, "float64")
    squared = ((embeddings[:, None] - embeddings[None]) ** 2).sum(axis=2)
    return squared if distance == "squared" else np.sqrt(squared)


def mined_triplets(labels, distances, mining):
    """The oracle's triplets (anchor, positive, negative), found one by one."""
    everyone = range(len(labels))
    triplets = []
    for a in everyone:
        positives = [p for p in everyone if p != a and labels[p] == labels[a]]
        negatives = [n for n in everyone if labels[n] != labels[a]]
        if not positives or not negatives:
            continue
        if mining in ("batch_all", "all_semi_hard"):
            triplets += [(a, p, n) for p in positives for n in negatives]
        if mining == "batch_hard":
            farthest = max(positives, key=lambda p: distances[a, p])
            triplets.append((a, farthest, min(negatives, key=lambda n: distances[a, n])))
        if mining == "semi_hard":
            for p in positives:
                farther = [n for n in negatives if distances[a, n] > distances[a, p]]
                nearest = min(farther, key=lambda n: distances[a, n]) if farther else None
                farthest = max(negatives, key=lambda n: distances[a, n])
                triplets.append((a, p, farthest if nearest is None else nearest))
    return triplets


def loop_loss(labels, embeddings, margin=0.3, mining="semi_hard", distance="squared", average="auto"):
    """The oracle: the loss of each mined triplet by FaceNet's equation, added up one by one, and averaged."""
    distances = all_distances(embeddings, distance)
    values = []
    for a, p, n in mined_triplets(labels, distances, mining):
        gap = distances[a, p] - distances[a, n]
        value = np.logaddexp(0, gap) if margin == "soft" else max(0.0, gap + margin)
        values.append(0.0 if mining == "all_semi_hard" and gap >= 0 else value)
    if average == "auto":
        average = "active" if margin != "soft" and mining in ("batch_all", "all_semi_hard") else "all"
    divisor = {"active": sum(value > 0 for value in values), "all": len(values), "sum": 1}[average]
    return sum(values) / max(divisor, 1)


def hardest_gaps(labels, embeddings):
    """Each anchor's largest distance to a positive less its smallest to a negative."""
    same, distances = labels[:, None] == labels, all_distances(embeddings)
    farthest = np.where(same & ~np.eye(len(labels), dtype=bool), distances, -np.inf).max(axis=1)
    return farthest - np.where(same, np.inf, distances).min(axis=1)


def unit_vectors(generator, count, size=8):
    vectors = generator.normal(size=(count, size))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype("float32")


class Descent:
    """Embeddings as the only weights of a model, so that a step of gradient descent shows a loss's gradient."""

    def __init__(self, loss, shape, dtype="float32", triplets=None, jit_compile=BACKEND == "jax"):  # else JAX is slow
        class Table(keras.layers.Layer):
            def build(self, input_shape):
                self.embeddings = self.add_weight(shape=shape, initializer="zeros")

            def call(self, inputs):
                chosen = self.embeddings if triplets is None else keras.ops.take(self.embeddings, triplets, axis=0)
                return keras.ops.cast(chosen, dtype)

        self.inputs = np.zeros((shape[0] if triplets is None else len(triplets), 1), "float32")
        self.model = keras.Sequential([keras.Input(batch_shape=self.inputs.shape), Table()])
        self.model.compile(keras.optimizers.SGD(1.0), loss, jit_compile=jit_compile)

    def step(self, labels, embeddings):
        """Returns the loss at the embeddings, and the embeddings less its gradient."""
        self.model.set_weights([embeddings])
        self.model.reset_metrics()
        value = self.model.train_on_batch(self.inputs, np.asarray(labels))
        return float(value), self.model.get_weights()[0]


@functools.cache
def compiled(shape, dtype, *settings):
    return Descent(InBatchTripletLoss(*settings), shape, dtype)


def descent_of(loss, shape, dtype="float32"):
    """A `Descent` of an in-batch loss, compiled once for all tests."""
    return compiled(shape, dtype, *loss.settings.values())


def mean_loss(labels, embeddings, margin=0.3, mining="semi_hard", distance="squared", average="auto"):
    settings = margin, mining, distance, average
    if BACKEND == "jax":  # which compiles a loop anew each time that it is not part of something compiled
        return compiled(np.shape(embeddings), "float32", *settings).step(labels, embeddings)[0]
    return float(keras.ops.mean(in_batch_triplet_loss(labels, embeddings, *settings)))


BATCHES = {
    "one class": [3] * 12,
    "all classes different": range(12),
    "a pair and others": [0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10],
    "one image of another class": [0] * 11 + [1],
    "balanced": [0, 1, 2, 3] * 3,
    "unbalanced": [5] * 6 + [1] * 2 + [2] + [-7] * 3,
}
LOSSES = {
    **{
        f"{mining}-{distance}-{margin}": InBatchTripletLoss(margin, mining, distance)
        for mining in losses.MINING
        for distance, margin in (("squared", 0.3), ("euclidean", 0.3), ("squared", "soft"))
    },
}


@pytest.mark.parametrize("distance", losses.DISTANCES)
@pytest.mark.parametrize("margin", [0.05, 0.3, 5, "soft"])
@pytest.mark.parametrize("mining", losses.MINING)
def test_the_loss_is_that_of_a_plain_loop(mining, margin, distance):
    generator = np.random.default_rng(0)
    for name, labels in BATCHES.items():
        embeddings = unit_vectors(generator, 12)
        expected = loop_loss(list(labels), embeddings, margin, mining, distance)
        value, _ = compiled((12, 8), "float32", margin, mining, distance, "auto").step(np.array(labels), embeddings)
        assert value == pytest.approx(expected, rel=1e-5, abs=1e-6), name


@pytest.mark.parametrize("device", ["cpu:0", "gpu:0"])
@pytest.mark.parametrize("at_once", [1, 5, 11])
def test_batch_hard_may_take_its_anchors_a_few_at_a_time(at_once, device, monkeypatch):
    """The last of them overlap with those before where the batch is no multiple."""
    monkeypatch.setattr(keras.distribution, "list_devices", lambda: [device])  # which decides how it multiplies
    monkeypatch.setattr(losses, "ANCHORS_AT_ONCE", at_once)
    for labels in BATCHES.values():
        embeddings = unit_vectors(np.random.default_rng(25), 12)
        found = float(keras.ops.mean(in_batch_triplet_loss(np.array(labels), embeddings, 0.3, "batch_hard")))
        assert found == pytest.approx(loop_loss(labels, embeddings, 0.3, "batch_hard"), rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("average", ["active", "all", "sum"])
@pytest.mark.parametrize("mining", losses.MINING)
def test_the_average_is_the_one_asked_for(mining, average):
    embeddings = unit_vectors(np.random.default_rng(16), 12)
    settings = {"mining": mining, "average": average}
    expected = loop_loss(BATCHES["unbalanced"], embeddings, **settings)
    assert mean_loss(np.array(BATCHES["unbalanced"]), embeddings, **settings) == pytest.approx(expected, rel=1e-5)


def test_one_image_alone_has_no_loss():
    for mining in losses.MINING:
        assert mean_loss(np.array([4]), np.ones((1, 3), "float32"), 0.3, mining) == 0


@pytest.mark.parametrize(
    "loss", [*LOSSES.values(), *(InBatchTripletLoss("soft", mining, "euclidean") for mining in losses.MINING)]
)
def test_the_gradient_is_that_of_central_differences(loss):
    labels, embeddings = BATCHES["unbalanced"], unit_vectors(np.random.default_rng(1), 12)
    _, moved = descent_of(loss, embeddings.shape).step(labels, embeddings)
    exact, step = embeddings.astype("float64"), 1e-6
    expected = np.zeros_like(exact)
    for place in np.ndindex(*exact.shape):
        change = np.zeros_like(exact)
        change[place] = step
        rise = loop_loss(labels, exact + change, **loss.settings) - loop_loss(labels, exact - change, **loss.settings)
        expected[place] = rise / (2 * step)
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(embeddings - moved, expected, atol=1e-5)


@pytest.mark.parametrize("distance", losses.DISTANCES)
@pytest.mark.parametrize("margin", [0.5, "soft"])
def test_the_merge_gradient_is_that_of_central_differences(margin, distance):
    merged = np.random.default_rng(2).normal(size=(5, 3, 4)).astype("float32")
    _, moved = Descent(MergeTripletLoss(margin, distance), merged.shape).step(np.zeros(5), merged)

    def oracle(each):
        to_positive = ((each[:, 0] - each[:, 1]) ** 2).sum(axis=1)
        to_negative = ((each[:, 0] - each[:, 2]) ** 2).sum(axis=1)
        gap = to_positive - to_negative if distance == "squared" else np.sqrt(to_positive) - np.sqrt(to_negative)
        return (np.logaddexp(0, gap) if margin == "soft" else np.maximum(gap + margin, 0)).mean()

    exact, expected = merged.astype("float64"), np.zeros(merged.shape)
    for place in np.ndindex(*merged.shape):
        change = np.zeros_like(exact)
        change[place] = 1e-6
        expected[place] = (oracle(exact + change) - oracle(exact - change)) / 2e-6
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(merged - moved, expected, atol=1e-5)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="JAX has no float64 unless told, Keras' torch matmul gives float32")
@pytest.mark.parametrize("mining", losses.MINING)
def test_float64_embeddings_stay_exact(mining):
    labels, embeddings = np.array([0, 1, 2] * 4), np.random.default_rng(3).normal(size=(12, 8))
    tensor = keras.ops.convert_to_tensor(embeddings, "float64")
    value = keras.ops.convert_to_numpy(in_batch_triplet_loss(labels, tensor, 5.0, mining)).mean()
    assert value == pytest.approx(loop_loss(labels, embeddings, 5.0, mining), rel=1e-12)


def test_values_by_hand():
    """Places on a line: 0 and 1 of one class, 1.5 and 3 of another."""
    labels, embeddings = np.array([0, 0, 1, 1]), np.array([[0.0], [1.0], [1.5], [3.0]], "float32")
    # Squared distances: 0-1: 1, 0-1.5: 2.25, 0-3: 9, 1-1.5: 0.25, 1-3: 4, 1.5-3: 2.25. With margin 0.5 the triplets
    # (anchor, positive; negative) of positive loss are 1,0;1.5: 1.25, 1.5,3;0: 0.5, 1.5,3;1: 2.5; 3,1.5 has none.
    assert mean_loss(labels, embeddings, 0.5, "batch_all") == pytest.approx((1.25 + 0.5 + 2.5) / 3)
    assert mean_loss(labels, embeddings, 0.5, "batch_all", average="all") == pytest.approx((1.25 + 0.5 + 2.5) / 8)
    assert mean_loss(labels, embeddings, 0.5, "batch_all", average="sum") == pytest.approx(1.25 + 0.5 + 2.5)
    assert mean_loss(labels, embeddings, 0.5, "batch_hard") == pytest.approx((0 + 1.25 + 2.5 + 0) / 4)
    # Semi-hard: 0 takes 1.5 (loss 0); 1 takes 3 (0); 1.5 has no negative farther than 3 is, so its farthest, 0 (0.5);
    # 3 takes 1 (0). With margin 2, the triplets whose negative is farther, but not by 2: 0,1;1.5 (0.75); 3,1.5;1 (0.25)
    assert mean_loss(labels, embeddings, 0.5, "semi_hard") == pytest.approx(0.5 / 4)
    assert mean_loss(labels, embeddings, 2.0, "all_semi_hard") == pytest.approx((0.75 + 0.25) / 2)


@pytest.mark.parametrize("count", [16, 21])
@pytest.mark.parametrize("mining", losses.MINING)
def test_a_triplet_exactly_on_the_margin_is_not_active(mining, count):
    """Whole places, so that every distance is exact; many negatives lie farther by just the margin."""
    generator = np.random.default_rng(4)
    on_the_margin = 0
    for _ in range(5):
        labels, places = generator.integers(0, 3, count), generator.integers(0, 4, (count, 2)).astype("float32")
        places[:, 0] += 3 * labels
        distances = all_distances(places)
        gaps = [distances[a, p] - distances[a, n] for a, p, n in mined_triplets(labels, distances, mining)]
        active = [gap + 2 > 0 and (mining != "all_semi_hard" or gap < 0) for gap in gaps]
        on_the_margin += sum(gap == -2 for gap in gaps)
        _, statistics = in_batch_triplet_statistics(labels, places, 2.0, mining)
        assert float(statistics["active_triplets"]) == pytest.approx(np.mean(active))
        assert mean_loss(labels, places, 2.0, mining) == pytest.approx(loop_loss(labels, places, 2.0, mining), rel=1e-5)
    assert on_the_margin > 0


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_value_and_gradient_are_finite(loss, dtype):
    if dtype != "float32" and loss.settings["distance"] == "squared" and loss.settings["margin"] == "soft":
        pytest.skip("the same computation, cast to float32, as with a margin")
    descent = descent_of(loss, (12, 8), dtype)
    vectors = unit_vectors(np.random.default_rng(5), 12)
    kinds = {
        "identical": np.full_like(vectors, 0.3),
        "zeros": np.zeros_like(vectors),
        "duplicates": vectors[np.arange(12) // 4],
        "tiny": vectors * 1e-6,
        "large": vectors * (1e4 if dtype == "float16" else 1e6),
        "near": vectors[:1] + 1e-4 * vectors,
    }
    for (kind, embeddings), (batch, labels) in itertools.product(kinds.items(), BATCHES.items()):
        value, moved = descent.step(labels, embeddings)
        assert np.isfinite(value), (kind, batch)
        assert np.isfinite(moved).all(), (kind, batch)
        if kind in ("identical", "zeros") and batch not in ("one class", "all classes different"):
            margin = loss.settings["margin"]
            stuck = np.log(2) if margin == "soft" else margin
            expected = 0 if loss.settings["mining"] == "all_semi_hard" else stuck
            assert value == pytest.approx(expected, rel=1e-4), (kind, batch)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_a_batch_without_a_triplet_has_no_loss_and_no_gradient(loss):
    """A peer gives NaN without positives; others a constant margin, or push anchors away from everything."""
    descent = descent_of(loss, (12, 8))
    embeddings = unit_vectors(np.random.default_rng(6), 12)
    for batch in ("one class", "all classes different"):
        value, moved = descent.step(BATCHES[batch], embeddings)
        assert value == 0
        np.testing.assert_array_equal(moved, embeddings)


@pytest.mark.parametrize("mining", losses.MINING)
def test_the_statistics_of_a_batch_without_pairs_are_zero_and_not_nan(mining):
    embeddings = unit_vectors(np.random.default_rng(22), 12)
    for batch, missing in (("one class", "negative_distance"), ("all classes different", "positive_distance")):
        _, statistics = in_batch_triplet_statistics(np.array(BATCHES[batch]), embeddings, mining=mining)
        assert float(statistics["active_triplets"]) == float(statistics[missing]) == 0
        assert all(np.isfinite(float(value)) for value in statistics.values())


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_an_anchor_without_positives_takes_no_part(loss):
    """Peers count its distance to a positive as 0."""
    embeddings = np.array([[0.0], [0.2], [0.5]], "float32")
    by_anchor = keras.ops.convert_to_numpy(loss.call(np.array([0, 0, 1]), embeddings))
    assert by_anchor[2] == 0
    assert by_anchor[:2].sum() > 0


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_the_order_of_a_batch_changes_nothing(loss):
    generator = np.random.default_rng(7)
    labels, embeddings = generator.integers(0, 4, 24), unit_vectors(generator, 24)
    order = generator.permutation(24)
    forward = keras.ops.convert_to_numpy(loss.call(labels, embeddings))
    permuted = keras.ops.convert_to_numpy(loss.call(labels[order], embeddings[order]))
    np.testing.assert_allclose(forward[order], permuted, atol=1e-5)


@pytest.mark.parametrize(("distance", "power"), [("squared", 4), ("euclidean", 2)])
@pytest.mark.parametrize("mining", losses.MINING)
def test_moving_changes_nothing_and_doubling_multiplies_the_distances(mining, distance, power):
    generator = np.random.default_rng(8)
    labels, embeddings = generator.integers(0, 4, 24), unit_vectors(generator, 24)
    once = mean_loss(labels, embeddings, 0.3, mining, distance)
    moved = mean_loss(labels, 2 * embeddings + 7, 0.3 * power, mining, distance)
    assert moved == pytest.approx(power * once, rel=1e-4)


@pytest.mark.parametrize("mining", losses.MINING)
def test_labels_of_one_axis_or_two_and_of_any_dtype_mean_the_same(mining):
    """Labels of shape (batch, 1) have silently broken the masks of peers."""
    labels, embeddings = np.array([0, 1, 2] * 4), unit_vectors(np.random.default_rng(9), 12)
    expected = loop_loss(labels, embeddings, 0.3, mining)
    for dtype, shape in (
        ("uint8", (12,)),
        ("int8", (12, 1)),
        ("int32", (12, 1)),
        ("int64", (12,)),
        ("float32", (12, 1)),
    ):
        given = labels.astype(dtype).reshape(shape)
        value = float(keras.ops.mean(in_batch_triplet_loss(given, embeddings, 0.3, mining)))
        assert value == pytest.approx(expected, rel=1e-5), dtype


@pytest.mark.parametrize("mining", losses.MINING)
def test_labels_may_be_true_and_false(mining):
    labels, embeddings = np.array([True, False, False] * 4), unit_vectors(np.random.default_rng(20), 12)
    value = float(keras.ops.mean(in_batch_triplet_loss(labels, embeddings, 0.3, mining)))
    assert value == pytest.approx(loop_loss(labels, embeddings, 0.3, mining), rel=1e-5)


@pytest.mark.parametrize("shape", [(6, 3), (6, 1, 1), ()], ids=["one-hot", "three axes", "scalar"])
def test_labels_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"\(batch,\) or \(batch, 1\)"):
        in_batch_triplet_loss(np.zeros(shape, "int32"), np.zeros((6, 4), "float32"))


def test_one_hot_labels_are_refused_by_fit_too():
    with pytest.raises(ValueError, match="argmax of one-hot"):
        Descent(InBatchTripletLoss(), (6, 4)).step(np.eye(6), np.zeros((6, 4)))


def test_other_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="whole numbers"):
        in_batch_triplet_loss(np.array([0.0, 0.5, 1.0]), np.zeros((3, 4), "float32"))
    with pytest.raises(ValueError, match="one label for each of 6"):
        in_batch_triplet_loss(np.zeros(5, "int32"), np.zeros((6, 4), "float32"))
    with pytest.raises(ValueError, match=r"\(batch, embedding_size\)"):
        in_batch_triplet_loss(np.zeros(6, "int32"), np.zeros((6, 4, 2), "float32"))
    with pytest.raises(ValueError, match=r"\(batch, 3, embedding_size\)"):
        MergeTripletLoss()(np.zeros(6), np.zeros((6, 4), "float32"))
    with pytest.raises(ValueError, match="same shape"):
        merge_triplet_loss(np.zeros((6, 4)), np.zeros((6, 4)), np.zeros((1, 4)))
    wrong = [
        {"margin": 0},
        {"margin": -1},
        {"margin": float("nan")},
        {"margin": "hard"},
        {"margin": None},
        {"margin": np.array([0.3, 0.4])},
        {"margin": 10**400},
        {"distance": "cosine"},
    ]
    for loss, settings in itertools.product((InBatchTripletLoss, MergeTripletLoss), [*wrong, {"average": "mean"}]):
        with pytest.raises(ValueError, match=next(iter(settings))):
            loss(**settings)
    with pytest.raises(ValueError, match=r"'semi_hard'.*Received: 'semi-hard'"):
        InBatchTripletLoss(mining="semi-hard")
    for loss in (InBatchTripletLoss, MergeTripletLoss):
        with pytest.raises(ValueError, match=r"`dtype` must be float32 or float64"):
            loss(dtype="bfloat16")
    with pytest.raises(ValueError, match=r"`statistic` must be one of 'active_triplets'"):
        losses.TripletStatistic(InBatchTripletLoss(), "accuracy")
    with pytest.raises(ValueError, match="same shape"):
        merge_triplet_loss(np.zeros((6, 4, 2)), np.zeros((6, 4, 2)), np.zeros((6, 4, 2)))
    with pytest.raises(ValueError, match="soft margin"):
        InBatchTripletLoss("soft", average="active")


def test_the_merge_loss_is_facenets_equation_by_hand():
    anchor = np.array([[0.0, 0.0], [1.0, 1.0], [0.0, 0.0]], "float32")
    positive = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0]], "float32")
    negative = np.array([[0.0, 1.2], [1.0, 3.0], [0.0, 1.0]], "float32")

    def value(*arguments):
        return keras.ops.convert_to_numpy(merge_triplet_loss(anchor, *arguments))

    np.testing.assert_allclose(value(positive, negative, 0.5), [1 - 1.44 + 0.5, 0, 4 - 1 + 0.5], rtol=1e-6)
    np.testing.assert_allclose(value(negative, positive, 0.5), [1.44 - 1 + 0.5, 4.5, 0], rtol=1e-6)
    np.testing.assert_allclose(value(positive, negative, 0.5, "euclidean"), [1 - 1.2 + 0.5, 0, 1.5], rtol=1e-6)
    soft = np.log1p(np.exp([1 - 1.44, -4, 3]))
    np.testing.assert_allclose(value(positive, negative, "soft"), soft, rtol=1e-6)
    np.testing.assert_allclose(value(positive, negative, 0.5, "squared", "active").mean(), (0.06 + 3.5) / 2, rtol=1e-5)
    np.testing.assert_allclose(value(positive, negative, 0.5, "squared", "sum").mean(), 0.06 + 3.5, rtol=1e-5)


def test_the_merge_loss_is_finite_at_duplicates_and_far_apart():
    """A peer's soft margin gives infinity at a distance of 200."""
    for distance, margin in itertools.product(losses.DISTANCES, (0.3, "soft")):
        descent = Descent(MergeTripletLoss(margin, distance), (4, 3, 2))
        merged = np.zeros((4, 3, 2), "float32")
        merged[1], merged[2, 1], merged[3] = 5.0, 200.0, 1e6
        value, moved = descent.step(np.zeros(4), merged)
        assert np.isfinite(value)
        assert np.isfinite(moved).all()


@pytest.mark.parametrize("distance", losses.DISTANCES)
@pytest.mark.parametrize("margin", [0.3, "soft"])
@pytest.mark.parametrize("mining", ["batch_all", "batch_hard", "semi_hard"])
def test_both_losses_agree_on_the_same_triplets(mining, margin, distance):
    labels, embeddings = np.array([0, 1, 2] * 4), unit_vectors(np.random.default_rng(10), 12)
    triplets = np.array(mined_triplets(labels, all_distances(embeddings, distance), mining))
    merged = embeddings[triplets]  # shape (triplets, 3, size)
    value = float(MergeTripletLoss(margin, distance)(np.zeros(len(merged)), merged))
    assert value == pytest.approx(mean_loss(labels, embeddings, margin, mining, distance, "all"), rel=1e-5)


@pytest.mark.parametrize("loss", [*LOSSES.values(), MergeTripletLoss()], ids=[*LOSSES, "merge"])
def test_gradient_descent_separates_two_mixed_clusters(loss):
    """A loss with its sign turned round, as a peer once shipped, pushes them together."""
    labels, triplets = np.array([0, 1] * 8), None
    if isinstance(loss, MergeTripletLoss):
        triplets = np.array(mined_triplets(labels, np.zeros((16, 16)), "batch_all"))
    margin = "soft" if loss.settings["margin"] == "soft" else 1.0
    descent = Descent(type(loss)(**{**loss.settings, "margin": margin}), (16, 2), triplets=triplets)
    targets = labels if triplets is None else np.zeros(len(triplets))
    for start in range(5):
        places = np.random.default_rng(start).normal(size=(16, 2)).astype("float32")
        places[labels == 1, 0] += 1  # clusters that overlap
        for _ in range(25):
            places = descent.step(targets, places)[1]
        centres = np.stack([places[labels == label].mean(axis=0) for label in (0, 1)])
        nearer = all_distances(np.concatenate([places, centres]))[:16, 16:].argmin(axis=1)
        assert (nearer == labels).mean() >= 0.8, start  # semi-hard mining leaves a lone stray where it is


def tf32_matmul(first, second):
    """TF32 keeps 10 bits of each factor's mantissa; as it is, that puts an error near 1e-3 on unit vectors."""

    def rounded(each):
        bits = np.asarray(keras.ops.convert_to_numpy(each), "float32").view("uint32")
        return ((bits + 0xFFF + ((bits >> 13) & 1)) & 0xFFFFE000).astype("uint32").view("float32")

    return keras.ops.convert_to_tensor(rounded(first) @ rounded(second))


@pytest.mark.parametrize("count", [40, 300])
def test_distances_are_exact_where_a_gpu_multiplies_in_tf32(count, monkeypatch):
    monkeypatch.setattr(losses.ops, "matmul", tf32_matmul)
    embeddings = unit_vectors(np.random.default_rng(11), count, 128)
    embeddings[1], embeddings[2] = embeddings[0], embeddings[0] * (1 - 1e-3)
    exact = all_distances(embeddings)
    naive = 2 - 2 * np.asarray(tf32_matmul(embeddings, embeddings.T))
    assert np.abs(naive - exact).max() > 1e-4
    distances = keras.ops.convert_to_numpy(losses.squared_distances(embeddings))
    np.testing.assert_allclose(distances, exact, atol=3e-6)


@pytest.mark.skipif(BACKEND == "jax", reason="JAX compiles the loop over the anchors, with its own product in it")
def test_batch_hard_chooses_exactly_where_a_gpu_multiplies_in_tf32(monkeypatch):
    labels, embeddings = np.arange(300) % 3, unit_vectors(np.random.default_rng(24), 300, 128)
    hardest, distances, same = hardest_gaps(labels, embeddings), all_distances(embeddings), labels[:, None] == labels
    naive = 2 - 2 * np.asarray(tf32_matmul(embeddings, embeddings.T))
    chosen = np.where(same, naive, -np.inf).argmax(axis=1), np.where(same, np.inf, naive).argmin(axis=1)
    naively = distances[np.arange(300), chosen[0]] - distances[np.arange(300), chosen[1]]
    assert np.abs(naively - hardest).max() > 2e-5
    monkeypatch.setattr(losses.ops, "matmul", tf32_matmul)
    monkeypatch.setattr(keras.distribution, "list_devices", lambda: ["gpu:0"])
    found = keras.ops.convert_to_numpy(in_batch_triplet_loss(labels, embeddings, 5.0, "batch_hard"))
    np.testing.assert_allclose(found, hardest + 5, atol=3e-6)


def test_distances_are_never_negative_and_stay_exact_far_from_the_origin():
    """Pairs so near that rounding could give a negative distance, whose root is not a number."""
    near = unit_vectors(np.random.default_rng(17), 60, 32)
    near[30:] = near[:30] + 1e-5 * near[30:]
    assert keras.ops.convert_to_numpy(losses.squared_distances(near)).min() >= 0
    far = (100 + unit_vectors(np.random.default_rng(18), 60, 32)).astype("float32")
    np.testing.assert_allclose(keras.ops.convert_to_numpy(losses.squared_distances(far)), all_distances(far), atol=3e-6)


@pytest.mark.parametrize("seed", range(8))
def test_batch_hard_is_exact_for_positives_that_are_nearer_than_rounding(seed):
    """The farthest positive is the other image of the pair, and not the anchor itself, where both come out at 0."""
    embeddings = unit_vectors(np.random.default_rng(seed), 12, 32)
    embeddings[[4, 9]] = embeddings[4] + 1e-4 * embeddings[[0, 1]]
    labels = np.where(np.arange(12) == 9, 4, np.arange(12))
    descent = Descent(InBatchTripletLoss(5.0, "batch_hard", "euclidean"), embeddings.shape)
    value, moved = descent.step(labels, embeddings)
    assert value == pytest.approx(loop_loss(labels, embeddings, 5.0, "batch_hard", "euclidean"), rel=1e-6)
    exact, expected = embeddings.astype("float64"), np.zeros((12, 32))
    distances = all_distances(exact, "euclidean")
    for anchor, positive in ((4, 9), (9, 4)):  # each pulled along the unit vector between, half of it in the mean
        negative = np.where(labels == 4, np.inf, distances[anchor]).argmin()
        for other, sign in ((positive, 1), (negative, -1)):
            direction = sign * (exact[anchor] - exact[other]) / distances[anchor, other] / 2
            expected[anchor] += direction
            expected[other] -= direction
    np.testing.assert_allclose(embeddings - moved, expected, atol=1e-5)


def test_batch_hard_takes_duplicates_as_positives_and_as_negatives():
    """Duplicates of the anchor and near copies are as far from it as it is itself, or by rounding even nearer."""
    originals = unit_vectors(np.random.default_rng(26), 40, 32)
    copies = originals + 1e-4 * unit_vectors(np.random.default_rng(27), 40, 32)
    for labels in (np.arange(80) % 40, np.arange(80) % 8 + 8 * (np.arange(80) // 40)):  # of one class, or of two
        for embeddings in (np.concatenate([originals, originals]), np.concatenate([originals, copies])):
            found = keras.ops.convert_to_numpy(in_batch_triplet_loss(labels, embeddings, 5.0, "batch_hard"))
            np.testing.assert_allclose(found, hardest_gaps(labels, embeddings) + 5, rtol=1e-5)


@pytest.mark.parametrize("size", [128, 511])
def test_duplicates_are_as_near_as_rounding_lets_them(size):
    embeddings = np.repeat(unit_vectors(np.random.default_rng(12), 67, size), 2, axis=0)
    distances = keras.ops.convert_to_numpy(losses.squared_distances(embeddings))
    np.testing.assert_allclose(distances[::2, 1::2].diagonal(), 0, atol=2e-6)
    np.testing.assert_array_equal(distances.diagonal(), 0)


def test_distances_between_whole_numbers_are_exact():
    whole = np.random.default_rng(24).integers(-1023, 1024, (30, 3)).astype("float32")
    whole[:2] = [[0, 0, 0], [2047, 0, 0]]
    whole[2:] += 512
    distances = keras.ops.convert_to_numpy(losses.squared_distances(whole))
    np.testing.assert_array_equal(distances, all_distances(whole))


@pytest.mark.parametrize("place", [0, 5])
@pytest.mark.parametrize("mining", losses.MINING)
def test_one_far_embedding_costs_the_others_no_digits(mining, place):
    embeddings = np.insert(unit_vectors(np.random.default_rng(25), 12), place, 1e4, axis=0)
    labels = np.insert(BATCHES["unbalanced"], place, 9)
    others = np.arange(13) != place
    distances = keras.ops.convert_to_numpy(losses.squared_distances(embeddings))[others][:, others]
    np.testing.assert_allclose(distances, all_distances(embeddings[others]), atol=5e-6)
    expected = loop_loss(labels, embeddings, 0.3, mining)
    assert mean_loss(labels, embeddings, 0.3, mining) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("loss", [*LOSSES.values(), MergeTripletLoss(), MergeTripletLoss(0.3, "euclidean")])
def test_an_embedding_that_is_not_finite_is_never_hidden(loss, value):
    embeddings = unit_vectors(np.random.default_rng(26), 12)
    embeddings[5, 3] = value
    labels = np.array(BATCHES["unbalanced"])
    given = embeddings.reshape(4, 3, 8) if isinstance(loss, MergeTripletLoss) else embeddings
    assert not np.isfinite(keras.ops.convert_to_numpy(loss(labels[: len(given)], given)))


@pytest.mark.parametrize(
    "loss",
    [
        InBatchTripletLoss(np.float32(0.5), "batch_hard", "euclidean", "sum"),
        MergeTripletLoss("soft"),
    ],
)
def test_a_compiled_model_with_the_loss_is_saved_and_loaded(loss, tmp_path):
    shape = (4,) if isinstance(loss, InBatchTripletLoss) else (3, 4)
    model = keras.Sequential([keras.Input(shape), keras.layers.Dense(2)])
    model.compile("sgd", loss, metrics=loss.metrics(), jit_compile=BACKEND == "jax")
    model.train_on_batch(np.eye(4, *shape) if len(shape) == 1 else np.ones((4, *shape)), np.array([0, 0, 1, 1]))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    given = (np.ones((4, *shape)), np.array([0, 0, 1, 1]))
    assert loaded.evaluate(*given, verbose=0) == pytest.approx(model.evaluate(*given, verbose=0))
    again = loaded.loss
    assert type(again) is type(loss)
    assert again.get_config() == loss.get_config()
    again = keras.saving.deserialize_keras_object(json.loads(json.dumps(keras.saving.serialize_keras_object(loss))))
    assert again.settings == loss.settings


@pytest.mark.parametrize("loss", [InBatchTripletLoss, MergeTripletLoss])
def test_the_dtype_is_kept_with_the_other_settings(loss):
    """Labels above 2**24 need float64."""
    assert loss.from_config(json.loads(json.dumps(loss(dtype="float64").get_config()))).dtype == "float64"


def test_a_batch_without_pairs_does_not_count_in_the_mean_of_the_statistics():
    embeddings = np.array([[0.0], [1.0], [3.0], [3.0]], "float32")
    for metric in InBatchTripletLoss(5.0, "batch_all").metrics():
        metric.update_state(np.array([0, 0, 1, 1]), embeddings)
        alone = float(metric.result())
        assert alone > 0
        metric.update_state(np.arange(4) if metric.name != "negative_distance" else np.zeros(4), embeddings)
        assert float(metric.result()) == alone


def test_with_the_soft_margin_a_negative_as_near_as_the_positive_is_not_active():
    for mining in losses.MINING:
        embeddings = np.array([[0.0], [1.0], [-1.0]], "float32")  # of the only anchor's triplets, the gap is 0
        _, statistics = in_batch_triplet_statistics(np.array([0, 0, 1]), embeddings, "soft", mining)
        assert float(statistics["active_triplets"]) == 0


class Uneven(keras.utils.PyDataset):
    """Batches of sizes that are not known when the training step is traced."""

    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, number):
        return self.batches[number]


@pytest.mark.parametrize(("mining", "margin"), [*((mining, 0.3) for mining in losses.MINING), ("batch_all", "soft")])
def test_fit_on_batches_of_unknown_size_sees_the_same_losses(mining, margin, monkeypatch):
    monkeypatch.setattr(losses, "ANCHORS_AT_ONCE", 8)  # more and fewer than the batches' images
    generator = np.random.default_rng(0)
    batches = [
        (generator.normal(size=(size, 3)).astype("float32"), generator.integers(0, 3, size)) for size in (7, 12, 1, 9)
    ]
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3, use_bias=False, kernel_initializer="identity")])
    loss = InBatchTripletLoss(margin, mining)
    model.compile(keras.optimizers.SGD(0.0), loss, metrics=loss.metrics())
    found = model.fit(Uneven(batches), shuffle=False, verbose=0).history["loss"][0]
    expected = [len(labels) * loop_loss(labels, embeddings, margin, mining) for embeddings, labels in batches]
    assert found == pytest.approx(sum(expected) / (7 + 12 + 1 + 9), rel=1e-5)


@pytest.fixture
def restored_policy():
    yield
    keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize(
    ("mining", "policy"),
    [
        ("batch_all", "mixed_float16"),
        ("batch_hard", "float32"),
        ("semi_hard", "mixed_bfloat16"),
        ("all_semi_hard", "float32"),
        ("merge", "mixed_bfloat16"),
    ],
)
def test_fit_lowers_the_loss_and_reports_the_statistics(mining, policy, restored_policy):
    keras.config.set_dtype_policy(policy)
    keras.utils.set_random_seed(0)
    generator = np.random.default_rng(13)
    labels = generator.integers(0, 4, 128)
    images = (np.eye(4)[labels] + 0.3 * generator.normal(size=(128, 4))).astype("float32")
    labels += 300  # which 16 bits would confuse
    network = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(8, "relu"),
            keras.layers.Dense(3),
            keras.layers.UnitNormalization(dtype="float32"),
        ]
    )
    if mining == "merge":
        inputs = keras.Input((3, 4))
        outputs = keras.ops.stack([network(inputs[:, branch]) for branch in range(3)], axis=1)
        model, loss = keras.Model(inputs, outputs), MergeTripletLoss(0.3)
        others = [generator.permutation(np.flatnonzero(labels != label))[0] for label in labels]
        same = [generator.permutation(np.flatnonzero(labels == label))[0] for label in labels]
        images = images[np.stack([np.arange(128), same, others], axis=1)]
    else:
        # batch-hard collapses this small network with squared distances, whose gradients vanish at distance 0
        settings = {"margin": 1.0, "distance": "euclidean"} if mining == "batch_hard" else {}
        model, loss = network, InBatchTripletLoss(mining=mining, average="all", **settings)
    # Without compilation JAX takes a minute for a loop that it compiles anew at each step.
    model.compile(keras.optimizers.Adam(0.02), loss, metrics=loss.metrics(), jit_compile=BACKEND == "jax")
    history = model.fit(images, labels, batch_size=32, epochs=20, shuffle=False, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    gaps = np.subtract(history["negative_distance"], history["positive_distance"])
    assert gaps[-1] > gaps[0] + 0.2
    if mining != "all_semi_hard":  # whose triplets become more before they become fewer
        assert history["loss"][-1] < 0.8 * history["loss"][0]
    if mining in ("batch_all", "merge"):
        assert history["active_triplets"][-1] < 0.8 * history["active_triplets"][0] <= 1


@pytest.mark.skipif(BACKEND == "torch", reason="torch.compile needs a C++ compiler on the machine")
@pytest.mark.parametrize("mining", losses.MINING)
def test_compiled_or_not_the_value_and_gradient_are_the_same(mining):
    labels, embeddings = BATCHES["unbalanced"], unit_vectors(np.random.default_rng(23), 12)
    descents = [Descent(InBatchTripletLoss(0.3, mining), embeddings.shape, jit_compile=each) for each in (True, False)]
    (value, moved), (expected, expected_moved) = (descent.step(labels, embeddings) for descent in descents)
    assert value == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(moved, expected_moved, atol=1e-6)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_the_statistics_are_those_of_a_plain_loop(loss):
    labels, embeddings = np.array([0, 0, 0, 1, 1, 2, 3]), unit_vectors(np.random.default_rng(14), 7)
    mining, distance, margin = (loss.settings[name] for name in ("mining", "distance", "margin"))
    distances = all_distances(embeddings, distance)
    active = []
    for a, p, n in mined_triplets(labels, distances, mining):
        gap = distances[a, p] - distances[a, n]
        active.append(gap > (0 if margin == "soft" else -margin) and not (mining == "all_semi_hard" and gap >= 0))
    same = (labels[:, None] == labels) & ~np.eye(7, dtype=bool)
    expected = [np.mean(active), distances[same].mean(), distances[labels[:, None] != labels].mean()]
    _, statistics = in_batch_triplet_statistics(labels, embeddings, **loss.settings)
    np.testing.assert_allclose([float(value) for value in statistics.values()], expected, rtol=1e-5)
    for metric, value in zip(loss.metrics(), expected, strict=True):
        metric.update_state(labels, embeddings)
        assert float(metric.result()) == pytest.approx(value, rel=1e-5)
        assert metric.name in statistics


@pytest.mark.parametrize("mining", losses.MINING)
def test_a_large_batch_needs_no_tensor_with_three_batch_axes(mining):
    """Which would take 108 GB here, and has run peers out of memory."""
    embeddings = unit_vectors(np.random.default_rng(15), 3000)
    labels = np.arange(3000) // 3
    losses_of_anchors = keras.ops.convert_to_numpy(in_batch_triplet_loss(labels, embeddings, 0.3, mining))
    some = np.array([0, 1500, 2999])  # whole classes would be needed for all minings; their anchors' rows suffice
    distances = ((embeddings[some, None].astype("float64") - embeddings[None]) ** 2).sum(axis=2)
    if mining == "batch_hard":
        for row, anchor in enumerate(some):
            same = (labels == labels[anchor]) & (np.arange(3000) != anchor)
            expected = max(0, distances[row][same].max() - distances[row][labels != labels[anchor]].min() + 0.3)
            assert losses_of_anchors[anchor] == pytest.approx(expected, rel=1e-5)
    assert np.isfinite(losses_of_anchors).all()
    assert losses_of_anchors.mean() > 0


def test_the_file_works_alone_in_another_project(tmp_path):
    """Copied away, with no module of this project to be found."""
    (tmp_path / "triplet_loss_functions.py").write_bytes((FOLDER / "triplet_loss_functions.py").read_bytes())
    code = (
        "import numpy as np, triplet_loss_functions as t; "
        "print(float(t.InBatchTripletLoss(1.0)(np.array([0, 0, 1, 1]), np.eye(4, dtype='float32'))))"
    )
    environment = {**os.environ, "PYTHONPATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert float(done.stdout) == 1.0  # all distances are 2, so every triplet's loss is the margin
