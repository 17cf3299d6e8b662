"""The triplet losses, compared with plain loops, finite differences and values computed by hand.

They run on every backend: `KERAS_BACKEND=jax python -m pytest tests/test_triplet_loss_functions.py`.
"""

import doctest
import functools
import itertools
import json

import keras
import numpy as np
import pytest
from processes import ROOT, run_python

import triplet_loss_functions as losses
from triplet_loss_functions import (
    InBatchTripletLoss,
    MergeTripletLoss,
    in_batch_triplet_loss,
    merge_triplet_loss,
)

BACKEND = keras.backend.backend()
ON_CPU = losses._on_cpu(keras.ops.zeros(1))
GRADIENT_TOLERANCE = 1e-5 if ON_CPU else 1e-3  # a GPU may multiply the gradients' matrices in TF32


def all_distances(embeddings, distance="squared"):
    """Oracle: the distances, from differences in float64."""
    embeddings = np.asarray(embeddings, "float64")
    squared = ((embeddings[:, None] - embeddings[None]) ** 2).sum(axis=2)
    return squared if distance == "squared" else np.sqrt(squared)


def mined_triplets(labels, distances, mining):
    """Oracle: the triplets (anchor, positive, negative), found one by one."""
    indices = range(len(labels))
    triplets = []
    for a in indices:
        positives = [p for p in indices if p != a and labels[p] == labels[a]]
        negatives = [n for n in indices if labels[n] != labels[a]]
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
    """Oracle: FaceNet's equation for each mined triplet, summed one by one, and averaged."""
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
    """Oracle: each anchor's largest distance to a positive minus its smallest distance to a negative."""
    same, distances = labels[:, None] == labels, all_distances(embeddings)
    farthest = np.where(same & ~np.eye(len(labels), dtype=bool), distances, -np.inf).max(axis=1)
    return farthest - np.where(same, np.inf, distances).min(axis=1)


def central_differences(function, values):
    """Oracle: the gradient of a function at the values."""
    exact, step = values.astype("float64"), 1e-6
    gradient = np.zeros_like(exact)
    for index in np.ndindex(*exact.shape):
        change = np.zeros_like(exact)
        change[index] = step
        gradient[index] = (function(exact + change) - function(exact - change)) / (2 * step)
    return gradient


def unit_vectors(generator, count, size=8):
    vectors = generator.normal(size=(count, size))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype("float32")


def with_gradient(loss, dtype="float32"):
    """Returns a function of targets and float32 embeddings: the loss of the embeddings in `dtype`, and its gradient."""

    def value(targets, embeddings):
        return keras.ops.mean(loss.call(targets, keras.ops.cast(embeddings, dtype)))

    def with_tensorflow(targets, embeddings):
        import tensorflow

        with tensorflow.GradientTape() as tape:
            tape.watch(embeddings)
            result = value(targets, embeddings)
        return result, tape.gradient(result, embeddings)

    def with_torch(targets, embeddings):
        import torch

        result = value(targets, embeddings.requires_grad_())
        return result.detach(), torch.autograd.grad(result, embeddings)[0]

    if BACKEND == "jax":
        import jax

        return jax.value_and_grad(value, argnums=1)
    return with_tensorflow if BACKEND == "tensorflow" else with_torch


def compiled(function, xla=False, signature=None):
    """Returns the function as a graph of TensorFlow or JAX, which always uses XLA. torch runs it as it is.

    Only TensorFlow uses the signature: the shapes and dtypes of the arguments, with None for an unknown size.
    """
    if BACKEND == "jax":
        import jax

        return jax.jit(function)
    if BACKEND == "tensorflow":
        import tensorflow

        specs = signature and [tensorflow.TensorSpec(*each) for each in signature]
        return tensorflow.function(function, specs, autograph=False, jit_compile=xla)
    return function


@functools.cache
def compiled_gradient(loss_class, dtype, **settings):
    return compiled(with_gradient(loss_class(**settings), dtype))


def value_and_gradient(loss, targets, embeddings, dtype="float32"):
    """The loss and its gradient. All tests share one compiled function for each loss, dtype and shape."""
    tensors = keras.ops.convert_to_tensor(targets), keras.ops.convert_to_tensor(embeddings, "float32")
    value, gradient = compiled_gradient(type(loss), dtype, **loss.settings)(*tensors)
    return float(value), keras.ops.convert_to_numpy(gradient)


@functools.cache
def with_settings(function, **settings):
    function = functools.partial(function, **settings)
    # Outside a compiled function, JAX compiles a loop again at each call. In TensorFlow, a few eager calls are faster.
    return compiled(function) if BACKEND == "jax" else function


def evaluate(function, labels, embeddings, **settings):
    """The results of a function of the module, as NumPy arrays."""
    result = with_settings(function, **settings)(labels, embeddings)
    return keras.tree.map_structure(keras.ops.convert_to_numpy, result)


def mean_loss(labels, embeddings, margin=0.3, mining="semi_hard", distance="squared", average="auto"):
    settings = {"margin": margin, "mining": mining, "distance": distance, "average": average}
    return evaluate(in_batch_triplet_loss, labels, embeddings, **settings).mean()


def in_batch_statistics(labels, embeddings, **settings):
    loss = InBatchTripletLoss(**settings)
    labels, embeddings = keras.ops.convert_to_tensor(labels), keras.ops.convert_to_tensor(embeddings)
    return {name: loss.statistic(name, labels, embeddings)[0] for name in losses.STATISTICS}


