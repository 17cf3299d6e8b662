"""The printed report, report.json and the warnings against hand-computed values and plain loops."""

import json
import re

import numpy as np
import pytest

from pipeline.data.splits import DataSet, Images
from pipeline.report.audit import ACROSS, Finding
from pipeline.report.class_labels import display_width
from pipeline.report.controls import Controls
from pipeline.report.methods import Method
from pipeline.report.results import Results
from pipeline.report.scores import held_out_warnings, prediction_warnings, print_report
from pipeline.report.tables import class_report, sample_of_map, table
from pipeline.report.verdict import accuracy_interval, interval, verdict

SCORES = {
    "raw pixels": {"accuracy": 0.25, "recall@1": 0.5, "MAP@R": 0.12345},
    "pooled features": {"accuracy": 0.375, "recall@1": 0.0, "MAP@R": 1.0},
    "logistic regression": {"accuracy": 0.5},
    "triplet loss": {"accuracy": 4 / 7, "recall@1": 0.75, "MAP@R": 0.66},
}
CORRECT = {  # of seven test images or five held-out ones
    "raw pixels": [0, 0, 0, 0, 0, 0, 0],
    "pooled features": [1, 1, 0, 0, 0, 0, 0],
    "logistic regression": [1, 1, 1, 0, 0, 0, 0],
    "triplet loss": [1, 1, 1, 1, 0, 0, 0],
}
UNSEEN = {
    "raw pixels": {"recall@1": 0.125, "MAP@R": 0.05},
    "pooled features": {"recall@1": 0.25, "MAP@R": 0.5},
    "triplet loss": {"recall@1": 2 / 3, "MAP@R": 0.3333333},
}
UNKNOWN = {"AUROC": 0.98765, "known rejected": 0.0123, "unknown rejected": 0.75}
ADDED = {1: (0.5, 0.03125), 5: (2 / 3, 0.01)}
LABELS, PREDICTED = np.array([0, 0, 0, 0, 1, 1, 2]), np.array([0, 0, 0, 1, 1, 0, 0])
# By hand: 3 of 5 predictions of "cat" are correct, of 4 cats 3 are found; "owl": 1 of 2, of 2 owls 1; a dog was never
# predicted; of "été" there is no test image. The f1-score is 2 * precision * recall / (precision + recall).
CLASSES = {
    "cat": {"precision": 3 / 5, "recall": 3 / 4, "f1-score": 2 / 3, "support": 4},
    "owl": {"precision": 1 / 2, "recall": 1 / 2, "f1-score": 1 / 2, "support": 2},
    "dog": {"precision": 0, "recall": 0, "f1-score": 0, "support": 1},
    "été": {"precision": 0, "recall": 0, "f1-score": 0, "support": 0},
}


def labelled(labels):
    """`Images` of which only the labels matter."""
    return Images(np.zeros((len(labels), 3, 1, 1), "uint8"), np.array(labels, "int32"))


def measured(
    labels=LABELS, predicted=PREDICTED, names=tuple(CLASSES), held_out=(), validation=200, added=ADDED, notes=()
):
    """A data set of 30 training images, its controls and its results; scores of what it lacks are missing."""
    held_out_names = [f"held-out {number}" for number in sorted(set(held_out))]
    parts = [labelled(each) for each in ([0] * 30, [0] * validation, labels, [len(names) + each for each in held_out])]
    data = DataSet(*parts, list(names), held_out_names)
    known, unseen = SCORES if len(labels) else {}, UNSEEN if len(held_out) else {}
    missing = {*(() if known else ("AUROC", "known rejected")), *(() if unseen else ("AUROC", "unknown rejected"))}
    methods = {
        name: Method(known.get(name, {}), unseen.get(name, {}), np.array(CORRECT[name][: len(labels) or 5], bool))
        for name in CORRECT
        if name in known or name in unseen or name == "triplet loss"
    }
    ours = methods.pop("triplet loss")
    results = Results(
        references=unit_vectors(30, 4, 10),
        embeddings=np.zeros((1, 2)),
        predicted=np.array(predicted),
        indices=np.zeros((len(labels), 9), int),
        known_distances=np.zeros(len(labels)),
        unknown_distances=np.zeros(len(held_out)),
        method=ours,
        threshold=0.43219,
        unknown={name: value for name, value in UNKNOWN.items() if name not in missing},
        added=added if unseen else {},
    )
    return data, Controls(methods, list(notes), np.zeros((1, 2)), []), results


