"""The nearest-neighbour check that keeps the best weights."""

import keras
import numpy as np
import pytest

from command_line import InputError
from image_data import Images
from training_callbacks import NearestNeighbourAccuracy


def tiny_model():
    return keras.Sequential([keras.Input((3, 2, 2), dtype="uint8"), keras.layers.Flatten(), keras.layers.Dense(2)])


def checked(epochs):
    """Runs the check over epochs whose validation embeddings are given; returns it and each epoch's logs."""
    references = Images(None, np.array([0, 1]))
    validation = Images(None, np.array([0, 0, 1, 1]))
    current = {}
    model = tiny_model()
    check = NearestNeighbourAccuracy(model, lambda data: current[len(data.labels)], references, validation, 1)
    model.stop_training = False
    check.set_model(model)
    logs = []
    for number, queries in enumerate(epochs):
        model.set_weights([np.full((12, 2), number, "float32"), np.zeros(2, "float32")])
        current[2], current[4] = np.array([[0.0], [1.0]]), np.array(queries, "float64")[:, None]
        logs.append({})
        check.on_epoch_end(number, logs[-1])
    return check, logs


def test_the_latest_of_the_best_epochs_is_kept():
    check, logs = checked([[1, 1, 1, 0], [0, 0, 1, 0], [1, 0, 1, 1], [0, 1, 0, 0]])
    assert [each["val_accuracy"] for each in logs] == [0.25, 0.75, 0.75, 0.25]
    check.load_best_weights()
    assert check.model.get_weights()[0][0, 0] == 2


def test_embeddings_that_are_not_finite_stop_training_and_keep_the_best(capsys):
    check, logs = checked([[0, 0, 1, 1], [np.nan, 0, 1, 1]])
    assert check.model.stop_training
    assert "val_accuracy" not in logs[1]
    assert "LEARNING_RATE" in capsys.readouterr().out
    check.load_best_weights()
    assert check.model.get_weights()[0][0, 0] == 0


def test_without_a_finite_epoch_there_is_nothing_to_keep():
    check, _ = checked([[np.inf, 0, 1, 1]])
    with pytest.raises(InputError, match="`LEARNING_RATE` must be lower"):
        check.load_best_weights()
