"""The printed report and report.json against hand-computed values."""

import json
import re

import numpy as np
import pytest

from pipeline.report.scores import print_report

SCORES = {
    "raw pixels": {"accuracy": 0.25, "recall@1": 0.5, "MAP@R": 0.12345},
    "before training": {"accuracy": 0.375, "recall@1": 0.0, "MAP@R": 1.0},
    "after training": {"accuracy": 4 / 7, "recall@1": 0.75, "MAP@R": 0.66},
}
LABELS, PREDICTED = np.array([0, 0, 0, 0, 1, 1, 2]), np.array([0, 0, 0, 1, 1, 0, 0])
# By hand: 3 of 5 predictions of "cat" are correct, of 4 cats 3 are found; "owl": 1 of 2, of 2 owls 1; a dog was never
# predicted; of "été" there is no test image. The f1-score is 2 * precision * recall / (precision + recall).
CLASSES = {
    "cat": {"precision": 3 / 5, "recall": 3 / 4, "f1-score": 2 / 3, "support": 4},
    "owl": {"precision": 1 / 2, "recall": 1 / 2, "f1-score": 1 / 2, "support": 2},
    "dog": {"precision": 0, "recall": 0, "f1-score": 0, "support": 1},
    "été": {"precision": 0, "recall": 0, "f1-score": 0, "support": 0},
}


def report(folder, diverged=False):
    return print_report(folder, SCORES, LABELS, PREDICTED, list(CLASSES), 9, diverged)


def test_the_report_shows_every_score_with_four_digits(tmp_path, capsys):
    text = report(tmp_path)
    assert text.strip() == capsys.readouterr().out.strip()
    assert re.search(r"\b9 nearest training images", text)
    lines = [line.split() for line in text.splitlines()]
    for row in (
        "accuracy recall@1 MAP@R",
        "raw pixels 0.2500 0.5000 0.1235",
        "before training 0.3750 0.0000 1.0000",
        "after training 0.5714 0.7500 0.6600",
        "precision recall f1-score support",
        "cat 0.6000 0.7500 0.6667 4",
        "owl 0.5000 0.5000 0.5000 2",
        "dog 0.0000 0.0000 0.0000 1",
        "été 0.0000 0.0000 0.0000 0",
        "accuracy 0.5714 7",
    ):
        assert row.split() in lines


def test_report_json_holds_the_scores_and_those_of_each_class(tmp_path):
    report(tmp_path)
    written = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    of_classes = written.pop("classes after training")
    assert written == SCORES
    assert list(of_classes) == list(CLASSES)
    for name, expected in CLASSES.items():
        assert of_classes[name] == pytest.approx(expected)


@pytest.mark.parametrize("diverged", [False, True])
def test_the_report_warns_if_training_diverged(diverged, tmp_path, capsys):
    assert report(tmp_path, diverged).startswith("Warning: training diverged") == diverged
    printed = capsys.readouterr().out
    assert ("diverged" in printed) == ("LEARNING_RATE" in printed) == diverged
    assert "after training  " in printed
