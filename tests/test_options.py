"""The options, compared with the text of init.py itself, and the real script in a process of its own."""

import ast
import json
import os
import re
import shlex
import shutil
import time

import keras
import pytest
from processes import ROOT, SCRIPT, run_script

from pipeline import downloads, run_folder
from pipeline.errors import InputError
from pipeline.networks.backbone import build
from pipeline.settings import options
from pipeline.settings.backbones import BACKBONES, TORCHVISION

TEXT = SCRIPT.read_text(encoding="utf-8")
HEAD = TEXT[: TEXT.index("\ndef ")]
# Independently of the code under test: every line `NAME = value  # comment` above the first function.
LINES = re.findall(r"^([A-Z_]+) = (.*?)(?:  # (.+))?$", HEAD, re.MULTILINE)
CONSTANTS = {name: ast.literal_eval(value) for name, value, _ in LINES}
WRONG_TYPES = {
    int: [None, True, "one", 2.0, [2]],
    float: [None, True, "half", [1], 10**400, float("nan")],
    str: [None, True, 2.5, ["none"]],  # an integer becomes text
    bool: [None, 1, "on", "true"],
}
# For each constant that is not True or False: values of the command line that are refused, some that are not, words of
# the message, and what `--help` shows in place of a value.
CASES = {
    "DATASET": (
        ["", "cifar", __file__, "x" * 300],
        ["digits", "cifar10"],
        ["cifar10", "digits", "folder"],
        "cifar10|digits|PATH",
    ),
    "TEST_FRACTION": (["0", "1", "-0.1", "20%", "nan"], ["0.01", "0.99"], ["above 0", "below 1"], "FLOAT"),
    "VALIDATION_FRACTION": (["0", "1", "1.5", ""], ["0.01", "5e-1"], ["above 0", "below 1"], "FLOAT"),
    "IMAGE_SIZE": (["7", "0", "-32", "32.0", "32px", "inf"], ["32", "96"], ["integer", "8"], "INT"),
    "FIT": (["crop", "Scale", ""], ["scale", "pad"], ["scale", "pad"], "{scale,pad}"),
    "UNREADABLE_IMAGES": (["ignore", ""], ["stop", "skip"], ["stop", "skip"], "{stop,skip}"),
    "SMALL_CLASSES": (["ignore", ""], ["stop", "skip"], ["stop", "skip"], "{stop,skip}"),
    "HELD_OUT_CLASSES": (
        ["", "  "],
        ["none", "0", "8", "cat", "cat, dog,"],
        ["none", "number", "names"],
        "NUMBER|NAMES",
    ),
    "AUGMENT": (
        ["flip", "shift flip"],
        ["none", "shift", "shift_flip"],
        ["none", "shift", "shift_flip"],
        "{none,shift,shift_flip}",
    ),
    "BACKBONE": (
        ["", "ResNet-50", "ConvNeXtTiny"],
        ["VGG16", "MobileNetV2"],
        ["SmallConvNet", "Xception"],
        "NAME|PATH",
    ),
    "PREPROCESSING": (["imagenet", ""], ["tf", "none"], ["auto", "caffe"], "{auto,none,tf,torch,caffe}"),
    "WEIGHTS": (
        ["", str(ROOT), "x" * 300, __file__, "a\0b"],
        ["imagenet", "none"],
        ["imagenet", "none", "file"],
        "imagenet|none|PATH",
    ),
    "FROZEN_LAYERS": (["-1", "1.5", "all"], ["0", "175"], ["integer", "0"], "INT"),
    "EMBEDDING_SIZE": (["1", "0", "1e2"], ["2", "4096"], ["integer", "2"], "INT"),
    "TRIPLET_LOSS": (["batch", "contrastive"], ["in_batch", "merge"], ["in_batch", "merge"], "{in_batch,merge}"),
    "MINING": (
        ["semi-hard", "hard"],
        ["batch_all", "batch_hard", "semi_hard", "all_semi_hard"],
        ["batch_hard", "semi_hard"],
        "{batch_all,batch_hard,semi_hard,all_semi_hard}",
    ),
    "MARGIN": (["0", "4", "-1", "nan", "inf", "0,3"], ["0.001", "3.99", "1"], ["above 0", "below 4"], "FLOAT"),
    "CLASSES_PER_BATCH": (["1", "0", "8.0"], ["2", "10", "11"], ["integer", "2"], "INT"),
    "IMAGES_PER_CLASS": (["1", "-4"], ["2", "64"], ["integer", "2"], "INT"),
    "EPOCHS": (["0", "-3", "1e1"], ["1", "100"], ["integer", "1"], "INT"),
    "LEARNING_RATE": (["0", "10", "-1", "inf", "fast"], ["1e-9", "9.9"], ["above 0", "below 10"], "FLOAT"),
    "WARM_UP": (["-0.1", "1", "nan"], ["0", "0.99"], ["from 0", "below 1"], "FLOAT"),
    "NEIGHBOURS": (["0", "-5", "5.5"], ["1", "50"], ["integer", "1"], "INT"),
    "CONTROL": (["softmax", ""], ["none", "cross_entropy"], ["none", "cross_entropy"], "{none,cross_entropy}"),
    "FALSE_REJECTION_RATE": (
        ["0", "1", "-0.01", "1%", "nan"],
        ["0.001", "0.99"],
        ["above 0", "below 1"],
        "FLOAT",
    ),
    "PRECISION": (
        ["float16", "16", ""],
        ["auto", "float32", "mixed_float16", "mixed_bfloat16"],
        ["auto", "float32", "mixed_bfloat16"],
        "{auto,float32,mixed_float16,mixed_bfloat16}",
    ),
    "SEED": (["-1", str(2**31), "0.5"], ["0", str(2**31 - 1)], ["from 0", "2**31"], "INT"),
    "CHECKPOINT_MINUTES": (["0", "-5", "inf", "soon"], ["0.1", "60"], ["above 0"], "FLOAT"),
    "DEVICES": (["0", "-1", "all", "1.5", ""], ["auto", "1", "8"], ["auto", "number"], "auto|NUMBER"),
    "IMAGES_IN": (["ram", ""], ["auto", "memory", "disk"], ["auto", "memory", "disk"], "{auto,memory,disk}"),
    "CACHE_FOLDER": (["", "  ", "a\0b"], ["auto", "my cache"], ["auto", "folder"], "auto|PATH"),
    "RUN_FOLDER": (["", "  ", "a\0b"], ["runs/second", "my run"], ["folder"], "PATH"),
}
FLAGS = ("OVERWRITE", "EXPORT_EMBEDDINGS")
VALUED = [name for name in CONSTANTS if name not in FLAGS]
ANY_TEXT = ("HELD_OUT_CLASSES", "DEVICES")  # or a number


