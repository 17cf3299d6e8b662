"""Which image files and classes a folder holds. Standard library alone, so that mistakes show before Keras loads."""

import os
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import InputError

BUILT_IN_DATASETS = {"cifar10": 10, "digits": 10}  # name -> number of classes
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif")


class ImageFolder(NamedTuple):
    """The image files of a data set, those of `train/` first.

    Attributes:
        folder: path of the data set.
        class_names: sorted names of the class folders; a label is an index into it.
        paths: paths of the image files.
        labels: int, one for each path.
        in_train: bool, one for each path; all True if the folder is not split.
        is_split: whether the folder has `train/` and `test/`.
        problems: sentences about what cannot be used.
    """

    folder: Path
    class_names: list[str]
    paths: list[Path]
    labels: list[int]
    in_train: list[bool]
    is_split: bool
    problems: list[str]


def class_folders(folder: str | os.PathLike) -> list[str]:
    """Sorted names of a data set's class folders: those of `folder/train` if it is split, else those of `folder`.

    Raises:
        InputError: if the folder cannot be read, or a name is not printable.
    """
    return _subfolders(Path(folder, "train") if is_split(folder) else Path(folder))


def is_split(folder: str | os.PathLike) -> bool:
    """Whether a folder has class folders in both `train/` and `test/`."""
    return len(_splits(folder)) == 2


def check_folder(folder: str | os.PathLike, run_folder: str | os.PathLike) -> None:
    """Checks the class folders of a data set without looking at the images.

    Args:
        folder: path of the data set.
        run_folder: path of the run folder, which must not be inside it.

    Raises:
        InputError: if the run folder is inside the data set, one of `train/` and `test/` is missing, or there are
            fewer than two classes.
    """
    if Path(os.path.realpath(run_folder)).is_relative_to(os.path.realpath(folder)):
        raise InputError(f"`RUN_FOLDER` must not be inside `DATASET`. Received: {str(run_folder)!r} in {str(folder)!r}")
    splits = _splits(folder)
    if len(splits) == 1:
        (missing,) = {"train", "test"} - set(splits)
        raise InputError(
            f"`DATASET` has class folders in {splits[0]}/, so it must have class folders in {missing}/ too. "
            f"Received: {str(folder)!r}"
        )
    classes = len(class_folders(folder))
    if classes < 2:
        raise InputError(
            "`DATASET` must be a folder with one subfolder of images for each class, and at least two classes. "
            f"Received: {str(folder)!r} with {classes}"
        )


def list_images(folder: str | os.PathLike) -> ImageFolder:
    """Lists the image files of `CLASS/IMAGE`, or of `train/CLASS/IMAGE` and `test/CLASS/IMAGE`, in a fixed order.

    Prints which files are skipped. Hidden files and folders are skipped silently.

    Args:
        folder: path of the data set.

    Returns:
        An `ImageFolder`.

    Raises:
        InputError: if the folder cannot be read.
    """
    folder, split = Path(folder), is_split(folder)
    class_names = class_folders(folder)
    parts = [folder / "train", folder / "test"] if split else [folder]
    outside = [entry for entry in folder.iterdir() if entry not in parts] if split else []
    for part in parts:
        outside += [entry for entry in part.iterdir() if not entry.is_dir()]
    outside = sorted(str(entry) for entry in outside if not entry.name.startswith("."))
    if outside:
        print(f"Skipped, not in a class folder: {', '.join(outside[:20])}{' ...' * (len(outside) > 20)}")

    problems = []
    files = [
        (path, label, part == parts[0])
        for part in parts
        for label, name in enumerate(class_names)
        for path in (_files_in(part / name, problems) if (part / name).is_dir() else ())
    ]
    suffixes = Counter(path.suffix.lower() or "no suffix" for path, _, _ in files)
    others = [f"{count:,} {suffix}" for suffix, count in sorted(suffixes.items()) if suffix not in IMAGE_SUFFIXES]
    if others:
        print(f"Skipped files in {folder} that are not {', '.join(IMAGE_SUFFIXES)}: {', '.join(others)}")
    if split:
        unknown = sorted(set(_subfolders(parts[1])) - set(class_names))
        problems += [f"{parts[1] / name}: this class is not in {parts[0]}" for name in unknown]
    files = [each for each in files if each[0].suffix.lower() in IMAGE_SUFFIXES]
    paths, labels, in_train = map(list, zip(*files, strict=True)) if files else ([], [], [])
    return ImageFolder(folder, class_names, paths, labels, in_train, split, problems)


def _splits(folder):
    """Which of `train` and `test` exist in a folder and hold class folders."""
    return [name for name in ("train", "test") if os.path.isdir(Path(folder, name)) and _subfolders(Path(folder, name))]


def _subfolders(folder):
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise InputError(f"`DATASET` must be a readable folder. Received: {error}") from error
    unprintable = [name for name in names if not name.isprintable()]  # such as bytes that are not UTF-8
    if unprintable:
        raise InputError(f"`DATASET` must have class folders with printable names. Received: {unprintable!a}")
    return names


def _files_in(folder, problems):
    """Paths of the files below a class folder in a fixed order, without hidden files and folders.

    Symbolic links are followed, each folder once. Folders that cannot be listed, and links to a parent folder, which
    holds the other classes, are added to `problems`.
    """
    paths, visited, top = [], set(), Path(os.path.realpath(folder))
    for place, folders, names in os.walk(folder, onerror=lambda error: problems.append(str(error)), followlinks=True):
        real = os.path.realpath(place)
        if real in visited or (real != str(top) and top.is_relative_to(real)):
            folders.clear()
            if real not in visited:
                problems.append(f"{place}: a link to a parent folder")
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths += [Path(place, name) for name in sorted(names) if not name.startswith(".")]
    return paths
