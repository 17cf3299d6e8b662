"""The options, against the text of init.py itself and the real script in a process of its own."""

import ast
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import keras
import pytest

import command_line
from backbones import BACKBONES
from command_line import InputError

FOLDER = Path(__file__).resolve().parent.parent
SCRIPT = FOLDER / "init.py"
TEXT = SCRIPT.read_text(encoding="utf-8")
# The oracle: every line `NAME = value  # comment` above the first function.
LINES = re.findall(r"^([A-Z_]+) = (.*?)(?:  # (.+))?$", TEXT[: TEXT.index("\ndef ")], re.MULTILINE)
CONSTANTS = {name: ast.literal_eval(value) for name, value, _ in LINES}
WRONG_TYPES = {
    int: [None, True, "one", 2.0, [2]],
    float: [None, True, "half", [1], 10**400],
    str: [None, True, 3, b"none"],
    bool: [None, 1, "on"],
}
# Of each constant: values of the command line that are refused, some that are not, and what the message must say.
CASES = {
    "DATASET": (["", "cifar", __file__, "x" * 300], ["digits", "cifar10"], ["cifar10", "digits", "folder"]),
    "TEST_FRACTION": (["0", "1", "-0.1", "20%", "nan"], ["0.01", "0.99"], ["above 0", "below 1"]),
    "VALIDATION_FRACTION": (["0", "1", "1.5", ""], ["0.01", "5e-1"], ["above 0", "below 1"]),
    "IMAGE_SIZE": (["7", "0", "-32", "32.0", "32px", "inf"], ["32", "96"], ["whole number", "8"]),
    "FIT": (["crop", "Scale", ""], ["scale", "pad"], ["scale", "pad"]),
    "UNREADABLE_IMAGES": (["ignore", ""], ["stop", "skip"], ["stop", "skip"]),
    "AUGMENT": (["flip", "shift flip"], ["none", "shift", "shift_flip"], ["none", "shift", "shift_flip"]),
    "BACKBONE": (["", "ResNet-50", "ConvNeXtTiny"], ["VGG16", "MobileNetV2"], ["keras.applications", "InceptionV3"]),
    "WEIGHTS": (["", str(FOLDER), "x" * 300, __file__], ["imagenet", "none"], ["imagenet", "none", "file"]),
    "FROZEN_LAYERS": (["-1", "1.5", "all"], ["0", "175"], ["whole number", "0"]),
    "EMBEDDING_SIZE": (["1", "0", "1e2"], ["2", "4096"], ["whole number", "2"]),
    "TRIPLET_LOSS": (["batch", "contrastive"], ["in_batch", "merge"], ["in_batch", "merge"]),
    "MINING": (["semi-hard", "hard"], ["batch_all", "batch_hard", "semi_hard"], ["batch_hard", "semi_hard"]),
    "MARGIN": (["0", "4", "-1", "nan", "inf", "0,3"], ["0.001", "3.99", "1"], ["above 0", "below 4"]),
    "CLASSES_PER_BATCH": (["1", "0", "8.0"], ["2", "10"], ["whole number", "2"]),
    "IMAGES_PER_CLASS": (["1", "-4"], ["2", "64"], ["whole number", "2"]),
    "EPOCHS": (["0", "-3", "1e1"], ["1", "100"], ["whole number", "1"]),
    "LEARNING_RATE": (["0", "10", "-1", "inf", "fast"], ["1e-9", "9.9"], ["above 0", "below 10"]),
    "WARM_UP": (["-0.1", "1", "nan"], ["0", "0.99"], ["from 0", "below 1"]),
    "NEIGHBOURS": (["0", "-5", "5.5"], ["1", "50"], ["whole number", "1"]),
    "PRECISION": (["float16", "16"], ["float32", "mixed_float16", "mixed_bfloat16"], ["float32", "mixed_bfloat16"]),
    "SEED": (["-1", str(2**31), "0.5"], ["0", str(2**31 - 1)], ["from 0", "2**31"]),
    "CHECKPOINT_MINUTES": (["0", "-5", "inf", "soon"], ["0.1", "60"], ["above 0"]),
    "START_AFRESH": (["yes", "1", ""], ["True", "false"], ["True", "False"]),
    "RUN_FOLDER": (["", "  ", "a\0b"], ["runs/second", "my run"], ["folder"]),
}


