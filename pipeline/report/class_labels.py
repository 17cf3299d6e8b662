"""Class names as tables on a terminal show them: short, in columns, and distinct."""

import itertools
import unicodedata
from collections import Counter

LONGEST = 30  # width of a name, in columns of a terminal


def table_names(class_names: list[str]) -> list[str]:
    """Class names as the tables show them: short, and all different.

    Args:
        class_names: list of str.

    Returns:
        List of str.
    """
    return distinct([shortened(_tidy(name)) for name in class_names])


def distinct(texts: list[str]) -> list[str]:
    """Appends its number in the list to each text that is not the only one of its kind.

    Args:
        texts: list of str.

    Returns:
        List of str, all different.
    """
    while len(counts := Counter(texts)) < len(texts):  # again if `a #1` was a name already
        texts = [f"{text} #{number}" if counts[text] > 1 else text for number, text in enumerate(texts)]
    return texts


def shortened(text: str, width: int = LONGEST) -> str:
    """A text, cut and ended with `…` if it is wider than `width` columns."""
    if display_width(text) <= width:
        return text
    columns = itertools.accumulate(display_width(each) for each in text)
    end = next(number for number, column in enumerate(columns) if column >= width)
    return text[:end].rstrip() + "…"


def display_width(text: str) -> int:
    """The number of columns of a terminal that a text takes: Chinese letters take two, combining marks none."""
    return sum(
        0 if unicodedata.category(each) in ("Mn", "Me", "Cf") else 1 + (unicodedata.east_asian_width(each) in "WF")
        for each in text
    )


def _tidy(name):
    """A name in one line, with accents that are part of their letter where Unicode has such a letter."""
    return " ".join(unicodedata.normalize("NFC", name).split())
