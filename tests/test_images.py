"""CIFAR-10 and the digits as arrays, compared with their sources."""

import os

import keras
import numpy as np
import pytest
from processes import run_python
from sklearn.datasets import load_digits

from pipeline.data.image_list import number_of
from pipeline.data.images import load_images, print_summary
from pipeline.downloads import NO_DOWNLOAD
from pipeline.errors import InputError


def test_digits_are_scikit_learns_in_three_channels_from_0_to_255():
    *parts, class_names, held_out_names, value_range, _ = load_images("digits", 32, "pad", 0.2, 0.1, seed=0)
    digits, loaded = load_digits(), []
    for part in parts:
        assert part.pixels().dtype == np.uint8
        assert (part.pixels() == part.pixels()[:, :1]).all()
        flat = part.pixels()[:, 0].reshape(-1, 64).tolist()
        loaded += [(name, class_names[label], *image) for image, label, name in zip(flat, *part[1:3], strict=True)]
    source = zip(digits.target, digits.data.tolist(), strict=True)
    expected = [
        (f"image {number}", str(label), *(round(value * 255 / 16) for value in image))
        for number, (label, image) in enumerate(source)
    ]
    assert len(loaded) == 1797
    assert sorted(loaded) == sorted(expected)
    assert value_range is None and held_out_names == []
    assert [len(part.labels) / 1797 for part in parts] == pytest.approx([0.72, 0.08, 0.2, 0], abs=0.03)
    assert len(parts[3].labels) == 0


def test_the_split_of_the_digits_is_reproducible_from_the_seed():
    first, again, other = (load_images("digits", 32, "scale", 0.3, 0.1, seed).test for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.pixels(), again.pixels())
    assert len(first.labels) != len(other.labels) or (first.pixels() != other.pixels()).any()


def by_name(data, part):
    """The name of each image of a part, and the name of its class."""
    _, labels, names, _ = getattr(data, part)
    all_names = data.class_names + data.held_out_names
    return dict(zip(names, [all_names[label] for label in labels], strict=True))


@pytest.mark.parametrize(("setting", "held_out"), [("3,", ["3"]), ("7, 0", ["0", "7"]), (" 9,5,1,9 ", ["1", "5", "9"])])
def test_held_out_digits_are_in_no_other_part_and_the_others_keep_theirs(setting, held_out, capsys):
    data, without = (
        load_images("digits", 32, "scale", 0.2, 0.1, seed=1, held_out_classes=each) for each in (setting, "none")
    )
    others = [name for name in map(str, range(10)) if name not in held_out]
    assert (data.class_names, data.held_out_names) == (others, held_out)
    target = load_digits().target
    assert by_name(data, "held_out") == {
        f"image {number}": str(label) for number, label in enumerate(target) if str(label) in held_out
    }
    assert min(data.held_out.labels) == len(others)
    rest = {}
    for part in ("train", "validation", "test"):
        assert set(getattr(data, part).labels) == set(range(len(others)))
        rest |= by_name(data, part)
    assert rest == {f"image {number}": str(label) for number, label in enumerate(target) if str(label) not in held_out}
    tested = {name: label for name, label in by_name(without, "test").items() if label not in held_out}
    assert by_name(data, "test") == tested
    print_summary(data)
    line = f"Held-out classes, never trained on: {len(held_out)}, with {len(data.held_out.labels):,} images: "
    assert line + ", ".join(held_out) + "\n" in capsys.readouterr().out


def test_a_number_of_held_out_digits_is_chosen_by_the_seed():
    chosen = []
    for seed in range(6):
        data, again = (load_images("digits", 32, "scale", 0.2, 0.1, seed, held_out_classes="3") for _ in range(2))
        lowest = sorted(map(str, range(10)), key=lambda name: number_of(f"class {name}", seed))[:3]
        assert data.held_out_names == again.held_out_names == sorted(lowest)
        np.testing.assert_array_equal(data.held_out.pixels(), again.held_out.pixels())
        chosen.append(tuple(data.held_out_names))
    assert len(set(chosen)) > 3
    assert load_images("digits", 32, "scale", 0.2, 0.1, 0, held_out_classes="0").held_out_names == []
    assert len(load_images("digits", 32, "scale", 0.2, 0.1, 0, held_out_classes="8").class_names) == 2


@pytest.mark.parametrize("setting", ["9", "ten", "10,", "1 2", ","])
def test_digits_that_cannot_be_held_out_are_refused(setting):
    with pytest.raises(InputError, match=r"^`HELD_OUT_CLASSES` must "):
        load_images("digits", 32, "scale", 0.2, 0.1, seed=0, held_out_classes=setting)


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
    data = load_images("cifar10", 96, "scale", 0.2, 0.1, seed=0)
    train, validation, test, held_out, class_names, held_out_names, _, _ = data
    assert len(held_out.labels) == 0 and held_out_names == []
    assert test.names.tolist() == [f"test image {number}" for number in range(14)]
    np.testing.assert_array_equal(test.pixels(), expected[1][0])
    np.testing.assert_array_equal(test.labels, expected[1][1])
    assert (len(train.labels), len(validation.labels)) == (63, 7)
    names = [f"train image {number}" for number in range(70)]
    place = {image.tobytes(): each for image, *each in zip(*expected[0], names, strict=True)}
    for part in (train, validation):
        found = [place.pop(image.tobytes()) for image in part.pixels()]
        assert found == [list(each) for each in zip(part.labels, part.names, strict=True)]
    assert place == {}
    assert [class_names[label] for label in (0, 3, 9)] == ["airplane", "cat", "truck"]
    data = load_images("cifar10", 96, "scale", 0.2, 0.1, 0, held_out_classes="cat, truck")
    assert data.held_out_names == ["cat", "truck"] and not {"cat", "truck"} & {*data.class_names}
    of_both = [f"{part} image {number}" for part, n in (("train", 70), ("test", 14)) for number in range(n)]
    cats = {name: class_names[int(name.split()[-1]) % 10] for name in of_both if int(name.split()[-1]) % 10 in (3, 9)}
    assert by_name(data, "held_out") == cats  # of the test set too
    assert len(data.test.labels) == 14 - 3 and len(data.held_out.labels) == 14 + 3
    assert len(data.train.labels) + len(data.validation.labels) == 70 - 14
