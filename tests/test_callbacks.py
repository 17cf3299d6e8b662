"""The nearest-neighbour check that keeps the best weights, the history, the alarms and the time left."""

import keras
import numpy as np
import pytest

from command_line import InputError
from image_data import Images
from training_callbacks import HistoryFile, NearestNeighbourAccuracy, TimeEstimate, Watch, duration


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


def watched(epochs, said=(), mining="batch_hard", steps=100):
    """What the watch says over epochs of (mean distance to negatives, active triplets), and what it keeps."""
    watch = Watch(0.3, mining)
    watch.set_state({"said": list(said), "stuck_steps": 0, "steps": 0})
    for number, (negative_distance, active, *positive) in enumerate(epochs):
        for batch in range(steps // 2):
            watch.on_train_batch_end(batch)
        watch.set_state(watch.state())  # interrupted here, in the middle of each epoch
        for batch in range(steps // 2):
            watch.on_train_batch_end(batch)
        logs = {"negative_distance": negative_distance, "active_triplets": active}
        watch.on_epoch_end(number, {**logs, "positive_distance": positive[0] if positive else negative_distance / 2})
    return watch.state()["said"]


def test_collapse_and_the_end_of_learning_are_said_once_with_a_remedy(capsys):
    epochs = [(1.9, 0.9), (0.05, 1.0), (0.001, 1.0), (2.1, 0.0), (2.1, 0.0), (0.5, 1.0, 0.49)]
    said = watched(epochs)
    told = capsys.readouterr().out.strip().split("\n\n")
    assert len(told) == 3
    assert "Epoch 6: the loss is stuck at its margin" in told[2] and "LEARNING_RATE" in told[2]
    assert "Epoch 2: collapse" in told[0] and "LEARNING_RATE" in told[0] and "MINING" in told[0]
    assert "Epoch 4: no triplet had a loss" in told[1] and "MARGIN" in told[1] and "MINING" not in told[1]
    watched(epochs, said)  # of a run that goes on
    assert capsys.readouterr().out == ""


def test_one_short_epoch_from_random_weights_is_not_yet_stuck(capsys):
    assert watched([(2.1, 0.9, 2.08), (2.1, 0.5, 1.2), (2.1, 0.5, 2.09)], steps=40) == []
    assert watched([(2.1, 0.9, 2.08), (2.1, 0.5, 2.09)], steps=40) == ["stuck"]
    assert "Epoch 2: the loss is stuck" in capsys.readouterr().out


def test_the_remedies_are_those_that_the_loss_has(capsys):
    watched([(0.01, 1.0), (2.1, 0.0)], mining="merge")
    told = capsys.readouterr().out
    assert "collapse" in told and 'TRIPLET_LOSS = "in_batch"' in told and "MINING" not in told
    watched([(2.1, 0.0)], mining="semi_hard")
    assert 'MINING = "batch_hard"' in capsys.readouterr().out


def test_healthy_epochs_raise_no_alarm(capsys):
    watched([(0.4, 1.0), (1.0, 0.5), (2.2, 0.0001)])
    assert capsys.readouterr().out == ""


def test_the_history_is_written_whole_after_each_epoch(tmp_path):
    history = HistoryFile(tmp_path / "history.csv")
    history.on_epoch_end(0, {"loss": np.float32(0.5), "val_accuracy": 0.25})
    again = HistoryFile(tmp_path / "history.csv")
    again.set_state(history.state())
    again.on_epoch_end(1, {"loss": 0.125, "val_accuracy": 0.75})
    assert (tmp_path / "history.csv").read_text() == "epoch,loss,val_accuracy\n1,0.5,0.25\n2,0.125,0.75\n"
    assert again.columns() == {"epoch": [1, 2], "loss": [0.5, 0.125], "val_accuracy": [0.25, 0.75]}
    assert history.columns() == {"epoch": [1], "loss": [0.5], "val_accuracy": [0.25]}


class Epoch:
    """Stands for `Batches`: how many are left of an epoch, and which epoch it is."""

    def __init__(self, left, number=0, first_batch=0):
        self.left, self.epoch, self.first_batch = left, number, first_batch

    def __len__(self):
        return self.left


def test_the_time_left_counts_this_epochs_batches_and_the_epochs_to_come(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    estimate = TimeEstimate(Epoch(6, number=2, first_batch=4), warm_up=2, seconds=5.0)  # of 10 batches, 4 were before
    estimate.set_params({"epochs": 5})
    estimate.on_epoch_begin(2)
    for batch, seconds in enumerate([100, 50, 3, 3, 3, 3]):
        now[0] += seconds
        estimate.on_train_batch_end(batch, {"loss": 1.0})
    assert capsys.readouterr().out == "\n66 s of training to go, at 3 s a step\n"  # 2 and 2 * 10 steps


def test_the_time_left_does_not_count_what_is_done_between_epochs(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    batches = Epoch(3)
    estimate = TimeEstimate(batches, warm_up=3, seconds=5.0)
    estimate.set_params({"epochs": 4})
    for epoch in range(2):
        batches.epoch = epoch
        estimate.on_epoch_begin(epoch)
        for batch in range(3):
            now[0] += 2
            estimate.on_train_batch_end(batch, {"loss": 1.0})
        now[0] += 1000  # validation, checkpoints
    assert capsys.readouterr().out == "\n12 s of training to go, at 2 s a step\n"


def test_durations_in_words():
    assert [duration(each) for each in (0.4, 89, 600, 12000)] == ["0 s", "89 s", "10 min", "3 h 20 min"]