def report(folder, warnings=(), names=tuple(CLASSES), labels=LABELS, predicted=PREDICTED, rate=0.01, **more):
    return print_report(folder, *measured(labels, predicted, names, **more), 9, rate, 0, list(warnings))[0]


def test_the_report_shows_every_score_with_four_digits(tmp_path, capsys):
    text = report(tmp_path)
    assert text.strip() == capsys.readouterr().out.strip()
    assert re.search(r"\b9 nearest training images", text)
    lines = [line.split() for line in text.splitlines()]
    for row in (
        "accuracy 95% interval recall@1 MAP@R",
        "raw pixels 0.2500 0.000 to 0.410 0.5000 0.1235",
        "logistic regression 0.5000 {:.3f} to {:.3f} – –".format(
            *interval(np.array(CORRECT["logistic regression"]), 0)
        ),
        "precision recall f1-score support",
        "cat 0.6000 0.7500 0.6667 4",
        "owl 0.5000 0.5000 0.5000 2",
        "dog 0.0000 0.0000 0.0000 1",
        "été 0.0000 0.0000 0.0000 0",
        "accuracy 0.5714 7",
        # The mean over the three classes that have test images, and weighted by the 4, 2 and 1 images.
        "macro avg 0.3667 0.4167 0.3889 7",
        "weighted avg 0.4857 0.5714 0.5238 7",
    ):
        assert row.split() in lines


def assert_scores(written):
    """The scores of each method with their interval, and the verdict, are taken out of what report.json has."""
    for name, scores in SCORES.items():
        assert written.pop(name) == {
            **scores,
            "95% interval": list(accuracy_interval(np.array(CORRECT[name], bool), 0)),
        }
    expected = verdict({name: np.array(each, bool) for name, each in CORRECT.items()}, "accuracy", 0)
    assert written.pop("verdict") == {**expected._asdict(), "interval": list(expected.interval)}


@pytest.mark.parametrize("notes", [(), ("Logistic regression is skipped.",)])
def test_what_was_not_compared_is_said(notes, tmp_path):
    text = report(tmp_path, notes=notes)
    end = text[text.index("triplet loss  ") :]
    assert all(note in end for note in notes) and "Not compared" in end
    data, controls, results = measured()
    controls.methods["cross-entropy"] = Method({"accuracy": 0.25}, {}, np.zeros(7, bool))
    assert "Not compared" not in print_report(tmp_path, data, controls, results, 9, 0.1, 0, [])[0]


def test_report_json_holds_the_scores_and_those_of_each_class(tmp_path):
    report(tmp_path)
    written = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    of_classes = written.pop("classes")
    unknown = {"threshold": 0.43219, "false rejection rate": 0.01, "known rejected": 0.0123}
    assert_scores(written)
    assert written == {"unknown images": unknown}
    assert list(of_classes) == list(CLASSES)
    for name, expected in CLASSES.items():
        assert of_classes[name] == pytest.approx(expected)


def test_the_summary_comes_last(tmp_path):
    lines = report(tmp_path).splitlines()
    heading = lines.index("Test images, classified by the vote of 9 nearest training images, or by a classifier")
    assert [line.split("  ")[0] for line in lines[heading + 3 : heading + 7]] == list(SCORES)
    assert lines[heading + 7] == "" and "--control cross_entropy" in lines[heading + 8]
    assert "7 test images are too few" in " ".join(lines[heading + 9 :])
    assert lines[0] == "After training, per class"


HELD_OUT = [0, 1, 1, 2, 0]


