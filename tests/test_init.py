"""The script itself, run as its users run it, on folders of small images."""

import ast
import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import command_line
import run_folder

FOLDER = Path(__file__).resolve().parent.parent
SMALL = (
    "--backbone VGG16 --weights none --frozen-layers 0 --image-size 32 --precision float32 --augment none "
    "--classes-per-batch 3 --images-per-class 4 --learning-rate 1e-4 --embedding-size 8 --neighbours 3"
).split()
one_process = pytest.mark.xdist_group("finished run")  # so that it is made once, with pytest -n too
COLOURS = {"blue sky": (40, 60, 200), "grün": (30, 160, 60), "red": (200, 40, 30)}


def write_images(folder, count, seed=0):
    """A folder of noisy images of one colour a class."""
    generator = np.random.default_rng(seed)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            noise = generator.normal(size=(24, 24, 3)) * 30
            pixels = np.clip(np.array(colour) + noise, 0, 255).astype("uint8")
            Image.fromarray(pixels).save(folder / name / f"{number:03}.png")


def run_script(*options, cwd, **environment):
    command = [sys.executable, str(FOLDER / "init.py"), *map(str, options)]
    return subprocess.run(command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run with the in-batch loss on a folder that the script splits itself."""
    place = tmp_path_factory.mktemp("in_batch")
    write_images(place / "pictures", 20)
    done = run_script("--dataset", "pictures", "--epochs", 3, *SMALL, cwd=place)
    assert done.returncode == 0, done.stderr
    return place, done


@one_process
def test_a_run_prints_what_its_user_needs_to_see(finished):
    _, done = finished
    assert "pixels, 3 classes: blue sky, grün, red" in done.stdout
    for epoch in range(1, 4):
        assert f"Epoch {epoch}/3" in done.stdout
    for name in ("loss", "active_triplets", "positive_distance", "negative_distance", "val_accuracy"):
        assert len(re.findall(rf"\b{name}: [\d.]+", done.stdout)) == 3
    for name in ("raw pixels", "before training", "after training"):
        assert re.search(rf"^{name}( +[01]\.\d{{4}}){{5}}$", done.stdout, re.MULTILINE)
    assert "Traceback" not in done.stderr


@one_process
def test_a_run_folder_holds_everything(finished):
    place, done = finished
    run = place / "run"
    assert {path.name for path in run.iterdir()} == {*run_folder.FILES, ".lock"}
    scores = json.loads((run / "report.json").read_text())
    assert list(scores) == ["raw pixels", "before training", "after training", "classes after training"]
    assert list(scores["classes after training"]) == list(COLOURS)
    assert scores["after training"]["accuracy"] >= 0.9  # colours are easy
    assert (run / "report.txt").read_text(encoding="utf-8").strip() in done.stdout
    constants = json.loads((run / "constants.json").read_text())
    assert constants["EPOCHS"] == 3 and constants["BACKBONE"] == "VGG16" and constants["MARGIN"] == 0.3
    with open(run / "history.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert {"loss", "active_triplets", "positive_distance", "negative_distance", "val_accuracy"} <= set(rows[0])
    for name in ("training_curves", "confusion_matrix", "embedding_map", "neighbours"):
        with Image.open(run / f"{name}.png") as figure:
            assert figure.width > 300
    saved = np.load(run / "references.npz")
    assert saved["class_names"].tolist() == list(COLOURS)
    assert saved["embeddings"].shape == (len(saved["labels"]), 8)
    np.testing.assert_allclose(np.linalg.norm(saved["embeddings"], axis=1), 1, rtol=1e-5)


@one_process
def test_the_readme_tells_how_to_classify_new_images(finished):
    """Its example, run in a fresh process on images that no run has seen."""
    place, _ = finished
    code = next(
        block
        for block in re.findall(r"```python\n(.*?)```", (FOLDER / "README.md").read_text(encoding="utf-8"), re.DOTALL)
        if "predict_classes" in block
    )
    write_images(place / "new", 1, seed=1)
    paths = [str(Path("new", name, "000.png")) for name in COLOURS]
    code, replaced = re.subn(r"paths = .*", f"paths = {paths!r}", code)
    assert replaced == 1
    (place / "classify.py").write_text(code, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(FOLDER), "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        [sys.executable, "classify.py"], cwd=place, env=environment, capture_output=True, text=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    assert [re.search(rf"000\.png {name}$", done.stdout, re.MULTILINE) is not None for name in COLOURS] == [True] * 3


@one_process
def test_a_finished_run_is_shown_and_not_trained_again(finished):
    place, _ = finished
    before = {path.name: path.stat().st_mtime_ns for path in (place / "run").iterdir()}
    done = run_script("--dataset", "pictures", "--epochs", 3, *SMALL, cwd=place)
    assert done.returncode == 0 and done.stderr == ""
    assert "is finished; --start-afresh True" in done.stdout
    assert (place / "run" / "report.txt").read_text(encoding="utf-8").strip() in done.stdout
    assert {path.name: path.stat().st_mtime_ns for path in (place / "run").iterdir()} == before


@one_process
def test_a_run_with_other_constants_is_refused(finished):
    place, _ = finished
    done = run_script("--dataset", "pictures", "--epochs", 4, "--margin", 0.5, *SMALL, cwd=place)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "EPOCHS 3 there, 4 now; MARGIN 0.3 there, 0.5 now" in done.stderr
    assert "LEARNING_RATE" not in done.stderr


@one_process
def test_an_unfinished_run_goes_on_with_the_same_images_weights_and_backend_alone(finished, tmp_path):
    place, _ = finished
    constants = json.loads((place / "run" / "constants.json").read_text())
    changed = json.dumps({**constants, run_folder.SOURCES: dict.fromkeys(constants[run_folder.SOURCES], "another")})
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "constants.json").write_text(changed)
    (tmp_path / "pictures").symlink_to(place / "pictures")
    done = run_script("--dataset", "pictures", "--epochs", 3, *SMALL, cwd=tmp_path)
    assert done.returncode == 2
    others = "other images or classes in DATASET, other content of the file WEIGHTS, other KERAS_BACKEND"
    assert f"`RUN_FOLDER` 'run' holds a run begun with {others}; " in done.stderr
    assert (tmp_path / "run" / "constants.json").read_text() == changed


@one_process
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_run_ends_as_one_left_alone(number, finished, tmp_path):
    """Interrupted once it has a checkpoint, in the middle of an epoch or between two."""
    place, _ = finished
    options = [
        "--dataset",
        place / "pictures",
        "--epochs",
        3,
        *SMALL,
        "--checkpoint-minutes",
        1e-6,
        "--run-folder",
        "run",
    ]
    command = [sys.executable, str(FOLDER / "init.py"), *map(str, options)]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not list(tmp_path.glob("run/checkpoint-*")):
        time.sleep(0.02)
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    assert ("the same command goes on from here" in errors) == (number == signal.SIGINT)
    assert not (tmp_path / "run" / "report.txt").exists()
    done = run_script(*options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^Going on (in epoch \d after \d+ batches|after epoch \d), from run", done.stdout, re.MULTILINE)
    for name in ("history.csv", "report.json", "report.txt"):
        assert (tmp_path / "run" / name).read_bytes() == (place / "run" / name).read_bytes()
    once, twice = (np.load(each / "run" / "references.npz")["embeddings"] for each in (place, tmp_path))
    np.testing.assert_array_equal(once, twice)
    assert not list(tmp_path.glob("run/checkpoint-*"))


def test_the_merge_loss_trains_and_predicts_on_a_folder_split_by_its_owner(tmp_path):
    write_images(tmp_path / "pictures" / "train", 12)
    write_images(tmp_path / "pictures" / "test", 5, seed=2)
    done = run_script(
        "--dataset", "pictures", "--triplet-loss", "merge", "--epochs", 3, *SMALL, "--run-folder", "other", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "33 images to train on, 3 to validate, 15 to test" in done.stdout
    scores = json.loads((tmp_path / "other" / "report.json").read_text())
    assert scores["after training"]["accuracy"] >= 0.9
    goes_on = run_script(
        "--dataset", "pictures", *SMALL, "--weights", "other/embedding_model.keras", "--epochs", 1, cwd=tmp_path
    )
    assert goes_on.returncode == 0, goes_on.stderr
    again = json.loads((tmp_path / "run" / "report.json").read_text())
    assert again["before training"] == pytest.approx(scores["after training"], abs=0.05)


def test_the_quick_look_is_the_same_command_wherever_it_is_told():
    command = command_line.NO_DOWNLOAD.removeprefix("Nothing is downloaded by: ")
    docstring = ast.get_docstring(ast.parse((FOLDER / "init.py").read_text(encoding="utf-8")))
    assert f" {command} " in " ".join(docstring.split())
    assert f" && {command}\n" in (FOLDER / "README.md").read_text(encoding="utf-8")


def test_without_a_network_cifar10_ends_in_one_message(tmp_path):
    """A proxy that refuses stands for the missing network, an empty cache for a new machine."""
    proxies = {name: "http://127.0.0.1:9" for name in ("http_proxy", "https_proxy", "HTTPS_PROXY")}
    done = run_script("--precision", "float32", cwd=tmp_path, KERAS_HOME=str(tmp_path / "cache"), **proxies)
    assert done.returncode == 2
    told = done.stderr.strip().splitlines()[-1]
    assert told.startswith("init.py: CIFAR-10 could not be loaded")
    assert "cifar-10-python.tar.gz by hand at" in told
    assert "python init.py --dataset digits" in told
    assert "Traceback" not in done.stderr


def test_16_bits_are_refused_where_there_is_no_gpu(tmp_path):
    done = run_script("--dataset", "digits", cwd=tmp_path, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2
    assert '`PRECISION` must be "float32" where there is no GPU' in done.stderr
    assert "Traceback" not in done.stderr


def test_a_machine_without_channels_first_convolutions_is_told_before_anything_is_loaded(monkeypatch):
    import init

    def refuse(*arguments):
        raise RuntimeError("only NHWC here")

    monkeypatch.setattr(init, "PRECISION", "float32")
    monkeypatch.setattr(init.keras.ops, "conv", refuse)
    with pytest.raises(init.command_line.InputError, match=r"`KERAS_BACKEND` must be one .*jax.*only NHWC here"):
        init.say_where_it_runs()


@pytest.mark.parametrize("stopped", [False, True])
def test_a_report_says_when_training_stopped_early(stopped, tmp_path):
    import init

    scores = {"after training": {"accuracy": 0.5, "MAP@R": 0.25}}
    text = init.report(scores, np.array([0, 1]), np.array([0, 0]), ["a", "b"], tmp_path, stopped)
    assert text.startswith("Training stopped early") == stopped
    assert "after training       0.5000     0.2500" in text


def test_too_many_neighbours_for_the_images_are_refused(tmp_path):
    write_images(tmp_path / "pictures", 6)
    done = run_script("--dataset", "pictures", *SMALL, "--neighbours", 50, cwd=tmp_path)
    assert done.returncode == 2
    assert "`NEIGHBOURS` must be at most the number of training images" in done.stderr
