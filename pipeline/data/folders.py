"""The images of a folder: its parts, classes and groups. Standard library alone, to be ready before Keras loads."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from pipeline.data.image_list import (
    PART_OF,
    PARTS,
    TEST,
    TRAIN,
    ImageList,
    has_control_characters,
    normal_name,
    printable,
    shortened,
)
from pipeline.errors import InputError

# What operating systems, network storage, editors and archive tools leave in folders, in lower case; hidden ones apart.
LITTER = {
    *("@eadir", "@tmp", "@recycle", "@recently-snapshot", "@sharebin", "#recycle", "#snapshot", "~snapshot"),
    *("$recycle.bin", "system volume information", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"),
    *("__macosx", "network trash folder", "temporary items", "thevolumesettingsfolder", "lost+found"),
    *("__pycache__", "_vti_cnf", "_vti_pvt", "recycler", "dfsrprivate", "_gsdata_", "@database", "@appstore"),
}
LITTER_PATTERN = re.compile(r"\.|~\$|found\.\d{3}$|synophoto_thumb_|.*\.lrdata$")  # "." of hidden ones
PART_LIKE = re.compile(
    r"(.*[^a-z])?(train|test|val|valid)(ing|ation|idation)?(data|sets?|images?|imgs?|[ab])?([^a-z]|$)"
)


def check_folder(folder: str | os.PathLike) -> list[str]:
    """Checks the class folders of a data set without looking at the images.

    Args:
        folder: path of the data set.

    Returns:
        The names of the classes that train, sorted.

    Raises:
        InputError: as `class_folders`, or if there are fewer than two classes.
    """
    classes = list(class_folders(folder))
    if len(classes) < 2:
        raise InputError(
            "`DATASET` must be a folder with one subfolder of images for each class, and at least two classes. "
            f"Received: {str(folder)!r} with {len(classes)}"
        )
    return classes


def class_folders(folder: str | os.PathLike) -> dict[str, list[str]]:
    """The class folders of a data set by class name, sorted; those of its training part if it is split.

    Names that differ only in how accents are composed are one class (Unicode NFC).

    Raises:
        InputError: if the folder cannot be read, its parts do not fit, or a name has control characters or bytes that
            are not UTF-8.
    """
    folder = Path(folder)
    return _classes_in(folder / _parts_of(folder).get(TRAIN, ""), Counter())


def list_folder(folder: str | os.PathLike, suffixes: Collection[str]) -> ImageList:
    """Lists the image files of a folder in a fixed order, and prints which files are skipped.

    The folder has `CLASS/IMAGE` or `CLASS/GROUP/IMAGE`, or these in a folder for each part: `train/CLASS/IMAGE`.

    Args:
        folder: path of the data set.
        suffixes: suffixes of image files, in lower case.

    Returns:
        An `ImageList`; `names` are those of the files, without the folders above.

    Raises:
        InputError: as `class_folders`.
    """
    folder = Path(folder)
    litter, problems, outside = Counter(), [], []
    parts = _parts_of(folder) or {TRAIN: ""}
    found = {part: _classes_in(folder / name, litter) for part, name in parts.items()}
    class_names = sorted(set().union(*found.values()))
    if len(parts) > 1:
        outside += [each for each in folder.iterdir() if each.name not in parts.values()]
    files = []
    for part, name in parts.items():
        top = folder / name
        outside += [entry for entry in top.iterdir() if not entry.is_dir()]
        files += [
            (path, label, path.parts[len(class_folder.parts) :], part)
            for label, class_name in enumerate(class_names)
            for class_folder in (top / place for place in found[part].get(class_name, ()))
            for path in _files_in(class_folder, problems, litter)
        ]
    _print_skipped(folder, [path for path, *_ in files], suffixes, outside, litter)
    files = [each for each in files if each[0].suffix.lower() in suffixes]
    trained = {label for _, label, _, part in files if part == TRAIN}
    for label in sorted({label for _, label, *_ in files} - trained):
        if class_names[label] in found[TRAIN]:  # so it is not meant to be held out
            problems.append(f"{parts[TRAIN]}/{class_names[label]}: no images, though {parts[TEST]}/ has some")
    groups = [normal_name(inside[0]) if len(inside) > 1 else "" for _, _, inside, _ in files]
    similar = sorted({group for group in groups if PART_LIKE.match(group.lower())})
    like_parts = [group for group in similar if group.lower() in PART_OF or len(similar) == len(set(groups) - {""}) > 1]
    if like_parts:
        named = ", ".join(f"{name}/" for name in like_parts)
        problems.append(
            f"class folders with subfolders {named}: the parts must be above the classes, as in train/CLASS/"
        )
    of_class = defaultdict(set)
    for (_, label, *_), group in zip(files, groups, strict=True):
        of_class[label].add(group)
    shared = set.intersection(*of_class.values()) if len(of_class) > 1 else set()
    if len(shared) > 1 and set().union(*of_class.values()) == shared:
        named = printable(", ".join(sorted(shared)[:10]))
        print(
            f"Warning: every class has the same subfolders ({named}), which are taken as groups. If they are the "
            f"classes, DATASET must be one of the folders in {folder}."
        )
    return ImageList(
        folder,
        class_names,
        [path for path, *_ in files],
        [label for _, label, *_ in files],
        [normal_name(inside[-1]) for _, _, inside, _ in files],
        groups,
        [part for *_, part in files],
        problems,
    )


def images_in(
    places: Iterable[str], suffixes: Collection[str], problems: list[str], skipped: Counter | None = None
) -> Iterator[str | Path]:
    """Paths of image files, and of those below folders, in a fixed order, as they are needed.

    Args:
        places: paths of files, which may have any suffix, and of folders.
        suffixes: suffixes of image files in folders, in lower case.
        problems: list to which folders are added that cannot be listed or have no images.
        skipped: counts the other files in folders by their suffix.

    Yields:
        The given path of a file, or the path of a file below a folder.
    """
    for place in places:
        if not os.path.isdir(place):
            yield place
            continue
        count = 0
        for path in _files_in(Path(place), problems, Counter()):
            if path.suffix.lower() in suffixes:
                count += 1
                yield path
            elif skipped is not None:
                skipped[path.suffix.lower() or "no suffix"] += 1
        if not count:
            problems.append(f"{place}: no images")


def _parts_of(folder):
    """The names of the folders of each part, `{}` if a data set is not split.

    Raises InputError if names look like parts and do not fit: taken as classes they would give meaningless results.
    """
    names = _subfolders(folder, Counter())
    similar = [name for name in names if PART_LIKE.match(name.lower())]
    classes = {name: len(_subfolders(folder / name, Counter())) for name in similar}
    with_classes = [name for name in similar if classes[name]]
    found = [(PART_OF[name.lower()], name) for name in with_classes if name.lower() in PART_OF]
    parts = dict(sorted(found, key=lambda each: PARTS.index(each[0])))
    if {TRAIN, TEST} <= set(parts) and len(parts) == len(with_classes):
        return parts
    if found or len(with_classes) > 1 or 1 < len(similar) == len(names):
        raise InputError(
            "`DATASET` must have its parts in folders train/, test/ and, optionally, validation/, with class folders "
            f"in each. Rename the folders, or a class of such a name. Received: {str(folder)!r} with "
            + ", ".join(f"{name}/ ({count} class folders)" for name, count in classes.items())
        )
    return {}


def _classes_in(folder, litter):
    """The class folders in a folder: class name -> folder names, sorted by class name."""
    classes = {}
    for name in _subfolders(folder, litter):
        if has_control_characters(name):
            raise InputError(
                "`DATASET` must have class folders whose names are UTF-8 without control characters. "
                f"Received: {name!a} in {str(folder)!r}"
            )
        classes.setdefault(normal_name(name), []).append(name)
    return dict(sorted(classes.items()))


def _is_litter(name, litter):
    """Whether a file or folder is none of the user's; counts it in `litter`."""
    if name.lower() not in LITTER and not LITTER_PATTERN.match(name.lower()):
        return False
    litter["hidden" if name.startswith(".") else name.strip()] += 1
    return True


