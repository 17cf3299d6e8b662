"""Nearest references, votes and scores against plain loops in float64 and hand-computed values."""

import numpy as np
import pytest

from pipeline import neighbours as nearest_neighbours
from pipeline.neighbours import evaluate, mean_average_precision_at_r, nearest, predict_classes, vote


def loop_ranking(references, query):
    """The oracle: indices of the references, nearest first, and all distances, in float64."""
    distances = [np.linalg.norm(query.astype("float64") - reference) for reference in references]
    return sorted(range(len(references)), key=lambda place: distances[place]), distances


def loop_map_at_r(references, reference_labels, queries, query_labels):
    scores = []
    for query, label in zip(queries, query_labels, strict=True):
        r = sum(other == label for other in reference_labels)
        ranked = [reference_labels[place] == label for place in loop_ranking(references, query)[0][:r]]
        if r > 0:
            scores.append(sum(sum(ranked[: place + 1]) / (place + 1) for place in range(r) if ranked[place]) / r)
    return sum(scores) / len(scores)


def random_data(seed, n_queries=25):
    """Overlapping clusters of unequal size; some classes are only in the references or only in the queries."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(6, 6))
    reference_labels = generator.choice(6, 60, p=[0.5, 0.2, 0.15, 0.1, 0.05, 0]).astype("int32")
    query_labels = generator.choice(6, n_queries, p=[0.3, 0, 0.3, 0.2, 0.1, 0.1]).astype("int32")
    references = (centres[reference_labels] + generator.normal(size=(60, 6))).astype("float32")
    queries = (centres[query_labels] + generator.normal(size=(n_queries, 6))).astype("float32")
    return references, reference_labels, queries, query_labels


@pytest.mark.parametrize("neighbours", [1, 7, 60])
def test_the_nearest_references_are_those_of_a_plain_loop(neighbours):
    references, _, queries, _ = random_data(0)
    distances, indices = nearest(references, queries, neighbours)
    assert distances.shape == indices.shape == (25, neighbours)
    for query, index, distance in zip(queries, indices, distances, strict=True):
        ranking, expected = loop_ranking(references, query)
        assert index.tolist() == ranking[:neighbours]
        np.testing.assert_allclose(distance, np.array(expected)[index], rtol=1e-5)


def test_each_of_many_close_vectors_is_its_own_nearest_reference():
    """Unit vectors that differ in the fourth digit, like those of a network that has hardly been trained."""
    vectors = 1 + 1e-4 * np.random.default_rng(1).normal(size=(500, 128))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype("float32")
    assert nearest(vectors, vectors, 1)[1][:, 0].tolist() == list(range(500))


@pytest.mark.parametrize("neighbours", [0, -1, 61])
def test_fewer_than_one_and_more_neighbours_than_references_are_refused(neighbours):
    references, reference_labels, queries, query_labels = random_data(0)
    with pytest.raises(ValueError, match=f"between 1 and 60. Received: {neighbours}"):
        predict_classes(references, reference_labels, queries, neighbours)
    with pytest.raises(ValueError, match=f"between 1 and 60. Received: {neighbours}"):
        evaluate(references, reference_labels, queries, query_labels, neighbours)


@pytest.mark.parametrize(
    ("distances", "labels", "winner"),
    [
        ([0.5], [4], 4),
        ([0.1, 0.2, 0.3], [7, 2, 2], 2),  # the most votes win, though farther
        ([0.1, 0.2, 0.3, 0.5], [1, 0, 0, 1], 0),  # two votes each: 0.5 is less than 0.6
        ([0.1, 0.2, 0.3, 0.35], [1, 0, 0, 1], 1),  # 0.45 is less than 0.5
        ([0.1, 0.2, 0.3], [5, 3, 1], 5),  # one vote each: the nearest
        ([0.0, 0.4, 0.5, 0.5, 0.6], [9, 1, 2, 2, 1], 1),  # 9 has too few votes; both sums are 1, and 1 is nearer
        ([0.0, 0.0, 0.0], [2, 0, 0], 0),  # no division by a distance of 0
    ],
)
def test_votes_by_hand(distances, labels, winner):
    assert vote(np.array([distances, distances]), np.array([labels, labels])).tolist() == [winner, winner]


@pytest.mark.parametrize("neighbours", [1, 2, 5, 12])
@pytest.mark.parametrize("seed", range(2))
def test_predictions_and_scores_are_those_of_plain_loops(seed, neighbours):
    references, reference_labels, queries, query_labels = random_data(seed)
    expected, recall = [], {1: 0, 5: 0, 10: 0}
    for query, label in zip(queries, query_labels, strict=True):
        ranking, distances = loop_ranking(references, query)
        votes = {}
        for place in ranking[:neighbours]:
            count, total = votes.get(reference_labels[place], (0, 0.0))
            votes[reference_labels[place]] = (count + 1, total + distances[place])
        expected.append(min(votes, key=lambda each: (-votes[each][0], votes[each][1])))
        for k in recall:
            recall[k] += any(reference_labels[place] == label for place in ranking[:k])
    predicted, scores = evaluate(references, reference_labels, queries, query_labels, neighbours)
    assert predicted.tolist() == expected
    assert predict_classes(references, reference_labels, queries, neighbours).tolist() == expected
    assert scores.pop("accuracy") == pytest.approx(np.mean(np.array(expected) == query_labels))
    assert scores.pop("MAP@R") == pytest.approx(
        loop_map_at_r(references, reference_labels, queries, query_labels), rel=1e-6
    )
    assert scores == pytest.approx({f"recall@{k}": found / 25 for k, found in recall.items()})


def test_map_at_r_by_hand():
    """On a line, seen from 0: classes 0, 1, 0, 0, 1."""
    references, reference_labels = np.array([[1.0], [2.0], [3.0], [4.0], [5.0]]), np.array([0, 1, 0, 0, 1])
    query = np.zeros((1, 1))
    # Class 0 has R = 3: hits at ranks 1 and 3, so (1/1 + 2/3) / 3; the hit at rank 4 does not count.
    assert mean_average_precision_at_r(references, reference_labels, query, np.array([0])) == pytest.approx(5 / 9)
    # Class 1 has R = 2: a hit at rank 2, so (1/2) / 2.
    assert mean_average_precision_at_r(references, reference_labels, query, np.array([1])) == pytest.approx(1 / 4)
    # Both; the queries of classes 2 and 7, which have no reference, are not counted.
    both = mean_average_precision_at_r(references, reference_labels, np.zeros((4, 1)), np.array([7, 0, 1, 2]))
    assert both == pytest.approx((5 / 9 + 1 / 4) / 2)
    assert mean_average_precision_at_r(references, reference_labels, query, np.array([2])) == 0


def test_few_references_of_one_class_each_are_evaluated():
    _, scores = evaluate(np.eye(3), np.array([0, 1, 2]), np.eye(3)[[0, 1, 1]], np.array([0, 1, 2]), 1)
    assert scores == pytest.approx(
        {"accuracy": 2 / 3, "recall@1": 2 / 3, "recall@5": 1, "recall@10": 1, "MAP@R": 2 / 3}
    )


def test_map_at_r_in_chunks_is_the_same(monkeypatch):
    data, chunks = random_data(5, n_queries=40), []
    expected = mean_average_precision_at_r(*data)
    in_one = nearest_neighbours.pairwise_distances_chunked

    def in_chunks(*arguments, **options):
        for chunk in in_one(*arguments, **{**options, "working_memory": 60 * 8 * 7 / 2**20}):  # 7 rows of distances
            chunks.append(len(chunk))
            yield chunk

    monkeypatch.setattr(nearest_neighbours, "pairwise_distances_chunked", in_chunks)
    assert mean_average_precision_at_r(*data) == pytest.approx(expected, rel=1e-9)
    assert len(chunks) >= 5
    assert sum(chunks) == 40
