"""The images of a CSV file. Standard library alone, to be ready before Keras loads."""

import csv
import os
from pathlib import Path

from pipeline.data.image_list import PART_OF, PARTS, TEST, TRAIN, ImageList, has_control_characters, normal_name
from pipeline.errors import InputError


def list_csv(path: str | os.PathLike) -> ImageList:
    """Lists the images of a CSV file with the columns `path` and `label`, and optionally `split` and `group`.

    Paths are relative to the file. Commas, semicolons or tabs separate the columns.

    Args:
        path: path of the file.

    Returns:
        An `ImageList`; `keys` are the groups, or the paths as they are written.

    Raises:
        InputError: if the file cannot be read or rows cannot be used; the message names all with their line numbers.
    """
    path, problems, rows = Path(path), [], []
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            header = file.readline()
            delimiter = max(",;\t", key=header.count)
            columns = [name.strip().strip('"').lower() for name in header.split(delimiter)]
            if not {"path", "label"} <= set(columns):
                raise InputError(f"`DATASET` must have the columns path and label. Received: {path} with {columns}")
            reader = csv.reader(file, delimiter=delimiter)
            rows = [(reader.line_num + 1, dict(zip(columns, map(str.strip, row), strict=False))) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"`DATASET` must be a readable CSV file in UTF-8. Received: {path} ({error})") from error
    rows = [(line, row) for line, row in rows if any(row.values())]  # without empty lines
    has_split = any(row.get("split") for _, row in rows)
    first_line, part_of_group, files = {}, {}, []
    for line, row in rows:
        written, label, part = row.get("path", ""), normal_name(row.get("label", "")), row.get("split", "").lower()
        file, group = path.parent / written, normal_name(row.get("group", ""))
        key = group or normal_name(written)
        wrong = [
            "no path" if not written else "",
            "no label" if not label else "",
            f"label {label!r} has control characters" if has_control_characters(label) else "",
            f"no file {file}" if written and not file.is_file() else "",
            f"split {part!r} is none of {', '.join(PARTS)}" if has_split and part not in PART_OF else "",
            f"the same path as in line {first_line[written]}" if written in first_line else "",
            f"group {group!r} is also in another split" if part_of_group.get(group, part) != part else "",
        ]
        first_line.setdefault(written, line)
        if group:
            part_of_group.setdefault(group, part)
        problems += [f"line {line}: {each}" for each in wrong if each]
        files.append((file, label, key, PART_OF.get(part, TRAIN)))
    class_names = sorted({label for _, label, _, part in files if label and part == TRAIN})
    unknown = sorted({label for _, label, *_ in files if label} - set(class_names))
    problems += [f"label {label!r} has no training image" for label in unknown]
    if has_split and not any(part == TEST for *_, part in files):
        problems.append("no row has the split test")
    if problems:
        named = "\n  ".join(problems[:50] + [f"and {len(problems) - 50:,} more"] * (len(problems) > 50))
        raise InputError(f"`DATASET` must have rows that can all be used. Received: {path}\n  {named}")
    return ImageList(
        path,
        class_names,
        [file for file, *_ in files],
        [class_names.index(label) for _, label, *_ in files],
        [key for _, _, key, _ in files],
        [part for *_, part in files],
        any(row.get("group") for _, row in rows),
        [],
    )
