"""CIFAR-10 and the digits as arrays, and splits of any images, followed by their content."""

import keras
import numpy as np
import pytest
from sklearn.datasets import load_digits

from command_line import NO_DOWNLOAD, InputError
from image_data import Images, checksum, load_images, raw_pixels, sample, stratified_split


def numbered(labels):
    """`Images` with their places in the data in the images' stead."""
    return Images(np.arange(len(labels)), np.asarray(labels))


def test_digits_are_scikit_learns_in_three_channels_from_0_to_255():
    *parts, class_names = load_images("digits", 32, "pad", 0.2, seed=0)
    digits, got = load_digits(), []
    for part in parts:
        assert part.images.dtype == np.uint8
        assert (part.images == part.images[:, :1]).all()
        flat = part.images[:, 0].reshape(-1, 64).tolist()
        got += [(class_names[label], *image) for label, image in zip(part.labels, flat, strict=True)]
    whole = zip(digits.target, digits.data.tolist(), strict=True)
    expected = [(str(label), *(round(value * 255 / 16) for value in image)) for label, image in whole]
    assert len(got) == 1797
    assert sorted(got) == sorted(expected)
    assert (np.abs(np.bincount(parts[1].labels) - 0.2 * np.bincount(digits.target)) <= 0.5).all()


def test_the_digits_split_follows_the_seed():
    first, again, other = (load_images("digits", 32, "scale", 0.3, seed)[1] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.images, again.images)
    np.testing.assert_array_equal(np.bincount(first.labels), np.bincount(other.labels))
    assert (first.images != other.images).any()


def test_the_checksum_notices_other_images_labels_and_names():
    generator = np.random.default_rng(0)
    parts = [Images(generator.integers(0, 256, (4, 3, 2, 2), "uint8"), np.arange(4, dtype="int32")) for _ in range(2)]
    sums = {checksum(parts, ["a", "b"]), checksum(parts, ["a", "c"]), checksum(parts[::-1], ["a", "b"])}
    assert checksum([Images(*map(np.copy, part)) for part in parts], ["a", "b"]) in sums
    parts[1].images[3, 2, 1, 1] ^= 1
    sums.add(checksum(parts, ["a", "b"]))
    parts[0].labels[0] += 1
    sums.add(checksum(parts, ["a", "b"]))
    assert len(sums) == 5


def test_a_failed_download_says_what_to_do_by_hand(tmp_path, monkeypatch):
    def fail():
        raise Exception("URL fetch failure: timed out")

    monkeypatch.setattr(keras.datasets.cifar10, "load_data", fail)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    with pytest.raises(InputError) as raised:
        load_images("cifar10", 32, "scale", 0.2, seed=0)
    path = tmp_path / "datasets" / "cifar-10-batches-py-target_archive"
    for part in ("timed out", "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz", str(path), NO_DOWNLOAD):
        assert part in str(raised.value)


@pytest.mark.parametrize("data_format", ["channels_first", "channels_last"])
def test_cifar10_is_channels_first_with_flat_labels_whatever_keras_gives(data_format, monkeypatch):
    generator = np.random.default_rng(0)
    expected = [(generator.integers(0, 256, (n, 3, 32, 32), "uint8"), generator.integers(0, 10, n)) for n in (7, 4)]
    axes = (0, 1, 2, 3) if data_format == "channels_first" else (0, 2, 3, 1)
    given = tuple((images.transpose(axes), labels[:, None].astype("uint8")) for images, labels in expected)
    monkeypatch.setattr(keras.config, "image_data_format", lambda: data_format)
    monkeypatch.setattr(keras.datasets.cifar10, "load_data", lambda: given)
    *parts, class_names = load_images("cifar10", 96, "scale", 0.2, seed=0)
    for part, (images, labels) in zip(parts, expected, strict=True):
        np.testing.assert_array_equal(part.images, images)
        np.testing.assert_array_equal(part.labels, labels)
    assert [class_names[label] for label in (0, 3, 9)] == ["airplane", "cat", "truck"]


@pytest.mark.parametrize("seed", range(40))
def test_a_split_gives_each_class_its_share_and_loses_nothing(seed):
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.repeat(generator.permutation(20)[:7], [*generator.integers(1, 40, 6), 3]))
    fraction = generator.uniform(0.01, 0.99)
    kept, split_off = stratified_split(numbered(labels), fraction, seed)
    assert sorted([*kept.images, *split_off.images]) == list(range(len(labels)))
    for part in (kept, split_off):
        np.testing.assert_array_equal(part.labels, labels[part.images])
    for label in np.unique(labels):
        whole, rest, share = ((each == label).sum() for each in (labels, kept.labels, split_off.labels))
        assert rest >= min(whole, 2)
        assert share >= (whole > 2)
        assert abs(share - fraction * whole) <= 0.5 or share == 1 > fraction * whole or rest == min(whole, 2)


def test_a_sample_is_even_over_classes_and_follows_the_seed():
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2, 5], [400, 60, 12, 4]))
    for count, expected in [(200, [50, 50, 12, 4]), (8, [10, 10, 10, 4])]:
        first, again, other = (sample(numbered(labels), count, seed) for seed in (0, 0, 1))
        np.testing.assert_array_equal(first.labels, labels[first.images])
        assert (np.diff(first.images) > 0).all()  # none twice
        assert [(first.labels == label).sum() for label in (0, 1, 2, 5)] == expected
        np.testing.assert_array_equal(first.images, again.images)
        assert (first.images != other.images).any()


def test_raw_pixels_are_exact_when_small_and_averages_when_large():
    generator = np.random.default_rng(0)
    small = generator.integers(0, 256, (5, 3, 32, 20), "uint8")
    pixels = raw_pixels(numbered(range(5))._replace(images=small))
    assert pixels.dtype == np.float32
    np.testing.assert_allclose(pixels.reshape(small.shape), small / 255, rtol=1e-6)
    colours = generator.integers(0, 256, (300, 3, 1, 1), "uint8")  # more than one batch
    large = np.tile(colours, (1, 1, 48, 128))
    large[0] = 200 * (np.arange(128) % 4 == 0)  # stripes, of which only an average is left
    shrunk = raw_pixels(numbered(range(300))._replace(images=large)).reshape(300, 3, 32, 32)
    np.testing.assert_allclose(shrunk[0, :, :, 2:-2], 50 / 255, atol=0.02)
    np.testing.assert_allclose(shrunk[1:], np.broadcast_to(colours[1:] / 255, (299, 3, 32, 32)), atol=1e-5)