BATCHES = {  # the labels of 12 images
    "one class": np.full(12, 3),
    "all classes different": np.arange(12),
    "one pair": np.array([0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
    "one image of another class": np.array([0] * 11 + [1]),
    "balanced": np.array([0, 1, 2, 3] * 3),
    "unbalanced": np.array([5] * 6 + [1] * 2 + [2] + [-7] * 3),
}
WITHOUT_TRIPLETS = ("one class", "all classes different")
LOSSES = {
    f"{mining}-{distance}-{margin}": InBatchTripletLoss(margin, mining, distance)
    for mining in losses.MINING
    for distance, margin in (("squared", 0.3), ("euclidean", 0.3), ("squared", "soft"))
}


@pytest.mark.parametrize("distance", losses.DISTANCES)
@pytest.mark.parametrize("margin", [0.05, 0.3, 5, "soft"])
@pytest.mark.parametrize("mining", losses.MINING)
def test_the_loss_equals_a_plain_loop(mining, margin, distance):
    generator = np.random.default_rng(0)
    for name, labels in BATCHES.items():
        embeddings = unit_vectors(generator, 12)
        expected = loop_loss(labels, embeddings, margin, mining, distance)
        value, _ = value_and_gradient(InBatchTripletLoss(margin, mining, distance), labels, embeddings)
        assert value == pytest.approx(expected, rel=1e-5, abs=1e-6), name


@pytest.mark.parametrize(("anchors", "device"), [(1, "CPU"), (5, "CPU"), (11, "CPU"), (5, "GPU")])
@pytest.mark.parametrize("mining", losses.MINING)
def test_a_batch_is_processed_in_blocks_of_anchors(mining, anchors, device, monkeypatch):
    """If the batch is no multiple of the block, the last block overlaps the one before."""
    if device == "CPU" and not ON_CPU:
        pytest.skip("a GPU may multiply in TF32, so its embeddings must be split")
    monkeypatch.setattr(losses, "_on_cpu", lambda values: device == "CPU")  # a GPU has larger blocks
    monkeypatch.setattr(losses, "ELEMENTS_AT_ONCE", 12 * anchors if device == "CPU" else 1)
    in_blocks = functools.partial(in_batch_triplet_loss, margin=0.3, mining=mining)  # not compiled before
    embeddings = unit_vectors(np.random.default_rng(25), 12)
    for name, labels in BATCHES.items():
        expected = loop_loss(labels, embeddings, 0.3, mining)
        assert evaluate(in_blocks, labels, embeddings).mean() == pytest.approx(expected, rel=1e-5, abs=1e-6), name


@pytest.mark.parametrize("distance", losses.DISTANCES)
@pytest.mark.parametrize("limit", [0, 3, 100])
def test_sorting_and_counting_have_the_same_losses_and_gradients(limit, distance, monkeypatch):
    """Above the limit, batch-all sorts; below it, it counts. The largest class has 6 images."""
    monkeypatch.setitem(losses.SORTING_PAYS_ABOVE, BACKEND, limit)
    labels, embeddings = BATCHES["unbalanced"], unit_vectors(np.random.default_rng(26), 12)
    step = compiled(with_gradient(InBatchTripletLoss(0.3, "batch_all", distance)))
    value, gradient = step(*map(keras.ops.convert_to_tensor, (labels, embeddings)))
    expected = functools.partial(loop_loss, labels, mining="batch_all", distance=distance)
    value, gradient = map(keras.ops.convert_to_numpy, (value, gradient))
    assert value == pytest.approx(expected(embeddings), rel=1e-5)
    np.testing.assert_allclose(gradient, central_differences(expected, embeddings), atol=GRADIENT_TOLERANCE)


@pytest.mark.parametrize("distance", losses.DISTANCES)
@pytest.mark.parametrize("margin", [0.3, "soft"])
@pytest.mark.parametrize("mining", losses.MINING)
def test_every_mining_distance_and_average_equals_a_plain_loop_in_float64(mining, margin, distance):
    generator = np.random.default_rng(16)
    labels = generator.permutation(np.repeat([4, 9, 0, 7, 2, 5], [20, 15, 12, 8, 4, 1]))
    embeddings = unit_vectors(generator, 60)
    averages = ("all", "sum") if margin == "soft" else ("active", "all", "sum")
    settings = {"margin": margin, "mining": mining, "distance": distance}

    def with_each_average(labels, embeddings):
        return [in_batch_triplet_loss(labels, embeddings, average=average, **settings) for average in averages]

    found = evaluate(with_each_average, labels, embeddings)
    for average, by_anchor in zip(averages, found, strict=True):
        expected = loop_loss(labels, embeddings, average=average, **settings)
        assert by_anchor.mean() == pytest.approx(expected, rel=3e-6), average


def test_a_single_image_has_no_loss():
    for mining in losses.MINING:
        assert mean_loss(np.array([4]), np.ones((1, 3), "float32"), 0.3, mining) == 0


@pytest.mark.parametrize(
    "loss", [*LOSSES.values(), *(InBatchTripletLoss("soft", mining, "euclidean") for mining in losses.MINING)]
)
def test_the_gradient_equals_central_differences(loss):
    labels, embeddings = BATCHES["unbalanced"], unit_vectors(np.random.default_rng(1), 12)
    _, gradient = value_and_gradient(loss, labels, embeddings)
    expected = central_differences(lambda each: loop_loss(labels, each, **loss.settings), embeddings)
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(gradient, expected, atol=GRADIENT_TOLERANCE)


@pytest.mark.parametrize("distance", losses.DISTANCES)
@pytest.mark.parametrize("margin", [0.5, "soft"])
def test_the_merge_gradient_equals_central_differences(margin, distance):
    merged = np.random.default_rng(2).normal(size=(5, 3, 4)).astype("float32")
    _, gradient = value_and_gradient(MergeTripletLoss(margin, distance), np.zeros(5), merged)

    def oracle(each):
        to_positive = ((each[:, 0] - each[:, 1]) ** 2).sum(axis=1)
        to_negative = ((each[:, 0] - each[:, 2]) ** 2).sum(axis=1)
        gap = to_positive - to_negative if distance == "squared" else np.sqrt(to_positive) - np.sqrt(to_negative)
        return (np.logaddexp(0, gap) if margin == "soft" else np.maximum(gap + margin, 0)).mean()

    expected = central_differences(oracle, merged)
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(gradient, expected, atol=GRADIENT_TOLERANCE)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="JAX and Keras on torch have no float64 product by default")
@pytest.mark.parametrize("mining", losses.MINING)
def test_float64_embeddings_stay_exact(mining):
    labels, embeddings = np.array([0, 1, 2] * 4), np.random.default_rng(3).normal(size=(12, 8))
    tensor = keras.ops.convert_to_tensor(embeddings, "float64")
    value = keras.ops.convert_to_numpy(in_batch_triplet_loss(labels, tensor, 5.0, mining)).mean()
    assert value == pytest.approx(loop_loss(labels, embeddings, 5.0, mining), rel=1e-12)
    for metric in InBatchTripletLoss(5.0, mining).metrics():
        metric.update_state(labels, tensor)
        assert np.isfinite(float(metric.result())), metric.name


def test_values_by_hand():
    """Points on a line: 0 and 1 of one class, 1.5 and 3 of another."""
    labels, embeddings = np.array([0, 0, 1, 1]), np.array([[0.0], [1.0], [1.5], [3.0]], "float32")
    # Squared distances: 0-1: 1, 0-1.5: 2.25, 0-3: 9, 1-1.5: 0.25, 1-3: 4, 1.5-3: 2.25. With margin 0.5 the triplets
    # (anchor, positive; negative) of positive loss are 1,0;1.5 (loss 1.25), 1.5,3;0 (loss 0.5) and 1.5,3;1 (loss 2.5).
    assert mean_loss(labels, embeddings, 0.5, "batch_all") == pytest.approx((1.25 + 0.5 + 2.5) / 3)
    assert mean_loss(labels, embeddings, 0.5, "batch_all", average="all") == pytest.approx((1.25 + 0.5 + 2.5) / 8)
    assert mean_loss(labels, embeddings, 0.5, "batch_all", average="sum") == pytest.approx(1.25 + 0.5 + 2.5)
    assert mean_loss(labels, embeddings, 0.5, "batch_hard") == pytest.approx((0 + 1.25 + 2.5 + 0) / 4)
    # Semi-hard: anchor 0 selects negative 1.5 (loss 0), 1 selects 3 (loss 0), and 3 selects 1 (loss 0). For anchor 1.5
    # no negative is farther than the positive, so it selects the farthest, 0 (loss 0.5). With margin 2, the triplets
    # whose negative is farther than the positive, but by less than 2: 0,1;1.5 (loss 0.75) and 3,1.5;1 (loss 0.25).
    assert mean_loss(labels, embeddings, 0.5, "semi_hard") == pytest.approx(0.5 / 4)
    assert mean_loss(labels, embeddings, 2.0, "all_semi_hard") == pytest.approx((0.75 + 0.25) / 2)


@pytest.mark.parametrize("count", [16, 21])
@pytest.mark.parametrize(("mining", "limit"), [*((mining, 100) for mining in losses.MINING), ("batch_all", 0)])
def test_a_triplet_exactly_on_the_margin_is_not_active(mining, limit, count, monkeypatch):
    """Integer coordinates make every distance exact; many negatives are farther by exactly the margin."""
    monkeypatch.setitem(losses.SORTING_PAYS_ABOVE, BACKEND, limit)  # above it, batch-all sorts
    loss, all_statistics = (functools.partial(each) for each in (in_batch_triplet_loss, in_batch_statistics))
    generator = np.random.default_rng(4)
    on_the_margin = 0
    for _ in range(3):
        labels, points = generator.integers(0, 3, count), generator.integers(0, 4, (count, 2)).astype("float32")
        points[:, 0] += 3 * labels
        distances = all_distances(points)
        gaps = [distances[a, p] - distances[a, n] for a, p, n in mined_triplets(labels, distances, mining)]
        active = [gap + 2 > 0 and (mining != "all_semi_hard" or gap < 0) for gap in gaps]
        on_the_margin += sum(gap == -2 for gap in gaps)
        by_anchor = evaluate(loss, labels, points, margin=2.0, mining=mining)  # not compiled before
        statistics = evaluate(all_statistics, labels, points, margin=2.0, mining=mining)
        assert statistics["active_triplets"] == pytest.approx(np.mean(active))
        assert by_anchor.mean() == pytest.approx(loop_loss(labels, points, 2.0, mining), rel=1e-5)
    assert on_the_margin > 0


@pytest.mark.parametrize(
    ("loss", "dtype"),
    [
        *((loss, "float32") for loss in LOSSES.values()),
        *((LOSSES[f"{mining}-squared-0.3"], "float16") for mining in losses.MINING),  # whose gradients are the largest
        *((LOSSES[f"{mining}-euclidean-0.3"], "bfloat16") for mining in losses.MINING),
    ],
)
def test_value_and_gradient_are_finite(loss, dtype):
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
        value, gradient = value_and_gradient(loss, labels, embeddings, dtype)
        assert np.isfinite(value), (kind, batch)
        assert np.isfinite(gradient).all(), (kind, batch)
        if kind in ("identical", "zeros") and batch not in WITHOUT_TRIPLETS:
            margin = loss.settings["margin"]
            collapsed = np.log(2) if margin == "soft" else margin
            expected = 0 if loss.settings["mining"] == "all_semi_hard" else collapsed
            assert value == pytest.approx(expected, rel=1e-4), (kind, batch)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_a_batch_without_triplets_has_no_loss_and_no_gradient(loss):
    """Other implementations return NaN or the margin, or push anchors away from all other images."""
    for batch in WITHOUT_TRIPLETS:
        value, gradient = value_and_gradient(loss, BATCHES[batch], unit_vectors(np.random.default_rng(6), 12))
        assert value == 0
        np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("mining", losses.MINING)
def test_the_statistics_of_a_batch_without_pairs_are_zero(mining):
    embeddings = unit_vectors(np.random.default_rng(22), 12)
    for batch, missing in (("one class", "negative_distance"), ("all classes different", "positive_distance")):
        statistics = evaluate(in_batch_statistics, BATCHES[batch], embeddings, mining=mining)
        assert statistics["active_triplets"] == statistics[missing] == 0
        assert all(np.isfinite(value) for value in statistics.values())


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_an_anchor_without_positives_has_no_loss(loss):
    """Other implementations set its distance to a positive to 0."""
    by_anchor = evaluate(loss.call, BATCHES["one pair"], unit_vectors(np.random.default_rng(21), 12))
    np.testing.assert_array_equal(by_anchor[2:], 0)
    assert by_anchor[:2].sum() > 0


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_the_order_of_a_batch_changes_nothing(loss):
    generator = np.random.default_rng(7)
    labels, embeddings, order = BATCHES["unbalanced"], unit_vectors(generator, 12), generator.permutation(12)
    by_anchor = evaluate(loss.call, labels, embeddings)
    assert by_anchor.sum() > 0
    np.testing.assert_allclose(by_anchor[order], evaluate(loss.call, labels[order], embeddings[order]), atol=1e-5)


@pytest.mark.parametrize("distance", losses.DISTANCES)
@pytest.mark.parametrize("mining", losses.MINING)
def test_translation_changes_nothing_and_scaling_multiplies_the_loss(mining, distance):
    embeddings = unit_vectors(np.random.default_rng(8), 12)
    small, large = (InBatchTripletLoss(margin, mining, distance) for margin in (0.05, 0.3))
    scale = 6 if distance == "euclidean" else np.sqrt(6)
    value, _ = value_and_gradient(small, BATCHES["balanced"], embeddings)
    scaled, _ = value_and_gradient(large, BATCHES["balanced"], scale * embeddings + 7)
    assert scaled == pytest.approx(6 * value, rel=1e-4)
    assert value > 0


@pytest.mark.parametrize("mining", losses.MINING)
def test_the_shape_and_the_dtype_of_labels_change_nothing(mining):
    """Labels of shape (batch, 1) have silently broken the masks of other implementations."""
    labels, embeddings = np.array([0, 1, 2] * 4), unit_vectors(np.random.default_rng(9), 12)
    expected = loop_loss(labels, embeddings, 0.3, mining)
    for dtype, shape in (
        ("uint8", (12,)),
        ("int8", (12, 1)),
        ("int32", (12, 1)),
        ("int64", (12,)),
        ("float32", (12, 1)),
    ):
        value = mean_loss(labels.astype(dtype).reshape(shape), embeddings, 0.3, mining)
        assert value == pytest.approx(expected, rel=1e-5), dtype


@pytest.mark.parametrize("mining", losses.MINING)
def test_labels_may_be_booleans(mining):
    labels, embeddings = np.array([True, False, False] * 4), unit_vectors(np.random.default_rng(20), 12)
    expected = loop_loss(labels, embeddings, 0.3, mining)
    assert mean_loss(labels, embeddings, 0.3, mining) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("shape", [(6, 3), (6, 1, 1), ()], ids=["one-hot", "three axes", "scalar"])
def test_labels_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"\(batch,\) or \(batch, 1\)"):
        in_batch_triplet_loss(np.zeros(shape, "int32"), np.zeros((6, 4), "float32"))


