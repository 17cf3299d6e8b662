"""Nearest references, votes and scores against plain loops in float64 and hand-computed values."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from pipeline import neighbour_scores
from pipeline import neighbours as nearest_neighbours
from pipeline.neighbour_scores import (
    evaluate,
    mean_average_precision_at_r,
    nearest_neighbour_accuracy,
    retrieval_scores,
)
from pipeline.neighbours import nearest, nearest_others, predict_classes, unknown_threshold, vote


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


def loop_vote(labels, distances, counts):
    """The winner and its share of the votes of neighbours, nearest first; `counts` are the references of each class."""
    voters = min([len(labels), *(counts[label] for place, label in enumerate(labels) if place < counts[label])])
    votes = {}
    for label, distance in zip(labels[:voters], distances[:voters], strict=True):
        count, total = votes.get(label, (0, 0.0))
        votes[label] = (count + 1, total + distance)
    winner = min(votes, key=lambda each: (-votes[each][0], votes[each][1]))
    return winner, votes[winner][0] / voters


def random_data(seed, n_queries=25):
    """Overlapping clusters of unequal size; some classes are only in the references or only in the queries."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(6, 6))
    reference_labels = generator.choice(6, 60, p=[0.5, 0.2, 0.15, 0.1, 0.05, 0]).astype("int32")
    query_labels = generator.choice(6, n_queries, p=[0.3, 0, 0.3, 0.2, 0.1, 0.1]).astype("int32")
    references = (centres[reference_labels] + generator.normal(size=(60, 6))).astype("float32")
    queries = (centres[query_labels] + generator.normal(size=(n_queries, 6))).astype("float32")
    return references, reference_labels, queries, query_labels


@pytest.fixture(params=["scikit-learn", "faiss", "faiss on GPUs", "faiss on GPUs that are full"])
def search(request, monkeypatch):
    """Each way of searching. The GPUs are two parts of an index that faiss divides as it does between GPUs."""
    if request.param == "scikit-learn":
        return
    faiss = pytest.importorskip("faiss")
    monkeypatch.setattr(nearest_neighbours, "MANY_PAIRS", 0)

    def divided(index, options):
        if request.param.endswith("full"):
            raise RuntimeError("out of memory")
        assert options.shard
        shards = faiss.IndexShards(index.d, True, True)
        for _ in range(2):
            shards.add_shard(faiss.IndexFlatL2(index.d))
        return shards

    if "GPUs" in request.param:
        monkeypatch.setattr(faiss, "get_num_gpus", lambda: 2)
        monkeypatch.setattr(faiss, "GpuMultipleClonerOptions", SimpleNamespace, raising=False)
        monkeypatch.setattr(faiss, "index_cpu_to_all_gpus", divided)


@pytest.mark.usefixtures("search")
@pytest.mark.parametrize("neighbours", [1, 7, 60])
def test_the_nearest_references_are_those_of_a_plain_loop(neighbours):
    references, _, queries, _ = random_data(0)
    distances, indices = nearest(references, queries, neighbours)
    assert distances.shape == indices.shape == (25, neighbours)
    for query, index, distance in zip(queries, indices, distances, strict=True):
        ranking, expected = loop_ranking(references, query)
        assert index.tolist() == ranking[:neighbours]
        np.testing.assert_allclose(distance, np.array(expected)[index], rtol=1e-5)