def option(name):
    return "--" + name.lower().replace("_", "-")


def read(*arguments, script="init.py", **constants):
    return options.override(script, {**CONSTANTS, **constants}, [str(argument) for argument in arguments])


def write_json(path, values):
    path.write_text(json.dumps(values, indent=4), encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def folder_of_the_script(tmp_path, monkeypatch):
    """The working directory; the script in it has only the constants, which takes half the time to read."""
    (tmp_path / "init.py").write_text(HEAD, encoding="utf-8")
    monkeypatch.chdir(tmp_path)


def test_help_shows_each_constant_with_its_values_comment_and_default_in_the_width_of_the_terminal(tmp_path):
    done = run_script("--help", cwd=tmp_path, COLUMNS="80")
    assert (done.returncode, done.stderr) == (0, "")
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert set(CONSTANTS) == {*CASES, *FLAGS}
    shown = "".join(done.stdout.split())  # lines are broken at spaces and hyphens
    for name, _, comment in LINES:
        assert comment, name
        metavar = CASES[name][3] if name in CASES else f",--no-{option(name)[2:]}"
        assert "".join(f"{option(name)} {metavar} {comment} (default: {CONSTANTS[name]})".split()) in shown
    assert [name for name in BACKBONES if not re.search(rf"\b{name}\b", done.stdout)] == []
    assert re.search(r"--constants FILE +JSON file", done.stdout)


def test_the_constants_alone_are_the_values_and_a_whole_number_serves_as_a_float():
    assert repr(read(script=SCRIPT)) == repr(CONSTANTS)
    assert repr(read(WARM_UP=0)["WARM_UP"]) == "0.0"


@pytest.mark.parametrize("name", VALUED)
def test_a_value_of_the_command_line_wins_and_has_the_constants_type(name, tmp_path):
    (tmp_path / "own.keras").write_bytes(b"PK\x03\x04")
    others = {"BACKBONE": "own.keras"} if name == "PREPROCESSING" else {}  # which allows all its values
    for text in CASES[name][1]:
        expected = CONSTANTS | others | {name: type(CONSTANTS[name])(text)}
        assert repr(read(option(name), text, **others)) == repr(expected)


def test_overwrite_is_a_flag():
    assert CONSTANTS["OVERWRITE"] is False
    assert read("--overwrite")["OVERWRITE"] is True
    assert read("--no-overwrite", OVERWRITE=True)["OVERWRITE"] is False
    assert read("--overwrite", "--no-overwrite")["OVERWRITE"] is False
    for value in WRONG_TYPES[bool]:
        with pytest.raises(InputError, match=rf"^`OVERWRITE` must be True or False\. Received: {value!r}$"):
            read(OVERWRITE=value)


@pytest.mark.parametrize("name", VALUED)
def test_a_wrong_value_is_refused_with_its_constant_and_what_is_allowed(name):
    refused, _, words, _ = CASES[name]
    on_the_command_line = [([f"{option(name)}={value}"], {}, value) for value in refused]
    wrong = WRONG_TYPES[type(CONSTANTS[name])]
    if type(CONSTANTS[name]) is str and name not in ANY_TEXT:
        wrong = [*wrong, 3]
    in_the_script = [([], {name: value}, value) for value in wrong]
    for arguments, constants, value in on_the_command_line + in_the_script:
        with pytest.raises(InputError, match=rf"^`{name}` must be .*\. Received: {re.escape(repr(value))}$") as caught:
            read(*arguments, **constants)
        assert [word for word in words if word not in str(caught.value)] == []


def test_an_integer_in_the_script_or_a_file_serves_as_text(tmp_path):
    path = write_json(tmp_path / "number.json", {ANY_TEXT[0]: 5})
    assert repr(read(**{ANY_TEXT[0]: 5})) == repr(read("--constants", path)) == repr(CONSTANTS | {ANY_TEXT[0]: "5"})


def test_a_constant_that_is_missing_or_set_twice_is_refused(tmp_path):
    copy = tmp_path / "copy.py"
    for text in (TEXT.replace("\nMARGIN =", "\nmargin ="), TEXT + "\nMARGIN = 0.2\n"):
        copy.write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=r"`MARGIN` must be set once.*`copy\.py`"):
            read(script=copy)