def test_one_hot_labels_are_refused_in_training():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    model.compile("sgd", InBatchTripletLoss())
    with pytest.raises(ValueError, match="argmax of one-hot"):
        model.train_on_batch(np.zeros((6, 4)), np.eye(6))


def test_other_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="must be integers"):
        in_batch_triplet_loss(np.array([0.0, 0.5, 1.0]), np.zeros((3, 4), "float32"))
    with pytest.raises(ValueError, match=r"one label for each embedding.*5 labels, 6 embeddings"):
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
    for mining in ("semi-hard", None):
        with pytest.raises(ValueError, match=rf"'semi_hard'.*Received: {mining!r}"):
            InBatchTripletLoss(mining=mining)
        with pytest.raises(ValueError, match=rf"'semi_hard'.*Received: {mining!r}"):
            in_batch_triplet_loss(np.zeros(6), np.zeros((6, 4)), mining=mining)
    for loss in (InBatchTripletLoss, MergeTripletLoss):
        with pytest.raises(ValueError, match=r"`dtype` must be float32 or float64"):
            loss(dtype="bfloat16")
    with pytest.raises(ValueError, match=r"`statistic` must be one of 'active_triplets'"):
        losses.TripletStatistic(InBatchTripletLoss(), "accuracy")
    with pytest.raises(ValueError, match="same shape"):
        merge_triplet_loss(np.zeros((6, 4, 2)), np.zeros((6, 4, 2)), np.zeros((6, 4, 2)))
    with pytest.raises(ValueError, match="soft margin"):
        InBatchTripletLoss("soft", average="active")


