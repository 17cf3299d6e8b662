"""Class names as figures and tables show them: legible with the fonts there are, short, and distinct."""

import contextlib
import functools
import itertools
import unicodedata
from collections import Counter
from collections.abc import Iterator

from matplotlib import rc_context, rcParams
from matplotlib.font_manager import FontProperties, findfont, fontManager
from matplotlib.ft2font import FT2Font

LONGEST = 30  # width of a name, in columns of a terminal
ALWAYS_THERE = "DejaVu Sans"  # comes with Matplotlib
PLACEHOLDERS = ("last resort", "lastresort", "adobe blank", "notdef")  # fonts that draw a box, or nothing, for anything


def drawn_names(class_names: list[str]) -> list[str]:
    """Class names as the figures show them.

    A name with a character that no font has is drawn in plain Latin letters, if Unicode says which, else as the class
    number (`#3`). Invisible characters are dropped, long names end with `…`, and names that would look the same get
    their class number.

    Args:
        class_names: list of str.

    Returns:
        List of str, all different.
    """
    clean = [_visible(name) for name in class_names]
    _, missing = _fonts(frozenset("".join(clean)))
    plain = [_without(name, missing) or f"#{number}" for number, name in enumerate(clean)]
    return distinct([shortened(name) for name in plain])


def replaced_names(class_names: list[str]) -> dict[str, str]:
    """The names that figures show with a class number.

    Args:
        class_names: list of str.

    Returns:
        Dict from the text in the figures to the name.
    """
    texts = enumerate(zip(drawn_names(class_names), class_names, strict=True))
    return {text: name for number, (text, name) in texts if text != name and text.endswith(f"#{number}")}


@contextlib.contextmanager
def drawing(class_names: list[str]) -> Iterator[list[str]]:
    """Lets Matplotlib use the fonts that class names need.

    Args:
        class_names: list of str.

    Yields:
        The `drawn_names`, for texts that are created in the context; `$` is escaped and does not begin a formula.
    """
    families, _ = _fonts(frozenset("".join(map(_visible, class_names))))
    with rc_context({"font.family": families}):
        yield [name.replace("$", r"\$") for name in drawn_names(class_names)]


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


def _visible(name):
    """A name without characters that have no glyph of their own, such as zero-width joiners and variation selectors."""
    return _tidy("".join(each for each in name if not _is_invisible(each)))


def _is_invisible(character):
    is_selector = 0xFE00 <= ord(character) <= 0xFE0F or 0xE0100 <= ord(character) <= 0xE01EF
    return is_selector or (unicodedata.category(character) in ("Cf", "Cc") and not character.isspace())


def _without(name, missing):
    """A name whose `missing` characters are replaced by plain Latin ones: `é` by `e`; `""` if that is impossible."""
    text = ""
    for character in name:
        if character in missing:
            parts = unicodedata.normalize("NFKD", character)
            character = "".join(each for each in parts if unicodedata.category(each) != "Mn")
            is_accent_of_other_script = not character and not text[-1:].isascii()
            if not character.isascii() or is_accent_of_other_script:
                return ""
        text += character
    return text.strip()


@functools.lru_cache(maxsize=8)
def _fonts(characters: frozenset[str]) -> tuple[list[str], frozenset[str]]:
    """The font families for characters, and the characters that no font has.

    Other fonts are only opened if the usual ones lack a character. Those that have the most of the missing ones come
    first, so that a name is drawn in few fonts.
    """
    families = list(dict.fromkeys([*rcParams["font.family"], ALWAYS_THERE]))
    missing = set(characters) - {" "}
    for family in families:
        missing -= _drawable(family, missing)
    found = _fonts_with(missing) if missing else {}
    while missing and found:
        family = max(found, key=lambda each: len(found[each] & missing))
        if not found.pop(family) & missing:
            break
        drawable = _drawable(family, missing)
        if drawable:
            families.append(family)
            missing -= drawable
    return families, frozenset(missing)


def _fonts_with(characters):
    """Dict from the installed font families to those of the characters that they have; the best style first."""
    entries = {}
    for entry in sorted(fontManager.ttflist, key=_style):
        hidden = entry.name.startswith(".") or any(word in entry.name.lower() for word in PLACEHOLDERS)
        if not hidden:
            entries.setdefault(entry.name, entry)
    found = {}
    for family, entry in entries.items():
        font = _open(entry.fname, getattr(entry, "index", 0))
        found[family] = {each for each in characters if font and font.get_char_index(ord(each))}
        if len(found[family]) == len(characters) == len(_drawable(family, characters)):
            break
    return found


def _style(entry):
    """Sorts upright fonts of normal weight without serifs first."""
    return entry.style != "normal", entry.weight not in (400, "normal"), "sans" not in entry.name.lower(), entry.name


def _drawable(family, characters):
    """Those of the characters that Matplotlib draws with a font family; not blanks, such as glyphs of colours alone."""
    path = findfont(FontProperties(family=[family]))
    font = _open(path, getattr(path, "face_index", 0))
    return {each for each in characters if font and _has_ink(font, ord(each))}


def _has_ink(font, code):
    if not font.get_char_index(code):
        return False
    left, _, right, _ = font.load_char(code).bbox
    return right > left


def _open(path, index):
    """A font, without the fonts that Matplotlib falls back on; None if the file is not readable."""
    try:
        return FT2Font(path, face_index=index) if index else FT2Font(path)  # before 3.11, files had one face only
    except (OSError, RuntimeError, ValueError):
        return None
