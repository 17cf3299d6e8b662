"""Which values each constant may have, alone and together with the others."""

import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.data.csv_files import list_csv
from pipeline.data.folders import check_folder
from pipeline.data.held_out import held_out_classes
from pipeline.data.image_list import BUILT_IN_DATASETS, TEST
from pipeline.errors import InputError
from pipeline.settings.backbones import BACKBONES, TORCH_SUFFIXES, TORCHVISION

HDF5, ZIP = b"\x89HDF\r\n\x1a\n", b"PK\x03\x04"  # the beginning of such files; a .keras file is a zip archive
TYPE_NAMES = {int: "an integer", float: "a number", str: "text", bool: "True or False"}


class Rule(NamedTuple):
    """What a constant may be.

    Attributes:
        kind: its type: str, int, float or bool.
        allows: function of a value of that type; False if the value is not allowed.
        words: what is allowed, for the error message.
        metavar: what `--help` shows in place of a value.
        is_path: whether `~` and variables such as `$HOME` are expanded in it.
    """

    kind: type
    allows: Callable[[Any], bool]
    words: str
    metavar: str
    is_path: bool = False


def _integer_from(least):
    return Rule(int, lambda value: least <= value <= 2**16, f"an integer from {least} to {2**16}", "INT")


def _number_between(low, high):
    return Rule(float, lambda value: low < value < high, f"a number above {low} and below {high}", "FLOAT")


def _one_of(*choices):
    words = "one of " + ", ".join(f'"{choice}"' for choice in choices)
    return Rule(str, lambda value: value in choices, words, "{" + ",".join(choices) + "}")


def _is_path(text):
    """Whether a text can be the name of a file on this system."""
    try:
        return bool(text.strip()) and b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def _expanded(path):
    """A path with the home folder in place of `~`, and the values of variables, unless it exists as it is written."""
    return path if os.path.lexists(path) else os.path.expandvars(os.path.expanduser(path))


def _unset_variable(path):
    """Whether an expanded path still begins with `~` or has `$NAME`, which no shell and no variable has replaced."""
    return not os.path.lexists(path) and bool(re.match(r"~|.*\$(\w+|\{\w+\})", path))


def _is_images(path):
    """Whether a path is a folder or a CSV file."""
    return os.path.isdir(path) or (os.path.isfile(path) and path.lower().endswith((".csv", ".tsv")))


def _starts_with(path, *beginnings):
    """Whether a file starts with one of these bytes; False if it does not exist."""
    try:
        with open(path, "rb") as file:
            return file.read(8).startswith(beginnings)
    except (OSError, ValueError):
        return False


def _is_weights_file(path):
    return (path.endswith(TORCH_SUFFIXES) and os.path.isfile(path)) or _starts_with(path, HDF5, ZIP)


def _folder(words, metavar):
    return Rule(str, lambda value: _is_path(value) and not _unset_variable(value), words, metavar, is_path=True)


_FLAG = Rule(bool, lambda value: True, TYPE_NAMES[bool], "")

RULES = {
    "DATASET": Rule(
        str,
        lambda value: value in BUILT_IN_DATASETS or (_is_path(value) and _is_images(value)),
        '"cifar10", "digits", or the path of an existing folder of images, or of a CSV file',
        "cifar10|digits|PATH",
        is_path=True,
    ),
    "TEST_FRACTION": _number_between(0, 1),
    "VALIDATION_FRACTION": _number_between(0, 1),
    "IMAGE_SIZE": _integer_from(8),
    "FIT": _one_of("scale", "pad"),
    "UNREADABLE_IMAGES": _one_of("stop", "skip"),
    "SMALL_CLASSES": _one_of("stop", "skip"),
    "HELD_OUT_CLASSES": Rule(
        str, lambda value: bool(value.strip()), '"none", a number, or names of classes', "NUMBER|NAMES"
    ),
    "AUGMENT": _one_of("none", "shift", "shift_flip"),
    "BACKBONE": Rule(
        str,
        lambda value: value in BACKBONES or (value.endswith(".keras") and _starts_with(value, ZIP)),
        f"one of {', '.join(BACKBONES)}, or the path of an existing .keras file, which is a zip archive",
        "NAME|PATH",
        is_path=True,
    ),
    "PREPROCESSING": _one_of("auto", "none", "tf", "torch", "caffe"),
    "WEIGHTS": Rule(
        str,
        lambda value: value in ("imagenet", "none") or _is_weights_file(value),
        '"imagenet", "none", or the path of an existing weights file (HDF5, .keras or, of PyTorch, .pth)',
        "imagenet|none|PATH",
        is_path=True,
    ),
    "FROZEN_LAYERS": _integer_from(0),
    "EMBEDDING_SIZE": _integer_from(2),
    "TRIPLET_LOSS": _one_of("in_batch", "merge"),
    "MINING": _one_of("batch_all", "batch_hard", "semi_hard", "all_semi_hard"),
    "MARGIN": _number_between(0, 4),
    "CLASSES_PER_BATCH": _integer_from(2),
    "IMAGES_PER_CLASS": _integer_from(2),
    "EPOCHS": _integer_from(1),
    "LEARNING_RATE": _number_between(0, 10),
    "WARM_UP": Rule(float, lambda value: 0 <= value < 1, "a number from 0 to below 1", "FLOAT"),
    "NEIGHBOURS": _integer_from(1),
    "CONTROL": _one_of("none", "cross_entropy"),
    "FALSE_REJECTION_RATE": _number_between(0, 1),
    "EXPORT_EMBEDDINGS": _FLAG,
    "PRECISION": _one_of("auto", "float32", "mixed_float16", "mixed_bfloat16"),
    "SEED": Rule(int, lambda value: 0 <= value < 2**31, "an integer from 0 to below 2**31", "INT"),
    "CHECKPOINT_MINUTES": _number_between(0, 1e6),
    "DEVICES": Rule(
        str,
        lambda value: value == "auto" or (value.isdecimal() and int(value) > 0),
        '"auto" or a number of devices',
        "auto|NUMBER",
    ),
    "IMAGES_IN": _one_of("auto", "memory", "disk"),
    "CACHE_FOLDER": _folder('"auto" or the path of a folder, without unset variables', "auto|PATH"),
    "OVERWRITE": _FLAG,
    "RUN_FOLDER": _folder("the path of a folder, new or of an earlier run, without unset variables", "PATH"),
}


