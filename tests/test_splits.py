"""Splits and samples: every image is followed from the data to the parts."""

from collections import Counter

import numpy as np
import pytest

from pipeline.data.image_list import PARTS, number_of
from pipeline.data.splits import DataSet, Images, at_most, in_parts, repeated_images, sample, split
from pipeline.errors import InputError


def numbered(labels):
    """`Images` that hold their own indices in place of pixels, and in their names."""
    names = np.array([f"image {number}" for number in range(len(labels))], object)
    return Images(np.arange(len(labels)), np.asarray(labels), names)


def names_and_labels(seed, classes=5, most=60):
    """File names and labels of classes of 4 to `most` images; some names occur in several classes."""
    generator = np.random.default_rng(seed)
    pairs = [(f"{number}.png", label) for label in range(classes) for number in range(generator.integers(4, most))]
    return [pairs[index] for index in generator.permutation(len(pairs))]


def parts_of(pairs, seed, test=0.2, validation=0.1):
    """The part of each (name, label)."""
    keys, labels = zip(*pairs, strict=True)
    return dict(zip(pairs, split(keys, labels, ["train"] * len(pairs), test, validation, seed)[0], strict=True))


def test_the_numbers_are_uniform_and_follow_from_name_and_seed_alone():
    numbers = np.array([[number_of(f"{name}.png", seed) for name in range(5000)] for seed in (0, 1)])
    assert (np.abs(np.sort(numbers) - np.linspace(0, 1, 5000)) < 0.03).all()  # Kolmogorov and Smirnov's distance
    assert abs(np.corrcoef(numbers)[0, 1]) < 0.05
    assert number_of("été.png", 3) == 0.6356942042918424  # must never change: test images would train


@pytest.mark.parametrize("seed", range(10))
def test_test_images_are_those_with_numbers_below_the_fraction(seed):
    pairs = names_and_labels(seed)
    parts = parts_of(pairs, seed)
    counts = Counter(label for _, label in pairs)
    for (name, label), part in parts.items():
        if counts[label] > 20:  # so that two training images are left in any case
            assert (part == "test") == (number_of(name, seed) < 0.2)
    highest = max(number_of(name, seed) for (name, _), part in parts.items() if part == "validation")
    lowest = sorted(number_of(name, seed) for (name, _), part in parts.items() if part == "train")
    assert highest < lowest[20]  # those next to the test images, but for classes that are too small
    train = Counter(label for (_, label), part in parts.items() if part == "train")
    assert all(train[label] >= 2 for label in counts)
    rest = [part for part in parts.values() if part != "test"]
    assert rest.count("validation") >= round(0.1 * len(rest))


@pytest.mark.parametrize("seed", range(10))
def test_no_test_image_trains_after_the_data_set_has_grown(seed):
    generator, pairs = np.random.default_rng(seed), names_and_labels(seed, most=12)
    pairs += [(f"{number}.png", 9) for number in range(30)]  # so that some are for testing
    before = parts_of(pairs, seed)
    for _ in range(5):
        new = [(f"new {generator.integers(10**9)}.png", int(label)) for label in generator.integers(0, 8, 9)]
        pairs = [*new, *pairs]
        after = parts_of(pairs, seed)
        assert {pair for pair, part in before.items() if part == "test"} <= {
            pair for pair, part in after.items() if part == "test"
        }
        before = after


@pytest.mark.parametrize("seed", range(5))
def test_removing_and_renaming_images_moves_no_other_one(seed):
    generator, pairs = np.random.default_rng(seed), names_and_labels(seed)
    pairs = [pair for pair in pairs if Counter(label for _, label in pairs)[pair[1]] > 24]
    before = parts_of(pairs, seed)
    gone = {pairs[index] for index in generator.permutation(len(pairs))[:10]}
    fewer = parts_of([pair for pair in pairs if pair not in gone], seed)
    renamed = parts_of([(f"new {name}" if (name, label) in gone else name, label) for name, label in pairs], seed)
    other_classes = parts_of([(name, label + 7) for name, label in pairs], seed)
    for pair, part in before.items():
        assert (other_classes[pair[0], pair[1] + 7] == "test") == (part == "test")
        if pair not in gone:
            assert [(after[pair] == "test") for after in (fewer, renamed)] == [part == "test"] * 2
    assert parts_of(pairs, seed + 1) != before


@pytest.mark.parametrize("seed", range(5))
def test_images_of_a_group_stay_together(seed):
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(4), 100)
    keys = [f"object {number}" for number in generator.integers(0, 30, len(labels))]  # some in several classes
    parts, kept = split(keys, labels.tolist(), ["train"] * len(labels), 0.2, 0.1, seed)
    assert kept == [] and set(parts) == {"train", "validation", "test"}
    assert all(len({part for part, each in zip(parts, keys, strict=True) if each == key}) == 1 for key in keys)


