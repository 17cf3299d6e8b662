"""The constants of a script as options of its command line, checked before anything heavy is imported."""

import argparse
import ast
import contextlib
import errno
import io
import math
import os
import signal
import sys
import tokenize
from pathlib import Path

from backbones import BACKBONES

NO_DOWNLOAD = (
    "Nothing is downloaded by: python init.py --dataset digits --backbone VGG16 --image-size 32 --augment none "
    "--weights none --frozen-layers 0 --precision float32 --images-per-class 4 --learning-rate 3e-4 --epochs 1 "
    "--run-folder digits_run"
)
FULL_OR_CLOSED = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
BROKEN_OR_GONE = (errno.EIO, errno.ENODEV, errno.ESTALE)  # itself, or the network before it
DISK_ERRORS = FULL_OR_CLOSED + BROKEN_OR_GONE


class InputError(ValueError):
    """What a user wrote cannot be used. The message is one sentence that names the constant or file."""


class Interrupted(Exception):
    """Training was asked to stop. Its arguments: the signal's number, and whether a checkpoint could be written."""


def _integer_from(least):
    return int, lambda value: least <= value <= 2**16, f"a whole number from {least} to {2**16}"


def _number_between(least, most):
    return float, lambda value: least < value < most, f"a number above {least} and below {most}"


def _one_of(*choices):
    return str, lambda value: value in choices, "one of " + ", ".join(f'"{choice}"' for choice in choices)


def _may_hold_weights(path):
    """Whether a file begins as HDF5 or as the zip archive that a `.keras` file is; False if there is none."""
    try:
        with open(path, "rb") as file:
            return file.read(8).startswith((b"\x89HDF\r\n\x1a\n", b"PK\x03\x04"))
    except (OSError, ValueError):
        return False


# Of each constant: its type, whether a value is allowed, and what is allowed, in words.
RULES = {
    "DATASET": (
        str,
        lambda value: value in DATASET_CLASSES or os.path.isdir(value),  # False, where `Path` raises
        '"cifar10", "digits", or a folder of images that exists',
    ),
    "TEST_FRACTION": _number_between(0, 1),
    "VALIDATION_FRACTION": _number_between(0, 1),
    "IMAGE_SIZE": _integer_from(8),
    "FIT": _one_of("scale", "pad"),
    "UNREADABLE_IMAGES": _one_of("stop", "skip"),
    "AUGMENT": _one_of("none", "shift", "shift_flip"),
    "BACKBONE": (
        str,
        lambda value: value in BACKBONES,
        f"one of those in keras.applications that have channels_first, {', '.join(BACKBONES)}",
    ),
    "WEIGHTS": (
        str,
        lambda value: value in ("imagenet", "none") or _may_hold_weights(value),
        '"imagenet", "none", or an existing weights file (HDF5 or .keras)',
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
    "WARM_UP": (float, lambda value: 0 <= value < 1, "a number from 0 to below 1"),
    "NEIGHBOURS": _integer_from(1),
    "PRECISION": _one_of("float32", "mixed_float16", "mixed_bfloat16"),
    "SEED": (int, lambda value: 0 <= value < 2**31, "a whole number from 0 to below 2**31"),
    "CHECKPOINT_MINUTES": _number_between(0, 1e6),
    "START_AFRESH": (bool, lambda value: True, "True or False"),
    "RUN_FOLDER": (
        str,
        lambda value: bool(value.strip()) and "\0" not in value,
        "the path of a folder, new or of an earlier run",
    ),
}
DATASET_CLASSES = {"cifar10": 10, "digits": 10}
TYPE_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "True or False"}