def option(name):
    return "--" + name.lower().replace("_", "-")


def read(*arguments, script=SCRIPT, **constants):
    return command_line.read_options(script, {**CONSTANTS, **constants}, list(arguments))


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_every_constant_is_an_option_with_its_comment_as_help():
    done = subprocess.run([sys.executable, SCRIPT, "--help"], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert list(CONSTANTS) == list(CASES)
    shown = "".join(done.stdout.split())  # lines are broken at spaces and hyphens
    for name, _, comment in LINES:
        assert comment, name
        expected = "".join(f"{comment} (default: {CONSTANTS[name]})".split())
        assert re.search(f"{option(name)}[A-Z_]+{re.escape(expected)}", shown), name


def test_the_constants_alone_are_the_values_and_a_whole_number_serves_for_a_number():
    assert repr(read()) == repr(CONSTANTS)
    assert repr(read(WARM_UP=0)["WARM_UP"]) == "0.0"


@pytest.mark.parametrize("name", CONSTANTS)
def test_a_value_of_the_command_line_wins_and_has_the_constants_type(name):
    for text in CASES[name][1]:
        kind = type(CONSTANTS[name])
        expected = CONSTANTS | {name: {"True": True, "false": False}[text] if kind is bool else kind(text)}
        assert repr(read(option(name), text)) == repr(expected)


@pytest.mark.parametrize("name", CONSTANTS)
def test_a_wrong_value_is_told_with_its_constant_and_what_is_allowed(name):
    refused, _, words = CASES[name]
    given = [([f"{option(name)}={value}"], {}, value) for value in refused]
    in_the_script = [([], {name: value}, value) for value in WRONG_TYPES[type(CONSTANTS[name])]]
    for arguments, constants, value in given + in_the_script:
        with pytest.raises(InputError, match=rf"^`{name}` must be .*\. Received: {re.escape(repr(value))}$") as caught:
            read(*arguments, **constants)
        assert [word for word in words if word not in str(caught.value)] == []


def test_a_constant_that_is_missing_or_set_twice_is_told(tmp_path):
    copy = tmp_path / "copy.py"
    for text in (TEXT.replace("\nMARGIN =", "\nmargin ="), TEXT + "\nMARGIN = 0.2\n"):
        copy.write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match="`MARGIN` must be set once"):
            read(script=copy)


def test_a_constant_of_the_users_own_becomes_an_option_of_its_type(tmp_path):
    copy = tmp_path / "copy.py"
    copy.write_text(TEXT.replace("\nSEED =", "\nSHOW = False  # 100% new\nSEED ="), encoding="utf-8")
    assert read("--show", "true", script=copy, SHOW=False)["SHOW"] is True
    with pytest.raises(InputError, match="`SHOW` must be True or False"):
        read("--show", "perhaps", script=copy, SHOW=False)
    with pytest.raises(InputError, match="`SHOW` must be a number"):
        read("--show", "nan", script=copy, SHOW=0.5)
    with pytest.raises(SystemExit, match="0"):
        read("--help", script=copy, SHOW=False)


@pytest.mark.parametrize("arguments", ["--epoch 3", "--colour 3", "3", "--epochs", "--image_size 64"])
def test_unknown_abbreviated_and_lone_options_are_told(arguments):
    with pytest.raises(InputError, match=rf"{arguments}.*--help"):
        read(*arguments.split())


def test_the_commands_that_the_documentation_shows_are_accepted(tmp_path):
    for label in range(8):
        (tmp_path / "my_images" / str(label)).mkdir(parents=True)
    shown = re.findall(r"python init\.py(.*)", re.sub(r"\\\n +", "", TEXT) + command_line.NO_DOWNLOAD)
    assert len(shown) >= 4
    for line in shown:
        read(*shlex.split(re.split(" {3,}", line)[0]))  # what follows three spaces describes the command


