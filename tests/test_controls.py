"""The two controls, raw pixels and the network before training, and the file that keeps their scores."""

import json

import numpy as np
import pytest

from pipeline.data.splits import DataSet, Images
from pipeline.neighbours import evaluate, retrieval_scores
from pipeline.report.controls import measure_controls, raw_pixels


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
    return data.images.reshape(len(data.images), -1) @ np.random.default_rng(5).normal(size=(60, 4)).astype("float32")


FEATURES = {"raw pixels": lambda data: data.images.reshape(len(data.images), -1) / 255, "before training": embed}
NONE = random_images(0, 0)
TRAIN, VALIDATION, TEST, HELD_OUT = random_images(40, 1), NONE, random_images(30, 2), random_images(20, 3, first=3)
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
    result = measure_controls(folder, embed, DATA[request.param], 3)
    assert [path.name for path in folder.iterdir()] == ["controls.npz"]
    return DATA[request.param], result, (folder / "controls.npz").read_bytes()


def assert_equal(controls, others):
    assert (controls.known, controls.unseen) == (others.known, others.unseen)
    np.testing.assert_array_equal(controls.embeddings, others.embeddings)


def test_the_controls_are_raw_pixels_and_the_given_embeddings(measured):
    data, (known, unseen, embeddings), _ = measured
    np.testing.assert_array_equal(embeddings, embed(TEST if len(data.test.labels) else HELD_OUT))
    assert list(known) == (list(FEATURES) if len(data.test.labels) else [])
    assert list(unseen) == (list(FEATURES) if len(data.held_out.labels) else [])
    for name in known:
        of = FEATURES[name]
        expected = evaluate(of(TRAIN), TRAIN.labels, of(TEST), TEST.labels, 3)[1]
        assert known[name] == pytest.approx(expected)
    for name in unseen:
        assert unseen[name] == pytest.approx(retrieval_scores(FEATURES[name](HELD_OUT), HELD_OUT.labels))
    for scores in (known, unseen):
        assert scores == {} or scores["raw pixels"] != scores["before training"]


def test_a_resumed_run_reads_the_controls(measured, tmp_path, capsys):
    _, controls, content = measured
    (tmp_path / "controls.npz").write_bytes(content)
    assert_equal(measure_controls(tmp_path, None, None, 3), controls)  # nothing to measure with
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("damage", [None, *DAMAGE])
def test_missing_and_corrupt_controls_are_measured_again(damage, measured, tmp_path, capsys):
    data, controls, content = measured
    path = tmp_path / "controls.npz"
    if damage:
        path.write_bytes(content)
        DAMAGE[damage](path)
        assert path.read_bytes() != content
    again = measure_controls(tmp_path, embed, data, 3)
    assert "before training" in capsys.readouterr().out
    assert_equal(again, controls)
    assert_equal(measure_controls(tmp_path, None, None, 3), controls)  # the file is complete again


def test_a_single_held_out_image_is_no_error(tmp_path):
    """It has no other to be compared with, so it has no scores."""
    data = BOTH._replace(held_out=random_images(1, 4, first=3), held_out_names=["d"])
    controls = measure_controls(tmp_path, embed, data, 3)
    assert controls.known == measure_controls(tmp_path, embed, BOTH, 3).known
    assert controls.unseen == {"raw pixels": {}, "before training": {}}


def test_raw_pixels_are_exact_in_small_images_and_averages_in_large_ones():
    generator = np.random.default_rng(0)
    small = generator.integers(0, 256, (5, 3, 32, 20), "uint8")
    pixels = raw_pixels(Images(small, np.zeros(5, int)))
    assert pixels.dtype == np.float32
    np.testing.assert_allclose(pixels.reshape(small.shape), small / 255, rtol=1e-6)
    colours = generator.integers(0, 256, (300, 3, 1, 1), "uint8")  # more images than are resized at once
    large = np.tile(colours, (1, 1, 48, 128))
    large[0] = 200 * (np.arange(128) % 4 == 0)  # stripes, of which only an average remains
    shrunk = raw_pixels(Images(large, np.zeros(300, int))).reshape(300, 3, 32, 32)
    np.testing.assert_allclose(shrunk[0, :, :, 2:-2], 50 / 255, atol=0.02)
    np.testing.assert_allclose(shrunk[1:], np.broadcast_to(colours[1:] / 255, (299, 3, 32, 32)), atol=1e-5)
