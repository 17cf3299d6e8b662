"""What is measured after training, against plain loops and hand-computed values."""

import numpy as np
import pytest

from pipeline.data.splits import DataSet, Images
from pipeline.neighbour_scores import evaluate, retrieval_scores
from pipeline.report.results import accuracy_after_adding, measure_results, unknown_scores


def loop_distances(references, query):
    """Euclidean distances of one query, in float64."""
    return np.sqrt(((references.astype("float64") - query) ** 2).sum(axis=1)).tolist()


def loop_prediction(references, labels, query, neighbours):
    """The class of a query and the distance to its nearest reference; near a small class fewer neighbours vote."""
    distances, labels = loop_distances(references, query), [int(label) for label in labels]
    near = sorted(range(len(labels)), key=lambda place: distances[place])[:neighbours]
    sizes = [labels.count(labels[place]) for place in near]
    voters = min([neighbours, *(size for rank, size in enumerate(sizes) if rank < size)])
    votes = {}
    for place in near[:voters]:
        count, total = votes.get(labels[place], (0, 0.0))
        votes[labels[place]] = (count + 1, total + distances[place])
    return min(votes, key=lambda label: (-votes[label][0], votes[label][1])), distances[near[0]]


def clusters(counts, seed, first=0):
    """Overlapping clusters of so many embeddings of the classes from `first` on, in random order, and their labels."""
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.repeat(np.arange(first, first + len(counts)), counts)).astype("int32")
    centres = np.random.default_rng(9).normal(size=(20, 4))
    return (centres[labels] + 0.7 * generator.normal(size=(len(labels), 4))).astype("float32"), labels


# Known and unknown images


@pytest.mark.parametrize(
    ("known", "unknown", "threshold", "expected"),
    [
        ([0.1, 0.2], [0.3, 0.4], 0.25, (1, 0, 1)),
        ([0.3, 0.4], [0.1, 0.2], 0.25, (0, 1, 0)),
        # Of 2 * 3 pairs, (0.1, 0.2), (0.1, 0.5), (0.1, 0.7), (0.6, 0.7): 4 of 6.
        ([0.1, 0.6], [0.2, 0.5, 0.7], 0.5, (4 / 6, 1 / 2, 1 / 3)),  # 0.5 itself is not above the threshold
        ([0.5, 0.1], [0.5], 0.5, (3 / 4, 0, 0)),  # a tie is half a pair
        ([0.5, 0.5], [0.5, 0.5], 0.4, (1 / 2, 1, 1)),
    ],
)
def test_unknown_scores_by_hand(known, unknown, threshold, expected):
    names = ("AUROC", "known rejected", "unknown rejected")
    scores = unknown_scores(np.array(known), np.array(unknown), threshold)
    assert list(scores) == list(names)
    assert scores == pytest.approx(dict(zip(names, expected, strict=True)))


def test_the_auroc_is_the_fraction_of_pairs_in_which_the_unknown_image_is_farther():
    generator = np.random.default_rng(0)
    known, unknown = np.round(generator.random(60), 1), np.round(generator.random(45) + 0.2, 1)  # with ties
    pairs = [1.0 if far > near else 0.5 if far == near else 0.0 for near in known for far in unknown]
    assert unknown_scores(known, unknown, 0.6)["AUROC"] == pytest.approx(sum(pairs) / len(pairs))


def test_scores_that_need_images_that_there_are_not_are_missing():
    some, none = np.array([0.1, 0.9, 0.8, 0.7]), np.zeros(0)
    assert unknown_scores(some, none, 0.5) == {"known rejected": 3 / 4}
    assert unknown_scores(none, some, 0.8) == {"unknown rejected": 1 / 4}
    assert unknown_scores(none, none, 0.5) == {}


# Classes that are added


def loop_accuracy(references, reference_labels, embeddings, labels, neighbours, threshold, seed):
    """For each number of images, ten times: the same random images are added, and the others are classified."""
    generator, result, classes = np.random.default_rng((seed, 4)), {}, sorted(set(labels.tolist()))
    for count in (1, 5, 20, 100):
        if any((labels == label).sum() <= count for label in classes):
            continue
        accuracies = []
        for _ in range(10):
            added = []
            for label in classes:
                added += generator.permutation(np.flatnonzero(labels == label))[:count].tolist()
            known = np.concatenate([references, embeddings[added]])
            known_labels = [*reference_labels.tolist(), *labels[added].tolist()]
            correct = []
            for place in range(len(labels)):
                if place not in added:
                    predicted, distance = loop_prediction(known, known_labels, embeddings[place], neighbours)
                    correct.append(predicted == labels[place] and distance <= threshold)
            accuracies.append(sum(correct) / len(correct))
        mean = sum(accuracies) / 10
        result[count] = mean, (sum((each - mean) ** 2 for each in accuracies) / 10) ** 0.5
    return result


@pytest.mark.parametrize(
    ("neighbours", "counts", "threshold", "numbers"),
    [
        (5, [12, 7, 6], 1e9, [1, 5]),
        (5, [12, 7, 6], 0.8, [1, 5]),  # some are called unknown
        (1, [9, 6], 1e9, [1, 5]),
        (30, [6, 8], 1e9, [1, 5]),  # as many as there are training images: more than are added
        (3, [5, 9], 1e9, [1]),  # after adding five, a class would have none left
        (4, [21, 22], 1.0, [1, 5, 20]),
        (3, [30], 1e9, [1, 5, 20]),  # a single class
        (3, [1, 9], 1e9, []),
    ],
)
@pytest.mark.parametrize("seed", [0, 3])
def test_the_accuracy_after_adding_is_that_of_plain_loops(seed, neighbours, counts, threshold, numbers):
    references, reference_labels = clusters([16, 2, 12], seed)
    embeddings, labels = clusters(counts, seed + 10, first=3)
    given = references, reference_labels, embeddings, labels, neighbours, threshold, seed
    result = accuracy_after_adding(*given)
    assert list(result) == numbers
    expected = loop_accuracy(*given)
    assert list(expected) == numbers
    for number in numbers:
        assert result[number] == pytest.approx(expected[number], abs=1e-9)