def test_a_class_keeps_two_training_images_and_the_others_are_held_out_first():
    names = sorted((f"{number}.png" for number in range(200)), key=lambda name: number_of(name, 0))
    low, high = names[:4], names[-30:]  # for testing, and for training
    keys, labels = [*low, *high], [0] * 4 + [1] * 30
    parts, kept = split(keys, labels, ["train"] * 34, 0.2, 0.1, 0)
    assert parts[:4] == ["test", "test", "train", "train"] and kept == [2, 3]
    assert parts[4:] == ["validation"] * 3 + ["train"] * 27


def test_a_part_that_the_data_set_has_is_kept():
    keys, labels = [f"{number}.png" for number in range(60)], [0, 1] * 30
    given = ["test"] * 10 + ["train"] * 50
    parts, _ = split(keys, labels, given, 0.5, 0.2, 0)
    assert [part == "test" for part in parts] == [part == "test" for part in given]
    assert parts.count("validation") == 10
    given[-1] = "validation"
    assert split(keys, labels, given, 0.5, 0.2, 0)[0] == given


@pytest.mark.parametrize("seed", range(5))
def test_without_a_test_fraction_no_image_is_for_testing(seed):
    keys, labels = zip(*names_and_labels(seed), strict=True)
    parts, kept = split(keys, labels, ["train"] * len(keys), 0, 0.1, seed)
    assert set(parts) == {"train", "validation"} and kept == []
    assert parts.count("validation") >= round(0.1 * len(keys))
    highest = max(number_of(key, seed) for key, part in zip(keys, parts, strict=True) if part == "validation")
    lowest = sorted(number_of(key, seed) for key, part in zip(keys, parts, strict=True) if part == "train")
    assert highest < lowest[20]  # the lowest numbers, but for classes that are too small


@pytest.mark.parametrize("seed", range(5))
def test_held_out_images_stay_held_out_and_do_not_change_the_split_of_the_others(seed):
    pairs = names_and_labels(seed)
    given = ["held_out" if label in (1, 4) else "train" for _, label in pairs]
    parts, kept = split(*zip(*pairs, strict=True), given, 0.2, 0.1, seed)
    after = dict(zip(pairs, parts, strict=True))
    assert all((part == "held_out") == (label in (1, 4)) for (_, label), part in after.items())
    rest = [pair for pair in pairs if pair[1] not in (1, 4)]
    assert parts_of(rest, seed) == {pair: after[pair] for pair in rest}
    assert all(pairs[index] in rest for index in kept)


def test_too_few_images_are_refused_with_the_constant_to_change():
    with pytest.raises(InputError, match="`TEST_FRACTION` must be larger, `SEED` another"):
        split(["a", "b", "c"] * 2, [0, 0, 0, 1, 1, 1], ["train"] * 6, 1e-9, 0.1, 0)
    with pytest.raises(InputError, match=r"for validation.* at most 2 in a class"):
        split(["a", "b", "c", "d", "e"], [0, 0, 1, 1, 1], ["train"] * 4 + ["test"], 0.2, 0.1, 0)


def divided(everything, parts, class_names, *value_range):
    """`in_parts`, with numbers in place of checksums."""
    return in_parts(everything, parts, class_names, [bytes([number]) for number in range(len(parts))], *value_range)


def test_parts_share_the_pixels_of_all_images():
    for parts in (["train"] * 3 + ["validation"] * 2 + ["test"] * 4, ["train", "validation", "test", "held_out"] * 2):
        everything = numbered(range(len(parts)))
        data = divided(everything, parts, list("abcdefghi"))
        for part in PARTS:
            images = getattr(data, part)
            expected = [index for index, each in enumerate(parts) if each == part]
            assert images.pixels().tolist() == expected
            assert images.names.tolist() == [f"image {index}" for index in expected]
            assert images.array is everything.array


@pytest.mark.parametrize("seed", range(10))
def test_classes_without_an_image_are_left_out_and_each_image_keeps_the_name_of_its_class(seed):
    generator, names = np.random.default_rng(seed), [f"class {number}" for number in range(12)]
    labels = generator.choice(generator.permutation(12)[:9], 40)
    held_out = {*generator.permutation(12)[: seed % 7].tolist()}  # none, with the first seed
    parts = [
        "held_out" if label in held_out else ("train", "validation", "test")[generator.integers(3)] for label in labels
    ]
    data = divided(numbered(labels), parts, names, (1.0, 2.0))
    present = sorted(set(labels.tolist()))
    assert data.class_names == [names[label] for label in present if label not in held_out]
    assert data.held_out_names == [names[label] for label in present if label in held_out]
    assert data.value_range == (1.0, 2.0)
    seen, all_names = [], data.class_names + data.held_out_names
    for part in PARTS:
        images, new_labels = getattr(data, part).pixels(), getattr(data, part).labels
        assert new_labels.dtype == np.int32
        seen += images.tolist()
        for image, label in zip(images, new_labels, strict=True):
            assert parts[image] == part and all_names[label] == names[labels[image]]
            assert (label >= len(data.class_names)) == (part == "held_out")
    assert sorted(seen) == list(range(40))