def test_the_merge_loss_equals_facenets_equation_by_hand():
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


def test_the_merge_loss_is_finite_for_duplicates_and_for_large_distances():
    """The soft margin of another implementation is infinite at a distance of 200."""
    for distance, margin in itertools.product(losses.DISTANCES, (0.3, "soft")):
        merged = np.zeros((4, 3, 2), "float32")
        merged[1], merged[2, 1], merged[3] = 5.0, 200.0, 1e6
        value, gradient = value_and_gradient(MergeTripletLoss(margin, distance), np.zeros(4), merged)
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize("distance", losses.DISTANCES)
@pytest.mark.parametrize("margin", [0.3, "soft"])
@pytest.mark.parametrize("mining", ["batch_all", "batch_hard", "semi_hard"])
def test_both_losses_agree_on_the_same_triplets(mining, margin, distance):
    labels, embeddings = np.array([0, 1, 2] * 4), unit_vectors(np.random.default_rng(10), 12)
    triplets = np.array(mined_triplets(labels, all_distances(embeddings, distance), mining))
    average = "active" if mining == "batch_all" and margin != "soft" else "all"
    merged = MergeTripletLoss(margin, distance, average)(np.zeros(len(triplets)), embeddings[triplets])
    value, _ = value_and_gradient(InBatchTripletLoss(margin, mining, distance), labels, embeddings)
    assert float(merged) == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("loss", [*LOSSES.values(), MergeTripletLoss()], ids=[*LOSSES, "merge"])
