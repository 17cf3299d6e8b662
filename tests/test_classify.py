"""The command classify.py: its answers in three formats, its scores, its changes, and wrong command lines."""

import csv
import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image
from processes import ROOT, run_python
from runs import KNOWN, write_images, write_run

import classify
from pipeline.classifier import Classifier
from pipeline.errors import InputError
from pipeline.references import read_references
from pipeline.report import check


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a run, and with images of known and unknown classes."""
    place = tmp_path_factory.mktemp("place")
    write_run(place / "run")
    write_images(place / "photos", [*KNOWN, "yellow"], 6, seed=20)
    (place / "photos" / "red" / ".hidden").mkdir()
    (place / "photos" / "red" / ".hidden" / "0.png").write_bytes((place / "photos/red/0.png").read_bytes())
    (place / "photos" / "notes.txt").write_text("not an image")
    return place


@pytest.fixture
def run(place, monkeypatch, capsys):
    """Calls the command in the folder; returns what it prints."""
    monkeypatch.chdir(place)

    def command(*arguments):
        monkeypatch.setattr("sys.argv", ["classify.py", *map(str, arguments)])
        capsys.readouterr()
        classify.main()
        return capsys.readouterr().out

    return command


def expected_answers(place):
    paths = sorted(f"photos/{path.parent.name}/{path.name}" for path in place.glob("photos/*/*.png"))
    return dict(zip(paths, Classifier(place / "run").predict([place / path for path in paths]), strict=True))


def test_csv_and_json_have_each_image_below_the_folders_once(run, place):
    wanted = expected_answers(place)
    rows = list(csv.DictReader(io.StringIO(run("run", "photos", "--format", "csv"))))
    lines = [json.loads(line) for line in run("run", "--format", "json", "photos").splitlines()]
    assert [row["image"] for row in rows] == [line["image"] for line in lines] == list(wanted)
    for row, line, answer in zip(rows, lines, wanted.values(), strict=True):
        assert row["class"] == line["class"] == answer.class_name
        assert row["reference"] == line["reference"] == answer.reference
        for name in ("share", "distance"):
            assert float(row[name]) == line[name] == pytest.approx(getattr(answer, name), abs=1e-4)
    assert {row["class"] for row in rows if "yellow" in row["image"]} == {"unknown"}


def test_a_table_has_one_line_an_image_and_a_file_may_have_any_suffix(run, place):
    shutil.copy(place / "photos/red/1.png", place / "picture")
    header, *lines = run("run", "picture", "photos/green/0.png").splitlines()
    assert header.split() == ["image", "class", "share", "distance", "reference"]
    answers = Classifier(place / "run").predict(["photos/red/1.png", "photos/green/0.png"])
    names = [answer.class_name for answer in answers]
    assert [line.split()[:2] for line in lines] == [["picture", names[0]], ["photos/green/0.png", names[1]]]


def test_unreadable_images_are_named_and_the_others_answered(run, place, capsys):
    (place / "broken").mkdir()
    (place / "broken" / "empty.png").touch()
    Image.new("RGB", (8, 8), (200, 30, 30)).save(place / "broken" / "good.png")
    (place / "nothing").mkdir()
    with pytest.raises(SystemExit) as ended:
        run("run", "broken", "nothing", "--format", "csv")
    assert "could not be read: 2\n" in ended.value.code
    assert "broken/empty.png: an empty file" in ended.value.code and "nothing: no images" in ended.value.code
    assert capsys.readouterr().out.splitlines()[1].startswith("broken/good.png,red,")


def test_the_check_prints_scores_of_known_and_of_unknown_images(run, place):
    """Counted by hand from the answers."""
    answers = expected_answers(place)
    known = {path: answer for path, answer in answers.items() if "yellow" not in path}
    right = sum(answer.class_name == path.split("/")[1] for path, answer in known.items())
    rejected = sum(answer.class_name == "unknown" for answer in known.values())
    printed = run("run", "--check", "photos")
    assert "Images: 24, of them 18 of classes that the run knows" in printed
    assert "does not know (1): yellow\n" in printed
    assert f"count as wrong: {right / 18:.4f}\n" in printed
    assert f"Known images that are called unknown: {rejected / 18:.4f}\n" in printed
    assert "Unknown images that are called unknown: 1.0000\n" in printed
    assert "known images: 1.0000" in printed  # the AUROC: yellow is far from everything
    rows = [line.split() for line in printed.splitlines()]
    assert ["unknown", "0", "0", "0", "6"] in rows  # all of the unknown class
    assert not any("macro" in row and "18" not in row for row in rows)
    for name in KNOWN:
        of_name = [answer.class_name for path, answer in known.items() if f"/{name}/" in path]
        cells = [str(of_name.count(other)) for other in (*KNOWN, "unknown")]
        assert [*name.split(), *cells] in rows
    assert "among the references" not in printed


def test_the_check_of_a_split_folder_uses_its_test_images_and_warns_about_references(run, place):
    for part in ("train", "test"):
        shutil.copytree(place / "photos" / "red", place / "split" / part / "red")
        shutil.copytree(place / "photos" / "green", place / "split" / part / "green")
    assert "only the 12 test images are used" in run("run", "--check", "split")
    shutil.copytree(place / "run", place / "more")
    run("more", "--remove", "red", "--add", "red=photos/red")
    printed = run("more", "--check", "split")
    assert "Warning: 6 images are among the references" in printed


def test_without_known_classes_the_check_says_so(run, place):
    shutil.copytree(place / "photos" / "yellow", place / "others" / "yellow")
    shutil.copytree(place / "photos" / "yellow", place / "others" / "amber")
    printed = run("run", "--check", "others")
    assert "No known classes in the test." in printed
    assert "Unknown images that are called unknown: 1.0000" in printed
    assert "AUROC" not in printed and "accuracy" not in printed


def test_classes_are_added_listed_and_removed(run, place):
    shutil.copytree(place / "run", place / "changed")
    before = run("changed", "--list")
    assert [line.split(maxsplit=1) for line in before.splitlines()[:3]] == [["20", name] for name in KNOWN]
    run("changed", "--add", "lemon=photos/yellow")
    assert "        6  lemon\n" in run("changed", "--list")
    names = read_references(place / "changed").names
    assert list(names[-6:]) == [f"lemon/{number}.png" for number in range(6)]
    run("changed", "--remove", "lemon")
    assert run("changed", "--list") == before


def test_similar_references_are_printed_with_their_distances(run, place):
    lines = run("run", "--similar", "photos/red/0.png", "--neighbours", 3, "--format", "json").splitlines()
    found = [tuple(json.loads(line).values()) for line in lines]
    wanted = Classifier(place / "run").similar(place / "photos/red/0.png", 3)
    assert [each[:2] for each in found] == [each[:2] for each in wanted]
    assert [each[2] for each in found] == pytest.approx([each[2] for each in wanted], abs=1e-4)
    assert len(run("run", "--similar", "photos/red/0.png").splitlines()) == 6  # the run's five, and the header


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run"], "an option must be given"),
        (["run", "gone.png"], "must exist. Received: 'gone.png'"),
        (["photos", "photos"], "a finished run of init.py"),
        (["run", "--add", "photos"], "CLASS=FOLDER.*'photos'"),
        (["run", "--add", "a=gone"], "existing folder. Received: 'a=gone'"),
        (["run", "--add", "a=photos", "--add", "a=photos/red"], "each class once"),
        (["run", "--add", "red=photos/red"], "a new class.*'red', which has 20 references"),
        (["run", "--remove", "blue"], "--list shows. Received: 'blue'"),
        (["run", "photos", "--neighbours", "3"], "is for --similar"),
        (["run", "--add", "unknown=photos/red"], "not 'unknown'"),
        (["run", "--similar", "photos/red/0.png", "--neighbours", "0"], "at least 1. Received: 0"),
        (["run", "--format", "xml", "photos"], "invalid choice: 'xml'"),
        (["run", "--export", "model.h5"], r"ends with \.onnx, or a new folder"),
        (["run", "--export", "gone/model.onnx"], "in an existing folder"),
    ],
)
def test_a_wrong_command_is_refused_in_one_sentence(arguments, words, run):
    with pytest.raises(InputError, match=words):
        run(*arguments)


def test_a_wrong_run_folder_is_reported_before_keras_is_imported(place):
    """With a backend that does not exist, on which Keras would fail."""
    done = run_python(ROOT / "classify.py", "photos", "photos", cwd=place, KERAS_BACKEND="none")
    assert done.returncode == 2
    message = "classify.py: `RUN_FOLDER` must be the folder of a finished run of init.py. Received: 'photos' without"
    assert done.stderr.startswith(message) and done.stderr.count("\n") == 1


def test_no_embedding_is_lost_or_moved_between_the_images_of_many_batches(place):
    """Solid colours, more than three batches of them, each among its own kind."""
    classifier = Classifier(place / "run")
    colours = np.random.default_rng(30).integers(0, 256, (3 * classifier.batch_size + 5, 3), "uint8")
    images = [np.broadcast_to(colour, (8, 8, 3)) for colour in colours]
    together, alone = classifier.predict(images), [classifier.predict([image])[0] for image in images[::17]]
    for one, other in zip(together[::17], alone, strict=True):
        assert one.reference == other.reference and one.distance == pytest.approx(other.distance, abs=1e-5)


def test_of_many_classes_the_most_frequent_confusions_are_listed():
    names = [*(f"class {number}" for number in range(20)), "unknown"]
    labels, answers = np.array([0] * 5 + [1] * 4 + [2] * 3 + [3]), np.array([0, 7, 7, 7, 20, 1, 1, 3, 3, 2, 2, 2, 3])
    text = check._confusions(labels, answers, names)
    assert [" ".join(line.split()) for line in text.splitlines()[1:]] == [
        "3 class 0 → class 7",
        "2 class 1 → class 3",
        "1 class 0 → unknown",
    ]
