"""The two controls, raw pixels and the network before training, and the file that keeps their scores."""

import numpy as np
import pytest

from pipeline.data.splits import Images
from pipeline.neighbours import evaluate
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
    "one bit wrong": flip_a_bit,
}


def random_images(count, seed):
    """Noisy images of three classes, which overlap."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 3, count).astype("int32")
    pixels = 60 * labels[:, None, None, None] + generator.normal(size=(count, 3, 4, 5)) * 90 + 70
    return Images(np.clip(pixels, 0, 255).astype("uint8"), labels)


def embed(data):
    """A fixed projection to four numbers in place of a network."""
    return data.images.reshape(len(data.images), -1) @ np.random.default_rng(5).normal(size=(60, 4)).astype("float32")


TRAIN, TEST = random_images(40, 1), random_images(30, 2)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The controls of a new run: scores, embeddings, and the content of the file."""
    folder = tmp_path_factory.mktemp("run")
    result = measure_controls(folder, embed, TRAIN, TEST, 3)
    assert [path.name for path in folder.iterdir()] == ["controls.npz"]
    return *result, (folder / "controls.npz").read_bytes()


def test_the_controls_are_raw_pixels_and_the_given_embeddings(measured):
    scores, embeddings, _ = measured
    np.testing.assert_array_equal(embeddings, embed(TEST))
    features = {"raw pixels": lambda data: data.images.reshape(len(data.images), -1) / 255, "before training": embed}
    assert list(scores) == list(features)
    for name, of in features.items():
        expected = evaluate(of(TRAIN), TRAIN.labels, of(TEST), TEST.labels, 3)[1]
        assert scores[name] == pytest.approx(expected)
    assert scores["raw pixels"] != scores["before training"]


def test_a_resumed_run_reads_the_controls(measured, tmp_path, capsys):
    scores, embeddings, content = measured
    (tmp_path / "controls.npz").write_bytes(content)
    stored_scores, stored_embeddings = measure_controls(tmp_path, None, None, None, 3)  # nothing to measure with
    assert stored_scores == scores
    np.testing.assert_array_equal(stored_embeddings, embeddings)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("damage", [None, *DAMAGE])
def test_missing_and_corrupt_controls_are_measured_again(damage, measured, tmp_path, capsys):
    scores, embeddings, content = measured
    path = tmp_path / "controls.npz"
    if damage:
        path.write_bytes(content)
        DAMAGE[damage](path)
        assert path.read_bytes() != content
    again, embeddings_again = measure_controls(tmp_path, embed, TRAIN, TEST, 3)
    assert "before training" in capsys.readouterr().out
    assert again == scores
    np.testing.assert_array_equal(embeddings_again, embeddings)
    assert measure_controls(tmp_path, None, None, None, 3)[0] == scores  # the file is complete again


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
