"""The triplet losses against plain loops, finite differences and hand-computed values."""

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import triplet_loss_functions as losses
from triplet_loss_functions import InBatchTripletLoss, MergeTripletLoss, in_batch_triplet_loss, merge_triplet_loss

FOLDER = Path(__file__).resolve().parent.parent


def mined_triplets(labels, distances, mining):
    """The oracle: the triplets (anchor, positive, negative) that a mining stands for, found one by one."""
    everyone = range(len(labels))
    triplets = []
    for a in everyone:
        positives = [p for p in everyone if p != a and labels[p] == labels[a]]
        negatives = [n for n in everyone if labels[n] != labels[a]]
        if not positives or not negatives:
            continue
        if mining == "batch_all":
            triplets += [(a, p, n) for p in positives for n in negatives]
        if mining == "batch_hard":
            triplets.append(
                (a, max(positives, key=lambda p: distances[a, p]), min(negatives, key=lambda n: distances[a, n]))
            )
        if mining == "semi_hard":
            for p in positives:
                farther = [n for n in negatives if distances[a, n] > distances[a, p]]
                nearest = min(farther, key=lambda n: distances[a, n]) if farther else None
                farthest = max(negatives, key=lambda n: distances[a, n])
                triplets.append((a, p, farthest if nearest is None else nearest))
    return triplets


def loop_loss(labels, embeddings, margin, mining):
    """The oracle in float64: the mean described for the mining, over triplets added up one by one."""
    embeddings = np.asarray(embeddings, "float64")
    distances = ((embeddings[:, None] - embeddings[None]) ** 2).sum(axis=2)
    values = [
        max(0.0, distances[a, p] - distances[a, n] + margin) for a, p, n in mined_triplets(labels, distances, mining)
    ]
    if mining == "batch_all":
        values = [value for value in values if value > 0]
    return sum(values) / max(len(values), 1)


def unit_vectors(generator, count, size=8):
    vectors = generator.normal(size=(count, size))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype("float32")


def mean_loss(labels, embeddings, *arguments):
    return float(keras.ops.mean(in_batch_triplet_loss(labels, embeddings, *arguments)))


