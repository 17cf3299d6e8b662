"""Validation, which keeps the best weights; the history; and the remaining time."""

import errno
import re

import keras
import numpy as np
import pytest

from pipeline import files
from pipeline.errors import InputError
from pipeline.training.callbacks import (
    HistoryFile,
    PredictionProgress,
    TimeEstimate,
    ValidationAccuracy,
    duration,
)


def tiny_model():
    return keras.Sequential([keras.Input((3, 2, 2), dtype="uint8"), keras.layers.Flatten(), keras.layers.Dense(2)])


def validated(accuracies):
    """Validates after epochs with these accuracies; returns the callback and each epoch's logs."""
    model, measured = tiny_model(), iter(accuracies)
    accuracy = ValidationAccuracy(model, lambda: next(measured))
    model.stop_training = False
    accuracy.set_model(model)
    logs = []
    for number in range(len(accuracies)):
        model.set_weights([np.full((12, 2), number, "float32"), np.zeros(2, "float32")])
        logs.append({})
        accuracy.on_epoch_end(number, logs[-1])
    return accuracy, logs


def test_the_latest_of_the_best_epochs_is_kept():
    accuracy, logs = validated([0.25, 0.75, 0.75, 0.25])
    assert [each["val_accuracy"] for each in logs] == [0.25, 0.75, 0.75, 0.25]
    accuracy.load_best_weights()
    assert accuracy.model.get_weights()[0][0, 0] == 2


def test_outputs_that_are_not_finite_stop_training_and_keep_the_best(capsys):
    accuracy, logs = validated([1.0, float("nan")])
    assert accuracy.model.stop_training
    assert "val_accuracy" not in logs[1]
    printed = capsys.readouterr().out
    assert "Warning: epoch 2" in printed and "LEARNING_RATE" in printed
    accuracy.load_best_weights()
    assert accuracy.model.get_weights()[0][0, 0] == 0


def test_without_a_finite_epoch_there_are_no_best_weights():
    accuracy, _ = validated([float("nan")])
    with pytest.raises(InputError, match="`LEARNING_RATE` must be lower"):
        accuracy.load_best_weights()


def test_the_whole_history_is_written_after_each_epoch_also_if_resumed(tmp_path):
    history = HistoryFile(tmp_path / "history.csv")
    history.on_epoch_end(0, {"loss": np.float32(0.5), "val_accuracy": 0.25})
    resumed = HistoryFile(tmp_path / "history.csv")
    resumed.set_state(history.state())
    resumed.on_epoch_end(1, {"loss": 0.125, "val_accuracy": 0.75})
    assert (tmp_path / "history.csv").read_text() == "epoch,loss,val_accuracy\n1,0.5,0.25\n2,0.125,0.75\n"
    assert resumed.columns() == {"epoch": [1, 2], "loss": [0.5, 0.125], "val_accuracy": [0.25, 0.75]}
    assert history.columns() == {"epoch": [1], "loss": [0.5], "val_accuracy": [0.25]}


class Epoch:
    """Stands for `Batches`: how many are left in an epoch, and which epoch it is."""

    def __init__(self, left, number=0, first_batch=0):
        self.left, self.epoch, self.first_batch = left, number, first_batch

    def __len__(self):
        return self.left


def printed_seconds(capsys):
    return [int(seconds) for seconds in re.findall(r"(\d+) s\b", capsys.readouterr().out)]


def test_the_remaining_time_is_that_of_the_batches_left_in_this_epoch_and_of_later_epochs(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    estimate = TimeEstimate(Epoch(6, number=2, first_batch=4), warm_up=2, seconds=5.0)  # of 10 batches, 4 were before
    estimate.set_params({"epochs": 5})
    estimate.on_epoch_begin(2)
    for batch, seconds in enumerate([100, 50, 3, 3, 3, 3]):
        now[0] += seconds
        estimate.on_train_batch_end(batch, {"loss": 1.0})
    assert printed_seconds(capsys) == [66, 3]  # 2 and 2 * 10 steps of 3 s


def test_the_time_per_step_excludes_what_happens_between_epochs(monkeypatch, capsys):
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
        now[0] += 40  # validation, checkpoints
    assert printed_seconds(capsys) == [12, 2]


def test_without_a_terminal_a_line_a_minute_says_how_far_training_is(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    batches = Epoch(100, number=2, first_batch=50)
    estimate = TimeEstimate(batches, warm_up=3, seconds=5.0)
    estimate.set_params({"epochs": 4})
    estimate.on_epoch_begin(2)
    for batch in range(60):
        now[0] += 70 if batch == 0 else 3
        estimate.on_train_batch_end(batch, {"loss": 0.25})
    lines = [line for line in capsys.readouterr().out.splitlines() if line]
    assert [line.split(";")[0].split(",")[:2] for line in lines] == [
        ["epoch 3", " step 51"],
        ["Time left for training", " without validation: 12 min"],
        ["epoch 3", " step 75"],
        ["epoch 3", " step 95"],
    ]
    assert lines[2].endswith("loss 0.2500; Time left for training, without validation: 11 min, at 3 s per step")


def test_a_long_prediction_prints_a_line_a_minute(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    progress = PredictionProgress(200)
    for batch in range(200):
        now[0] += 1
        progress.on_predict_batch_end(batch)
    assert re.findall(r"\d+ of 200", capsys.readouterr().out) == ["60 of 200", "120 of 200", "180 of 200"]


def test_a_history_that_another_program_holds_open_is_written_after_the_next_epoch(tmp_path, monkeypatch, capsys):
    history = HistoryFile(tmp_path / "history.csv")

    def held(path, text):
        raise InputError("not writable") from PermissionError(errno.EACCES, "in use by another process")

    with monkeypatch.context() as patched:
        patched.setattr(files, "write_text", held)
        history.on_epoch_end(0, {"loss": 0.5})
    assert "in use by another process" in capsys.readouterr().out
    history.on_epoch_end(1, {"loss": 0.25})
    assert (tmp_path / "history.csv").read_text() == "epoch,loss\n1,0.5\n2,0.25\n"


def test_durations_have_no_more_precision_than_is_known():
    assert [duration(each) for each in (0.4, 89, 600, 12000)] == ["0 s", "89 s", "10 min", "3 h 20 min"]