def test_gradient_descent_separates_two_overlapping_clusters(loss):
    """A loss with the wrong sign, as another implementation once had, merges them."""
    labels, triplets = np.array([0, 1] * 6), None
    if isinstance(loss, MergeTripletLoss):
        triplets = np.array(mined_triplets(labels, np.zeros((12, 12)), "batch_all"))
    squared, soft = loss.settings["distance"] == "squared", loss.settings["margin"] == "soft"
    scale = 1 if soft else np.sqrt(0.3) if squared else 0.3  # of the clusters, in proportion to the margin
    for start in range(5):
        points = np.zeros((12, 8), "float32")  # clusters in a plane, of the shape that other tests have compiled
        points[:, :2] = scale * np.random.default_rng(start).normal(size=(12, 2))
        points[labels == 1, 0] += scale
        for _ in range(25):
            if triplets is None:
                gradient = value_and_gradient(loss, labels, points)[1]
            else:
                gradient = np.zeros_like(points)
                np.add.at(gradient, triplets, value_and_gradient(loss, np.zeros(len(triplets)), points[triplets])[1])
            points -= gradient if squared else scale * gradient
        centres = np.stack([points[labels == label].mean(axis=0) for label in (0, 1)])
        nearer = all_distances(np.concatenate([points, centres]))[:12, 12:].argmin(axis=1)
        assert (nearer == labels).mean() >= 0.8, start  # semi-hard mining does not move a single outlier


def tf32_matmul(first, second):
    """A product in TF32, which keeps 10 mantissa bits of each factor: an error near 1e-3 for unit vectors."""

    def rounded(each):
        bits = np.asarray(keras.ops.convert_to_numpy(each), "float32").view("uint32")
        return ((bits + 0xFFF + ((bits >> 13) & 1)) & 0xFFFFE000).astype("uint32").view("float32")

    return keras.ops.convert_to_tensor(rounded(first) @ rounded(second))


@pytest.mark.parametrize("count", [40, 300])
def test_distances_are_accurate_on_a_gpu_that_multiplies_in_tf32(count, monkeypatch):
    monkeypatch.setattr(keras.ops, "matmul", tf32_matmul)
    embeddings = unit_vectors(np.random.default_rng(11), count, 128)
    monkeypatch.setattr(losses, "_on_cpu", lambda values: False)
    embeddings[1], embeddings[2] = embeddings[0], embeddings[0] * (1 - 1e-3)
    exact = all_distances(embeddings)
    naive = 2 - 2 * np.asarray(tf32_matmul(embeddings, embeddings.T))
    assert np.abs(naive - exact).max() > 1e-4
    distances = keras.ops.convert_to_numpy(losses.squared_distances(embeddings))
    np.testing.assert_allclose(distances, exact, atol=3e-6)


@pytest.mark.parametrize("mining", ["batch_all", "semi_hard"])
def test_the_gradient_is_right_where_embeddings_are_split_for_tf32(mining, monkeypatch):
    monkeypatch.setattr(losses, "_on_cpu", lambda values: False)
    labels, embeddings = BATCHES["unbalanced"], unit_vectors(np.random.default_rng(27), 12)
    _, gradient = compiled(with_gradient(InBatchTripletLoss(0.3, mining)))(
        *map(keras.ops.convert_to_tensor, (labels, embeddings))
    )
    expected = central_differences(lambda each: loop_loss(labels, each, 0.3, mining), embeddings)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(gradient), expected, atol=GRADIENT_TOLERANCE)