@pytest.mark.usefixtures("search")
@pytest.mark.parametrize("count", [2, 30])
def test_the_nearest_others_are_those_of_a_plain_loop(count):
    """Some vectors occur several times, so that another one is as near as the vector itself."""
    vectors = np.repeat(random_data(3)[0][:count], [1 + 3 * (place % 5 == 1) for place in range(count)], axis=0)
    neighbours = min(4, len(vectors) - 1)
    distances, indices = nearest_others(vectors, neighbours)
    some = np.arange(len(vectors))[::-2]
    of_some, others = nearest_others(vectors, neighbours, some)
    np.testing.assert_allclose(of_some, distances[some], rtol=1e-5, atol=1e-6)
    expected = np.linalg.norm(vectors[others] - vectors[some, None], axis=-1)
    np.testing.assert_allclose(of_some, expected, rtol=1e-5, atol=1e-6)
    assert not (others == some[:, None]).any()
    for number, (index, distance) in enumerate(zip(indices, distances, strict=True)):
        ranking, expected = loop_ranking(vectors, vectors[number])
        assert number not in index and len(set(index)) == neighbours
        nearest_distances = [expected[place] for place in ranking if place != number][:neighbours]
        np.testing.assert_allclose(distance, nearest_distances, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(np.array(expected)[index], nearest_distances, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("search")
@pytest.mark.parametrize("spread", [1e-2, 1e-3, 1e-4])
def test_neighbours_in_tight_clusters_are_exact(spread):
    """As of a network whose embeddings nearly collapse: three clusters on the unit sphere, far from each other."""
    generator = np.random.default_rng(0)
    vectors = np.repeat(generator.normal(size=(3, 128)) / 128**0.5, 1000, axis=0)
    vectors += spread / 128**0.5 * generator.normal(size=vectors.shape)
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype("float32")
    distances, indices = nearest(vectors, vectors, 6)
    for query in range(0, 3000, 50):
        expected = np.linalg.norm(vectors.astype("float64") - vectors[query], axis=1)
        np.testing.assert_array_equal(indices[query], expected.argsort(kind="stable")[:6])
        np.testing.assert_allclose(distances[query], np.sort(expected)[:6], rtol=1e-4, atol=1e-7)


@pytest.mark.usefixtures("search")
def test_each_of_many_close_vectors_is_its_own_nearest_reference():
    """Unit vectors that differ in the fourth digit, like those of a network that has hardly been trained."""
    vectors = 1 + 1e-4 * np.random.default_rng(1).normal(size=(500, 128))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype("float32")
    assert nearest(vectors, vectors, 1)[1][:, 0].tolist() == list(range(500))


@pytest.mark.usefixtures("search")
@pytest.mark.parametrize("place", [0, 1])
def test_embeddings_that_are_not_finite_are_refused(place):
    both = [np.ones((5, 3), "float32"), np.ones((4, 3), "float32")]
    both[place][1, 1] = np.nan
    with pytest.raises(ValueError, match=r"NaN|finite"):
        nearest(*both, 2)


@pytest.mark.parametrize("neighbours", [0, -1, 61])
def test_fewer_than_one_and_more_neighbours_than_references_are_refused(neighbours):
    references, reference_labels, queries, query_labels = random_data(0)
    with pytest.raises(ValueError, match=f"between 1 and 60. Received: {neighbours}"):
        predict_classes(references, reference_labels, queries, neighbours)
    with pytest.raises(ValueError, match=f"between 1 and 60. Received: {neighbours}"):
        evaluate(references, reference_labels, queries, query_labels, neighbours)


@pytest.mark.parametrize(
    ("distances", "labels", "winner", "share"),
    [
        ([0.5], [4], 4, 1),
        ([0.1, 0.2, 0.3], [7, 2, 2], 2, 2 / 3),  # the most votes win, though farther
        ([0.1, 0.2, 0.3, 0.5], [1, 0, 0, 1], 0, 1 / 2),  # two votes each: 0.5 is less than 0.6
        ([0.1, 0.2, 0.3, 0.35], [1, 0, 0, 1], 1, 1 / 2),  # 0.45 is less than 0.5
        ([0.1, 0.2, 0.3], [5, 3, 1], 5, 1 / 3),  # one vote each: the nearest
        ([0.0, 0.4, 0.5, 0.5, 0.6], [9, 1, 2, 2, 1], 1, 2 / 5),  # 9 has too few votes; both sums are 1, and 1 is nearer
        ([0.0, 0.0, 0.0], [2, 0, 0], 0, 2 / 3),  # no division by a distance of 0
    ],
)
def test_votes_by_hand(distances, labels, winner, share):
    """Every class has as many references as there are neighbours."""
    classes, shares = vote(np.array([distances] * 2), np.array([labels] * 2), np.full(10, len(labels)))
    assert classes.tolist() == [winner] * 2 and shares.tolist() == pytest.approx([share] * 2)


@pytest.mark.parametrize(
    ("labels", "counts", "winner", "share"),
    [  # nearest first, at the distances 1/8, 2/8 and so on
        ([3, 0, 0, 0, 0], {0: 9, 3: 1}, 3, 1),  # the single reference of class 3 is the nearest
        ([0, 3, 3, 3, 0], {0: 1, 3: 9}, 0, 1),
        ([0, 1, 1, 1, 3], {0: 9, 1: 9, 3: 1}, 1, 3 / 5),  # the single reference is not the nearest: all vote
        ([0, 3, 1, 1, 3], {0: 9, 1: 9, 3: 2}, 0, 1 / 2),  # two vote, for two classes: the nearer
        ([0, 1, 1, 3, 3], {0: 9, 1: 9, 3: 2}, 1, 2 / 5),  # none of the two is among the two nearest: all vote
        ([0, 3, 3, 0, 0], {0: 9, 3: 3}, 3, 2 / 3),  # three vote
        ([0, 3, 3, 0, 0], {0: 9, 3: 4}, 0, 1 / 2),  # four vote: 1 + 4 is as far as 2 + 3, and class 0 is nearer
        ([0, 3, 3, 0, 0], {0: 9, 3: 5}, 0, 3 / 5),  # all vote
        ([0, 3, 3, 0, 0], {0: 9, 2: 1, 3: 9}, 0, 3 / 5),  # the class of one reference is not among the neighbours
        ([0, 3, 2, 2, 2], {0: 2, 2: 9, 3: 3}, 0, 1 / 2),  # of two small classes the smaller counts
        ([3], {3: 1}, 3, 1),
        ([3], {3: 4}, 3, 1),
    ],
)
def test_near_a_small_class_only_as_many_vote_as_it_has_references(labels, counts, winner, share):
    distances = np.array([range(1, len(labels) + 1)]) / 8  # sums of them are exact
    classes, shares = vote(distances, np.array([labels]), np.array([counts.get(label, 0) for label in range(4)]))
    assert classes.tolist() == [winner] and shares.tolist() == pytest.approx([share])
    assert loop_vote(labels, distances[0], counts) == (winner, pytest.approx(share))


@pytest.mark.parametrize("neighbours", [1, 3, 8])
def test_votes_for_many_images_are_those_of_plain_loops(neighbours):
    """The neighbours of each image are the nearest of references of six classes, some of them small."""
    generator, counts = np.random.default_rng(neighbours), np.array([1, 2, 3, 5, 20, 20])
    references = np.repeat(np.arange(6), counts)
    labels = np.array([generator.permutation(references)[:neighbours] for _ in range(500)], "int32")
    distances = np.sort(generator.random((500, neighbours)), axis=1)
    classes, shares = vote(distances, labels, counts)
    assert classes.dtype == np.int32
    expected = [loop_vote(each.tolist(), near, counts) for each, near in zip(labels, distances, strict=True)]
    assert classes.tolist() == [winner for winner, _ in expected]
    assert shares.tolist() == pytest.approx([share for _, share in expected])


def test_votes_of_many_neighbours_are_counted_in_parts():
    """1500 neighbours, of which one image's comparisons take a part of their own."""
    labels = np.random.default_rng(0).integers(0, 2, (3, 1501))
    distances = np.tile(np.arange(1501.0), (3, 1))
    classes, shares = vote(distances, labels, np.array([2000, 2000]))
    ones = labels.sum(axis=1)
    assert classes.tolist() == (ones > 750).astype(int).tolist()
    assert shares.tolist() == pytest.approx(np.maximum(ones, 1501 - ones) / 1501)


@pytest.mark.parametrize("neighbours", [1, 2, 5, 12])
@pytest.mark.parametrize("seed", range(2))
def test_predictions_and_scores_are_those_of_plain_loops(seed, neighbours):
    references, reference_labels, queries, query_labels = random_data(seed)
    expected, recall, counts = [], {1: 0, 5: 0, 10: 0}, np.bincount(reference_labels)
    for query, label in zip(queries, query_labels, strict=True):
        ranking, distances = loop_ranking(references, query)
        near = ranking[:neighbours]
        winner, _ = loop_vote([reference_labels[place] for place in near], [distances[place] for place in near], counts)
        expected.append(winner)
        for k in recall:
            recall[k] += any(reference_labels[place] == label for place in ranking[:k])
    predicted, distances, indices, scores = evaluate(references, reference_labels, queries, query_labels, neighbours)
    for given, expected_ones in zip(nearest(references, queries, neighbours), (distances, indices), strict=True):
        np.testing.assert_array_equal(expected_ones, given)
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


def test_map_at_r_among_themselves_by_hand():
    """On a line: classes 0, 1, 0, 0 at 0, 1, 3 and 7; each is compared with the three others."""
    embeddings, labels = np.array([[0.0], [1.0], [3.0], [7.0]]), np.array([0, 1, 0, 0])
    # R = 2 for class 0. From 0: 1, 0, 0, so (1/2) / 2. From 3: 1, 0, 0, so (1/2) / 2. From 7: 0, 1, 0, so (1/1) / 2.
    # The only image of class 1 is not counted.
    assert mean_average_precision_at_r(embeddings, labels) == pytest.approx((1 / 4 + 1 / 4 + 1 / 2) / 3)
    assert mean_average_precision_at_r(embeddings, np.array([0, 1, 2, 3])) == 0
    assert mean_average_precision_at_r(embeddings[:2], np.array([5, 5])) == 1


def loop_retrieval_scores(embeddings, labels):
    """Each image against all others, which are ranked by a plain loop; without ties the order is unique."""
    found, precisions = {1: 0, 5: 0, 10: 0}, []
    for place, label in enumerate(labels):
        others = [other for other in range(len(labels)) if other != place]
        ranking = [labels[others[each]] for each in loop_ranking(embeddings[others], embeddings[place])[0]]
        for k in found:
            found[k] += label in ranking[:k]
        r = ranking.count(label)
        hits = [sum(each == label for each in ranking[: rank + 1]) for rank in range(r)]
        if r:
            precisions.append(sum(hits[rank] / (rank + 1) for rank in range(r) if ranking[rank] == label) / r)
    scores = {f"recall@{k}": count / len(labels) for k, count in found.items()}
    return {**scores, "MAP@R": sum(precisions) / len(precisions) if precisions else 0}


@pytest.mark.parametrize("count", [2, 3, 9, 60])
@pytest.mark.parametrize("seed", range(3))
def test_retrieval_scores_are_those_of_plain_loops(seed, count):
    """Also with fewer images than ten, and with classes of one image."""
    generator = np.random.default_rng(seed)
    labels = generator.choice([2, 3, 5, 8], count, p=[0.5, 0.3, 0.15, 0.05]).astype("int32")
    labels[:2] = 3, 8  # two classes at least
    embeddings = (labels[:, None] + 3 * generator.normal(size=(count, 5))).astype("float32")
    found, scores = retrieval_scores(embeddings, labels)
    assert scores == pytest.approx(loop_retrieval_scores(embeddings, labels))
    assert found.dtype == bool and found.mean() == pytest.approx(scores["recall@1"])


@pytest.mark.parametrize("seed", range(3))
def test_images_with_equal_embeddings_are_found_and_no_image_finds_itself(seed):
    """Pairs of equal embeddings of one class, but for one that is of two classes: without self-matches by hand."""
    generator = np.random.default_rng(seed)
    embeddings = np.repeat(generator.normal(size=(8, 4)), 2, axis=0).astype("float32")
    labels = np.repeat(np.arange(8), 2)
    order = generator.permutation(16)
    _, scores = retrieval_scores(embeddings[order], labels[order])
    assert scores == {"recall@1": 1, "recall@5": 1, "recall@10": 1, "MAP@R": 1}
    labels[0] = 1  # its twin, alone in class 0, is the nearest of it; those of class 1 are the nearest of each other
    found, scores = retrieval_scores(embeddings[order], labels[order])
    assert sorted(order[~found]) == [0, 1] and scores["recall@1"] == 14 / 16
    expected = loop_retrieval_scores(embeddings[order], labels[order])
    assert scores == pytest.approx(expected)


@pytest.mark.parametrize("count", [2, 11, 40])
def test_all_equal_embeddings_do_not_find_themselves(count):
    """Whatever the order of equal distances: of classes of one image each, none is found."""
    _, scores = retrieval_scores(np.full((count, 3), 0.3, "float32"), np.random.default_rng(0).permutation(count))
    assert scores == {"recall@1": 0, "recall@5": 0, "recall@10": 0, "MAP@R": 0}


@pytest.mark.parametrize("count", [1, 2, 30])
def test_of_a_single_class_there_are_no_retrieval_scores(count):
    """They would be perfect whatever the embeddings are."""
    found, scores = retrieval_scores(np.random.default_rng(0).normal(size=(count, 3)), np.full(count, 4))
    assert len(found) == 0 and scores == {}


@pytest.mark.parametrize(
    ("count", "rate", "rank"),
    [  # the rank is (count + 1) * (1 - rate), rounded up
        (9, 0.1, 9),  # 9.0
        (10, 0.1, 10),  # 9.9
        (19, 0.1, 18),  # 18.0
        (20, 0.1, 19),  # 18.9
        (99, 0.01, 99),  # 99.0: just enough images
        (100, 0.01, 100),  # 99.99
        (199, 0.01, 198),  # 198.0
        (4, 0.5, 3),  # 2.5
        (3, 0.75, 1),  # 1.0
        (3, 0.99, 1),  # 0.04
        (98, 0.01, 98),  # 98.01, more than there are: the largest
        (8, 0.1, 8),
        (1, 0.01, 1),
        (1, 0.5, 1),
    ],
)
def test_the_threshold_by_hand(count, rate, rank):
    distances = np.random.default_rng(count).permutation(np.arange(1, count + 1)) / 4
    before = distances.tolist()
    assert unknown_threshold(distances, rate) == unknown_threshold(distances.astype("float32"), rate) == rank / 4
    assert distances.tolist() == before  # not sorted in place


@pytest.mark.parametrize(("count", "rate"), [(19, 0.1), (50, 0.1), (99, 0.01), (150, 0.05), (7, 0.3)])
def test_images_of_known_classes_are_rejected_at_most_as_often_as_the_rate(count, rate):
    """Of many random calibration sets; a fresh distance is uniform, so the threshold is the share that it accepts."""
    generator, sets = np.random.default_rng(0), 4000
    rejected = [1 - unknown_threshold(generator.random(count), rate) for _ in range(sets)]
    exact = 1 - math.ceil(round((count + 1) * (1 - rate), 9)) / (count + 1)  # the mean of a beta distribution
    error = 4 * np.std(rejected) / math.sqrt(sets)
    assert abs(np.mean(rejected) - exact) < error
    assert rate - 1 / (count + 1) < exact <= rate + 1e-12
    assert np.mean(rejected) < rate + error


def test_with_too_few_images_one_more_is_rejected_than_can_be_promised():
    """Of 9 images and a rate of 0.01: the largest of ten is the fresh one in a tenth of the cases."""
    generator = np.random.default_rng(1)
    rejected = [1 - unknown_threshold(generator.random(9), 0.01) for _ in range(4000)]
    assert np.mean(rejected) == pytest.approx(1 / 10, abs=0.006)


def test_the_accuracy_is_that_of_the_vote_and_nan_unless_all_embeddings_are_finite():
    references, labels, queries, query_labels = random_data(3)
    expected = np.mean(predict_classes(references, labels, queries, 3) == query_labels)
    assert nearest_neighbour_accuracy(references, labels, queries, query_labels, 3) == pytest.approx(expected)
    few = references[:2], labels[:2], queries, query_labels
    assert nearest_neighbour_accuracy(*few, 5) == nearest_neighbour_accuracy(*few, 2)
    for wrong in (references, queries):
        kept, wrong[1, 2] = wrong[1, 2], np.inf
        assert np.isnan(nearest_neighbour_accuracy(references, labels, queries, query_labels, 3))
        wrong[1, 2] = kept


def test_few_references_of_one_class_each_are_evaluated():
    *_, scores = evaluate(np.eye(3), np.array([0, 1, 2]), np.eye(3)[[0, 1, 1]], np.array([0, 1, 2]), 1)
    assert scores == pytest.approx(
        {"accuracy": 2 / 3, "recall@1": 2 / 3, "recall@5": 1, "recall@10": 1, "MAP@R": 2 / 3}
    )


def test_map_at_r_in_chunks_is_the_same(monkeypatch):
    data, chunks = random_data(5, n_queries=40), []
    expected = mean_average_precision_at_r(*data)
    in_one = neighbour_scores.pairwise_distances_chunked

    def in_chunks(*arguments, **options):
        for chunk in in_one(*arguments, **{**options, "working_memory": 60 * 8 * 7 / 2**20}):  # 7 rows of distances
            chunks.append(len(chunk))
            yield chunk

    monkeypatch.setattr(neighbour_scores, "pairwise_distances_chunked", in_chunks)
    assert mean_average_precision_at_r(*data) == pytest.approx(expected, rel=1e-9)
    assert len(chunks) >= 5
    assert sum(chunks) == 40


def test_map_at_r_among_themselves_in_chunks_is_the_same(monkeypatch):
    """Each row leaves out its own column, in later chunks too."""
    embeddings, labels, *_ = random_data(6)
    chunks, in_one = [], neighbour_scores.pairwise_distances_chunked

    def in_chunks(*arguments, **options):
        for chunk in in_one(*arguments, **{**options, "working_memory": 60 * 8 * 7 / 2**20}):  # 7 rows of distances
            chunks.append(len(chunk))
            yield chunk

    monkeypatch.setattr(neighbour_scores, "pairwise_distances_chunked", in_chunks)
    expected = loop_retrieval_scores(embeddings, labels)["MAP@R"]
    assert mean_average_precision_at_r(embeddings, labels) == pytest.approx(expected, rel=1e-6)
    assert len(chunks) >= 5 and sum(chunks) == 60


@pytest.mark.parametrize("among_themselves", [False, True])
def test_map_at_r_of_very_many_is_that_of_a_sample_of_the_queries(among_themselves, monkeypatch):
    references, labels, queries, query_labels = random_data(7, n_queries=40)
    if among_themselves:
        queries, query_labels = references, labels
    monkeypatch.setattr(neighbour_scores, "MOST_PAIRS", 12 * len(references) + 1)
    monkeypatch.setattr(neighbour_scores, "FEWEST_QUERIES", 3)
    measured, in_one = [], neighbour_scores.pairwise_distances_chunked

    def seen(queries, *arguments, **options):
        measured.append(queries)
        return in_one(queries, *arguments, **options)

    monkeypatch.setattr(neighbour_scores, "pairwise_distances_chunked", seen)
    given = () if among_themselves else (queries, query_labels)
    actual = mean_average_precision_at_r(references, labels, *given)
    chosen = [int(np.flatnonzero((queries == query).all(axis=1))[0]) for query in measured[0]]
    assert len(set(chosen)) == neighbour_scores.queries_of_map(len(references), len(queries)) == 12
    if among_themselves:
        each = []
        for place in chosen:
            others = np.arange(len(references)) != place
            each.append(loop_map_at_r(references[others], labels[others], queries[[place]], labels[[place]]))
        assert actual == pytest.approx(np.mean(each), rel=1e-6)
    else:
        assert actual == pytest.approx(loop_map_at_r(references, labels, queries[chosen], query_labels[chosen]))