def test_images_without_names_have_none_in_any_part():
    data = divided(Images(np.arange(4), np.zeros(4, int)), ["train", "test", "train", "validation"], ["a"])
    assert [part.names for part in data[:4]] == [None] * 4
    assert data.train.of(np.array([1])).names is None


def test_some_of_the_images_are_those_with_their_labels_and_names():
    chosen = numbered([4, 5, 6, 7]).of(np.array([3, 0, 1]))
    for some, numbers in ((chosen, [3, 0, 1]), (chosen.of(np.array([2, 0])), [1, 3])):
        assert some.pixels().tolist() == numbers and some.labels.tolist() == [4 + number for number in numbers]
        assert some.names.tolist() == [f"image {number}" for number in numbers]
    assert chosen.pixels(1) == 0 and chosen.pixels(slice(1, 9)).tolist() == [0, 1]
    assert chosen.pixels(np.array([[2, 0], [1, 1]])).tolist() == [[1, 3], [0, 0]]


def test_figures_show_the_test_images_and_without_any_the_held_out_ones():
    """The labels of held-out images then begin at 0, as their names do."""
    train, test, none, held_out = (numbered(labels) for labels in ([0, 1], [1, 0, 1], [], [3, 2, 3]))
    data = DataSet(train, train, test, held_out, ["a", "b"], ["c", "d"])
    assert data.shown() == (test, ["a", "b"])
    shown, names = data._replace(test=none).shown()
    assert [names[label] for label in shown.labels] == ["d", "c", "d"]
    assert shown.array is held_out.array and shown.names is held_out.names
    assert held_out.labels.tolist() == [3, 2, 3]  # unchanged


def test_of_equal_images_in_two_parts_that_of_the_test_set_stays():
    digests = dict(enumerate([b"a", b"b", b"c", b"a", b"b", b"c", b"c", b"d", b"d", b"a"]))
    parts = ["train", "train", "train", "test", "validation", "validation", "test", "train", "train"]
    assert repeated_images(digests, dict(enumerate(parts))) == {0: 3, 1: 4, 2: 6, 5: 6}  # the last has no part


def test_of_images_equal_to_a_held_out_one_only_held_out_ones_stay():
    digests = dict(enumerate([b"a", b"b", b"c", b"a", b"a", b"b", b"a", b"d", b"d", b"c"]))
    parts = ["train", "train", "train", "held_out", "test", "held_out", "held_out", "test", "validation", "validation"]
    assert repeated_images(digests, dict(enumerate(parts))) == {0: 3, 4: 3, 1: 5, 8: 7, 2: 9}


def test_a_sample_is_balanced_and_reproducible_from_the_seed():
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2, 5], [400, 60, 12, 4]))
    for count, expected in [(200, [50, 50, 12, 4]), (8, [10, 10, 10, 4])]:
        first, again, other = (sample(numbered(labels), count, seed) for seed in (0, 0, 1))
        np.testing.assert_array_equal(first.labels, labels[first.pixels()])
        assert first.names.tolist() == [f"image {image}" for image in first.pixels()]
        assert (np.diff(first.pixels()) > 0).all()  # no image twice
        assert [(first.labels == label).sum() for label in (0, 1, 2, 5)] == expected
        np.testing.assert_array_equal(first.pixels(), again.pixels())
        assert (first.pixels() != other.pixels()).any()


def test_the_checksum_changes_with_every_image_label_class_name_the_order_and_the_split():
    parts, digests = ["train", "train", "validation", "test", "held_out"], [bytes([7 * each]) for each in range(5)]

    def checksum(labels=(0, 1, 0, 1, 2), parts=parts, names="abc", digests=digests):
        return in_parts(numbered(np.array(labels, "int32")), parts, list(names), digests).checksum

    others = [
        checksum(labels=(1, 0, 0, 1, 2)),
        checksum(parts=["train", "train", "test", "validation", "held_out"]),
        checksum(names="abd"),
        checksum(digests=[b"\x01", *digests[1:]]),
        checksum(digests=digests[::-1]),
    ]
    assert len({checksum(), *others}) == 6
    assert checksum() == checksum(names="abcd")  # a class without an image does not matter


@pytest.mark.parametrize(("value", "expected"), [(8, 3), (4, 3), (3, 3), (2, 2)])
def test_a_constant_above_what_the_images_allow_is_reduced_with_one_line(value, expected, capsys):
    assert at_most("CLASSES_PER_BATCH", value, 3, "the number of classes") == expected
    printed = capsys.readouterr().out
    if value == expected:
        assert printed == ""
    else:
        assert printed.count("\n") == 1
        assert all(part in printed for part in (f"CLASSES_PER_BATCH = {value} ", " 3", "the number of classes"))
