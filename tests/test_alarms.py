"""Warnings about training that collapses, is stuck, or has nothing left to learn."""

import pytest

from pipeline.training.alarms import TrainingAlarms


def raised(epochs, before=(), mining="batch_hard", steps=100):
    """The alarms raised in epochs of (distance to negatives, active triplets, and distance to positives)."""
    alarms = TrainingAlarms(0.3, mining)
    alarms.set_state({**alarms.state(), "raised": list(before)})
    for number, (negative_distance, active_triplets, *positive_distance) in enumerate(epochs):
        for batch in range(steps // 2):
            alarms.on_train_batch_end(batch)
        state, alarms = alarms.state(), TrainingAlarms(0.3, mining)
        alarms.set_state(state)  # resumed in the middle of each epoch
        for batch in range(steps // 2):
            alarms.on_train_batch_end(batch)
        logs = {"negative_distance": negative_distance, "active_triplets": active_triplets}
        logs["positive_distance"] = positive_distance[0] if positive_distance else negative_distance / 2
        alarms.on_epoch_end(number, logs)
    return alarms.state()["raised"]


def test_each_alarm_is_raised_once_with_advice(capsys):
    epochs = [(1.9, 0.9), (0.05, 1.0), (0.001, 1.0), (2.1, 0.0), (2.1, 0.0), (0.5, 1.0, 0.49), (0.5, 1.0, 0.49)]
    before = raised(epochs)
    warnings = capsys.readouterr().out.strip().split("\n\n")
    assert len(warnings) == 3
    assert warnings[0].startswith("Warning: epoch 2: collapse")
    assert "LEARNING_RATE" in warnings[0] and "MINING" in warnings[0]
    assert warnings[1].startswith("Warning: epoch 4: no triplet is active")
    assert "MARGIN" in warnings[1] and "MINING" not in warnings[1]
    assert warnings[2].startswith("Warning: epoch 6: the loss is stuck")
    assert "LEARNING_RATE" in warnings[2]
    assert raised(epochs, before) == before  # of a resumed run
    assert capsys.readouterr().out == ""


def test_one_short_epoch_from_random_weights_is_not_yet_stuck(capsys):
    stuck, healthy = (2.1, 0.9, 2.08), (2.1, 0.5, 1.2)
    assert raised([stuck, healthy, stuck], steps=40) == []
    assert raised([stuck, stuck], steps=40) == ["stuck"]
    assert "epoch 2: the loss is stuck" in capsys.readouterr().out


def test_negatives_a_tenth_of_the_margin_farther_than_positives_are_not_stuck():
    assert raised([(1.0, 1.0, 0.972)]) == ["stuck"]
    assert raised([(1.0, 1.0, 0.968)]) == []


@pytest.mark.parametrize(
    ("mining", "against_collapse", "for_harder_triplets"),
    [
        ("batch_hard", 'MINING = "semi_hard" or "batch_all"', None),
        ("semi_hard", None, 'MINING = "batch_hard"'),
        ("merge", None, 'TRIPLET_LOSS = "in_batch"'),
    ],
)
def test_the_advice_is_possible_with_the_loss(mining, against_collapse, for_harder_triplets, capsys):
    for epoch, advice in (((0.01, 1.0), against_collapse), ((2.1, 0.0), for_harder_triplets)):
        raised([epoch], mining=mining)
        warning = capsys.readouterr().out
        assert "Warning: epoch 1:" in warning
        for constant in ("MINING =", "TRIPLET_LOSS ="):
            assert (constant in warning) == (advice is not None and advice.startswith(constant))
        assert (advice or "") in warning


def test_healthy_epochs_raise_no_alarm(capsys):
    assert raised([(0.4, 1.0), (1.0, 0.5), (2.2, 0.0001)]) == []
    assert capsys.readouterr().out == ""
