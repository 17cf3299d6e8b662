"""The learning rate over a training, compared with values computed by hand."""

import keras
import numpy as np
import pytest

from pipeline.training.learning_rate import warm_up_then_cosine

HALF_ROOT = 0.7071067811865476  # cos(45°)


def rates(peak, warm_up, steps):
    """The learning rate of each step, and the one after the last."""
    schedule = warm_up_then_cosine(peak, warm_up, steps)
    return [float(keras.ops.convert_to_numpy(schedule(step))) for step in range(steps + 1)]


@pytest.mark.parametrize(
    ("warm_up", "expected"),
    [
        (0.0, [0.4, 0.2 + 0.2 * HALF_ROOT, 0.2, 0.2 - 0.2 * HALF_ROOT, 0.0]),
        (0.5, [0.0, 0.1, 0.2, 0.3, 0.4, 0.2 + 0.2 * HALF_ROOT, 0.2, 0.2 - 0.2 * HALF_ROOT, 0.0]),
    ],
    ids=["no warm-up", "warm-up in half of the steps"],
)
def test_the_learning_rate_rises_along_a_line_and_falls_along_a_cosine(warm_up, expected):
    np.testing.assert_allclose(rates(0.4, warm_up, len(expected) - 1), expected, atol=1e-7)


def test_it_is_highest_after_the_warm_up_and_half_as_high_midway_from_there():
    actual = rates(1e-3, 0.1, 200)
    assert np.argmax(actual) == 20
    np.testing.assert_allclose([actual[10], actual[20], actual[110], actual[200]], [5e-4, 1e-3, 5e-4, 0], atol=1e-9)
    assert (np.diff(actual[:21]) > 0).all() and (np.diff(actual[20:]) < 0).all()


@pytest.mark.parametrize(("warm_up", "expected"), [(0.1, [0.4, 0.0]), (0.9, [0.0, 0.4])])
def test_a_training_of_one_step_rounds_the_warm_up(warm_up, expected):
    np.testing.assert_allclose(rates(0.4, warm_up, 1), expected, atol=1e-7)


def test_an_optimizer_follows_it():
    optimizer = keras.optimizers.SGD(warm_up_then_cosine(0.4, 0.5, 4))
    weight, steps = keras.Variable(np.zeros(1, "float32")), []
    for _ in range(4):
        before = keras.ops.convert_to_numpy(weight)[0].item()
        optimizer.apply([keras.ops.ones(1)], [weight])
        steps.append(before - keras.ops.convert_to_numpy(weight)[0].item())
    np.testing.assert_allclose(steps, [0.0, 0.2, 0.4, 0.2], atol=1e-6)