def test_held_out_classes_and_unknown_images_are_shown_above_the_summary(tmp_path, capsys):
    text = report(tmp_path, ["one thing."], held_out=HELD_OUT)
    assert text.strip() == capsys.readouterr().out.strip()
    start, middle = text.index("An image is called unknown"), text.index("Held-out classes, never trained on")
    assert start < middle < text.index("Warning: one thing.") < text.index("Test images, classified by the vote")
    unknown = " ".join(text[start:middle].split())  # wherever its lines are broken
    for sentence in (
        "if its nearest training image is farther than 0.4322.",
        "At most 1.00% of the 200 validation images, of known classes, are.",
        "Test images of known classes that are called unknown: 1.23%.",
        "Images of held-out classes that are called unknown: 75.00%.",
        "AUROC of this distance, held-out against test images: 0.9877.",
    ):
        assert sentence in unknown
    assert "too few" not in unknown
    lines = text[middle : text.index("Warning")].splitlines()
    assert ": 3; their 5 images, each compared with all others" in lines[0]
    rows = [" ".join(line.split()) for line in lines[1:] if line]
    assert rows == [
        "recall@1 MAP@R",
        "raw pixels 0.1250 0.0500",
        "pooled features 0.2500 0.5000",
        "triplet loss 0.6667 0.3333",
        "How many of them are recognised after adding images of each class to the references",
        "mean deviation",
        "1 image 0.5000 0.0312",
        "5 images 0.6667 0.0100",
    ]
    assert "How many" not in report(tmp_path, held_out=HELD_OUT, added={})


def test_report_json_holds_what_is_measured_on_held_out_classes(tmp_path):
    report(tmp_path, ["one thing."], held_out=HELD_OUT, rate=0.05)
    written = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    of_classes = written.pop("classes")
    assert list(of_classes) == list(CLASSES)
    added = {"1": {"mean": 0.5, "deviation": 0.03125}, "5": {"mean": 2 / 3, "deviation": 0.01}}
    held_out = {"classes": ["held-out 0", "held-out 1", "held-out 2"], **UNSEEN, "accuracy after adding images": added}
    unknown = {"threshold": 0.43219, "false rejection rate": 0.05, **UNKNOWN}
    assert_scores(written)
    assert written == {"unknown images": unknown, "held-out classes": held_out, "warnings": ["one thing."]}


def test_without_known_classes_in_the_test_the_report_has_only_the_held_out_ones(tmp_path, capsys):
    text = report(tmp_path, labels=[], predicted=[], held_out=HELD_OUT)
    assert text.strip() == capsys.readouterr().out.strip()
    assert text.startswith("An image is called unknown") and "per class" not in text and "Test images" not in text
    assert "\nNo known classes in the test: the scores of the held-out classes are those of the test images.\n" in text
    assert "recall@1" in " ".join(text.splitlines()[-2:])
    assert "Images of held-out classes that are called unknown: 75.00%." in text and "AUROC" not in text
    written = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert list(written) == ["unknown images", "held-out classes", "verdict"]
    assert written["unknown images"] == {"threshold": 0.43219, "false rejection rate": 0.01, "unknown rejected": 0.75}


@pytest.mark.parametrize(("rate", "enough"), [(0.01, 99), (0.02, 49), (0.1, 9), (0.3, 3)])
def test_too_few_validation_images_for_the_rate_are_named(rate, enough, tmp_path):
    """By hand: of n images and a new one, each is the farthest with the probability 1 / (n + 1)."""
    assert "too few for FALSE" not in " ".join(report(tmp_path, rate=rate, validation=enough).split())
    expected = f"too few for FALSE_REJECTION_RATE = {rate:g}: expect {100 / enough:.2f}% of images of known classes."
    assert expected in " ".join(report(tmp_path, rate=rate, validation=enough - 1).split())


def test_weights_of_a_run_that_knows_a_held_out_class_give_a_warning():
    assert held_out_warnings(["owl", "cat"], ["dog", "été"]) == held_out_warnings([], ["dog"]) == []
    (warning,) = held_out_warnings(["owl", "cat", "dog"], ["dog", "cat", "été"])
    assert "WEIGHTS" in warning and "(cat, dog)" in warning


