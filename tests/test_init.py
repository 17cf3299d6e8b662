"""The script itself, run as its users run it, on folders of small images."""

import csv
import html
import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from processes import ROOT, SCRIPT, run_python, run_script

from pipeline.networks.backbone import small_conv_net
from pipeline.report.embedding_files import FILES as EMBEDDING_FILES
from pipeline.run_folder import FILES

# What makes a run fast and free of downloads, and lets so few images suffice. Other constants keep their defaults.
FAST = (
    "--backbone SmallConvNet --weights none --image-size 16 --images-per-class 4 --epochs 3 --learning-rate 3e-3"
).split()
# With so few points, t-SNE is slower with more threads: on a busy machine, by most of a minute.
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
ON_THE_CPU = {**ONE_THREAD, "CUDA_VISIBLE_DEVICES": ""}  # where runs are the same bit for bit
AS_IN_A_NOTEBOOK = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}  # which `!python` inherits there
STRIPES = {"level lines": (0, 1), "schräg": (1, 1), "upright": (1, 0)}  # class name -> direction of the wave: x, y
EARLIER = {"controls.json", "confusion_matrix.png", "embedding_map.png", "neighbours.png"}  # versions wrote these
EVERY_FILE = {*FILES, ".lock"} - EARLIER - {"cross_entropy.npz", *EMBEDDING_FILES}  # of CONTROL, of EXPORT_EMBEDDINGS
one_process = pytest.mark.xdist_group("finished run")  # so that the fixtures run once, with pytest -n too


def write_images(folder, count, seed=0, noise=40):
    """A folder of stripes in one direction a class, of random phase and colour, which raw pixels hardly separate."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:24, :24] * (2 * np.pi / 6)
    for name, (right, down) in STRIPES.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            wave = 60 * np.sin(right * x + down * y + generator.uniform(0, 2 * np.pi))
            pixels = 128 + 30 * generator.normal(size=3) + wave[..., None] + noise * generator.normal(size=(24, 24, 3))
            Image.fromarray(np.clip(pixels, 0, 255).astype("uint8")).save(folder / name / f"{number:03}.png")


def constants_of(run):
    return json.loads((run / "constants.json").read_text(encoding="utf-8"))


def scores_of(run):
    return json.loads((run / "report.json").read_text(encoding="utf-8"))


def report_of(run):
    return (run / "report.txt").read_text(encoding="utf-8")


def changed_constants(one, another):
    return {name for name in {*one, *another} if one.get(name) != another.get(name)}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run with the in-batch loss on a folder that the script splits itself; the folder it ran in, and its process."""
    place = tmp_path_factory.mktemp("runs")
    write_images(place / "pictures", 20)
    done = run_script("--dataset", "pictures", *FAST, cwd=place, **ON_THE_CPU, **AS_IN_A_NOTEBOOK)
    assert done.returncode == 0, done.stderr
    return place, done


