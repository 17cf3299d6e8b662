"""What makes two commands one run: equal constants, but for some, and equal images and files."""

import os
from typing import Any

from pipeline.data.image_list import BUILT_IN_DATASETS
from pipeline.settings import devices
from pipeline.settings.backbones import BACKBONES
from pipeline.settings.options import STARTED_WITH

# Constants that may differ between two commands of one run.
CHANGEABLE = ("RUN_FOLDER", "OVERWRITE", "CHECKPOINT_MINUTES", "DEVICES", "IMAGES_IN", "CACHE_FOLDER")
# Constants that runs of earlier versions do not have -> what these versions did.
ADDED = {
    "SMALL_CLASSES": "stop",
    "HELD_OUT_CLASSES": "none",
    "FALSE_REJECTION_RATE": 0.01,
    "CONTROL": "none",
    "PREPROCESSING": "auto",
    "EXPORT_EMBEDDINGS": False,
}
# Constants whose paths may differ between two commands of one run: `run_folder.start` compares what they hold.
COMPARED_BY_CONTENT = {  # and values that are no paths
    "DATASET": BUILT_IN_DATASETS,
    "WEIGHTS": ("imagenet", "none"),
    "BACKBONE": BACKBONES,
}


def changed_constants(stored: dict, constants: dict, any_path: bool) -> list[str]:
    """Names of the constants that differ; with `any_path`, paths of `COMPARED_BY_CONTENT` may."""
    stored, constants = ADDED | stored, ADDED | constants
    names = {*stored, *constants} - {*CHANGEABLE, STARTED_WITH}
    return sorted(name for name in names if not _same(name, stored.get(name), constants.get(name), any_path))


def _same(name, first, second, any_path):
    """Whether two values of a constant are equal or paths of the same file or folder; of any two, with `any_path`."""
    if first == second or not (_is_path(name, first) and _is_path(name, second)):
        return first == second
    return any_path or os.path.realpath(first) == os.path.realpath(second)


def _is_path(name, value):
    return name in COMPARED_BY_CONTENT and isinstance(value, str) and value not in COMPARED_BY_CONTENT[name]


def changed_sources(stored: dict[str, Any], sources: dict[str, Any]) -> list[str]:
    """Names of the sources that differ from those with which a run was started."""
    before = stored.get(STARTED_WITH, {})
    return [name for name, value in sources.items() if before.get(name, value) != value]


def check_same(constants: dict[str, Any], sources: dict[str, Any]) -> None:
    """Compares constants and sources of several processes that train together; paths may differ.

    Call it before a variable exists: JAX compares those of all processes, without a message for users.

    Args:
        constants, sources: as in `run_folder.start`.

    Raises:
        InputError: if those of this process and of the first one differ.
    """
    compared = {name: value for name, value in constants.items() if name not in CHANGEABLE}
    compared = {name: "" if _is_path(name, value) else value for name, value in compared.items()}
    devices.check_same({**compared, **sources})