def test_without_two_held_out_classes_the_report_has_no_scores_of_them(tmp_path):
    data = DataSet(*(Images(None, np.zeros(count, int)) for count in (9, 9, 0, 7)), ["a", "b"], ["c"])
    nothing = Method({}, {}, np.zeros(0, bool))
    results = Results(None, None, np.zeros(0, int), None, None, None, nothing, 0.5, {"unknown rejected": 0.25}, {})
    text, _ = print_report(tmp_path, data, Controls({"raw pixels": nothing}, [], None, []), results, 5, 0.1, 0, [])
    assert "1, 7 images; recall and MAP@R need two classes" in text and "recall@1" not in text
    written = json.loads((tmp_path / "report.json").read_text())
    assert "triplet loss" not in written["held-out classes"] and "verdict" not in written


def test_a_class_report_and_a_table_can_be_made_alone():
    text, printed, per_class = class_report(LABELS, PREDICTED, list(CLASSES), "With new images")
    assert text == printed and text.startswith("With new images, per class\n\n")
    assert per_class == [pytest.approx(each) for each in CLASSES.values()]
    rows = [line.split() for line in text.splitlines()]
    assert "cat 0.6000 0.7500 0.6667 4".split() in rows and "accuracy 0.5714 7".split() in rows
    lines = table(("mean", "deviation"), {"1 image": ["0.5", "0.25"], "猫": ["1", "2"]}, 10).splitlines()
    assert lines[0] == " " * 10 + "       mean  deviation"
    assert lines[1] == "1 image   " + "        0.5       0.25"
    assert lines[2] == "猫        " + "          1          2"
    assert table(None, {"a": ["1"]}, 3) == "a            1\n"


@pytest.mark.parametrize("warnings", [[], ["one thing."], ["one thing.", "another thing."]])
def test_warnings_stand_just_above_the_summary_and_in_the_json(warnings, tmp_path, capsys):
    text = report(tmp_path, warnings)
    assert capsys.readouterr().out.strip() == text.strip()
    lines = text.splitlines()
    heading = lines.index("Test images, classified by the vote of 9 nearest training images, or by a classifier")
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
    assert printed.rstrip().endswith(end.rstrip()) and end.count("\n") < 16
    assert "\n\nWarning: one thing." in printed
    assert len(printed.splitlines()) < 54
    assert max(map(len, printed.splitlines())) < 120
    of_classes = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["classes"]
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


def test_the_accuracy_without_test_images_that_are_near_duplicates_is_reported(tmp_path):
    data, controls, results = measured()
    pairs = [(0, "train"), (3, "validation"), (4, "test")]
    controls.findings.extend(Finding(ACROSS, "test", index, part, 0, 0, 0.9) for index, part in pairs)
    text, _ = print_report(tmp_path, data, controls, results, 5, 0.01, 0, [])
    left = np.delete(results.method.correct, [0, 3])
    assert f"2 test images ({2 / len(LABELS):.1%}) have near duplicates" in text
    assert f"without them, the accuracy of triplet loss is {left.mean():.4f}" in text
    stored = json.loads((tmp_path / "report.json").read_text())["near duplicates"]
    assert stored == {"test images": 2, "accuracy without them": pytest.approx(left.mean())}


def unit_vectors(count, size, spread, seed=0):
    """Float32 unit vectors around one of them."""
    generator = np.random.default_rng(seed)
    vectors = np.eye(size)[0] + spread * generator.normal(size=(count, size))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype("float32")


def mean_squared_distance(vectors):
    """Of all pairs, by a loop in float64."""
    vectors = vectors.astype("float64")
    return np.mean([np.sum((x - y) ** 2) for x in vectors for y in vectors])