def test_a_constant_that_a_user_adds_becomes_an_option_of_its_type(tmp_path):
    copy = tmp_path / "copy.py"
    copy.write_text(TEXT.replace("\nSEED =", "\nSHOW = False  # 100% new\nSEED ="), encoding="utf-8")
    assert read("--show", script=copy, SHOW=False)["SHOW"] is True
    assert read("--constants", write_json(tmp_path / "show.json", {"SHOW": True}), script=copy, SHOW=False)["SHOW"]
    assert read("--show", "0.25", script=copy, SHOW=0.5)["SHOW"] == 0.25
    with pytest.raises(InputError, match="`SHOW` must be a number"):
        read("--show", "nan", script=copy, SHOW=0.5)
    with pytest.raises(SystemExit, match="0"):
        read("--help", script=copy, SHOW=False)


def test_a_constant_of_another_type_that_a_user_adds_is_no_option(tmp_path):
    copy = tmp_path / "copy.py"
    copy.write_text(HEAD + "\nSIZES = (32, 64)\nNOTHING = None\n", encoding="utf-8")
    assert read(script=copy, SIZES=(32, 64), NOTHING=None) == CONSTANTS
    with pytest.raises(InputError, match=r"--sizes.*--help"):
        read("--sizes", "3", script=copy, SIZES=(32, 64), NOTHING=None)


