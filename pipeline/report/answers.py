"""Answers of a classifier as a table, as CSV or as JSON lines."""

import csv
import json
import sys
import time
from collections.abc import Iterable
from itertools import zip_longest
from typing import Any

import numpy as np

from pipeline.classifier import Answer, Classifier
from pipeline.data.image_list import printable
from pipeline.references import UNKNOWN
from pipeline.report.class_labels import display_width

PROGRESS_SECONDS = 60.0


def print_answers(answers: Iterable[tuple[Any, Answer | Exception]], form: str, class_names: list[str]) -> list[str]:
    """Prints each answer as soon as it is there, and the progress to standard error.

    Args:
        answers: what `Classifier.answers` yields.
        form: `"table"`, `"csv"` or `"json"`, one object on each line.
        class_names: list of str, the classes that answers may have.

    Returns:
        A sentence for each image that could not be read.
    """
    columns, widest = ("image", "class", "share", "distance", "reference"), max(map(display_width, class_names))
    printer, unread, start = _Printer(form, columns, (0, max(widest, len(UNKNOWN)), 6)), [], time.monotonic()
    count, last = 0, start
    for image, answer in answers:
        count += 1
        if isinstance(answer, Exception):
            unread.append(f"{image}: {answer}")
        else:
            printer.row(
                [str(image), answer.class_name, round(answer.share, 4), round(answer.distance, 4), answer.reference]
            )
        now = time.monotonic()
        if now - last >= PROGRESS_SECONDS:
            last = now
            print(f"{count:,} images, {count / (now - start):.0f} a second", file=sys.stderr)
    return unread


def print_similar(classifier: Classifier, image: str, count: int, form: str) -> None:
    """Prints the references that are most similar to an image. Raises InputError if it cannot be read."""
    printer = _Printer(form, ("reference", "class", "distance"))
    for name, class_name, distance in classifier.similar(image, count):
        printer.row([name, class_name, round(distance, 4)])


def print_classes(classifier: Classifier) -> None:
    """Prints the classes, their numbers of references, and when an image is unknown."""
    known = classifier.references
    for name, count in zip(known.class_names, np.bincount(known.labels, minlength=len(known.class_names)), strict=True):
        print(f"{count:>9,}  {printable(name)}")
    if np.isfinite(known.threshold):
        print(f"An image is unknown if its nearest reference is farther than {known.threshold:.4f}.")
    else:
        print("No image is called unknown: the run is of a version that had no threshold. Train it again for one.")


class _Printer:
    """Prints rows of values; as a table, in columns as wide as what has been printed so far, at least `widths`."""

    def __init__(self, form, columns, widths=()):
        self.form, self.columns, self.has_header = form, columns, False
        self.widths = [max(len(column), width) for column, width in zip_longest(columns, widths, fillvalue=0)]
        self.writer = csv.writer(sys.stdout, lineterminator="\n")

    def row(self, values):
        if self.form == "json":
            print(json.dumps(dict(zip(self.columns, values, strict=True))))
            return
        if self.form == "table":
            values = [printable(f"{value:.4f}" if isinstance(value, float) else str(value)) for value in values]
            self.widths = [max(pair) for pair in zip(self.widths, map(display_width, values), strict=True)]
        for cells in [values] if self.has_header else [self.columns, values]:
            if self.form == "csv":
                self.writer.writerow(cells)
            else:
                padded = zip(cells, self.widths, strict=True)
                print("  ".join(cell + " " * (width - display_width(cell)) for cell, width in padded).rstrip())
        self.has_header = True
