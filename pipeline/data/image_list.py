"""What a data set is made of, its image files, classes and parts; and how messages name them. Standard library only."""

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

MOST_NAMED = 20  # names in a line, or lines of names, of a message
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
BUILT_IN_DATASETS = {"cifar10": CIFAR10_CLASSES, "digits": tuple("0123456789")}  # name -> its classes
# Held-out images are of classes that do not train at all.
TRAIN, VALIDATION, TEST, HELD_OUT = PARTS = ("train", "validation", "test", "held_out")
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
        parts: one of `PARTS` for each path; all `"train"` if the source is not split.
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


def number_of(key: str, seed: int) -> float:
    """A number from 0 to below 1 that follows from a name and the seed alone (BLAKE2b)."""
    digest = hashlib.blake2b(f"{seed} {key}".encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def normal_name(name: str) -> str:
    """A name with accents composed (Unicode NFC), as Linux and Windows write them and macOS may not."""
    return unicodedata.normalize("NFC", name)


def printable(text: str) -> str:
    """A text that is shown as it is: control characters, also those of the writing direction, are escaped."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", lambda found: repr(found[0])[1:-1], text)


def shortened(names: Sequence[str]) -> str:
    """The first twenty names, with commas."""
    return printable(", ".join(names[:MOST_NAMED])) + " ..." * (len(names) > MOST_NAMED)


def in_lines(sentences: Sequence[str], most: int = MOST_NAMED) -> str:
    """Sentences as indented lines, the first of many and the number of the others."""
    shown = list(sentences[:most])
    if len(sentences) > len(shown):
        shown.append(f"and {len(sentences) - len(shown):,} more")
    return "".join(f"\n  {printable(line)}" for line in shown)


def has_control_characters(name: str) -> bool:
    """Whether a name has control characters, or bytes that are not UTF-8 (as Python's surrogates)."""
    return any(unicodedata.category(character) in ("Cc", "Cs") for character in name)
