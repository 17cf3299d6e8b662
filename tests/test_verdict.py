"""The verdict in cases of each kind, and its interval against SciPy's bootstrap and by hand."""

import itertools

import numpy as np
import pytest
from scipy.stats import binomtest, bootstrap

from pipeline.report.verdict import accuracy_interval, interval, verdict


def right(count, first, last):
    """Right about the images from `first` to before `last`."""
    return (np.arange(count) >= first) & (np.arange(count) < last)


def compared(ours, count=1000, score="accuracy", **others):
    return verdict({name: right(count, *span) for name, span in {**others, "triplet loss": ours}.items()}, score, 0)


def test_triplet_loss_beat_the_best_of_the_others():
    found = compared((0, 850), pixels=(0, 300), features=(0, 800), classifier=(0, 790))
    assert found.best_other == "features" and found.difference == pytest.approx(0.05)
    low, high = found.interval
    # By hand: 5% of the images differ, all in one direction, so the deviation is the square root of 0.05 * 0.95 / 1000.
    assert (low, high) == pytest.approx((0.05 - 1.96 * 0.0069, 0.05 + 1.96 * 0.0069), abs=0.002)
    assert found.sentence.startswith("Triplet loss beat the best of the others, features, by 5.0 percentage points")
    assert f"95% interval {100 * low:.1f} to {100 * high:.1f}" in found.sentence


def test_triplet_loss_did_not_beat_the_best_of_the_others():
    found = compared((0, 800), score="recall@1", pixels=(0, 300), classifier=(0, 830))
    assert found.difference == pytest.approx(-0.03) and found.interval[1] < 0
    text = found.sentence
    assert text.startswith("Triplet loss did not beat classifier, which is better by 3.0 percentage points of recall@1")
    assert f"interval {-100 * found.interval[1]:.1f} to {-100 * found.interval[0]:.1f}" in text


@pytest.mark.parametrize(
    ("ours", "other"),
    [
        ((0, 52), (0, 50)),  # better, but only on two images
        ((0, 55), (0, 50)),  # on five, all in its favour: by chance in 1 of 16 cases, in one direction or the other
        ((10, 70), (0, 55)),  # on 25 of which 15 are in its favour
        ((0, 50), (0, 52)),  # worse, on two images
    ],
)
def test_the_test_set_is_too_small_to_tell(ours, other):
    found = compared(ours, 100, worse=(0, 0), other=other)
    assert found.sentence.startswith("100 test images are too few to tell triplet loss from the best of the others")
    assert found.interval[0] <= found.difference <= found.interval[1]


@pytest.mark.parametrize("right_about", [0, 50, 100])
def test_methods_that_are_right_about_the_same_images_do_not_differ(right_about):
    found = compared((0, right_about), 100, worse=(0, 0), other=(0, right_about))
    assert "no difference" in found.sentence and "too few" not in found.sentence
    assert f"{right_about} of 100" in found.sentence and found.interval == (0, 0)


def test_an_accuracy_of_0_or_1_is_not_certain():
    for correct in (np.ones(20, bool), np.zeros(20, bool)):
        exact = binomtest(int(correct.sum()), 20).proportion_ci(0.95, "exact")  # Clopper and Pearson's
        assert accuracy_interval(correct, 0) == pytest.approx((exact.low, exact.high))
    mixed = right(20, 0, 13)
    assert accuracy_interval(mixed, 3) == interval(mixed, 3)


@pytest.mark.parametrize(("more", "word"), [(5, "too few"), (6, "beat")])
def test_six_images_in_favour_are_the_fewest_to_be_believed(more, word):
    """All images of a tiny test set."""
    assert word in compared((0, more), more, other=(0, 0)).sentence


def test_of_equally_good_others_the_first_is_named():
    assert compared((0, 9), 10, one=(0, 5), two=(5, 10)).best_other == "one"


@pytest.mark.parametrize("seed", range(3))
def test_the_interval_is_that_of_scipy(seed):
    """Which draws the images one by one; its random numbers are others."""
    values = np.random.default_rng(seed).choice([-1, 0, 1], 400, p=[0.1, 0.7, 0.2])
    expected = bootstrap((values,), np.mean, n_resamples=10_000, method="percentile", rng=seed).confidence_interval
    assert interval(values, seed) == pytest.approx((expected.low, expected.high), abs=0.005)


def test_the_interval_of_few_images_is_that_of_all_samples_with_replacement():
    values = np.array([0, 0, 1, 1, 1])
    means = [np.mean(each) for each in itertools.product(values, repeat=5)]
    assert interval(values, 0) == pytest.approx(tuple(np.percentile(means, (2.5, 97.5))))


def test_the_interval_contains_the_truth_in_19_of_20_cases():
    generator, found = np.random.default_rng(0), 0
    for seed in range(400):
        low, high = interval(generator.random(300) < 0.8, seed)
        found += low <= 0.8 <= high
    assert 0.92 <= found / 400 <= 0.98


def test_the_interval_follows_from_the_seed():
    values = np.arange(50) % 3 == 0
    assert interval(values, 1) == interval(values, 1) and interval(values, 1) == pytest.approx(
        interval(values, 2), abs=0.05
    )
