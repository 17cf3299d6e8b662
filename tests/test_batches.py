"""Batches over random data sets and seeds: their images, their order, and the augmentation."""

import itertools
import math
from collections import Counter

import keras
import numpy as np
import pytest

from pipeline.data.batches import Batches, classes_and_images, in_order, random_triplets, training_batches
from pipeline.data.splits import Images
from pipeline.settings.devices import Devices

PLANS = {
    "classes": lambda labels: classes_and_images(labels, 3, 4),
    "triplets": lambda labels: random_triplets(labels, 7),
    "order": lambda labels: in_order(len(labels), 7),
}


def random_labels(generator, most):
    """Shuffled labels of a few classes with 1 to `most` images each; not every number is a label."""
    counts = generator.integers(1, most + 1, generator.integers(2, 9))
    return generator.permutation(np.repeat(generator.permutation(30)[: len(counts)], counts))


def coloured(labels):
    """`Images` of one colour each, which encodes their index and survives shifts and mirroring."""
    indices = np.arange(len(labels))
    colours = np.stack([indices % 256, indices // 256, 255 - indices % 256], axis=1).astype("uint8")
    return Images(np.tile(colours[:, :, None, None], (1, 1, 5, 8)), np.asarray(labels))


@pytest.mark.parametrize("seed", range(100))
def test_batches_are_p_classes_of_k_images_and_hold_every_image(seed):
    generator = np.random.default_rng(seed)
    labels = random_labels(generator, most=40)
    size_of = Counter(labels.tolist())
    p, k = generator.integers(2, len(size_of) + 1), generator.integers(2, 9)
    batches = classes_and_images(labels, p, k)(generator)
    for batch in batches:
        assert sorted(Counter(labels[batch].tolist()).values()) == [k] * p
        times = Counter(batch.tolist())
        for image, count in times.items():  # once, unless the class has fewer than k; then as evenly as possible
            assert k // size_of[labels[image]] <= count <= math.ceil(k / size_of[labels[image]])
    assert set(np.concatenate(batches).tolist()) == set(range(len(labels)))
    groups = [math.ceil(size / k) for size in size_of.values()]
    assert len(batches) == max(math.ceil(sum(groups) / p), max(groups))


def test_the_order_of_batches_and_the_images_in_them_are_random():
    plan, together = classes_and_images(np.repeat([0, 1, 2], [12, 6, 3]), 2, 3), np.zeros((21, 21))
    for seed in range(1000):
        first = plan(np.random.default_rng(seed))[0]
        together[np.ix_(first, first)] += 1
    assert together.diagonal().min() > 180  # an epoch has 4 batches, so at least 250 are expected
    assert together[:12, :12].min() > 20  # expected for two images of 12 in a group of 3: 1000 * 3 / 12 * 2 / 11


@pytest.mark.parametrize("seed", range(40))
def test_every_image_with_a_positive_is_the_anchor_once_and_the_last_batch_is_full(seed):
    generator = np.random.default_rng(seed)
    labels = random_labels(generator, most=12)
    batches = random_triplets(labels, 5)(generator)
    anchors = [i for i, label in enumerate(labels) if (labels == label).sum() > 1]
    assert [len(batch) for batch in batches] == [5] * -(-len(anchors) // 5)
    triplets = np.concatenate([*batches, np.empty((0, 3), int)])
    anchor, positive, negative = triplets[: len(anchors)].T
    assert sorted(anchor.tolist()) == anchors
    np.testing.assert_array_equal(
        triplets[len(anchors) :], np.resize(triplets[: len(anchors)], (9, 3))[: len(triplets) - len(anchors)]
    )
    assert (labels[anchor] == labels[positive]).all()
    assert (anchor != positive).all()
    assert (labels[anchor] != labels[negative]).all()


def test_positives_negatives_and_the_first_anchor_are_uniformly_random():
    labels = np.array([4, 0, 7, 0, 4, 0, 7, 4, 0, 7, 0, 9])
    plan, generator, times = random_triplets(labels, 5), np.random.default_rng(0), np.zeros((3, 12, 12))
    for _ in range(3000):
        anchor, positive, negative = np.concatenate(plan(generator))[:11].T
        times[0, anchor, positive] += 1
        times[1, anchor, negative] += 1
        times[2, 0, anchor[0]] += 1
    same, alone = labels[:, None] == labels, labels == 9
    others, first = ~same & ~alone[:, None], np.outer(np.arange(12) == 0, ~alone)
    for drawn, allowed in zip(times, [same & ~np.eye(12, dtype=bool), others, first], strict=True):
        expected = 3000 * allowed / np.maximum(allowed.sum(axis=1, keepdims=True), 1)
        assert (np.abs(drawn - expected) <= 5 * np.sqrt(expected)).all()  # five standard deviations


@pytest.mark.parametrize("augment", ["none", "shift", "shift_flip"])
@pytest.mark.parametrize("kind", PLANS)
def test_images_and_labels_follow_the_plan(kind, augment):
    labels = np.random.default_rng(1).integers(0, 5, 300)
    data = coloured(labels)
    stored = data.pixels().copy()
    batches = Batches(data, PLANS[kind](labels), 3, augment)
    for epoch in range(3):
        batches.start_epoch(epoch)
        for number in reversed(range(len(batches))):
            images, labels_of_batch = batches[number]
            assert images.dtype == np.uint8
            assert images.shape == (*batches.batches[number].shape, 3, 5, 8)
            assert (images == images[..., :1, :1]).all()
            indices = images[..., 0, 0, 0] + 256 * images[..., 1, 0, 0].astype(int)
            np.testing.assert_array_equal(indices, batches.batches[number])
            np.testing.assert_array_equal(labels_of_batch, labels[indices[:, 0] if kind == "triplets" else indices])
    np.testing.assert_array_equal(data.pixels(), stored)


@pytest.mark.parametrize("kind", PLANS)
def test_an_epoch_depends_only_on_its_number_and_the_seed(kind):
    labels = np.arange(5).repeat(20)
    data = Images(np.random.default_rng(2).integers(0, 256, (100, 3, 8, 8), "uint8"), labels)

    def epoch_of(seed, *epochs):
        batches = Batches(data, PLANS[kind](labels), seed, "shift" if kind == "order" else "none")
        for epoch in epochs:
            batches.start_epoch(epoch)
        return np.concatenate([batches[number][0] for number in range(len(batches))])

    expected = epoch_of(0, 2)
    np.testing.assert_array_equal(epoch_of(0, 0, 5, 2), expected)
    np.testing.assert_array_equal(epoch_of(0), epoch_of(0, 0))
    for other in (epoch_of(0, 1), epoch_of(1, 2)):  # "order" differs in the augmentation, the others in the plan
        assert other.shape == expected.shape
        assert np.mean(other != expected) > 0.5


def shifted(image, down, right, mirror):
    """The oracle: looks up each pixel; beyond the border the image is mirrored without repeating the border."""
    _, height, width = image.shape
    result = np.empty_like(image)
    for y in range(height):
        for x in range(width):
            row, column = abs(y + down), abs((width - 1 - x if mirror else x) + right)
            result[:, y, x] = image[:, min(row, 2 * height - 2 - row), min(column, 2 * width - 2 - column)]
    return result


@pytest.mark.parametrize("shape", [(1200,), (400, 3)], ids=["images", "triplets"])
@pytest.mark.parametrize("augment", ["none", "shift", "shift_flip"])
def test_images_are_shifted_by_up_to_an_eighth_and_mirrored_if_asked(augment, shape):
    image = np.random.default_rng(4).integers(0, 256, (3, 7, 17), "uint8")  # eighths, rounded up: 1 and 3
    indices = np.zeros(shape, int)
    batches = Batches(Images(image[None], np.zeros(1, int)), lambda generator: [indices, indices], 0, augment)
    images, others = batches[0][0], batches[1][0]
    assert (images != others).any() == (augment != "none")
    shift_of = {
        shifted(image, down, right, mirror).tobytes(): (down, right, mirror)
        for down in range(-1, 2)
        for right in range(-3, 4)
        for mirror in (False, True)
    }
    counts = Counter(shift_of[each.tobytes()] for each in images.reshape(-1, 3, 7, 17))  # KeyError: no such shift
    mirrored = sum(count for (_, _, mirror), count in counts.items() if mirror)
    if augment == "none":
        assert counts == {(0, 0, False): 1200}
    elif augment == "shift":
        assert (mirrored, len(counts)) == (0, 3 * 7)
    else:
        assert 500 < mirrored < 700
        assert len(counts) == 2 * 3 * 7


@pytest.mark.parametrize("size", [(1, 1), (1, 3), (2, 1), (2, 2)])
def test_tiny_images_are_shifted_by_a_pixel_at_most(size):
    image = np.random.default_rng(4).integers(0, 256, (3, *size), "uint8")
    batches = Batches(Images(image[None], np.zeros(1, int)), lambda _: [np.zeros(300, int)], 0, "shift_flip")
    ways = itertools.product((-1, 0, 1), (-1, 0, 1), (False, True))
    possible = {shifted(image, *way).tobytes() for way in ways}
    assert {each.tobytes() for each in batches[0][0]} == possible


def test_predict_receives_the_images_in_order():
    """Keras may fetch batches ahead, in threads of its own."""
    data = coloured(np.arange(60))
    flat = keras.Sequential([keras.Input((3, 5, 8)), keras.layers.Reshape((-1,))])
    predicted = flat.predict(Batches(data, in_order(60, 7)), verbose=0)
    np.testing.assert_array_equal(predicted.reshape(data.pixels().shape), data.pixels())


def test_the_rest_of_an_epoch_equals_that_part_of_the_whole_epoch():
    data = coloured(np.arange(40))
    whole, rest = (Batches(data, in_order(40, 4), 3, "shift_flip") for _ in range(2))
    whole.start_epoch(2)
    rest.start_epoch(2, first_batch=7)
    assert len(rest) == 3
    for number in range(3):
        for expected, actual in zip(whole[7 + number], rest[number], strict=True):
            np.testing.assert_array_equal(actual, expected)


def images_of_classes(*counts):
    """`Images` of classes with the given numbers of images, and their class names."""
    return coloured(np.repeat(np.arange(len(counts)), counts)), [f"class {number}" for number in range(len(counts))]


def test_with_fewer_classes_than_asked_every_batch_has_all_of_them(capsys):
    train, class_names = images_of_classes(9, 4, 6)
    batches = training_batches(train, class_names, "in_batch", 8, 4, seed=0, augment="none")
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    assert "CLASSES_PER_BATCH = 8 " in printed and " 3" in printed
    assert len(batches) == 3  # nine images are three groups of four
    for number in range(3):
        assert np.bincount(batches[number][1]).tolist() == [4, 4, 4]


def test_classes_with_fewer_than_k_images_are_named(capsys):
    train, class_names = images_of_classes(5, 2, 4, 3)
    training_batches(train, class_names, "in_batch", 4, 4, seed=0, augment="none")
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    assert "IMAGES_PER_CLASS = 4 " in printed
    assert printed.endswith(": class 1 (2), class 3 (3)\n")
    train, class_names = images_of_classes(*[4] * 5, *[3] * 60)
    training_batches(train, class_names, "in_batch", 4, 4, seed=0, augment="none")
    printed = capsys.readouterr().out
    assert printed.count("(3)") == 20 and printed.endswith("...\n")
    training_batches(train, class_names, "in_batch", 4, 3, seed=0, augment="none")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("large", "warned"), [(70, False), (400, True)])
def test_imbalanced_classes_are_named_with_the_uses_of_their_images(large, warned, capsys):
    """Four images of one class fill as many groups of four as the other class has."""
    train, class_names = images_of_classes(4, large)
    batches = training_batches(train, class_names, "in_batch", 2, 4, seed=0, augment="none")
    labels = np.concatenate([batches[number][1] for number in range(len(batches))])
    uses = np.bincount(labels) / [4, large]
    printed = capsys.readouterr().out
    assert ("classes are imbalanced" in printed) == warned
    if warned:
        assert uses.round().tolist() == [100, 1]
        assert "each image of class 0 (4 images) 100 times, each of class 1 (400) 1 times" in printed


def test_triplets_for_the_merge_loss_are_as_many_as_the_images_of_a_batch_give(capsys):
    train, class_names = images_of_classes(9, 2, 6)  # fewer classes than P, and one with fewer images than K
    batches = training_batches(train, class_names, "merge", 5, 4, seed=0, augment="none")
    assert capsys.readouterr().out == ""
    assert [batches[number][0].shape for number in range(3)] == [(6, 3, 3, 5, 8)] * 3
    assert len(batches) == 3
    for number in range(3):
        anchor, positive, negative = train.labels[batches[number][0][:, :, 0, 0, 0]].T
        assert (anchor == positive).all() and (anchor != negative).all()


@pytest.mark.parametrize("count", range(1, 20))
@pytest.mark.parametrize("devices", [1, 2, 3, 4])
def test_batches_in_order_can_be_divided_between_devices(devices, count):
    for batch_size in (1, 4, 7, 64):
        batches = in_order(count, batch_size, devices)(None)
        assert all(len(batch) == batch_size * devices for batch in batches[:-1])
        assert 0 < len(batches[-1]) <= batch_size * devices and len(batches[-1]) % devices == 0
        indices = np.concatenate(batches)
        assert indices.tolist() == [*range(count)] + [count - 1] * (-count % devices)


@pytest.mark.parametrize("triplet_loss", ["in_batch", "merge"])
def test_seed_and_augmentation_are_those_asked_for(triplet_loss):
    labels = np.arange(5).repeat(20)
    data = Images(np.random.default_rng(2).integers(0, 256, (100, 3, 8, 8), "uint8"), labels)
    plan = classes_and_images(labels, 3, 4) if triplet_loss == "in_batch" else random_triplets(labels, 4)
    for seed, augment in ((1, "none"), (2, "shift"), (2, "shift_flip")):
        expected = Batches(data, plan, seed, augment)
        batches = training_batches(data, list("abcde"), triplet_loss, 3, 4, seed, augment)
        assert len(batches) == len(expected)
        for number in range(len(expected)):
            np.testing.assert_array_equal(batches[number][0], expected[number][0])


@pytest.mark.parametrize("augment", ["none", "shift_flip"])
@pytest.mark.parametrize("triplet_loss", ["in_batch", "merge"])
def test_the_rows_of_all_processes_are_those_of_the_whole_batch(triplet_loss, augment):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 3, 9, 8), "uint8")
    data = Images(pixels, np.repeat(np.arange(4), 10))
    whole, *parts = (
        training_batches(data, list("abcd"), triplet_loss, 4, 6, 5, augment, rows)
        for rows in (slice, *(Devices(8, number, 4).rows for number in range(4)))
    )
    for number in range(len(whole)):
        images, labels = whole[number]
        of_parts = [part[number] for part in parts]
        np.testing.assert_array_equal(np.concatenate([each for each, _ in of_parts]), images)
        np.testing.assert_array_equal(np.concatenate([each for _, each in of_parts]), labels)
