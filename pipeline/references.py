"""The labelled embeddings among which a run finds the nearest neighbours of new images, as a file."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline import files
from pipeline.data.image_list import has_control_characters
from pipeline.errors import InputError

FILE = "references.npz"
UNKNOWN = "unknown"  # the answer for an image of none of the classes


class References(NamedTuple):
    """Labelled embeddings.

    Attributes:
        embeddings: float32, shape `(n, embedding_size)`.
        labels: int32, indices into `class_names`, shape `(n,)`.
        class_names: list of str.
        names: str, the path of each image in its data set, shape `(n,)`.
        threshold: float, the distance to the nearest reference above which an image is unknown; infinite for runs of
            versions that had none.
    """

    embeddings: np.ndarray
    labels: np.ndarray
    class_names: list[str]
    names: np.ndarray
    threshold: float


def write_references(folder: str | os.PathLike, references: References) -> None:
    """Writes the references of a run atomically. Raises OSError if that fails."""
    arrays = references._asdict() | {"names": np.array([*references.names], str)}
    with files.open_atomic(Path(folder) / FILE) as file:
        np.savez(file, **arrays)


def read_references(folder: str | os.PathLike) -> References:
    """Reads the references of a run; code in the file is not run.

    Raises:
        InputError: if the file cannot be read, or its arrays do not fit.
    """
    path = Path(folder) / FILE
    try:
        with np.load(path, allow_pickle=False) as stored:
            embeddings, labels, class_names = (stored[name] for name in ("embeddings", "labels", "class_names"))
            names = stored["names"] if "names" in stored else np.array([f"image {n}" for n in range(len(labels))])
            threshold = float(stored["threshold"]) if "threshold" in stored else float("inf")
        kinds = "".join(each.dtype.kind for each in (embeddings, labels, class_names, names))
        shapes_fit = labels.shape == names.shape == embeddings.shape[:1] and embeddings.ndim == 2 and len(labels) > 0
        names_fit = class_names.ndim == 1 and len(set(class_names.tolist())) == len(class_names)
        if kinds not in ("fiUU", "fuUU") or not shapes_fit or not names_fit or not threshold > 0:
            raise ValueError("its arrays have wrong types or shapes")
        embeddings = embeddings.astype("float32")
        if not np.isfinite(embeddings).all() or not 0 <= labels.min() <= labels.max() < len(class_names):
            raise ValueError("its arrays do not fit together")
    except Exception as error:  # NumPy and zipfile raise many types for a corrupt file
        raise InputError(f"`RUN_FOLDER` must have an intact {FILE}. Received: {path} ({error})") from error
    return References(embeddings, labels.astype("int32"), class_names.tolist(), names, threshold)


def trained_classes(weights: str | os.PathLike) -> list[str]:
    """The classes of the run that a weights file comes from, if its references are in the same folder."""
    try:
        return read_references(Path(weights).parent).class_names if Path(weights).is_file() else []
    except InputError:
        return []


def with_changes(
    references: References, removed: Iterable[str], added: dict[str, tuple[np.ndarray, list[str]]]
) -> References:
    """Removes classes, and then adds others: dict from names to `embeddings` and `names` of `with_class`.

    Raises:
        InputError: as `without_class` and `with_class`.
    """
    for class_name in removed:
        references = without_class(references, class_name)
    for class_name, (embeddings, names) in added.items():
        references = with_class(references, class_name, embeddings, names)
    return references


def with_class(references: References, class_name: str, embeddings: np.ndarray, names: list[str]) -> References:
    """Adds a class.

    Args:
        references: `References`.
        class_name: str, which must not be among `references.class_names`.
        embeddings: floats of its images, shape `(m, embedding_size)`.
        names: list of m str.

    Returns:
        `References`.

    Raises:
        InputError: if there is such a class, or it cannot have this name.
    """
    is_name = isinstance(class_name, str) and class_name.strip() and not has_control_characters(class_name)
    if not is_name or class_name == UNKNOWN:
        raise InputError(
            f"`--add` must have the name of a class, without control characters, and not {UNKNOWN!r}. "
            f"Received: {class_name!a}"
        )
    if class_name in references.class_names:
        count = int(np.sum(references.labels == references.class_names.index(class_name)))
        raise InputError(
            f"`--add` must name a new class. Received: {class_name!r}, which has {count:,} references; to replace "
            f"them, remove the class in the same command: --remove {class_name!r}"
        )
    return references._replace(
        embeddings=np.concatenate([references.embeddings, embeddings.astype("float32")]),
        labels=np.concatenate([references.labels, np.full(len(names), len(references.class_names), "int32")]),
        class_names=[*references.class_names, class_name],
        names=np.concatenate([references.names.astype(object), np.array(names, object)]),
    )


def without_class(references: References, class_name: str) -> References:
    """Removes a class.

    Raises:
        InputError: if there is no such class, or no other one.
    """
    if class_name not in references.class_names:
        raise InputError(f"`--remove` must name a class that --list shows. Received: {class_name!r}")
    if len(references.class_names) == 1:
        raise InputError(f"`--remove` must leave a class. Received: {class_name!r}, the only one")
    gone = references.class_names.index(class_name)
    kept = references.labels != gone
    labels = references.labels[kept]
    return references._replace(
        embeddings=references.embeddings[kept],
        labels=labels - (labels > gone),
        class_names=[name for name in references.class_names if name != class_name],
        names=references.names[kept],
    )


def names_in_class(class_name: str, images: list) -> list[str]:
    """Names for the references of a new class: the class and the path below the folder that all images are in."""
    paths = [os.fspath(image) if isinstance(image, (str, os.PathLike)) else f"{n}" for n, image in enumerate(images)]
    top = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths])
    return [f"{class_name}/{os.path.relpath(path, top)}".replace(os.sep, "/") for path in paths]