@pytest.mark.parametrize(
    "arguments",
    ["--epoch 3", "--colour 3", "3", "--epochs", "--image_size 64", "--constants", "--overwrite=true", "--overwrite 1"],
)
def test_unknown_abbreviated_and_incomplete_options_are_refused(arguments):
    with pytest.raises(InputError, match=rf"{re.split('[ =]', arguments)[-1]}.*--help"):
        read(*arguments.split())


def test_the_commands_in_the_documentation_are_accepted(tmp_path):
    for label in range(2):
        (tmp_path / "my_images" / str(label)).mkdir(parents=True)
    run_folder.start("my_run", CONSTANTS | {"RUN_FOLDER": "my_run"}, False, {})
    shutil.copytree(ROOT / "examples", "examples")
    shown = re.findall(r"python init\.py(.*)", ast.get_docstring(ast.parse(TEXT)) + "\n" + downloads.NO_DOWNLOAD)
    assert len(shown) >= 6
    for line in shown:
        arguments = re.split(" {2,}", line)[0]  # after two spaces follows the command's description
        read(*shlex.split(arguments), script=SCRIPT)


# The file of --constants


def test_a_file_wins_over_the_script_and_the_command_line_over_the_file(tmp_path):
    path = write_json(tmp_path / "mine.json", {"EPOCHS": 7, "WARM_UP": 0, "MINING": "batch_all", "OVERWRITE": True})
    from_file = {"EPOCHS": 7, "WARM_UP": 0.0, "MINING": "batch_all", "OVERWRITE": True}
    assert repr(read("--constants", path)) == repr(CONSTANTS | from_file)
    expected = CONSTANTS | from_file | {"EPOCHS": 2, "OVERWRITE": False}
    for arguments in (["--epochs", 2, "--constants", path], ["--constants", path, "--epochs", 2]):
        assert repr(read("--no-overwrite", *arguments)) == repr(expected)
    # A value in the file does not matter if the command line replaces it.
    wrong = write_json(tmp_path / "wrong.json", {"DATASET": "removed since"})
    assert read("--constants", wrong, "--dataset", "digits")["DATASET"] == "digits"


@pytest.mark.parametrize("name", CONSTANTS)
def test_a_wrong_value_in_a_file_is_refused_by_its_name(name, tmp_path):
    value = WRONG_TYPES[type(CONSTANTS[name])][-1]
    path = write_json(tmp_path / "wrong.json", {name: value})
    with pytest.raises(InputError, match=rf"^`{name}` must be .*\. Received: {re.escape(repr(value))}$"):
        read("--constants", path)


@pytest.mark.parametrize("marker", [{}, {"begun with": None}, {"begun with": {}}])
def test_the_file_of_an_earlier_versions_run_never_overwrites(marker, tmp_path):
    path = write_json(tmp_path / "constants.json", {"EPOCHS": 3, "START_AFRESH": True, **marker})
    assert (read("--constants", path)["EPOCHS"], read("--constants", path)["OVERWRITE"]) == (3, False)