def read_options(script, constants, arguments=None):
    """Reads the command line of a script and checks every constant, given or not.

    Args:
        script: path of the script; each `NAME = literal  # comment` at its top level becomes an option
            `--name`, its comment the option's help, under the last comment that had a line of its own.
        constants: dict of the constants' present values, such as `globals()`.
        arguments: list of str, the command line; `sys.argv` if not given.

    Returns:
        dict of every constant's value, the command line's where it names one.

    Raises:
        InputError: if a value or option is wrong, or two values contradict each other.
    """
    parser = _Parser(
        prog=Path(script).name,
        description="The constants at the top of the script, each as an option.",
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    groups = {}
    names = []
    for name, heading, comment in _described_constants(script):
        if name not in constants:
            continue
        if name in names:
            raise InputError(_set_once(name, script))
        if heading not in groups:
            groups[heading] = parser.add_argument_group(heading)
        groups[heading].add_argument(
            "--" + name.lower().replace("_", "-"),
            dest=name,
            default=constants[name],
            metavar=TYPE_NAMES.get(_type_of(name, constants[name]), "value").upper().replace(" ", "_"),
            help=comment.replace("%", "%%"),
        )
        names.append(name)
    for name in RULES:
        if name not in names:
            raise InputError(_set_once(name, script))

    given = vars(parser.parse_args(arguments))
    values = {name: _checked(name, given[name], constants[name]) for name in names}
    _check_together(values)
    return values


def run(main):
    """Runs `main`, and ends the process in one sentence where it stops early.

    The exit code is 2 for InputError and for a disk that fails, 128 and the signal's number for Ctrl-C, SIGTERM and a
    closed standard output (`| head`).
    """
    name = Path(sys.argv[0]).name
    sys.stdout, sys.stderr = (stream or open(os.devnull, "w") for stream in (sys.stdout, sys.stderr))
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # for names that a terminal's encoding does not have
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        result = main()
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # what follows, such as importing Keras, just ends at Ctrl-C
        return result
    except InputError as error:
        _tell(f"{name}: {error}")
        code = 2
    except Interrupted as error:
        number, saved = error.args
        if saved:
            _tell("Stopped, and everything saved: the same command goes on from here.")
        else:
            _tell("Stopped. Weights were not finite, and are not saved. Lower LEARNING_RATE.")
        code = 128 + number
    except KeyboardInterrupt:
        _tell("Stopped: the same command goes on from the last checkpoint, if there is one.")
        code = 130
    except BrokenPipeError:
        _tell(
            "Stopped, since nobody reads what is printed any more: the same command goes on from the last checkpoint."
        )
        code = 141
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        _tell(
            f"{name}: `RUN_FOLDER`, `DATASET` and what the output goes to must work, with room left. Received: {error}"
        )
        code = 2
    _flush(sys.stdout)
    sys.exit(code)


def _tell(sentence):
    """Prints on standard error, where somebody reads it."""
    with contextlib.suppress(OSError):
        print(sentence, file=sys.stderr)
    _flush(sys.stderr)


def _flush(stream):
    """Prints what is left to print, where somebody reads it."""
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # or Python would complain when it ends


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise InputError(f"{message}; `--help` lists the options.")


def _described_constants(script):
    """Yields (name, heading, comment) of each UPPER_CASE literal at the top level of a script."""
    source = Path(script).read_text(encoding="utf-8")
    lines = source.splitlines()
    trailing, headings = {}, {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            text = token.string.lstrip("# ").rstrip()
            alone = lines[token.start[0] - 1].lstrip().startswith("#")
            if not alone:
                trailing[token.start[0]] = text
            elif text.strip("-="):
                headings[token.start[0]] = text
    for node in ast.parse(source).body:
        if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Name):
            continue
        name = node.targets[0].id
        if name.isupper():
            above = [line for line in headings if line < node.lineno]
            yield name, headings[max(above)] if above else "Constants", trailing.get(node.end_lineno, "")


def _set_once(name, script):
    return f"`{name}` must be set once, at the top of `{Path(script).name}`, to a plain value."


def _type_of(name, value):
    return RULES[name][0] if name in RULES else type(value)


def _checked(name, value, default):
    """One constant's value in its type, from text (the command line) or as the script has it."""
    kind = _type_of(name, default)
    _, allowed, words = RULES.get(name, (kind, lambda value: True, TYPE_NAMES.get(kind, "a plain value")))
    converted = value
    if isinstance(value, str) and kind in (int, float):
        try:
            converted = kind(value)
        except ValueError:
            converted = value
    elif isinstance(value, str) and kind is bool:
        converted = {"true": True, "false": False}.get(value.lower(), value)
    elif kind is float and type(value) is int and abs(value) < 2**64:
        converted = float(value)
    if type(converted) is not kind or (kind is float and not math.isfinite(converted)) or not allowed(converted):
        raise InputError(f"`{name}` must be {words}. Received: {value!r}")
    return converted


def _check_together(values):
    """Raises InputError for values that are allowed one by one and contradict each other."""
    backbone = values["BACKBONE"]
    layers, smallest = BACKBONES[backbone]
    if values["IMAGE_SIZE"] < smallest:
        raise InputError(f"`IMAGE_SIZE` must be at least {smallest} for {backbone}. Received: {values['IMAGE_SIZE']}")
    if values["FROZEN_LAYERS"] > layers:
        raise InputError(
            f"`FROZEN_LAYERS` must be between 0 and {layers} for {backbone}. Received: {values['FROZEN_LAYERS']}"
        )
    replaced = os.path.join(values["RUN_FOLDER"], "embedding_model.keras")
    if os.path.realpath(values["WEIGHTS"]) == os.path.realpath(replaced):
        raise InputError(
            f"`WEIGHTS` must not be the model that the run replaces; name another with --run-folder. "
            f"Received: {values['WEIGHTS']!r}"
        )
    if values["DATASET"] not in DATASET_CLASSES:
        _check_folders(Path(values["DATASET"]), Path(values["RUN_FOLDER"]))
    classes = DATASET_CLASSES.get(values["DATASET"]) or len(class_folders(values["DATASET"]))
    if classes < 2:
        raise InputError(
            f"`DATASET` must be a folder with one folder of images for each of at least two classes. "
            f"Received: {values['DATASET']!r}, which has {classes}"
        )
    if values["TRIPLET_LOSS"] == "in_batch" and values["CLASSES_PER_BATCH"] > classes:
        raise InputError(
            f"`CLASSES_PER_BATCH` must not be above the number of classes, {classes} in {values['DATASET']!r}. "
            f"Received: {values['CLASSES_PER_BATCH']}"
        )


def _check_folders(dataset, run_folder):
    """Raises InputError for a run inside the images, and for a split whose other half is not there."""
    if Path(os.path.realpath(run_folder)).is_relative_to(os.path.realpath(dataset)):
        raise InputError(
            f"`RUN_FOLDER` must not be inside `DATASET`. Received: {str(run_folder)!r} in {str(dataset)!r}"
        )
    halves = _halves(dataset)
    if len(halves) == 1:
        (other,) = {"train", "test"} - set(halves)
        raise InputError(
            f"`DATASET` must have class folders in {other}/ where it has some in {halves[0]}/. "
            f"Received: {str(dataset)!r}"
        )


def class_folders(folder):
    """Names of the class folders of a data set, sorted: those of `folder/train` if it is split, else of `folder`."""
    return _folders(Path(folder) / "train" if is_split(folder) else folder)


def is_split(folder):
    """Whether a folder was split by its owner, into `train/CLASS/IMAGE` and `test/CLASS/IMAGE`."""
    return len(_halves(folder)) == 2


def _halves(folder):
    """Which of `train` and `test` are in a folder and hold class folders."""
    return [name for name in ("train", "test") if (Path(folder) / name).is_dir() and _folders(Path(folder) / name)]


def _folders(folder):
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise InputError(f"`DATASET` must be a folder that can be read. Received: {error}") from error
    odd = [name for name in names if not name.isprintable()]  # such as bytes that are no text in this system's encoding
    if odd:
        raise InputError(f"`DATASET` must have class folders with printable names. Received: {odd!a}")
    return names
