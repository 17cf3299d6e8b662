"""What triplet loss is compared with, by the functions that measure it, and the files that keep the scores."""

import json
from contextlib import contextmanager

import numpy as np
import pytest

from pipeline import system_memory
from pipeline.data.splits import DataSet, Images
from pipeline.neighbour_scores import evaluate, retrieval_scores
from pipeline.report import audit
from pipeline.report import controls as controls_module
from pipeline.report.controls import measure_controls, measure_cross_entropy, raw_pixels
from pipeline.report.linear import linear_predictions


def flip_a_bit(path):
    """Changes one bit of the stored embeddings."""
    with np.load(path) as stored:
        numbers = stored["embeddings"].tobytes()
    content = bytearray(path.read_bytes())
    content[bytes(content).index(numbers) + len(numbers) // 2] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "empty": lambda path: path.write_bytes(b""),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-30]),
    "another file": lambda path: path.write_text("{}"),
    "an array missing": lambda path: np.savez(path, embeddings=np.zeros((1, 1))),
    "of an earlier version": lambda path: np.savez(
        path, scores=np.array(json.dumps({"raw pixels": {"accuracy": 0.5}})), embeddings=np.zeros((30, 4))
    ),
    "one bit wrong": flip_a_bit,
}


def random_images(count, seed, first=0):
    """Noisy images of three classes, which overlap."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(first, first + 3, count).astype("int32")
    pixels = 60 * (labels - first)[:, None, None, None] + generator.normal(size=(count, 3, 4, 5)) * 90 + 70
    return Images(np.clip(pixels, 0, 255).astype("uint8"), labels)


def embed(data):
    """A fixed projection to four numbers in place of a network."""
    return data.pixels().reshape(len(data.labels), -1) @ np.random.default_rng(5).normal(size=(60, 4)).astype("float32")


def unit(features):
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def pixels(data):
    return data.pixels().reshape(len(data.labels), -1) / 255


FEATURES = {"raw pixels": pixels, "pooled features": lambda data: unit(embed(data))}
NONE = random_images(0, 0)
TRAIN, VALIDATION, TEST = random_images(40, 1), random_images(12, 4), random_images(30, 2)
HELD_OUT = random_images(20, 3, first=3)
BOTH = DataSet(TRAIN, VALIDATION, TEST, HELD_OUT, ["a", "b", "c"], ["d", "e", "f"])
DATA = {
    "test and held-out images": BOTH,
    "test images": BOTH._replace(held_out=NONE, held_out_names=[]),
    "held-out images": BOTH._replace(test=NONE),
}


@pytest.fixture(scope="module", params=DATA)
def measured(request, tmp_path_factory):
    """The data set, the controls of a new run, and the content of their file."""
    folder = tmp_path_factory.mktemp("run")
    result = measure_controls(folder, embed, DATA[request.param], 3, epochs=1, seed=0)
    assert [path.name for path in folder.iterdir()] == ["controls.npz"]
    return DATA[request.param], result, (folder / "controls.npz").read_bytes()


def assert_same_methods(methods, others):
    assert list(methods) == list(others)
    for name, method in methods.items():
        assert method[:2] == others[name][:2]
        np.testing.assert_array_equal(method.correct, others[name].correct)


def assert_equal(controls, others):
    assert_same_methods(controls.methods, others.methods)
    assert controls.notes == others.notes
    assert controls.findings == others.findings
    np.testing.assert_array_equal(controls.embeddings, others.embeddings)


def assert_by_neighbours(method, features_of, data):
    """That a method is the vote of the three nearest neighbours on these features."""
    if len(data.test.labels):
        expected = evaluate(features_of(TRAIN), TRAIN.labels, features_of(TEST), TEST.labels, 3)
        assert method.known == pytest.approx(expected.scores)
        np.testing.assert_array_equal(method.correct, expected.predicted == TEST.labels)
    else:
        assert method.known == {}
    if len(data.held_out.labels):
        found, scores = retrieval_scores(features_of(HELD_OUT), HELD_OUT.labels)
        assert method.unseen == pytest.approx(scores)
        if not len(data.test.labels):
            np.testing.assert_array_equal(method.correct, found)
    else:
        assert method.unseen == {}


def test_raw_pixels_and_pooled_features_are_compared_by_nearest_neighbours(measured):
    data, controls, _ = measured
    shown = TEST if len(data.test.labels) else HELD_OUT
    np.testing.assert_allclose(controls.embeddings, unit(embed(shown)), rtol=1e-6)
    for name, features_of in FEATURES.items():
        assert_by_neighbours(controls.methods[name], features_of, data)
    first, second = (controls.methods[name][:2] for name in FEATURES)
    assert first != second


def test_logistic_regression_is_compared_if_there_are_test_images(measured):
    data, controls, _ = measured
    assert ("logistic regression" in controls.methods) == (len(data.test.labels) > 0)
    assert controls.notes == []
    if len(data.test.labels):
        method = controls.methods["logistic regression"]
        train, validation, test = (unit(embed(each)) for each in (TRAIN, VALIDATION, TEST))
        predicted, _, _ = linear_predictions(train, TRAIN.labels, validation, VALIDATION.labels, test, 60)
        np.testing.assert_array_equal(method.correct, predicted == TEST.labels)
        assert method.known == {"accuracy": pytest.approx(np.mean(predicted == TEST.labels))} and method.unseen == {}


def test_checks_of_a_sample_are_printed_and_noted(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(audit, "MOST_NUMBERS", 10**4)
    notes = measure_controls(tmp_path, embed, BOTH, 3, epochs=1, seed=0).notes
    assert len(notes) == 2 and "training images" in notes[0] and "far from all others" in notes[1]
    assert {*notes} <= {*capsys.readouterr().out.splitlines()}
    assert measure_controls(tmp_path, None, None, 3, 1, 0).notes == notes


def test_logistic_regression_that_takes_too_long_is_skipped_with_a_note(tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(controls_module, "linear_predictions", lambda *arguments: given.append(arguments[-1]))
    controls = measure_controls(tmp_path, embed, BOTH, 3, epochs=10**9, seed=0)
    assert list(controls.methods) == list(FEATURES)
    (note,) = controls.notes
    assert "skipped" in note and given[0] > 100  # seconds, of so many epochs
    assert_equal(measure_controls(tmp_path, None, None, 3, 1, 0), controls)


def test_a_resumed_run_reads_the_controls(measured, tmp_path, capsys):
    _, controls, content = measured
    (tmp_path / "controls.npz").write_bytes(content)
    assert_equal(measure_controls(tmp_path, None, None, 3, 1, 0), controls)  # nothing to measure with
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("damage", [None, *DAMAGE])
def test_missing_and_corrupt_controls_are_measured_again(damage, measured, tmp_path, capsys):
    data, controls, content = measured
    path = tmp_path / "controls.npz"
    if damage:
        path.write_bytes(content)
        DAMAGE[damage](path)
        assert path.read_bytes() != content
    again = measure_controls(tmp_path, embed, data, 3, 1, 0)
    assert "before training" in capsys.readouterr().out
    assert_equal(again, controls)
    assert_equal(measure_controls(tmp_path, None, None, 3, 1, 0), controls)  # the file is complete again


def test_a_single_held_out_image_is_no_error(tmp_path):
    """It has no other to be compared with, so it has no scores."""
    data = BOTH._replace(held_out=random_images(1, 4, first=3), held_out_names=["d"])
    controls = measure_controls(tmp_path, embed, data, 3, 1, 0)
    for name in FEATURES:
        assert controls.methods[name].unseen == {} and len(controls.methods[name].known) == 5


@pytest.mark.parametrize("data", DATA.values(), ids=DATA)
def test_a_classifier_is_compared_by_its_own_predictions_and_by_its_features(data, tmp_path):
    trained = []

    @contextmanager
    def train():
        trained.append("begin")
        yield lambda images: (embed(images)[:, :3], embed(images))
        trained.append("end")

    methods = measure_cross_entropy(tmp_path, train, data, 3)
    assert trained == ["begin", "end"] and [path.name for path in tmp_path.iterdir()] == ["cross_entropy.npz"]
    assert_by_neighbours(methods["cross-entropy features"], FEATURES["pooled features"], data)
    if len(data.test.labels):
        correct = embed(TEST)[:, :3].argmax(axis=1) == TEST.labels
        np.testing.assert_array_equal(methods["cross-entropy"].correct, correct)
        assert methods["cross-entropy"][:2] == ({"accuracy": pytest.approx(correct.mean())}, {})
    else:
        assert list(methods) == ["cross-entropy features"]
    assert_same_methods(measure_cross_entropy(tmp_path, None, None, 3), methods)


@pytest.mark.parametrize("free", [None, 2**40, 0], ids=["unknown memory", "memory", "no memory"])
def test_raw_pixels_are_exact_in_small_images_and_averages_in_large_ones(free, tmp_path, monkeypatch):
    generator = np.random.default_rng(0)
    small = generator.integers(0, 256, (5, 3, 32, 20), "uint8")
    monkeypatch.setattr(system_memory, "free_memory", lambda: free)
    pixels = raw_pixels([Images(small, np.zeros(5, int))], tmp_path)
    assert pixels.dtype == np.float32
    np.testing.assert_allclose(pixels.reshape(small.shape), small / 255, rtol=1e-6)
    assert isinstance(pixels.base.base, np.memmap) == (free == 0)
    two = Images(small, np.zeros(2, int), None, np.array([4, 1]))
    both = raw_pixels([two, Images(small, np.zeros(5, int))], tmp_path)
    np.testing.assert_array_equal(both, pixels[[4, 1, 0, 1, 2, 3, 4]])
    colours = generator.integers(0, 256, (300, 3, 1, 1), "uint8")  # more images than are resized at once
    large = np.tile(colours, (1, 1, 48, 128))
    large[0] = 200 * (np.arange(128) % 4 == 0)  # stripes, of which only an average remains
    shrunk = raw_pixels([Images(large, np.zeros(300, int))], tmp_path).reshape(300, 3, 32, 32)
    np.testing.assert_allclose(shrunk[0, :, :, 2:-2], 50 / 255, atol=0.02)
    np.testing.assert_allclose(shrunk[1:], np.broadcast_to(colours[1:] / 255, (299, 3, 32, 32)), atol=1e-5)