def test_a_path_that_no_file_can_have_is_refused(tmp_path):
    for name in ("RUN_FOLDER", "DATASET", "WEIGHTS"):
        path = write_json(tmp_path / "file.json", {name: "\ud800x"})
        with pytest.raises(InputError, match=f"`{name}` must be"):
            read("--constants", path)


def test_unknown_entries_of_a_file_are_all_named(tmp_path):
    path = write_json(tmp_path / "unknown.json", {"EPOCH": 3, "EPOCHS": 3, "margin": 0.5})
    with pytest.raises(
        InputError, match=r"`--constants` must .*--help.* Received: 'EPOCH', 'margin' in .*unknown\.json"
    ):
        read("--constants", path)


@pytest.mark.parametrize(
    "content",
    [None, b"", b"\x89PNG\r\n\x1a\n\x00\xff", b"{'EPOCHS': 3}", b'{"EPOCHS": 3', b"[]", b"3", b'"EPOCHS"', b"null"],
)
def test_a_file_that_holds_no_constants_is_refused_in_one_sentence(content, tmp_path):
    if content is not None:
        (tmp_path / "file.json").write_bytes(content)
    with pytest.raises(InputError, match=r"^`--constants` must be a .*JSON file.* Received: 'file\.json'") as caught:
        read("--constants", "file.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["", ".", "x" * 300, "a\0b"])
def test_a_path_of_no_file_is_refused(path):
    with pytest.raises(InputError, match="`--constants` must be a readable JSON file"):
        read("--constants", path)


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_file_that_a_run_leaves_repeats_it_and_overwrites_nothing(overwrite, tmp_path):
    constants = read("--epochs", 2, "--dataset", "digits", "--augment", "shift", "--run-folder", "first")
    run_folder.start("first", constants | {"OVERWRITE": overwrite}, overwrite, {"images in DATASET": 1})
    assert repr(read("--constants", "first/constants.json")) == repr(constants)
    repeated = read("--constants", "first/constants.json", "--run-folder", "second", "--overwrite")
    assert repeated == constants | {"RUN_FOLDER": "second", "OVERWRITE": True}


@pytest.mark.parametrize("overwritten", [False, True])
def test_the_file_of_a_run_of_an_earlier_version_repeats_it_and_overwrites_nothing(overwritten, tmp_path):
    others = {name: value for name, value in CONSTANTS.items() if name != "OVERWRITE"} | {"EPOCHS": 2}
    content = {**others, "START_AFRESH": overwritten, "begun with": {"KERAS_BACKEND": "tensorflow"}}
    path = write_json(tmp_path / "constants.json", content)
    assert repr(read("--constants", path)) == repr(CONSTANTS | {"EPOCHS": 2})


def test_the_example_is_accepted_and_needs_no_download():
    example = ROOT / "examples" / "digits.json"
    values = read("--constants", example)
    assert values == CONSTANTS | json.loads(example.read_text(encoding="utf-8"))
    assert (values["DATASET"], values["WEIGHTS"]) == ("digits", "none")


# Backbones


def test_the_backbones_are_those_that_keras_has_with_channels_first():
    without = ("ConvNeXt", "DenseNet", "NASNet")
    all_names = {name for name in dir(keras.applications) if name[0].isupper()}
    ours = {"SmallConvNet", *TORCHVISION}
    assert set(BACKBONES) - ours == {name for name in all_names if not name.startswith(without)}
    for family in without:
        name = next(name for name in sorted(all_names) if name.startswith(family))
        with pytest.raises(ValueError, match="channels_first"):
            getattr(keras.applications, name)(include_top=False, weights=None, input_shape=(3, 64, 64))


@pytest.mark.parametrize("backbone", [name for name in BACKBONES if name not in ("SmallConvNet", *TORCHVISION)])
def test_the_smallest_image_of_a_backbone_is_that_of_keras(backbone):
    smallest = BACKBONES[backbone][1]
    with pytest.raises(InputError, match=f"`BACKBONE` {backbone} cannot be built .* at least {smallest}x{smallest}"):
        build(backbone, smallest - 1, pre_trained=False)


@pytest.mark.parametrize("backbone", ["ResNet50", "VGG16", "MobileNet", "SmallConvNet", "AlexNet", "GoogLeNet"])
def test_the_limits_of_a_backbone(backbone, tmp_path):
    layers, smallest = BACKBONES[backbone]
    assert len(build(backbone, smallest, pre_trained=False).layers) == layers
    (tmp_path / "weights.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    accepted = ["--backbone", backbone, f"--image-size={smallest}", "--weights", "weights.h5"]
    assert read(*accepted, f"--frozen-layers={layers}")["FROZEN_LAYERS"] == layers
    with pytest.raises(InputError, match=f"`IMAGE_SIZE` must be at least {smallest} for {backbone}|`IMAGE_SIZE` .* 8"):
        read(*accepted, "--image-size", smallest - 1)
    with pytest.raises(InputError, match=f"`FROZEN_LAYERS` must be between 0 and {layers} for {backbone}"):
        read(*accepted, "--frozen-layers", layers + 1)
    # With random weights FROZEN_LAYERS has no effect.
    assert read(*accepted, "--weights", "none", "--frozen-layers", layers + 1)["FROZEN_LAYERS"] == layers + 1


def test_small_conv_net_has_no_imagenet_weights():
    with pytest.raises(InputError, match=r"`WEIGHTS` must be .*SmallConvNet.* Received: 'imagenet'"):
        read("--backbone", "SmallConvNet")
    assert read("--backbone", "SmallConvNet", "--weights", "none", "--image-size", 8)["IMAGE_SIZE"] == 8


def test_a_keras_file_is_a_backbone_with_weights_of_its_own(tmp_path):
    (tmp_path / "own.keras").write_bytes(b"PK\x03\x04")
    assert read("--backbone", "own.keras", "--image-size", 8, "--frozen-layers", 999)["BACKBONE"] == "own.keras"
    own = read("--backbone", "own.keras", "--preprocessing", "caffe")
    assert own["PREPROCESSING"] == "caffe"
    with pytest.raises(InputError, match=r'`PREPROCESSING` must be "auto" unless BACKBONE is a \.keras file'):
        read("--preprocessing", "caffe")
    with pytest.raises(InputError, match=r"`WEIGHTS` must be \"imagenet\", which means those in the file"):
        read("--backbone", "own.keras", "--weights", "none")
    (tmp_path / "own.keras").write_bytes(b"something else")
    for wrong in ("own.keras", "other.keras"):
        with pytest.raises(InputError, match=r"`BACKBONE` must be one of .*existing \.keras file"):
            read("--backbone", wrong)


def test_a_file_of_pytorch_has_weights_for_torchvisions_backbones_alone(tmp_path):
    (tmp_path / "weights.pth").write_bytes(b"\x80\x02")
    assert read("--backbone", "AlexNet", "--weights", "weights.pth", "--frozen-layers", 0)["WEIGHTS"] == "weights.pth"
    with pytest.raises(InputError, match="`WEIGHTS` must be a file of Keras, unless BACKBONE is AlexNet or GoogLeNet"):
        read("--weights", "weights.pth")


# Files and folders


@pytest.mark.parametrize(("start", "expected"), [(b"\x89HDF\r\n\x1a\n", True), (b"PK\x03\x04", True), (b"", False)])
def test_a_weights_file_starts_like_one(start, expected, tmp_path):
    (tmp_path / "weights").write_bytes(start + b"and more")
    if expected:
        assert read("--weights", "weights")["WEIGHTS"] == "weights"
    else:
        with pytest.raises(InputError, match="`WEIGHTS` must be"):
            read("--weights", "weights")


def test_the_model_that_a_run_replaces_is_refused_as_its_weights(tmp_path):
    """Overwritten and interrupted, the run could not be resumed."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "embedding_model.keras").write_bytes(b"PK\x03\x04")
    arguments = ("--weights", "run/../run/embedding_model.keras")
    with pytest.raises(InputError, match=r"`WEIGHTS` must not be the model that this run replaces.*--run-folder"):
        read(*arguments)
    assert read(*arguments, "--run-folder", "second")


def test_more_classes_per_batch_than_classes_are_accepted(tmp_path):
    """The data reduce them later, with a printed line."""
    for path in ("flat/one", "flat/two", "flat/.cache", "split/train/a", "split/train/b", "split/test/a"):
        (tmp_path / path).mkdir(parents=True)
    (tmp_path / "flat" / "notes.txt").write_text("no class")
    for dataset in ("cifar10", "digits", "flat", "split"):
        assert read("--dataset", dataset, "--classes-per-batch", 11)["CLASSES_PER_BATCH"] == 11


@pytest.mark.parametrize("folders", [[], ["only"], ["only", ".hidden"], ["train/only", "test/only"]])
def test_a_folder_without_two_classes_is_refused(folders, tmp_path):
    for path in folders:
        (tmp_path / "images" / path).mkdir(parents=True)
    (tmp_path / "images").mkdir(exist_ok=True)
    (tmp_path / "images" / "second.txt").write_text("no class")
    with pytest.raises(InputError, match=f"`DATASET` must .* two classes.* with {min(len(folders), 1)}$"):
        read("--dataset", "images")


def test_a_run_inside_the_images_and_half_a_split_are_refused(tmp_path, monkeypatch):
    for name in ("images/train/a", "images/train/b", "flat/a", "flat/b"):
        (tmp_path / name).mkdir(parents=True)
    with pytest.raises(InputError, match="`DATASET` must have its parts in folders train/, test/"):
        read("--dataset", "images")
    for run in ("flat", "flat/run", "run/../flat/a"):
        for name in ("run", "cache"):
            with pytest.raises(InputError, match=f"`{name.upper()}_FOLDER` must not be inside `DATASET`"):
                read("--dataset", "flat", f"--{name}-folder", run)
    assert read("--dataset", "flat", "--run-folder", "flat2")
    monkeypatch.chdir(tmp_path / "flat")
    assert read("--dataset", ".", "--run-folder", "../run", script=tmp_path / "init.py")["CACHE_FOLDER"] == "auto"


def test_a_csv_file_is_checked(tmp_path):
    (tmp_path / "images.csv").write_text("path,label\n1.png,a\n2.png,b\n")
    with pytest.raises(InputError, match=r"images\.csv\n  line 2: no file '1\.png'\n  line 3: no file '2\.png'$"):
        read("--dataset", "images.csv")
    for name in ("1.png", "2.png"):
        (tmp_path / name).touch()
    assert read("--dataset", "images.csv")["DATASET"] == "images.csv"


@pytest.fixture
def data_sets(tmp_path):
    """A folder, a split folder and a CSV file; all have three classes that train, the last two one for testing too."""
    for path in (
        "flat/a",
        "flat/b",
        "flat/c, d",
        *(f"split/{part}/{name}" for part in ("train", "test") for name in "abc"),
    ):
        (tmp_path / path).mkdir(parents=True)
    (tmp_path / "split" / "test" / "tested").mkdir()
    rows = [f"{label}{part}.png,{label},{part}" for label in ("a", "b", "3") for part in ("train", "test")]
    rows.append("tested.png,tested,test")
    for row in rows:
        (tmp_path / row.split(",")[0]).touch()
    (tmp_path / "images.csv").write_text("\n".join(["path,label,split", *rows]))


@pytest.mark.parametrize(
    ("dataset", "accepted", "unknown", "too_many"),
    [
        (
            "digits",
            ["8", "3,", "1,2,9", "0, 1, 2, 3, 4, 5, 6, 7"],
            ["ten", "1,x", ",", "-1"],
            ["9", "0,1,2,3,4,5,6,7,8"],
        ),
        ("cifar10", ["1", "cat", " cat ", "cat,,dog", "cat,cat"], ["Cat", "cat dog"], ["10"]),
        ("flat", ["1", "a", "c, d"], ["c", "tested"], ["2", "a,b"]),
        ("split", ["1", "c"], ["tested", "a,tested"], ["2", "a,b,c"]),
        ("images.csv", ["1", "b", "3,"], ["tested"], ["3", "b,3"]),
    ],
)
def test_held_out_classes_must_be_classes_and_leave_two_for_training(dataset, accepted, unknown, too_many, data_sets):
    for value in accepted:
        assert read("--dataset", dataset, "--held-out-classes", value)["HELD_OUT_CLASSES"] == value
    for value in unknown:
        with pytest.raises(
            InputError, match='`HELD_OUT_CLASSES` must be "none", a number, or names of classes'
        ) as caught:
            read("--dataset", dataset, f"--held-out-classes={value}")
        assert str(caught.value).endswith(f"Received: {value!r}")
    for value in too_many:
        with pytest.raises(InputError, match=rf"`HELD_OUT_CLASSES` must leave two classes .*Received: '?{value}'?"):
            read("--dataset", dataset, "--held-out-classes", value)


def test_the_classes_that_may_be_held_out_are_named(data_sets):
    with pytest.raises(InputError, match=r": a, b, c, d\. Received: 'x'$"):
        read("--dataset", "flat", "--held-out-classes", "x")
    with pytest.raises(InputError, match=r": 3, a, b\. Received: 'x'$"):
        read("--dataset", "images.csv", "--held-out-classes", "x")


def test_paths_that_no_shell_has_expanded(tmp_path, monkeypatch):
    (tmp_path / "images" / "a").mkdir(parents=True)
    (tmp_path / "images" / "b").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SCRATCH", str(tmp_path))
    monkeypatch.delenv("NOWHERE", raising=False)
    for path in ("~/images", "$SCRATCH/images", "${SCRATCH}/images"):
        values = read("--dataset", path, "--run-folder", path.replace("images", "run"))
        assert (values["DATASET"], values["RUN_FOLDER"]) == (str(tmp_path / "images"), str(tmp_path / "run"))
    for path in ("$NOWHERE/run", "~no such user/run"):
        with pytest.raises(InputError, match=r"`RUN_FOLDER` must be .* without unset variables\. Received: "):
            read("--run-folder", path)
    (tmp_path / "$NOWHERE").mkdir()  # that exists is meant
    monkeypatch.chdir(tmp_path)
    assert read("--run-folder", "$NOWHERE")["RUN_FOLDER"] == "$NOWHERE"


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "images").mkdir(mode=0o000)
    with pytest.raises(InputError, match="`DATASET` must be a readable folder"):
        read("--dataset", "images")


# The script


def test_a_wrong_value_ends_the_script_with_one_line_before_keras_is_imported(tmp_path):
    (tmp_path / "keras.py").write_text("open('imported', 'w').close()\nraise ImportError('the false Keras')\n")
    write_json(tmp_path / "wrong.json", {"MARGIN": -1})

    def run(*arguments):
        return run_script(*arguments, cwd=tmp_path, PYTHONPATH=str(tmp_path))

    started = time.monotonic()
    for arguments, value in ((["--margin", -1], "'-1'"), (["--constants", "wrong.json"], "-1")):
        done = run(*arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == f"init.py: `MARGIN` must be a number above 0 and below 4. Received: {value}\n"
    assert time.monotonic() - started < 10  # two starts of Python; one takes 0.1 s on an idle machine
    assert not (tmp_path / "imported").exists()
    assert "the false Keras" in run("--margin", 1).stderr  # an allowed value reaches it
    assert (tmp_path / "imported").exists()