def warnings_of(references, history, diverged, rejected=0.0, validation=200, tested=7, rate=0.01):
    """The warnings of results with these embeddings, and this fraction of the test images rejected."""
    data, _, results = measured([0] * tested, [0] * tested, validation=validation)
    unknown = {**results.unknown, "known rejected": rejected} if tested else {}
    results = results._replace(references=references, unknown=unknown)
    return prediction_warnings(results, data, rate, history, diverged)


HEALTHY = {"epoch": [1.0, 2.0], "loss": [0.3, 0.1], "negative_distance": [0.0, 0.8]}


@pytest.mark.parametrize("spread", [0.0, 1e-4, 0.01, 0.02, 0.03, 0.1, 10.0])
def test_nearly_equal_embeddings_are_warned_of(spread):
    references = unit_vectors(60, 8, spread)
    distance = mean_squared_distance(references)
    found = warnings_of(references, HEALTHY, False)
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
    [sentence] = warnings_of(unit_vectors(20, 4, 1e-3), history, False)
    assert ("batch normalisation" in sentence) == ("EPOCHS" in sentence) == healthy
    assert ("collapsed" in sentence) == ("LEARNING_RATE" in sentence) == (not healthy)


def test_diverged_training_is_warned_of():
    apart, together = unit_vectors(20, 4, 10), unit_vectors(20, 4, 0)
    assert warnings_of(apart, HEALTHY, False) == []
    [sentence] = warnings_of(apart, HEALTHY, True)
    assert sentence.startswith("training diverged and stopped early") and "LEARNING_RATE" in sentence
    both = warnings_of(together, {}, True)
    assert both[0] == sentence and len(both) == 2


@pytest.mark.parametrize(
    ("rejected", "rate", "validation", "tested", "warned"),
    [  # the limit by hand: the expected fraction p, and three times the square root of p / validation + p / tested
        (0.06, 0.1, 200, 200, False),  # less than the rate
        (0.19, 0.1, 200, 200, False),  # 0.1 + 3 * sqrt(0.1 / 100) = 0.1949
        (0.20, 0.1, 200, 200, True),
        (0.04, 0.01, 10000, 10000, True),  # 0.01 + 3 * sqrt(0.01 / 5000) = 0.0142
        (0.0141, 0.01, 10000, 10000, False),
        (0.0143, 0.01, 10000, 10000, True),
        (0.55, 0.01, 9, 90, True),  # with 9 images 1/10 is expected: 0.1 + 3 * sqrt(0.1 / 9 + 0.1 / 90) = 0.4317
        (0.43, 0.01, 9, 90, False),
        (0.44, 0.01, 9, 90, True),
        (1.0, 0.01, 200, 1, True),  # 0.01 + 3 * sqrt(0.01 / 200 + 0.01) = 0.3108
        (0.0, 0.01, 200, 0, False),  # no test images
    ],
)
def test_test_images_that_are_rejected_too_often_are_warned_of(rejected, rate, validation, tested, warned):
    found = warnings_of(unit_vectors(20, 4, 10), HEALTHY, False, rejected, validation, tested, rate)
    assert len(found) == warned
    for sentence in found:
        assert sentence.startswith(f"{100 * rejected:.1f}% of the test images of known classes are called unknown")
        assert f"FALSE_REJECTION_RATE is {rate:g}" in sentence


def test_images_like_those_of_the_validation_are_hardly_ever_warned_of():
    """Uniform distances: the number of fresh ones above the threshold, in 300 random data sets."""
    generator, found = np.random.default_rng(0), 0
    for _ in range(300):
        rank = int(np.ceil(151 * 0.95))
        threshold = np.sort(generator.random(150))[rank - 1]
        rejected = np.mean(generator.random(300) > threshold)
        found += len(warnings_of(unit_vectors(20, 4, 10), HEALTHY, False, rejected, 150, 300, 0.05))
    assert found <= 6


def test_the_report_says_when_map_at_r_is_of_a_sample():
    assert sample_of_map(45_000, 10_000, "test images") == ""
    assert "8,589 test images, drawn at random" in sample_of_map(1_000_000, 10_000, "test images")
    assert "1,000 test images" in sample_of_map(10**9, 10_000, "test images")
