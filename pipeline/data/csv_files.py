"""The images of a CSV file. Standard library alone, to be ready before Keras loads."""

import csv
import os
import unicodedata
from pathlib import Path

from pipeline.data.image_list import PART_OF, TEST, TRAIN, ImageList, has_control_characters, in_lines, normal_name
from pipeline.errors import InputError


def list_csv(path: str | os.PathLike) -> ImageList:
    """Lists the images of a CSV file with the columns `path` and `label`, and optionally `split` and `group`.

    Paths are relative to the file. Commas, semicolons or tabs separate the columns.

    Args:
        path: path of the file.

    Returns:
        An `ImageList`; `names` are the paths in the file, with `/`, and without `./`.

    Raises:
        InputError: if the file cannot be read or rows cannot be used; the message names up to 50 with their lines.
    """
    path, skipped = Path(path), 0
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            while (header := file.readline()) and (not header.strip() or header.lower().strip('"').startswith("sep=")):
                skipped += 1  # such as Excel's first line
            delimiter = max(",;\t", key=header.count)
            columns = [name.strip().strip('"').lower() for name in header.split(delimiter)]
            named = [name for name in columns if name]
            if not {"path", "label"} <= set(named) or len(set(named)) < len(named):
                rule = "`DATASET` must have the columns path and label, each column once"
                raise InputError(f"{rule}. Received: {path} with {columns}")
            reader = csv.reader(file, delimiter=delimiter)
            rows = [(reader.line_num + 1 + skipped, [field.strip() for field in fields]) for fields in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"`DATASET` must be a readable CSV file in UTF-8. Received: {path} ({error})") from error
    rows = [(line, len(fields), dict(zip(columns, fields, strict=False))) for line, fields in rows if any(fields)]
    has_split = any(row.get("split") for *_, row in rows)
    first_line, part_of_group, files = {}, {}, []
    problems = [] if rows else ["no row has an image"]
    for line, count, row in rows:
        written, label, split = row.get("path", ""), normal_name(row.get("label", "")), row.get("split", "").lower()
        file, group, part = _file(path.parent, written), normal_name(row.get("group", "")), PART_OF.get(split, TRAIN)
        real = os.path.realpath(file)
        wrong = [
            f"{count} fields, but {len(columns)} columns; quote fields with commas" if count > len(columns) else "",
            "no path" if not written else "",
            "no label" if not label else "",
            f"label {label!r} has control characters" if has_control_characters(label) else "",
            f"no file {str(file)!r}" if written and not file.is_file() else "",
            f"split {split!r} is none of {', '.join(dict.fromkeys(PART_OF.values()))}"
            if has_split and split not in PART_OF
            else "",
            f"the same file as in line {first_line[real]}" if real in first_line else "",
            f"group {group!r} is also in another split" if part_of_group.get(group, part) != part else "",
        ]
        if written:
            first_line.setdefault(real, line)
        if group:
            part_of_group.setdefault(group, part)
        problems += [f"line {line}: {each}" for each in wrong if each]
        name = os.path.normpath(normal_name(written).replace("\\", "/")).replace(os.sep, "/")
        files.append((file, label, name, group, part))
    class_names = sorted({label for _, label, *_ in files if label})
    if has_split and not any(part == TEST for *_, part in files):
        problems.append("no row has the split test")
    if problems:
        raise InputError(f"`DATASET` must have rows that can all be used. Received: {path}{in_lines(problems, 50)}")
    labels = {name: number for number, name in enumerate(class_names)}
    return ImageList(
        path,
        class_names,
        [file for file, *_ in files],
        [labels[label] for _, label, *_ in files],
        [name for _, _, name, *_ in files],
        [group for *_, group, _ in files],
        [part for *_, part in files],
        [],
    )


def _file(folder, written):
    """The file that a path means, also if it has backslashes, or accents that the file system composes otherwise."""
    candidates = [written, written.replace("\\", "/")]
    candidates += [unicodedata.normalize(form, each) for form in ("NFC", "NFD") for each in candidates]
    try:
        return next((folder / each for each in candidates if (folder / each).is_file()), folder / written)
    except ValueError:  # a path that the system cannot have
        return folder / "".join(character for character in written if character.isprintable())