def test_the_backbones_are_those_that_keras_has_with_channels_first():
    without = ("ConvNeXt", "DenseNet", "NASNet")
    theirs = {name for name in dir(keras.applications) if name[0].isupper()}
    assert set(BACKBONES) == {name for name in theirs if not name.startswith(without)}
    for family in without:
        name = next(name for name in sorted(theirs) if name.startswith(family))
        with pytest.raises(ValueError, match="channels_first"):
            getattr(keras.applications, name)(include_top=False, weights=None, input_shape=(3, 64, 64))


@pytest.mark.parametrize("backbone", ["ResNet50", "VGG16", "InceptionV3", "MobileNet", "Xception"])
def test_the_limits_of_a_backbone_are_those_of_keras(backbone):
    layers, smallest = BACKBONES[backbone]

    def build(size):
        shape = (3, size, size) if keras.config.image_data_format() == "channels_first" else (size, size, 3)
        return getattr(keras.applications, backbone)(include_top=False, weights=None, input_shape=shape)

    assert len(build(smallest).layers) == layers
    with pytest.raises(ValueError, match="input"):
        build(smallest - 1)

    accepted = ["--backbone", backbone, f"--image-size={smallest}", f"--frozen-layers={layers}"]
    assert read(*accepted)["FROZEN_LAYERS"] == layers
    with pytest.raises(InputError, match=f"`IMAGE_SIZE` must be at least {smallest} for {backbone}"):
        read(*accepted, "--image-size", str(smallest - 1))
    with pytest.raises(InputError, match=f"`FROZEN_LAYERS` must be between 0 and {layers} for {backbone}"):
        read(*accepted, "--frozen-layers", str(layers + 1))


def test_classes_per_batch_is_at_most_the_number_of_classes(tmp_path):
    for path in ("flat/one", "flat/two", "flat/three", "flat/.cache", "split/train/a", "split/train/b", "split/test/a"):
        (tmp_path / path).mkdir(parents=True)
    (tmp_path / "flat" / "notes.txt").write_text("no class")
    for dataset, classes in (("cifar10", 10), ("digits", 10), ("flat", 3), ("split", 2)):
        assert read(f"--dataset={dataset}", f"--classes-per-batch={classes}")["CLASSES_PER_BATCH"] == classes
        with pytest.raises(InputError, match=f"`CLASSES_PER_BATCH` must not be above .* {classes} in '{dataset}'"):
            read(f"--dataset={dataset}", f"--classes-per-batch={classes + 1}")


@pytest.mark.parametrize("folders", [[], ["only"], ["train/only", "test/only"]])
def test_a_folder_without_two_classes_is_told(folders, tmp_path):
    for path in folders:
        (tmp_path / "images" / path).mkdir(parents=True)
    (tmp_path / "images").mkdir(exist_ok=True)
    with pytest.raises(InputError, match=f"`DATASET` must .* two classes.*which has {min(len(folders), 1)}"):
        read("--dataset", "images", "--classes-per-batch", "2")


def test_a_run_inside_the_images_and_half_a_split_are_refused(tmp_path):
    for name in (
        "images/train/a",
        "images/train/b",
        "images/val/a",
        "other/test/a",
        "other/test/b",
        "flat/a",
        "flat/b",
    ):
        (tmp_path / name).mkdir(parents=True)
    for name, missing in (("images", "test"), ("other", "train")):
        with pytest.raises(InputError, match=f"`DATASET` must have class folders in {missing}/"):
            read("--dataset", name, "--classes-per-batch", "2")
    for run in ("flat", "flat/run", "run/../flat/a"):
        with pytest.raises(InputError, match="`RUN_FOLDER` must not be inside `DATASET`"):
            read("--dataset", "flat", "--classes-per-batch", "2", "--run-folder", run)
    assert read("--dataset", "flat", "--classes-per-batch", "2", "--run-folder", "flat2")
    assert read("--dataset", "flat", "--triplet-loss", "merge")  # which has no classes per batch


