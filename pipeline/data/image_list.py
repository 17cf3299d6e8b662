"""What a data set is made of: its image files, classes and parts. Standard library alone."""

import re
import unicodedata
from pathlib import Path
from typing import NamedTuple

BUILT_IN_DATASETS = {"cifar10": 10, "digits": 10}  # name -> number of classes
TRAIN, VALIDATION, TEST = PARTS = ("train", "validation", "test")
PART_OF = {  # usual name of a folder, or value of a CSV file's column `split` -> part
    **dict.fromkeys(("train", "training"), TRAIN),
    **dict.fromkeys(("validation", "valid", "val"), VALIDATION),
    **dict.fromkeys(("test", "testing"), TEST),
}


class ImageList(NamedTuple):
    """The image files of a data set.

    Attributes:
        source: path of the folder or CSV file.
        class_names: sorted names of the classes; a label is an index into it.
        paths: paths of the files.
        labels: int, one for each path.
        names: names of the images, from which the split follows, one for each path.
        groups: str, one for each path: images of one group are in one part; `""` for an image without a group.
        parts: `"train"`, `"validation"` or `"test"`, one for each path; all `"train"` if the source is not split.
        problems: sentences about what cannot be used.
    """

    source: Path
    class_names: list[str]
    paths: list[Path]
    labels: list[int]
    names: list[str]
    groups: list[str]
    parts: list[str]
    problems: list[str]


def normal_name(name: str) -> str:
    """A name with accents composed (Unicode NFC), as Linux and Windows write them and macOS may not."""
    return unicodedata.normalize("NFC", name)


def printable(text: str) -> str:
    """A text whose control characters are escaped, so that they do not change what a terminal shows."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda found: repr(found[0])[1:-1], text)


def has_control_characters(name: str) -> bool:
    """Whether a name has control characters, or bytes that are not UTF-8 (as Python's surrogates)."""
    return any(unicodedata.category(character) in ("Cc", "Cs") for character in name)