def value_and_gradient(function, embeddings):
    """Loss and gradient at embeddings, by the backend's own automatic differentiation."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        variable = tf.constant(embeddings)
        with tf.GradientTape() as tape:
            tape.watch(variable)
            value = function(variable)
        return np.array(value), np.array(tape.gradient(value, variable))
    if backend == "jax":
        import jax

        value, gradient = jax.value_and_grad(function)(embeddings)
        return np.array(value), np.array(gradient)
    variable = keras.ops.convert_to_tensor(embeddings).requires_grad_(True)
    value = function(variable)
    value.backward()
    return value.detach().cpu().numpy(), variable.grad.cpu().numpy()


BATCHES = {
    "one image": [0],
    "one class": [3] * 6,
    "all classes different": [5, 1, 4, 0, 2],
    "a pair and others": [0, 0, 1, 2, 3],
    "balanced": [0, 1, 2, 3] * 5,
    "unbalanced": [0] * 9 + [1] * 2 + [2] + [7] * 4,
}


@pytest.mark.parametrize("mining", losses.MINING)
@pytest.mark.parametrize("labels", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("margin", [0.05, 0.3, 5.0])
def test_the_loss_is_that_of_a_plain_loop(labels, margin, mining):
    embeddings = unit_vectors(np.random.default_rng(0), len(labels))
    expected = loop_loss(labels, embeddings, margin, mining)
    assert mean_loss(np.array(labels), embeddings, margin, mining) == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("mining", losses.MINING)
def test_the_gradient_is_that_of_finite_differences(mining):
    generator = np.random.default_rng(1)
    labels, embeddings = np.array([0, 0, 0, 1, 1, 2, 2, 2, 3]), unit_vectors(generator, 9, 4)
    _, gradient = value_and_gradient(
        lambda each: keras.ops.mean(in_batch_triplet_loss(labels, each, 0.3, mining)), embeddings
    )
    exact, step = embeddings.astype("float64"), 1e-6
    expected = np.zeros_like(exact)
    for place in np.ndindex(*exact.shape):
        moved = np.zeros_like(exact)
        moved[place] = step
        difference = loop_loss(labels, exact + moved, 0.3, mining) - loop_loss(labels, exact - moved, 0.3, mining)
        expected[place] = difference / (2 * step)
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(gradient, expected, atol=1e-5)


def test_values_by_hand():
    """Places on a line: 0 and 1 of one class, 1.5 and 3 of another."""
    labels, embeddings = np.array([0, 0, 1, 1]), np.array([[0.0], [1.0], [1.5], [3.0]], "float32")
    # Squared distances: 0-1: 1, 0-1.5: 2.25, 0-3: 9, 1-1.5: 0.25, 1-3: 4, 1.5-3: 2.25. With margin 0.5 the triplets
    # (anchor, positive; negative) of positive loss are 1,0;1.5: 1.25, 1.5,3;0: 0.5, 1.5,3;1: 2.5; 3,1.5 has none.
    assert mean_loss(labels, embeddings, 0.5, "batch_all") == pytest.approx((1.25 + 0.5 + 2.5) / 3)
    assert mean_loss(labels, embeddings, 0.5, "batch_hard") == pytest.approx((0 + 1.25 + 2.5 + 0) / 4)
    # Semi-hard: 0 takes 1.5 (loss 0); 1 takes 3 (0); 1.5 has no negative farther than 3 is, so its farthest, 0 (0.5);
    # 3 takes 1 (0).
    assert mean_loss(labels, embeddings, 0.5, "semi_hard") == pytest.approx(0.5 / 4)


@pytest.mark.parametrize("mining", losses.MINING)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("labels", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("kind", ["identical", "zeros", "duplicates", "tiny", "large"])
def test_value_and_gradient_are_finite(kind, labels, dtype, mining):
    vectors = unit_vectors(np.random.default_rng(2), len(labels))
    embeddings = {
        "identical": np.ones_like(vectors),
        "zeros": np.zeros_like(vectors),
        "duplicates": vectors[np.arange(len(vectors)) // 2],
        "tiny": vectors * 1e-6,
        "large": vectors * (1e4 if dtype == "float16" else 1e6),
    }[kind]

    def loss(each):
        return keras.ops.mean(in_batch_triplet_loss(np.array(labels), keras.ops.cast(each, dtype), 0.3, mining))

    value, gradient = value_and_gradient(loss, embeddings)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("mining", losses.MINING)
@pytest.mark.parametrize("labels", [[0], [3] * 6, [5, 1, 4, 0, 2]], ids=["one image", "one class", "all different"])
def test_a_batch_without_a_triplet_has_no_loss_and_no_gradient(labels, mining):
    embeddings = unit_vectors(np.random.default_rng(3), len(labels))
    value, gradient = value_and_gradient(
        lambda each: keras.ops.mean(in_batch_triplet_loss(np.array(labels), each, 0.3, mining)), embeddings
    )
    assert value == 0
    assert not gradient.any()


@pytest.mark.parametrize("mining", losses.MINING)
def test_an_anchor_without_positives_takes_no_part(mining):
    """Peers count its distance to a positive as 0, and push it away from everything."""
    embeddings = np.array([[0.0], [0.2], [0.1]], "float32")
    by_anchor = keras.ops.convert_to_numpy(in_batch_triplet_loss(np.array([0, 0, 1]), embeddings, 0.3, mining))
    assert by_anchor[2] == 0
    assert (by_anchor[:2] > 0).all()


@pytest.mark.parametrize("mining", losses.MINING)
def test_the_order_of_a_batch_changes_nothing(mining):
    generator = np.random.default_rng(4)
    labels, embeddings = generator.integers(0, 4, 24), unit_vectors(generator, 24)
    order = generator.permutation(24)
    forward = in_batch_triplet_loss(labels, embeddings, 0.3, mining)
    permuted = in_batch_triplet_loss(labels[order], embeddings[order], 0.3, mining)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(forward)[order], permuted, atol=1e-5)


@pytest.mark.parametrize("mining", losses.MINING)
def test_scaling_by_two_quadruples_the_loss_at_four_times_the_margin(mining):
    generator = np.random.default_rng(5)
    labels, embeddings = generator.integers(0, 4, 24), unit_vectors(generator, 24)
    once, twice = mean_loss(labels, embeddings, 0.3, mining), mean_loss(labels, 2 * embeddings + 7, 1.2, mining)
    assert twice == pytest.approx(4 * once, rel=1e-4)


@pytest.mark.parametrize("mining", losses.MINING)
@pytest.mark.parametrize("dtype", ["uint8", "int32", "int64", "float32"])
def test_labels_of_one_axis_or_two_and_of_any_dtype_mean_the_same(dtype, mining):
    """Labels of shape (batch, 1) have silently broken the masks of peers."""
    labels, embeddings = np.array([0, 1, 2] * 4), unit_vectors(np.random.default_rng(6), 12)
    expected = loop_loss(labels, embeddings, 0.3, mining)
    assert mean_loss(labels.astype(dtype), embeddings, 0.3, mining) == pytest.approx(expected, rel=1e-5)
    assert mean_loss(labels.astype(dtype)[:, None], embeddings, 0.3, mining) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("shape", [(6, 3), (6, 1, 1), ()], ids=["one-hot", "three axes", "scalar"])
def test_labels_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"\(batch,\) or \(batch, 1\)"):
        in_batch_triplet_loss(np.zeros(shape, "int32"), np.zeros((6, 4), "float32"))


def test_mismatched_arguments_are_refused():
    with pytest.raises(ValueError, match="one label for each of 6"):
        in_batch_triplet_loss(np.zeros(5, "int32"), np.zeros((6, 4), "float32"))
    with pytest.raises(ValueError, match=r"\(batch, embedding_size\)"):
        in_batch_triplet_loss(np.zeros(6, "int32"), np.zeros((6, 4, 2), "float32"))
    with pytest.raises(ValueError, match=r"\(batch, 3, embedding_size\)"):
        MergeTripletLoss()(np.zeros(6), np.zeros((6, 4), "float32"))
    with pytest.raises(ValueError, match="semi-hard"):
        InBatchTripletLoss(mining="semi-hard")
    for loss in (InBatchTripletLoss, MergeTripletLoss):
        with pytest.raises(ValueError, match="positive"):
            loss(margin=0)


def test_the_merge_loss_is_facenets_equation_by_hand():
    anchor = np.array([[0.0, 0.0], [1.0, 1.0], [0.0, 0.0]], "float32")
    positive = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0]], "float32")
    negative = np.array([[0.0, 1.2], [1.0, 3.0], [0.0, 1.0]], "float32")
    values = keras.ops.convert_to_numpy(merge_triplet_loss(anchor, positive, negative, 0.5))
    np.testing.assert_allclose(values, [1 - 1.44 + 0.5, 0, 4 - 1 + 0.5], rtol=1e-6)
    swapped = keras.ops.convert_to_numpy(merge_triplet_loss(anchor, negative, positive, 0.5))
    np.testing.assert_allclose(swapped, [1.44 - 1 + 0.5, 4.5, 0], rtol=1e-6)


def test_both_losses_agree_on_the_same_triplets():
    generator = np.random.default_rng(7)
    labels, embeddings = np.array([0, 1, 2] * 4), unit_vectors(generator, 12)
    distances = ((embeddings[:, None] - embeddings[None]) ** 2).sum(axis=2)
    for mining in ("batch_hard", "semi_hard"):
        triplets = np.array(mined_triplets(labels, distances, mining))
        merged = embeddings[triplets]  # shape (triplets, 3, size)
        value = float(MergeTripletLoss(0.3)(np.zeros(len(merged)), merged))
        assert value == pytest.approx(mean_loss(labels, embeddings, 0.3, mining), rel=1e-5)


@pytest.mark.parametrize("start", range(5))
@pytest.mark.parametrize("mining", [*losses.MINING, "merge"])
def test_gradient_descent_separates_two_mixed_clusters(mining, start):
    """A loss with its sign turned round, as a peer once shipped, pushes them together."""
    generator = np.random.default_rng(start)
    labels, places = np.array([0, 1] * 8), generator.normal(size=(16, 2)).astype("float32")
    triplets = np.array(mined_triplets(labels, np.zeros((16, 16)), "batch_all"))

    def loss(each):
        if mining == "merge":
            merged = keras.ops.take(each, triplets.reshape(-1), axis=0)
            return MergeTripletLoss(1.0)(labels, keras.ops.reshape(merged, (-1, 3, 2)))
        return InBatchTripletLoss(1.0, mining)(labels, each)

    for _ in range(400):
        places = places - 0.5 * value_and_gradient(loss, places)[1]
    centres = np.stack([places[labels == label].mean(axis=0) for label in (0, 1)])
    nearer = ((places[:, None] - centres) ** 2).sum(axis=2).argmin(axis=1)
    assert (nearer == labels).mean() >= 0.9


@pytest.mark.parametrize("count", [40, 300])
def test_distances_are_exact_where_a_gpu_multiplies_in_tf32(count, monkeypatch):
    """TF32 keeps 10 bits of each factor's mantissa; as it is, that puts an error near 1e-3 on unit vectors."""

    def tf32_matmul(first, second):
        def rounded(each):
            bits = np.asarray(keras.ops.convert_to_numpy(each), "float32").view("uint32")
            return ((bits + 0xFFF + ((bits >> 13) & 1)) & 0xFFFFE000).astype("uint32").view("float32")

        return keras.ops.convert_to_tensor(rounded(first) @ rounded(second))

    monkeypatch.setattr(losses.ops, "matmul", tf32_matmul)
    embeddings = unit_vectors(np.random.default_rng(8), count, 128)
    embeddings[1] = embeddings[0]
    exact = ((embeddings[:, None].astype("float64") - embeddings[None]) ** 2).sum(axis=2)
    naive = 2 - 2 * np.asarray(tf32_matmul(embeddings, embeddings.T))
    assert np.abs(naive - exact).max() > 1e-4
    np.testing.assert_allclose(losses.squared_distances(embeddings), exact, atol=1e-5)