@pytest.mark.skipif(BACKEND == "jax", reason="JAX compiles the loop, where a NumPy product cannot replace its own")
def test_batch_hard_selects_exactly_on_a_gpu_that_multiplies_in_tf32(monkeypatch):
    labels, embeddings = np.arange(300) % 3, unit_vectors(np.random.default_rng(24), 300, 128)
    hardest, distances, same = hardest_gaps(labels, embeddings), all_distances(embeddings), labels[:, None] == labels
    naive = 2 - 2 * np.asarray(tf32_matmul(embeddings, embeddings.T))
    selected = np.where(same, naive, -np.inf).argmax(axis=1), np.where(same, np.inf, naive).argmin(axis=1)
    naive_gaps = distances[np.arange(300), selected[0]] - distances[np.arange(300), selected[1]]
    assert np.abs(naive_gaps - hardest).max() > 2e-5
    monkeypatch.setattr(keras.ops, "matmul", tf32_matmul)
    monkeypatch.setattr(losses, "_on_cpu", lambda values: False)
    found = keras.ops.convert_to_numpy(in_batch_triplet_loss(labels, embeddings, 5.0, "batch_hard"))
    np.testing.assert_allclose(found, hardest + 5, atol=3e-6)


def test_distances_are_never_negative_and_stay_accurate_far_from_the_origin():
    """Rounding could make the distances of near pairs negative, and their square roots NaN."""
    near = unit_vectors(np.random.default_rng(17), 60, 32)
    near[30:] = near[:30] + 1e-5 * near[30:]
    assert keras.ops.convert_to_numpy(losses.squared_distances(near)).min() >= 0
    far = (100 + unit_vectors(np.random.default_rng(18), 60, 32)).astype("float32")
    np.testing.assert_allclose(keras.ops.convert_to_numpy(losses.squared_distances(far)), all_distances(far), atol=3e-6)


def test_batch_hard_is_exact_for_positives_closer_than_the_rounding_error():
    """Their squared distances can be 0 like the anchor's own, but the anchor is not its own positive."""
    loss = InBatchTripletLoss(5.0, "batch_hard", "euclidean")
    labels = np.where(np.arange(12) == 9, 4, np.arange(12))
    for seed in range(8):
        embeddings = unit_vectors(np.random.default_rng(seed), 12, 32)
        embeddings[[4, 9]] = embeddings[4] + 1e-4 * embeddings[[0, 1]]
        value, gradient = value_and_gradient(loss, labels, embeddings)
        assert value == pytest.approx(loop_loss(labels, embeddings, 5.0, "batch_hard", "euclidean"), rel=1e-6)
        exact, expected = embeddings.astype("float64"), np.zeros((12, 32))
        distances = all_distances(exact, "euclidean")
        for anchor, positive in ((4, 9), (9, 4)):  # the gradient of a distance is a unit vector; the mean halves it
            negative = np.where(labels == 4, np.inf, distances[anchor]).argmin()
            for other, sign in ((positive, 1), (negative, -1)):
                direction = sign * (exact[anchor] - exact[other]) / distances[anchor, other] / 2
                expected[anchor] += direction
                expected[other] -= direction
        np.testing.assert_allclose(gradient, expected, atol=GRADIENT_TOLERANCE)