def rule_of(name: str, default: Any) -> Rule:
    """The rule of a constant; one that users add to the script themselves may have any value of its default's type."""
    kind = type(default)
    return RULES.get(name) or Rule(kind, lambda value: True, TYPE_NAMES[kind], kind.__name__.upper())


def checked(name: str, value: Any, default: Any) -> Any:
    """Converts a constant's value, text from the command line or a value from a file, to its type.

    Args:
        name: the constant.
        value: what was given.
        default: the value in the script.

    Returns:
        The value as str, int, float or bool.

    Raises:
        InputError: if the value is not allowed.
    """
    rule, converted = rule_of(name, default), value
    if isinstance(value, str) and rule.kind in (int, float):
        try:
            converted = rule.kind(value)
        except ValueError:
            converted = value
    elif rule.kind is str and type(value) is int and not rule.is_path:  # such as HELD_OUT_CLASSES = 2
        converted = str(value)
    elif rule.kind is float and type(value) is int and abs(value) < 2**64:
        converted = float(value)
    elif rule.is_path and isinstance(value, str) and _is_path(value):
        converted = _expanded(value)
    is_kind = type(converted) is rule.kind and (rule.kind is not float or math.isfinite(converted))
    if not is_kind or not rule.allows(converted):
        raise InputError(f"`{name}` must be {rule.words}. Received: {value!r}")
    return converted


def check_together(values: dict[str, Any]) -> None:
    """Checks the constants against each other.

    Raises:
        InputError: if two values, each allowed by itself, contradict each other.
    """
    backbone = values["BACKBONE"]
    layers, smallest = BACKBONES.get(backbone, (2**16, 1))  # those of a file show when it is loaded
    if values["IMAGE_SIZE"] < smallest:
        raise InputError(f"`IMAGE_SIZE` must be at least {smallest} for {backbone}. Received: {values['IMAGE_SIZE']}")
    if values["WEIGHTS"] != "none" and values["FROZEN_LAYERS"] > layers:
        raise InputError(
            f"`FROZEN_LAYERS` must be between 0 and {layers} for {backbone}. Received: {values['FROZEN_LAYERS']}"
        )
    if values["PREPROCESSING"] != "auto" and backbone in BACKBONES:
        raise InputError(
            f'`PREPROCESSING` must be "auto" unless BACKBONE is a .keras file: {backbone} has its own. '
            f"Received: {values['PREPROCESSING']!r}"
        )
    if values["WEIGHTS"] == "none" and backbone not in BACKBONES:
        raise InputError(
            '`WEIGHTS` must be "imagenet", which means those in the file, or a weights file, since BACKBONE is a file. '
            "Received: 'none'"
        )
    if values["WEIGHTS"].endswith(TORCH_SUFFIXES) and backbone not in TORCHVISION:
        raise InputError(
            f"`WEIGHTS` must be a file of Keras, unless BACKBONE is {' or '.join(TORCHVISION)}. "
            f"Received: {values['WEIGHTS']!r} and {backbone}"
        )
    if values["WEIGHTS"] == "imagenet" and backbone == "SmallConvNet":
        raise InputError(
            "`WEIGHTS` must be a weights file or \"none\" (--weights none) for SmallConvNet. Received: 'imagenet'"
        )
    model = os.path.join(values["RUN_FOLDER"], "embedding_model.keras")
    if os.path.realpath(values["WEIGHTS"]) == os.path.realpath(model):
        raise InputError(
            "`WEIGHTS` must not be the model that this run replaces; choose another folder with --run-folder. "
            f"Received: {values['WEIGHTS']!r}"
        )
    if values["DATASET"] in BUILT_IN_DATASETS:
        class_names = BUILT_IN_DATASETS[values["DATASET"]]
    elif os.path.isfile(values["DATASET"]):
        listed = list_csv(values["DATASET"])
        pairs = zip(listed.labels, listed.parts, strict=True)
        class_names = sorted({listed.class_names[label] for label, part in pairs if part != TEST})
    else:
        top = os.path.realpath(values["DATASET"])
        for name in ("RUN_FOLDER", "CACHE_FOLDER"):
            if values[name] != "auto" and Path(os.path.realpath(values[name])).is_relative_to(top):
                raise InputError(
                    f"`{name}` must not be inside `DATASET`. Received: {values[name]!r} in {values['DATASET']!r}"
                )
        class_names = check_folder(values["DATASET"])
    held_out_classes(class_names, values["HELD_OUT_CLASSES"], values["SEED"])
