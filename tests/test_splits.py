"""Splits and samples: every image is followed from the data to the parts."""

import numpy as np
import pytest

from pipeline.data.splits import Images, at_most, checksum, sample, stratified_split


def numbered(labels):
    """`Images` that hold their own indices in place of pixels."""
    return Images(np.arange(len(labels)), np.asarray(labels))


@pytest.mark.parametrize("seed", range(40))
def test_a_split_is_stratified_and_keeps_every_image(seed):
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.repeat(generator.permutation(20)[:7], [*generator.integers(1, 40, 6), 3]))
    fraction = generator.uniform(0.01, 0.99)
    parts = first, second = stratified_split(numbered(labels), fraction, seed)
    assert sorted([*first.images, *second.images]) == list(range(len(labels)))
    for part in parts:
        np.testing.assert_array_equal(part.labels, labels[part.images])
        assert (np.diff(part.images) > 0).all()  # the given order
    for label in np.unique(labels):
        total, kept, held_out = ((each == label).sum() for each in (labels, first.labels, second.labels))
        assert kept >= min(total, 2)
        assert held_out >= (total > 2)
        near = abs(held_out - fraction * total) <= 0.5
        assert near or held_out == 1 > fraction * total or kept == min(total, 2)


def test_a_sample_is_balanced_and_reproducible_from_the_seed():
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2, 5], [400, 60, 12, 4]))
    for count, expected in [(200, [50, 50, 12, 4]), (8, [10, 10, 10, 4])]:
        first, again, other = (sample(numbered(labels), count, seed) for seed in (0, 0, 1))
        np.testing.assert_array_equal(first.labels, labels[first.images])
        assert (np.diff(first.images) > 0).all()  # no image twice
        assert [(first.labels == label).sum() for label in (0, 1, 2, 5)] == expected
        np.testing.assert_array_equal(first.images, again.images)
        assert (first.images != other.images).any()


def test_the_checksum_changes_with_every_pixel_label_class_name_and_the_order():
    generator = np.random.default_rng(0)
    parts = [Images(generator.integers(0, 256, (4, 3, 2, 2), "uint8"), np.arange(4, dtype="int32")) for _ in range(2)]
    sums = {checksum(parts, ["a", "b"]), checksum(parts, ["a", "c"]), checksum(parts[::-1], ["a", "b"])}
    assert checksum([Images(*map(np.copy, part)) for part in parts], ["a", "b"]) in sums
    parts[1].images[3, 2, 1, 1] ^= 1
    sums.add(checksum(parts, ["a", "b"]))
    parts[0].labels[0] += 1
    sums.add(checksum(parts, ["a", "b"]))
    assert len(sums) == 5


@pytest.mark.parametrize(("value", "expected"), [(8, 3), (4, 3), (3, 3), (2, 2)])
def test_a_constant_above_what_the_images_allow_is_reduced_with_one_line(value, expected, capsys):
    assert at_most("CLASSES_PER_BATCH", value, 3, "the number of classes") == expected
    printed = capsys.readouterr().out
    if value == expected:
        assert printed == ""
    else:
        assert printed.count("\n") == 1
        assert all(part in printed for part in (f"CLASSES_PER_BATCH = {value} ", " 3", "the number of classes"))
