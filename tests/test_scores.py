"""The printed report, report.json and the warnings against hand-computed values and plain loops."""

import json
import re

import numpy as np
import pytest
from matplotlib import font_manager

from pipeline.report import class_labels
from pipeline.report.class_labels import display_width
from pipeline.report.scores import prediction_warnings, print_report

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


def report(folder, warnings=(), names=tuple(CLASSES), labels=LABELS, predicted=PREDICTED):
    return print_report(folder, SCORES, np.array(labels), np.array(predicted), list(names), 9, list(warnings))


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
        # The mean over the classes, and weighted by the 4, 2, 1 and 0 images.
        "macro avg 0.2750 0.3125 0.2917 7",
        "weighted avg 0.4857 0.5714 0.5238 7",
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


def test_the_summary_comes_last(tmp_path):
    lines = report(tmp_path).splitlines()
    assert [line.split("  ")[0] for line in lines[-3:]] == list(SCORES)
    assert lines[-6] == "Test images, classified by the vote of 9 nearest training images"
    assert lines[0] == "After training, per class"


@pytest.mark.parametrize("warnings", [[], ["one thing."], ["one thing.", "another thing."]])
def test_warnings_stand_just_above_the_summary_and_in_the_json(warnings, tmp_path, capsys):
    text = report(tmp_path, warnings)
    assert capsys.readouterr().out.strip() == text.strip()
    lines = text.splitlines()
    heading = lines.index("Test images, classified by the vote of 9 nearest training images")
    above = [line for line in lines[heading - 2 * len(warnings) : heading] if line]
    assert above == [f"Warning: {warning}" for warning in warnings]
    assert text.count("Warning") == len(warnings)
    written = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert written.get("warnings", []) == warnings
    assert ("warnings" in written) == bool(warnings)


def f1_scores(labels, predicted, classes):
    """By loops: twice the hits, divided by the images of the class and the predictions of it."""
    scores = {}
    for number in range(classes):
        hits = sum(label == guess == number for label, guess in zip(labels, predicted, strict=True))
        count = sum(label == number for label in labels) + sum(guess == number for guess in predicted)
        scores[number] = 2 * hits / count if count else 0
    return scores


def test_of_800_classes_the_worst_are_printed_and_all_are_written(tmp_path, capsys):
    generator = np.random.default_rng(0)
    names = [f"class {generator.integers(10**6):06} of {number}" for number in range(800)]
    labels = np.concatenate([np.arange(788), generator.integers(0, 788, 800)])  # no image of the last 12 classes
    predicted = np.where(generator.random(1588) < 0.8, labels, generator.integers(0, 788, 1588))
    text = report(tmp_path, ["one thing."], names, labels, predicted)
    printed = capsys.readouterr().out
    scores = f1_scores(labels.tolist(), predicted.tolist(), 800)
    worst = sorted(range(788), key=lambda number: (scores[number], names[number]))[:20]
    rows = [line for line in printed.splitlines() if line.startswith("class ")]
    assert [re.split("  +", row)[0] for row in rows] == [names[number] for number in worst]
    assert [float(row.split()[-2]) for row in rows] == pytest.approx([scores[number] for number in worst], abs=5e-5)
    assert "768 other classes are not shown; report.txt and report.json in the run folder have all." in printed
    assert "Classes without a test image: 12." in printed
    rows = [line for line in text.splitlines() if line.startswith("class ")]
    assert [re.split("  +", row)[0] for row in rows] == names
    end = text[text.index("Warning: one thing.") :]
    assert printed.rstrip().endswith(end.rstrip()) and end.count("\n") == 8
    assert "\n\nWarning: one thing." in printed
    assert len(printed.splitlines()) < 50
    assert max(map(len, printed.splitlines())) < 120
    of_classes = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["classes after training"]
    assert list(of_classes) == names


@pytest.mark.parametrize(("classes", "all_printed"), [(30, True), (31, False)])
def test_more_than_30_classes_are_many(classes, all_printed, tmp_path, capsys):
    names = [f"class {number}" for number in range(classes)]
    text = report(tmp_path, [], names, [0, 1, 2], [0, 1, 1])
    printed = capsys.readouterr().out
    assert (text.strip() == printed.strip()) == all_printed
    rows = [line.split("  ")[0] for line in printed.splitlines() if line.startswith("class ")]
    assert rows == (names if all_printed else ["class 2", "class 1", "class 0"])  # f1-scores 0, 2/3 and 1
    assert ("Classes without a test image: 28." in printed) != all_printed


