"""The linear classifier against scikit-learn's own choice of the strength, and its limit of time."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pipeline.report.linear import STRENGTHS, linear_predictions


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
    for strength in STRENGTHS:
        model = pipeline_of(strength).fit(*train)
        if (accuracy := model.score(*validation)) > best:
            best, expected = accuracy, model.predict(queries)
    predicted, tried = linear_predictions(*train, *validation, queries, seconds=60)
    assert tried == len(STRENGTHS)
    assert np.mean(predicted == expected) >= 0.99  # the last steps of the two differ
    assert np.mean(predicted == labels) > (0.5 if count > 20 else 0.35)


def test_what_takes_too_long_is_given_up(monkeypatch):
    monkeypatch.setattr("pipeline.report.linear.STEPS_AT_ONCE", 2)
    slow = *data(0, 2000, size=300, classes=30), *data(1, 10, 300, 30), data(2, 5, 300)[0]
    assert linear_predictions(*slow, seconds=0) is None


def test_the_best_of_the_strengths_that_there_was_time_for_counts():
    train, validation, (queries, _) = data(0, 300), data(1, 100), data(2, 400)
    predicted, tried = linear_predictions(*train, *validation, queries, seconds=0)
    expected = pipeline_of(STRENGTHS[0]).fit(*train).predict(queries)
    assert tried == 1 and np.mean(predicted == expected) >= 0.99


def test_constant_features_are_no_error():
    train, labels = data(0, 40)
    train[:, :5] = 7
    predicted, _ = linear_predictions(train, labels, train, labels, train, seconds=60)
    assert np.mean(predicted == labels) > 0.6