def test_batch_hard_selects_duplicates_as_positives_and_as_negatives():
    """Duplicates and near duplicates of an anchor can be as near to it as itself, or by rounding even nearer."""
    originals = unit_vectors(np.random.default_rng(26), 40, 32)
    copies = originals + 1e-4 * unit_vectors(np.random.default_rng(27), 40, 32)
    for labels in (np.arange(80) % 40, np.arange(80) % 8 + 8 * (np.arange(80) // 40)):  # of one class, or of two
        for embeddings in (np.concatenate([originals, originals]), np.concatenate([originals, copies])):
            found = evaluate(in_batch_triplet_loss, labels, embeddings, margin=5.0, mining="batch_hard")
            np.testing.assert_allclose(found, hardest_gaps(labels, embeddings) + 5, rtol=1e-5)


@pytest.mark.parametrize("size", [128, 511])
def test_the_distance_of_duplicates_is_zero_up_to_rounding(size):
    embeddings = np.repeat(unit_vectors(np.random.default_rng(12), 67, size), 2, axis=0)
    distances = keras.ops.convert_to_numpy(losses.squared_distances(embeddings))
    np.testing.assert_allclose(distances[::2, 1::2].diagonal(), 0, atol=2e-6)
    np.testing.assert_array_equal(distances.diagonal(), 0)


def test_distances_between_integer_coordinates_are_exact():
    integers = np.random.default_rng(24).integers(-1023, 1024, (30, 3)).astype("float32")
    integers[:2] = [[0, 0, 0], [2047, 0, 0]]
    integers[2:] += 512
    distances = keras.ops.convert_to_numpy(losses.squared_distances(integers))
    np.testing.assert_array_equal(distances, all_distances(integers))


@pytest.mark.parametrize("index", [0, 5])
@pytest.mark.parametrize("mining", losses.MINING)
def test_an_outlier_does_not_make_other_distances_less_accurate(mining, index):
    embeddings = np.insert(unit_vectors(np.random.default_rng(25), 12), index, 1e4, axis=0)
    labels = np.insert(BATCHES["unbalanced"], index, 9)
    others = np.arange(13) != index
    distances = keras.ops.convert_to_numpy(losses.squared_distances(embeddings))[others][:, others]
    np.testing.assert_allclose(distances, all_distances(embeddings[others]), atol=5e-6)
    expected = loop_loss(labels, embeddings, 0.3, mining)
    assert mean_loss(labels, embeddings, 0.3, mining) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("mining", losses.MINING)
def test_no_mining_passes_over_an_embedding_that_is_not_a_number(mining):
    """The image is alone in its class, and no anchor would choose it."""
    embeddings = unit_vectors(np.random.default_rng(29), 4)
    embeddings[3] = np.nan
    loss = InBatchTripletLoss(mining=mining)
    assert np.isnan(mean_loss(np.array([0, 0, 1, 2]), embeddings, mining=mining))
    labels, embeddings = keras.ops.array([0, 0, 1, 2]), keras.ops.convert_to_tensor(embeddings)
    assert np.isnan(float(loss.statistic("active_triplets", labels, embeddings)[0]))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("loss", [*LOSSES.values(), MergeTripletLoss(), MergeTripletLoss(0.3, "euclidean")])
def test_no_mask_hides_an_embedding_that_is_not_finite(loss, value):
    embeddings, labels = unit_vectors(np.random.default_rng(26), 12), BATCHES["unbalanced"]
    embeddings[5, 3] = value
    if isinstance(loss, MergeTripletLoss):
        embeddings, labels = embeddings.reshape(4, 3, 8), labels[:4]
    assert not np.isfinite(value_and_gradient(loss, labels, embeddings)[0])


@pytest.mark.parametrize(
    "loss",
    [
        InBatchTripletLoss(np.float32(0.5), "batch_hard", "euclidean", "sum"),
        MergeTripletLoss("soft"),
    ],
)
def test_a_model_is_saved_and_loaded_with_its_loss_and_metrics(loss, tmp_path):
    shape = (4,) if isinstance(loss, InBatchTripletLoss) else (3, 4)
    images, labels = np.random.default_rng(19).normal(size=(4, *shape)), np.array([0, 0, 1, 1])
    model = keras.Sequential([keras.Input(shape), keras.layers.Dense(2)])
    model.compile("sgd", loss, metrics=loss.metrics(), run_eagerly=BACKEND != "jax", jit_compile=BACKEND == "jax")
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    values = model.evaluate(images, labels, verbose=0)
    assert len(values) == 4
    assert loaded.evaluate(images, labels, verbose=0) == pytest.approx(values)
    assert type(loaded.loss) is type(loss)
    assert loaded.loss.get_config() == loss.get_config()
    copy = keras.saving.deserialize_keras_object(json.loads(json.dumps(keras.saving.serialize_keras_object(loss))))
    assert copy.settings == loss.settings


@pytest.mark.parametrize("loss", [InBatchTripletLoss, MergeTripletLoss])
def test_the_configuration_keeps_the_dtype(loss):
    """Labels above 2**24 need float64."""
    assert loss.from_config(json.loads(json.dumps(loss(dtype="float64").get_config()))).dtype == "float64"


def test_the_metrics_skip_batches_without_pairs():
    embeddings = np.array([[0.0], [1.0], [3.0], [3.0]], "float32")
    for metric in InBatchTripletLoss(5.0, "batch_all").metrics():
        metric.update_state(np.array([0, 0, 1, 1]), embeddings)
        value = float(metric.result())
        assert value > 0
        metric.update_state(np.arange(4) if metric.name != "negative_distance" else np.zeros(4), embeddings)
        assert float(metric.result()) == value


def test_with_the_soft_margin_a_negative_at_the_positives_distance_is_not_active():
    for mining in losses.MINING:
        points = np.array([[0.0], [1.0], [-1.0]], "float32")  # anchor 0: equal distances
        statistics = evaluate(in_batch_statistics, np.array([0, 0, 1]), points, margin="soft", mining=mining)
        assert statistics["active_triplets"] == 0


class Uneven(keras.utils.PyDataset):
    """Batches of several sizes, so that compiled functions do not know the size."""

    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, number):
        return self.batches[number]


@pytest.mark.parametrize(("mining", "margin"), [*((mining, 0.3) for mining in losses.MINING), ("batch_all", "soft")])
def test_batches_of_unknown_size_have_the_same_losses(mining, margin, monkeypatch):
    monkeypatch.setattr(losses, "ELEMENTS_AT_ONCE", 64)  # 5 anchors of 12, or all 7 of 7
    generator = np.random.default_rng(0)
    batches = [
        (generator.normal(size=(size, 3)).astype("float32"), generator.integers(0, 3, size)) for size in (7, 12, 1, 9)
    ]
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3, use_bias=False, kernel_initializer="identity")])
    model.compile(loss=InBatchTripletLoss(margin, mining), jit_compile=BACKEND == "jax")
    expected = [len(labels) * loop_loss(labels, embeddings, margin, mining) for embeddings, labels in batches]
    found = model.evaluate(Uneven(batches), verbose=0)
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
    labels += 300  # too large for bfloat16 to distinguish
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
        # With squared distances, whose gradients vanish at distance 0, batch-hard mining collapses this small network.
        settings = {"margin": 1.0, "distance": "euclidean"} if mining == "batch_hard" else {}
        model, loss = network, InBatchTripletLoss(mining=mining, average="all", **settings)
    model.compile(keras.optimizers.Adam(0.02), loss, metrics=loss.metrics(), jit_compile=BACKEND == "jax")
    settings = {"batch_size": 32, "shuffle": False, "verbose": 0}
    first = model.fit(images, labels, **settings).history
    middle = model.fit(np.concatenate([images] * 18), np.tile(labels, 18), **settings).history  # faster than 18 epochs
    last = model.fit(images, labels, **settings).history
    assert np.isfinite([first["loss"], middle["loss"], last["loss"]]).all()
    gaps = [epoch["negative_distance"][0] - epoch["positive_distance"][0] for epoch in (first, last)]
    assert gaps[1] > gaps[0] + 0.2
    if mining != "all_semi_hard":  # which first has more triplets, and then fewer
        assert last["loss"][0] < 0.8 * first["loss"][0]
    if mining in ("batch_all", "merge"):
        assert last["active_triplets"][0] < 0.8 * first["active_triplets"][0] <= 1