def test_images_beyond_the_threshold_are_not_recognised():
    references, reference_labels = clusters([10, 10], 0)
    embeddings, labels = clusters([9, 9], 1, first=2)
    assert accuracy_after_adding(references, reference_labels, embeddings, labels, 3, 0.0, 0) == {
        1: (0, 0),
        5: (0, 0),
    }


# Everything

PARTS = ("validation", "test", "held_out")
NONE = Images(np.zeros((0, 3, 2, 2), "uint8"), np.zeros(0, "int32"))


def random_images(counts, seed, first=0):
    """Images of noise around a colour of their class, in random order."""
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.repeat(np.arange(first, first + len(counts)), counts)).astype("int32")
    pixels = 45 * labels[:, None, None, None] + generator.normal(size=(len(labels), 3, 2, 2)) * 40
    return Images(np.clip(pixels, 0, 255).astype("uint8"), labels)


def embed(data):
    """A fixed projection to four numbers in place of a network."""
    projection = np.random.default_rng(5).normal(size=(12, 4)).astype("float32")
    return data.pixels().reshape(len(data.labels), 12).astype("float32") @ projection


BOTH = DataSet(
    random_images([12, 9, 6], 0),
    random_images([7, 6, 6], 1),
    random_images([5, 9, 3], 2),
    random_images([8, 6], 3, first=3),
    ["a", "b", "c"],
    ["d", "e"],
)
DATA = {
    "both": BOTH,
    "no held-out images": BOTH._replace(held_out=NONE, held_out_names=[]),
    "no test images": BOTH._replace(test=NONE),
}


@pytest.mark.parametrize("data", DATA.values(), ids=DATA)
def test_everything_is_measured_with_the_training_images_as_references(data):
    results = measure_results(embed, data, 3, 0.1, seed=2)
    references, labels = embed(data.train), data.train.labels
    np.testing.assert_array_equal(results.references, references)
    shown = data.test if len(data.test.labels) else data.held_out
    np.testing.assert_array_equal(results.embeddings, embed(shown))

    nearest = {part: [min(loop_distances(references, each)) for each in embed(getattr(data, part))] for part in PARTS}
    threshold = sorted(nearest["validation"])[18 - 1]  # of 19 images: 20 * (1 - 0.1) = 18
    assert results.threshold == pytest.approx(threshold, rel=1e-5)
    assert sum(distance > results.threshold * (1 + 1e-5) for distance in nearest["validation"]) == 1

    assert results.predicted.shape == data.test.labels.shape
    assert results.indices.shape == (len(data.test.labels), 3)
    for query, predicted, indices in zip(embed(data.test), results.predicted, results.indices, strict=True):
        distances = loop_distances(references, query)
        assert indices.tolist() == sorted(range(len(labels)), key=lambda place: distances[place])[:3]
        assert predicted == loop_prediction(references, labels, query, 3)[0]
    if len(data.test.labels):
        predicted, _, _, scores = evaluate(references, labels, embed(data.test), data.test.labels, 3)
        assert results.method.known == pytest.approx(scores) and results.predicted.tolist() == predicted.tolist()
        assert results.method.correct.tolist() == (predicted == data.test.labels).tolist()
    else:
        assert results.method.known == {}
        assert (
            results.method.correct.tolist() == retrieval_scores(embed(data.held_out), data.held_out.labels)[0].tolist()
        )

    if len(data.held_out.labels):
        held_out = embed(data.held_out), data.held_out.labels
        assert results.method.unseen == pytest.approx(retrieval_scores(*held_out)[1])
        expected = loop_accuracy(references, labels, *held_out, 3, results.threshold, 2)
        assert list(results.added) == list(expected) == [1, 5]
        for number in expected:
            assert results.added[number] == pytest.approx(expected[number], abs=1e-9)
    else:
        assert results.method.unseen == results.added == {}

    expected = {}
    if len(data.test.labels) and len(data.held_out.labels):
        pairs = [far > near for near in nearest["test"] for far in nearest["held_out"]]
        expected["AUROC"] = sum(pairs) / len(pairs)
    for name, part in {"known rejected": "test", "unknown rejected": "held_out"}.items():
        if nearest[part]:
            expected[name] = sum(distance > threshold * (1 + 1e-5) for distance in nearest[part]) / len(nearest[part])
    assert results.unknown == pytest.approx(expected)


def test_the_rate_sets_the_threshold_and_the_seed_the_images_that_are_added():
    first, again, other, strict = (
        measure_results(embed, BOTH, 3, rate, seed) for rate, seed in ((0.1, 0), (0.1, 0), (0.1, 1), (0.6, 0))
    )
    assert first.added == again.added != other.added
    assert (first.threshold, *first.method[:2]) == (other.threshold, *other.method[:2])
    assert strict.threshold < first.threshold
    assert strict.unknown["unknown rejected"] >= first.unknown["unknown rejected"]
    assert strict.unknown["AUROC"] == first.unknown["AUROC"]


def test_a_single_held_out_image_is_no_error():
    """It has no other to be compared with; whether it is called unknown is measured all the same."""
    one = BOTH._replace(held_out=random_images([1], 3, first=3), held_out_names=["d"])
    results = measure_results(embed, one, 3, 0.1, seed=0)
    assert results.added == results.method.unseen == {}
    assert results.unknown["unknown rejected"] in (0, 1)