def test_the_model_that_a_run_replaces_is_refused_as_its_weights(tmp_path):
    """Begun afresh and interrupted, the run could not be gone on with."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "embedding_model.keras").write_bytes(b"PK\x03\x04")
    given = ("--weights", "run/../run/embedding_model.keras")
    with pytest.raises(InputError, match="`WEIGHTS` must not be the model that the run replaces"):
        read(*given)
    assert read(*given, "--run-folder", "second")


ENDS = {
    "raise OSError(errno.EIO, 'the disk is broken')": "`RUN_FOLDER`, `DATASET` and .* must work.*the disk is broken",
    "raise OSError(errno.ENOSPC, 'no room')": "`RUN_FOLDER`, `DATASET` and .* with room left.*no room",
}


@pytest.mark.parametrize(("failure", "message"), ENDS.items())
def test_a_disk_that_fails_is_told_in_one_line(failure, message):
    code = f"import command_line, errno\ndef main():\n    {failure}\ncommand_line.run(main)"
    done = subprocess.run([sys.executable, "-c", code], cwd=FOLDER, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert re.search(message, done.stderr)


@pytest.mark.skipif(os.name != "posix", reason="another shell")
@pytest.mark.parametrize(("closed", "code"), [(">&-", 0), ("2>&-", 2)])
def test_a_closed_stream_is_no_failure(closed, code, tmp_path):
    (tmp_path / "code.py").write_text(
        "import command_line, sys\n"
        "def main():\n    print('nobody reads this')\n"
        "    if sys.argv[1] == '2': raise command_line.InputError('nor this')\n"
        "command_line.run(main)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(FOLDER)}
    done = subprocess.run(f"{sys.executable} code.py {code} {closed}", shell=True, cwd=tmp_path, env=environment)
    assert done.returncode == code


@pytest.mark.parametrize(("beginning", "expected"), [(b"\x89HDF\r\n\x1a\n", True), (b"PK\x03\x04", True), (b"", False)])
def test_a_weights_file_begins_as_one(beginning, expected, tmp_path):
    (tmp_path / "weights").write_bytes(beginning + b"and more")
    if expected:
        assert read("--weights", "weights")["WEIGHTS"] == "weights"
    else:
        with pytest.raises(InputError, match="`WEIGHTS` must be"):
            read("--weights", "weights")


def test_output_that_nobody_reads_any_more_ends_in_one_line():
    code = "import command_line; command_line.run(lambda: [print('line', number) for number in range(10**5)])"
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=FOLDER, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "line 0\n"
        process.stdout.close()
        told = process.stderr.read()
    assert process.returncode == 141
    assert re.fullmatch("Stopped, since nobody reads .*the last checkpoint.\n", told)


@pytest.mark.skipif(sys.platform == "darwin", reason="there a name is always UTF-8")
def test_a_class_name_that_is_no_text_is_refused(tmp_path):
    for name in (b"caf\xe9", b"b"):
        os.makedirs(os.path.join(os.fsencode(tmp_path), b"images", name))
    with pytest.raises(InputError, match=r"printable names. Received: \['caf\\udce9'\]"):
        read("--dataset", "images", "--classes-per-batch", "2")


def test_a_wrong_value_ends_the_script_with_one_line_before_keras_is_imported(tmp_path):
    (tmp_path / "keras.py").write_text("open('imported', 'w').close()\nraise ImportError('the false Keras')\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}

    def run(*arguments):
        return subprocess.run([sys.executable, SCRIPT, *arguments], env=environment, capture_output=True, text=True)

    done = run("--margin", "-1")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "init.py: `MARGIN` must be a number above 0 and below 4. Received: '-1'\n"
    assert not (tmp_path / "imported").exists()
    assert "the false Keras" in run("--margin", "1").stderr  # which a right value does reach
    assert (tmp_path / "imported").exists()
