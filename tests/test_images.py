"""CIFAR-10 and the digits as arrays, compared with their sources."""

import os

import keras
import numpy as np
import pytest
from processes import run_python
from sklearn.datasets import load_digits

from pipeline.data.images import load_images
from pipeline.downloads import NO_DOWNLOAD
from pipeline.errors import InputError


def test_digits_are_scikit_learns_in_three_channels_from_0_to_255():
    *parts, class_names, value_range = load_images("digits", 32, "pad", 0.2, 0.1, seed=0)
    digits, loaded = load_digits(), []
    for part in parts:
        assert part.images.dtype == np.uint8
        assert (part.images == part.images[:, :1]).all()
        flat = part.images[:, 0].reshape(-1, 64).tolist()
        loaded += [(class_names[label], *image) for label, image in zip(part.labels, flat, strict=True)]
    source = zip(digits.target, digits.data.tolist(), strict=True)
    expected = [(str(label), *(round(value * 255 / 16) for value in image)) for label, image in source]
    assert len(loaded) == 1797
    assert sorted(loaded) == sorted(expected)
    assert value_range is None
    assert [len(part.labels) / 1797 for part in parts] == pytest.approx([0.72, 0.08, 0.2], abs=0.03)


def test_the_split_of_the_digits_is_reproducible_from_the_seed():
    first, again, other = (load_images("digits", 32, "scale", 0.3, 0.1, seed).test for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.images, again.images)
    assert len(first.labels) != len(other.labels) or (first.images != other.images).any()


def test_a_failed_download_explains_how_to_download_by_hand(tmp_path, monkeypatch):
    def fail():
        raise Exception("URL fetch failure: timed out")

    monkeypatch.setattr(keras.datasets.cifar10, "load_data", fail)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    with pytest.raises(InputError) as raised:
        load_images("cifar10", 32, "scale", 0.2, 0.1, seed=0)
    path = tmp_path / "datasets" / "cifar-10-batches-py-target_archive"
    for part in ("timed out", "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz", str(path), NO_DOWNLOAD):
        assert part in str(raised.value)


HOMES = {
    "a home folder": ({"HOME": "{}"}, "{}/.keras"),
    "a home folder that does not exist": ({"HOME": "{}/gone"}, "/tmp/.keras"),
    "a folder of Keras": ({"KERAS_HOME": "{}"}, "{}"),
}


@pytest.mark.skipif(os.name != "posix", reason="another home folder")
@pytest.mark.parametrize(("variables", "expected"), HOMES.values(), ids=HOMES)
def test_the_folder_named_for_downloads_is_that_of_keras(variables, expected, tmp_path):
    variables = {"KERAS_HOME": None, **variables}
    variables = {name: value and value.format(tmp_path) for name, value in variables.items()}
    code = "from pipeline.downloads import cache_folder; print(cache_folder())"
    assert run_python("-c", code, **variables).stdout.strip() == expected.format(tmp_path)


@pytest.mark.parametrize("data_format", ["channels_first", "channels_last"])
def test_cifar10_is_channels_first_with_flat_labels_in_either_data_format(data_format, monkeypatch):
    generator = np.random.default_rng(0)
    expected = [(generator.integers(0, 256, (n, 3, 32, 32), "uint8"), np.arange(n) % 10) for n in (70, 14)]
    axes = (0, 1, 2, 3) if data_format == "channels_first" else (0, 2, 3, 1)
    given = tuple((images.transpose(axes), labels[:, None].astype("uint8")) for images, labels in expected)
    monkeypatch.setattr(keras.config, "image_data_format", lambda: data_format)
    monkeypatch.setattr(keras.datasets.cifar10, "load_data", lambda: given)
    train, validation, test, class_names, _ = load_images("cifar10", 96, "scale", 0.2, 0.1, seed=0)
    np.testing.assert_array_equal(test.images, expected[1][0])
    np.testing.assert_array_equal(test.labels, expected[1][1])
    assert (len(train.labels), len(validation.labels)) == (63, 7)
    place = {image.tobytes(): label for image, label in zip(*expected[0], strict=True)}
    for part in (train, validation):
        assert [place.pop(image.tobytes()) for image in part.images] == part.labels.tolist()
    assert [class_names[label] for label in (0, 3, 9)] == ["airplane", "cat", "truck"]