@pytest.mark.parametrize(
    "loss", [InBatchTripletLoss(0.45, "batch_hard"), MergeTripletLoss(0.45)], ids=["batch", "merge"]
)
def test_a_loss_comes_back_from_its_configuration(loss):
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(loss)))
    again = keras.saving.deserialize_keras_object(config)
    assert type(again) is type(loss)
    assert again.get_config() == loss.get_config()
    assert again.margin == 0.45


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("mining", [*losses.MINING, "merge"])
def test_fit_lowers_the_loss_and_reports_the_statistics(mining, jit_compile):
    if jit_compile and keras.backend.backend() == "torch":
        pytest.skip("torch.compile needs a C++ compiler on the machine")
    keras.utils.set_random_seed(0)
    generator = np.random.default_rng(9)
    labels = generator.integers(0, 4, 128)
    images = (np.eye(4)[labels] + 0.5 * generator.normal(size=(128, 4))).astype("float32")
    network = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(3), keras.layers.UnitNormalization()]
    )
    if mining == "merge":
        inputs = keras.Input((3, 4))
        outputs = keras.ops.stack([network(inputs[:, branch]) for branch in range(3)], axis=1)
        model, loss = keras.Model(inputs, outputs), MergeTripletLoss(0.3)
        others = [generator.permutation(np.flatnonzero(labels != label))[0] for label in labels]
        same = [generator.permutation(np.flatnonzero(labels == label))[0] for label in labels]
        images = images[np.stack([np.arange(128), same, others], axis=1)]
    else:
        model, loss = network, InBatchTripletLoss(0.3, mining)
    model.compile(keras.optimizers.Adam(0.02), loss, metrics=loss.metrics(), jit_compile=jit_compile)
    history = model.fit(images, labels, batch_size=32, epochs=12, shuffle=False, verbose=0).history
    gaps = np.subtract(history["negative_distance"], history["positive_distance"])
    assert gaps[-1] > gaps[0] + 0.2
    if mining != "batch_all":  # a mean over active triplets need not fall while their number does
        assert history["loss"][-1] < 0.8 * history["loss"][0]
    assert history["active_triplets"][-1] < history["active_triplets"][0] <= 1


@pytest.mark.parametrize("mining", losses.MINING)
def test_the_statistics_are_those_of_a_plain_loop(mining):
    labels, embeddings = np.array([0, 0, 0, 1, 1, 2, 3]), unit_vectors(np.random.default_rng(10), 7)
    distances = ((embeddings[:, None].astype("float64") - embeddings[None]) ** 2).sum(axis=2)
    triplets = mined_triplets(labels, distances, mining)
    active = [distances[a, p] - distances[a, n] + 0.3 > 0 for a, p, n in triplets]
    same = (labels[:, None] == labels) & ~np.eye(7, dtype=bool)
    expected = [np.mean(active), distances[same].mean(), distances[labels[:, None] != labels].mean()]
    got = []
    for metric in InBatchTripletLoss(0.3, mining).metrics():
        metric.update_state(labels, embeddings)
        got.append(float(metric.result()))
    np.testing.assert_allclose(got, expected, rtol=1e-5)


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