def test_columns_are_aligned_for_names_of_every_script(tmp_path):
    names = ["cat", "猫" * 10, "ＡＢ", "q\u0303", "گربه\u200cها", "e\u0301te\u0301", "x" * 80, "x" * 81, "猫" * 40]
    text = report(tmp_path, [], names, range(9), range(9))
    lines = text.split("\n\n")[1].splitlines()
    assert len(lines) == 10
    # Lines that are equally wide, and end with equally wide columns, are aligned.
    assert len({display_width(line) for line in lines}) == 1
    assert all(re.search(r"( {5}1\.0000){3} {10}1$", line) for line in lines[1:])
    assert lines[7].startswith("x" * 29 + "… #6  ") and lines[8].startswith("x" * 29 + "… #7  ")
    assert lines[9].startswith("猫" * 14 + "…  ")
    assert max(map(display_width, lines)) < 80


@pytest.mark.parametrize("classes", [4, 40])
def test_names_that_figures_show_as_numbers_are_listed(classes, tmp_path, capsys, monkeypatch):
    only = [font for font in font_manager.fontManager.ttflist if font.name == "DejaVu Sans"]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", only)
    class_labels._fonts.cache_clear()
    names = ["cat", "猫", "crème", "犬", *(f"class {number}" for number in range(4, classes))]
    text = report(tmp_path, [], names, [0, 1, 2], [0, 1, 2])
    class_labels._fonts.cache_clear()
    assert "\n\nClass numbers in the figures\n\n#1  猫\n#3  犬\n\nTest images" in text
    printed = capsys.readouterr().out
    assert ("#3  犬" in printed) == (classes == 4)
    assert ("Classes that figures show with a number: 2; report.txt lists their names." in printed) == (classes == 40)


def unit_vectors(count, size, spread, seed=0):
    """Float32 unit vectors around one of them."""
    generator = np.random.default_rng(seed)
    vectors = np.eye(size)[0] + spread * generator.normal(size=(count, size))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype("float32")


def mean_squared_distance(vectors):
    """Of all pairs, by a loop in float64."""
    vectors = vectors.astype("float64")
    return np.mean([np.sum((x - y) ** 2) for x in vectors for y in vectors])


HEALTHY = {"epoch": [1.0, 2.0], "loss": [0.3, 0.1], "negative_distance": [0.0, 0.8]}


@pytest.mark.parametrize("spread", [0.0, 1e-4, 0.01, 0.02, 0.03, 0.1, 10.0])
def test_nearly_equal_embeddings_are_warned_of(spread):
    references = unit_vectors(60, 8, spread)
    distance = mean_squared_distance(references)
    found = prediction_warnings(references, HEALTHY, False)
    assert len(found) == (distance < 0.01)
    for sentence in found:
        number = float(re.search(r"mean squared distance ([\d.e-]+) of at most 2", sentence)[1])
        assert number == pytest.approx(distance, rel=0.06, abs=1e-9)
        assert "cannot be trusted" in sentence


@pytest.mark.parametrize(
    ("history", "healthy"),
    [
        (HEALTHY, True),
        ({"negative_distance": [0.1001]}, True),
        ({"negative_distance": [0.8, 0.0999]}, False),
        ({"negative_distance": [0.8, float("nan")]}, False),
        ({"negative_distance": []}, False),
        ({"epoch": [1.0], "loss": [0.2]}, False),
        ({}, False),
    ],
)
def test_the_advice_depends_on_the_last_training_epoch(history, healthy):
    [sentence] = prediction_warnings(unit_vectors(20, 4, 1e-3), history, False)
    assert ("batch normalisation" in sentence) == ("EPOCHS" in sentence) == healthy
    assert ("collapsed" in sentence) == ("LEARNING_RATE" in sentence) == (not healthy)


def test_diverged_training_is_warned_of():
    apart, together = unit_vectors(20, 4, 10), unit_vectors(20, 4, 0)
    assert prediction_warnings(apart, HEALTHY, False) == []
    [sentence] = prediction_warnings(apart, HEALTHY, True)
    assert sentence.startswith("training diverged and stopped early") and "LEARNING_RATE" in sentence
    both = prediction_warnings(together, {}, True)
    assert both[0] == sentence and len(both) == 2