@pytest.mark.skipif(BACKEND == "torch", reason="torch.compile needs a C++ compiler on the machine")
@pytest.mark.parametrize("mining", losses.MINING)
def test_value_and_gradient_are_the_same_with_xla(mining):
    tensors = BATCHES["unbalanced"], unit_vectors(np.random.default_rng(23), 12)
    tensors = [keras.ops.convert_to_tensor(each) for each in tensors]
    eager = with_gradient(InBatchTripletLoss(0.3, mining))
    (value, gradient), (expected, expected_gradient) = (each(*tensors) for each in (compiled(eager, xla=True), eager))
    assert float(value) == pytest.approx(float(expected), rel=1e-6)
    np.testing.assert_allclose(*map(keras.ops.convert_to_numpy, (gradient, expected_gradient)), atol=1e-6)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="only TensorFlow traces batches of unknown size")
@pytest.mark.parametrize("xla", [False, True])
@pytest.mark.parametrize(("mining", "limit"), [*((mining, 3) for mining in losses.MINING), ("batch_all", 0)])
def test_the_gradient_of_batches_of_unknown_size(mining, limit, xla, monkeypatch):
    """With batches whose largest class has 1 to 6 images, so that batch-all sorts some and counts others."""
    monkeypatch.setitem(losses.SORTING_PAYS_ABOVE, BACKEND, limit)
    loss = InBatchTripletLoss(0.3, mining)
    step = compiled(with_gradient(loss), xla, [((None,), "int32"), ((None, 8), "float32")])
    embeddings = unit_vectors(np.random.default_rng(28), 12)
    for name in ("unbalanced", "balanced", "all classes different", "one pair"):
        labels = BATCHES[name].astype("int32")
        value, gradient = step(labels, embeddings)
        expected, expected_gradient = value_and_gradient(loss, labels, embeddings)
        assert float(value) == pytest.approx(expected, rel=1e-5, abs=1e-6), name
        np.testing.assert_allclose(gradient, expected_gradient, atol=GRADIENT_TOLERANCE, err_msg=name)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_the_statistics_equal_a_plain_loop(loss):
    labels, embeddings = BATCHES["unbalanced"], unit_vectors(np.random.default_rng(14), 12)
    mining, distance, margin = (loss.settings[name] for name in ("mining", "distance", "margin"))
    distances = all_distances(embeddings, distance)
    active = []
    for a, p, n in mined_triplets(labels, distances, mining):
        gap = distances[a, p] - distances[a, n]
        active.append(gap > (0 if margin == "soft" else -margin) and not (mining == "all_semi_hard" and gap >= 0))
    same = (labels[:, None] == labels) & ~np.eye(12, dtype=bool)
    expected = [np.mean(active), distances[same].mean(), distances[labels[:, None] != labels].mean()]
    statistics = evaluate(in_batch_statistics, labels, embeddings, **loss.settings)
    np.testing.assert_allclose([statistics[name] for name in losses.STATISTICS], expected, rtol=1e-5)
    for metric, value in zip(loss.metrics(), expected, strict=True):
        metric.update_state(labels, embeddings)
        assert float(metric.result()) == pytest.approx(value, rel=1e-5)
        assert metric.name in statistics


def anchor_loss(distances, positives, negatives, mining):
    """Oracle: the summed losses of one anchor with the margin 0.3, from its distances."""
    to_positives, to_negatives = distances[positives], distances[negatives]
    if mining == "batch_hard":
        return max(0, to_positives.max() - to_negatives.min() + 0.3)
    if mining == "semi_hard":
        farther = [to_negatives[to_negatives > each] for each in to_positives]
        negative = np.array([each.min() if each.size else to_negatives.max() for each in farther])
        return np.maximum(to_positives - negative + 0.3, 0).sum()
    gaps = (to_positives[:, None] - to_negatives).ravel()
    if mining == "all_semi_hard":
        gaps = gaps[gaps < 0]
    return np.maximum(gaps + 0.3, 0).sum()


@pytest.mark.parametrize("mining", losses.MINING)
def test_a_large_batch_needs_no_tensor_with_three_batch_axes(mining):
    """Such a tensor would take 108 GB here: other implementations have run out of memory."""
    embeddings, labels = unit_vectors(np.random.default_rng(15), 3000), np.arange(3000) // 3
    by_anchor = evaluate(in_batch_triplet_loss, labels, embeddings, margin=0.3, mining=mining, average="sum") / 3000
    for anchor in (0, 1500, 2999):  # the oracle needs one row of distances for each anchor
        distances = ((embeddings[anchor].astype("float64") - embeddings) ** 2).sum(axis=1)
        positives = (labels == labels[anchor]) & (np.arange(3000) != anchor)
        expected = anchor_loss(distances, positives, labels != labels[anchor], mining)
        assert by_anchor[anchor] == pytest.approx(expected, rel=1e-5)
    assert np.isfinite(by_anchor).all()
    assert by_anchor.mean() > 0


def test_the_examples_in_the_docstrings_are_right():
    results = doctest.testmod(losses)
    assert results.failed == 0
    assert results.attempted >= 6


def test_a_copy_of_the_file_works_in_another_project(tmp_path):
    """The other modules of this project cannot be imported there."""
    (tmp_path / "triplet_loss_functions.py").write_bytes((ROOT / "triplet_loss_functions.py").read_bytes())
    code = (
        "import numpy as np, triplet_loss_functions as t; "
        "print(float(t.InBatchTripletLoss(1.0)(np.array([0, 0, 1, 1]), np.eye(4, dtype='float32'))))"
    )
    done = run_python("-c", code, cwd=tmp_path, PYTHONPATH=None)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == 1.0  # all distances are equal, so the loss of every triplet is the margin