def _subfolders(folder, litter):
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir() and not _is_litter(entry.name, litter))
    except OSError as error:
        raise InputError(f"`DATASET` must be a readable folder. Received: {error}") from error


def _files_in(folder, problems, litter):
    """Yields the paths of the files below a class folder in a fixed order, without litter.

    Symbolic links are followed, each folder once. Folders that cannot be listed, and links to a parent folder, which
    holds the other classes, are added to `problems`.
    """
    visited, top = set(), Path(os.path.realpath(folder))
    for place, folders, names in os.walk(folder, onerror=lambda error: problems.append(str(error)), followlinks=True):
        real = os.path.realpath(place)
        if real in visited or (real != str(top) and top.is_relative_to(real)):
            folders.clear()
            if real not in visited:
                problems.append(f"{place}: a link to a parent folder")
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not _is_litter(name, litter))
        below = Path(place)
        yield from (below / name for name in sorted(names) if not _is_litter(name, litter))


def _print_skipped(folder, paths, suffixes, outside, litter):
    """Prints which files are skipped: those of systems, those outside class folders and those of other types."""
    outside = sorted(str(entry) for entry in outside if not _is_litter(entry.name, litter))
    if litter:
        named = ", ".join(f"{count:,} {name}" for name, count in litter.most_common(30))
        print(f"Skipped files and folders of the system in {folder}: {named}")
    if outside:
        print(f"Skipped, not in a class folder: {shortened(outside)}")
    others = Counter(path.suffix.lower() or "no suffix" for path in paths)
    others = [f"{count:,} {suffix}" for suffix, count in sorted(others.items()) if suffix not in suffixes]
    if others:
        print(f"Skipped files in {folder} that are no images: {shortened(others)}")
    if any(path.suffix.lower() in (".heic", ".heif", ".hif") for path in paths) and ".heic" not in suffixes:
        print("To read HEIC images: pip install pillow-heif")
