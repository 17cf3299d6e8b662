"""The linear classifier against scikit-learn's own choice of the strength, and its limit of time."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pipeline.report.linear import DOUBTED, STRENGTHS, doubted_labels, linear_predictions


def data(seed, count, size=20, classes=3, labels=None):
    """Overlapping classes in features of very different scales, most of them noise."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, count)
    features = generator.normal(size=(count, size)) + 1.2 * np.eye(classes, size)[labels]
    return (features * np.logspace(-3, 3, size)).astype("float32"), labels.astype("int32")


def pipeline_of(strength):
    return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=10_000))


@pytest.mark.parametrize("count", [20, 300])
def test_predictions_are_those_of_the_strength_that_is_best_on_the_validation_images(count):
    train, validation, (queries, labels) = data(0, count), data(1, 100), data(2, 400)
    expected, best = None, -1
    for each in STRENGTHS:
        model = pipeline_of(each).fit(*train)
        if (accuracy := model.score(*validation)) > best:
            best, expected = accuracy, model.predict(queries)
    predicted, strength, tried = linear_predictions(*train, *validation, queries, seconds=60)
    assert tried == len(STRENGTHS)
    likelihoods = {
        each: -log_loss(validation[1], pipeline_of(each).fit(*train).predict_proba(validation[0]), labels=range(3))
        for each in STRENGTHS
    }
    assert strength == max(likelihoods, key=likelihoods.get)
    assert np.mean(predicted == expected) >= 0.99  # the last steps of the two differ
    assert np.mean(predicted == labels) > (0.5 if count > 20 else 0.35)


def test_what_takes_too_long_is_given_up(monkeypatch):
    monkeypatch.setattr("pipeline.report.linear.STEPS_AT_ONCE", 2)
    slow = *data(0, 2000, size=300, classes=30), *data(1, 10, 300, 30), data(2, 5, 300)[0]
    assert linear_predictions(*slow, seconds=0) is None


def test_the_best_of_the_strengths_that_there_was_time_for_counts():
    train, validation, (queries, _) = data(0, 300), data(1, 100), data(2, 400)
    predicted, strength, tried = linear_predictions(*train, *validation, queries, seconds=0)
    expected = pipeline_of(STRENGTHS[0]).fit(*train).predict(queries)
    assert tried == 1 and strength == STRENGTHS[0] and np.mean(predicted == expected) >= 0.99


def test_constant_features_are_no_error():
    train, labels = data(0, 40)
    train[:, :5] = 7
    predicted, _, _ = linear_predictions(train, labels, train, labels, train, seconds=60)
    assert np.mean(predicted == labels) > 0.6


def test_exchanged_labels_are_doubted_and_others_are_not():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 5, 600)
    features = generator.normal(size=(600, 10)) + 12 * np.eye(5, 10)[labels]
    exchanged = generator.permutation(600)[:12]
    given = labels.copy()
    given[exchanged] = (labels[exchanged] + 1) % 5
    found, better, probabilities = doubted_labels(features, given, 1.0, seed=0, seconds=60)
    assert set(exchanged) <= set(found) and len(found) <= 14
    assert np.mean(better == labels[found]) > 0.9
    assert np.all(np.diff(probabilities) >= 0) and probabilities.max() < DOUBTED / 5


def test_each_image_is_judged_by_models_that_were_not_fitted_to_it():
    """A label that only its own image supports is doubted, however well a model could overfit it."""
    features = np.eye(40) + np.repeat([[3.0], [-3.0]], 20, axis=0)
    labels = np.repeat([0, 1], 20)
    labels[7] = 1
    found, better, _ = doubted_labels(features, labels, 10.0, seed=0, seconds=60)
    assert found.tolist() == [7] and better.tolist() == [0]


def test_a_class_of_one_image_and_a_lack_of_time_are_no_errors():
    features, labels = data(0, 40)
    labels[0] = 3
    found, _, probabilities = doubted_labels(features, labels, 0.1, seed=0, seconds=60)
    assert 0 in found and probabilities[list(found).index(0)] == 0
    assert doubted_labels(*data(0, 2000, size=300, classes=30), 10.0, seed=0, seconds=0) is None