@pytest.fixture(scope="module")
def repeated(finished):
    """The processes that repeat the finished run, from its constants.json, in the folder `second`.

    The first is killed and the second gets Slurm's signal, each once it has written a checkpoint; the third ends the
    run, on the same images in another folder.
    """
    place, _ = finished
    command, processes, known = ["--constants", "run/constants.json", "--run-folder", "second"], [], set()
    for number in (signal.SIGKILL, signal.SIGUSR1):
        process = subprocess.Popen(
            [sys.executable, SCRIPT, *command, "--checkpoint-minutes", "1e-6"],
            cwd=place,
            env={**os.environ, "PYTHONIOENCODING": "utf-8", **ON_THE_CPU},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        while process.poll() is None and set(place.glob("second/checkpoint-*")) <= known:
            time.sleep(0.02)
        process.send_signal(number)
        output, errors = process.communicate()
        assert not (place / "second" / "report.txt").exists(), errors
        known = set(place.glob("second/checkpoint-*"))
        processes.append(subprocess.CompletedProcess(process.args, process.returncode, output, errors))
    (place / "pictures").rename(place / "moved")
    last = run_script(*command, "--dataset", "moved", cwd=place, **ON_THE_CPU)
    (place / "moved").rename(place / "pictures")
    return [*processes, last]


@one_process
def test_a_run_prints_what_its_user_needs_to_see(finished):
    _, done = finished
    assert "pixels; 3 classes: level lines, schräg, upright" in done.stdout
    for epoch in range(1, 4):
        assert f"Epoch {epoch}/3" in done.stdout
    for name in ("loss", "active_triplets", "positive_distance", "negative_distance", "val_accuracy"):
        assert len(re.findall(rf"\b{name}: [\d.]+", done.stdout)) == 3
    for name in ("raw pixels", "pooled features", "triplet loss"):
        interval = r"[01]\.\d{3} to [01]\.\d{3}"
        assert re.search(rf"^{name} +[01]\.\d{{4}} +{interval}( +[01]\.\d{{4}}){{4}}$", done.stdout, re.MULTILINE)
    sentence = scores_of(finished[0] / "run")["verdict"]["sentence"]
    assert sentence in " ".join(done.stdout.split())
    assert done.stderr == ""


@one_process
def test_a_run_prints_which_defaults_do_not_fit(finished):
    place, done = finished
    lines = done.stdout.splitlines()
    assert "CLASSES_PER_BATCH = 8 is reduced to 3, the number of classes." in lines
    assert any(line.startswith("FROZEN_LAYERS = 15 is not used, since the weights are random") for line in lines)
    assert re.search(r"^Keras .* CPU \(no GPU found\), with precision float32$", done.stdout, re.MULTILINE)
    assert "NEIGHBOURS" not in done.stdout
    constants = constants_of(place / "run")
    kept = {"CLASSES_PER_BATCH": 8, "FROZEN_LAYERS": 15, "NEIGHBOURS": 5, "PRECISION": "auto"}
    assert {name: constants[name] for name in kept} == kept
    assert constants["started with"]["precision"] == "float32"


@one_process
def test_a_run_folder_holds_everything(finished):
    place, done = finished
    run = place / "run"
    assert {path.name for path in run.iterdir()} == EVERY_FILE
    scores = scores_of(run)
    assert [name for name in scores if name != "near duplicates"] == [  # which these images may have
        "raw pixels",
        "pooled features",
        "logistic regression",
        "triplet loss",
        "classes",
        "unknown images",
        "verdict",
    ]
    assert list(scores["classes"]) == list(STRIPES)
    assert scores["triplet loss"]["accuracy"] >= 0.8
    assert scores["triplet loss"]["MAP@R"] >= scores["pooled features"]["MAP@R"] + 0.2
    assert report_of(run).strip() in done.stdout
    constants = constants_of(run)
    assert constants["EPOCHS"] == 3 and constants["BACKBONE"] == "SmallConvNet" and constants["MARGIN"] == 0.3
    with open(run / "history.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert {"loss", "active_triplets", "positive_distance", "negative_distance", "val_accuracy"} <= set(rows[0])
    with Image.open(run / "training_curves.png") as figure:
        assert figure.width > 300
    page = (run / "report.html").read_text(encoding="utf-8")
    assert scores["verdict"]["sentence"] in html.unescape(page) and "<circle" in page
    with open(run / "audit.csv", newline="") as file:
        assert next(csv.reader(file))[:4] == ["finding", "part", "path", "label"]
    saved = np.load(run / "references.npz")
    assert saved["class_names"].tolist() == list(STRIPES)
    assert saved["embeddings"].shape == (len(saved["labels"]), 128)
    np.testing.assert_allclose(np.linalg.norm(saved["embeddings"], axis=1), 1, rtol=1e-5)


@one_process
def test_a_copy_of_the_run_folder_classifies_new_images(finished, tmp_path):
    """In a process of its own, which has no training images, on images that no run has seen."""
    place, _ = finished
    write_images(tmp_path / "new", 1, seed=1, noise=10)
    (place / "run").rename(tmp_path / "elsewhere")
    done = run_python(ROOT / "classify.py", "elsewhere", "new", "--format", "csv", cwd=tmp_path)
    (tmp_path / "elsewhere").rename(place / "run")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    rows = list(csv.DictReader(done.stdout.splitlines()))
    assert [(row["image"], row["class"]) for row in rows] == [(f"new/{name}/000.png", name) for name in STRIPES]
    assert all((place / "pictures" / row["reference"]).exists() for row in rows)


@one_process
def test_a_finished_run_is_shown_and_not_trained_again(finished):
    place, _ = finished
    before = {path.name: path.stat().st_mtime_ns for path in (place / "run").iterdir()}
    done = run_script("--dataset", "pictures", *FAST, cwd=place)
    assert done.returncode == 0 and done.stderr == ""
    assert "is finished; --overwrite trains it again" in done.stdout
    assert report_of(place / "run").strip() in done.stdout
    assert {path.name: path.stat().st_mtime_ns for path in (place / "run").iterdir()} == before


@one_process
def test_a_run_with_other_constants_is_refused(finished):
    place, _ = finished
    done = run_script("--dataset", "pictures", *FAST, "--epochs", 4, "--margin", 0.5, cwd=place)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "(EPOCHS was 3, now 4; MARGIN was 0.3, now 0.5)" in done.stderr


@one_process
def test_an_unfinished_run_is_not_resumed_with_other_images_weights_backend_or_precision(finished, tmp_path):
    """One image really differs; of the others, constants.json holds another value."""
    place, _ = finished
    constants = constants_of(place / "run")
    images, *others = (name for name in constants["started with"] if name != "OVERWRITE")
    constants["started with"].update(dict.fromkeys(others, "another"))
    (tmp_path / "run").mkdir()
    text = json.dumps(constants)
    (tmp_path / "run" / "constants.json").write_text(text)
    (tmp_path / "run" / "checkpoint-00001-0000000.npz").touch()
    write_images(tmp_path / "pictures", 20)
    (tmp_path / "pictures" / "upright" / "007.png").write_bytes((place / "pictures/upright/008.png").read_bytes())
    done = run_script("--dataset", "pictures", *FAST, cwd=tmp_path, **ON_THE_CPU)
    assert done.returncode == 2
    assert len(others) == 5
    named = (
        f"other {images}, other content of the file WEIGHTS, other content of the file BACKBONE, other KERAS_BACKEND, "
        "other precision, other value range"
    )
    assert f"`RUN_FOLDER` 'run' has a run with {named}; " in done.stderr
    assert (tmp_path / "run" / "constants.json").read_text() == text


@pytest.mark.slow
@one_process
def test_a_repeated_and_interrupted_run_ends_with_the_same_bytes(finished, repeated):
    place, _ = finished
    run, second = place / "run", place / "second"
    killed, interrupted, resumed = repeated
    assert [each.returncode for each in repeated] == [-signal.SIGKILL, 128 + signal.SIGUSR1, 0], resumed.stderr
    assert killed.stderr == ""
    assert "A checkpoint was saved: run the same command to resume." in interrupted.stderr
    for each in (interrupted, resumed):
        assert re.search(r"^Resuming (in epoch \d after \d+ batches|after epoch \d), from ", each.stdout, re.MULTILINE)
    for name in ("history.csv", "report.json", "report.txt"):
        assert (second / name).read_bytes() == (run / name).read_bytes()
    once, twice = (np.load(each / "references.npz")["embeddings"] for each in (run, second))
    np.testing.assert_array_equal(once, twice)
    assert {path.name for path in second.iterdir()} == EVERY_FILE  # no checkpoint or partial file is left
    assert changed_constants(constants_of(run), constants_of(second)) == {"RUN_FOLDER", "DATASET"}


@pytest.mark.slow
@one_process
def test_a_finished_run_is_overwritten_by_a_later_one_from_an_earlier_model(finished, repeated):
    """The later run is the earlier one with another WEIGHTS alone, so it starts where that ended."""
    place, _ = finished
    run, second = place / "run", place / "second"
    weights = ["--dataset", "pictures", "--weights", "run/embedding_model.keras"]
    done = run_script("--constants", "second/constants.json", "--overwrite", *weights, cwd=place, **ON_THE_CPU)
    assert done.returncode == 0, done.stderr
    assert "Epoch 1/3" in done.stdout and "is finished" not in done.stdout
    assert "FROZEN_LAYERS = 15 is not used" not in done.stdout
    constants = constants_of(second)
    assert changed_constants(constants_of(run), constants) == {"RUN_FOLDER", "WEIGHTS", "started with"}
    assert constants["started with"]["OVERWRITE"] is True
    first, later = scores_of(run), scores_of(second)
    assert later["raw pixels"] == first["raw pixels"]
    assert later["pooled features"]["MAP@R"] > first["pooled features"]["MAP@R"] + 0.1

    before = {path.name: path.stat().st_mtime_ns for path in second.iterdir()}
    shown = run_script("--constants", "second/constants.json", cwd=place)
    assert shown.returncode == 0 and shown.stderr == ""
    assert "is finished; --overwrite trains it again" in shown.stdout
    assert report_of(second).strip() in shown.stdout
    assert {path.name: path.stat().st_mtime_ns for path in second.iterdir()} == before


def test_the_merge_loss_trains_and_predicts_on_a_folder_split_by_its_owner(tmp_path):
    """One class is only in its test set."""
    write_images(tmp_path / "pictures" / "train", 12)
    write_images(tmp_path / "pictures" / "test", 5, seed=2)
    (tmp_path / "pictures" / "test" / "upright").rename(tmp_path / "pictures" / "test" / "new")
    options = ["--triplet-loss", "merge", "--control", "cross_entropy", "--neighbours", 500, "--run-folder", "other"]
    done = run_script("--dataset", "pictures", *FAST, *options, cwd=tmp_path, **ONE_THREAD)
    assert done.returncode == 0, done.stderr
    trained = re.search(r"(\d+) images for training, (\d+) for validation, 10 for testing", done.stdout)
    assert int(trained[1]) + int(trained[2]) == 36
    assert f"NEIGHBOURS = 500 is reduced to {trained[1]}, the number of training images." in done.stdout.splitlines()
    assert f"classified by the vote of {trained[1]} nearest training images" in report_of(tmp_path / "other")
    scores, constants = scores_of(tmp_path / "other"), constants_of(tmp_path / "other")
    assert scores["triplet loss"]["MAP@R"] >= scores["pooled features"]["MAP@R"] + 0.1
    assert f", with precision {constants['started with']['precision']}\n" in done.stdout
    assert scores["held-out classes"]["classes"] == ["new"]
    assert {"cross-entropy", "cross-entropy features"} < set(scores)
    files = {path.name for path in (tmp_path / "other").iterdir()}
    assert files == {*EVERY_FILE, "cross_entropy.npz"}  # no folder of checkpoints
    assert {"AUROC", "known rejected", "unknown rejected"} <= set(scores["unknown images"])


@pytest.mark.slow
def test_a_run_whose_test_classes_are_all_held_out(tmp_path):
    """The usual protocol of metric learning; with a network of the user's."""
    small_conv_net((3, 16, 16)).save(tmp_path / "own.keras")
    write_images(tmp_path / "pictures" / "train", 12)
    write_images(tmp_path / "pictures" / "test", 8, seed=2)
    for name in STRIPES:
        (tmp_path / "pictures" / "test" / name).rename(tmp_path / "pictures" / "test" / f"new {name}")
    own = ["--backbone", "own.keras", "--weights", "imagenet", "--frozen-layers", 2, "--preprocessing", "tf"]
    own.append("--export-embeddings")
    done = run_script("--dataset", "pictures", *FAST, *own, "--epochs", 1, cwd=tmp_path, **ONE_THREAD)
    assert done.returncode == 0, done.stderr
    assert "No known classes in the test" in report_of(tmp_path / "run")
    assert all((tmp_path / "run" / name).exists() for name in EMBEDDING_FILES)
    scores = scores_of(tmp_path / "run")
    assert "triplet loss" not in scores and "AUROC" not in scores["unknown images"]
    held_out = scores["held-out classes"]
    for name in ("raw pixels", "pooled features", "triplet loss"):
        assert list(held_out[name]) == ["recall@1", "recall@5", "recall@10", "MAP@R"]
    assert set(held_out["accuracy after adding images"]) == {"1", "5"}
    assert "of held-out classes" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


def test_without_a_network_cifar10_ends_in_one_message(tmp_path):
    """A proxy that refuses stands for the missing network, an empty cache for a new machine."""
    proxies = {name: "http://127.0.0.1:9" for name in ("http_proxy", "https_proxy", "HTTPS_PROXY")}
    done = run_script(cwd=tmp_path, KERAS_HOME=str(tmp_path / "cache"), **proxies)
    assert done.returncode == 2
    message = done.stderr.strip().splitlines()[-1]
    assert message.startswith("init.py: CIFAR-10 could not be downloaded")
    assert "cifar-10-python.tar.gz by hand and save it as" in message
    assert "python init.py --constants examples/digits.json" in message
    assert "Traceback" not in done.stderr


def test_16_bits_are_refused_without_a_gpu(tmp_path):
    """After the constants of the example, which are all accepted."""
    example = ["--constants", ROOT / "examples" / "digits.json"]
    done = run_script(*example, "--precision", "mixed_float16", cwd=tmp_path, **ON_THE_CPU)
    assert done.returncode == 2
    assert '`PRECISION` must be "auto" or "float32" on a machine without a GPU' in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())
