"""Class names as figures and tables show them, with fonts chosen by the tests instead of those of the machine."""

import dataclasses
import itertools
import logging
import unicodedata
import warnings
from pathlib import Path

import pytest
from matplotlib import font_manager, get_data_path, rc_context, rcParams
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font

from pipeline.report import class_labels
from pipeline.report.class_labels import (
    display_width,
    distinct,
    drawing,
    drawn_names,
    replaced_names,
    shortened,
    table_names,
)

FONTS = Path(get_data_path(), "fonts", "ttf")  # Matplotlib's own
K_WITH_HOOK = "ᶄ"  # DejaVu Sans lacks it, STIXGeneral has it, and Unicode knows no simpler form
SCRIPT_G = "ℊ"  # likewise, but its simpler form is g
ARROW = "⤀"  # DejaVu Sans lacks it; STIXGeneral and DejaVu Serif have it


def entry(file, name, style="normal"):
    path = str(FONTS / file)
    return dataclasses.replace(font_manager.ttfFontProperty(FT2Font(path)), fname=path, name=name, style=style)


@pytest.fixture
def install(monkeypatch):
    """Replaces the installed fonts by DejaVu Sans, Matplotlib's default, and those given as file and family.

    Matplotlib remembers the file of each family, so that one family cannot have two files in these tests.
    """

    def install(fonts=()):
        default = [each for each in font_manager.fontManager.ttflist if each.name == "DejaVu Sans"]
        default = default or [entry("DejaVuSans.ttf", "DejaVu Sans")]
        monkeypatch.setattr(font_manager.fontManager, "ttflist", default + [entry(*each) for each in fonts])
        class_labels._fonts.cache_clear()

    install()
    yield install
    class_labels._fonts.cache_clear()


@pytest.fixture
def render(tmp_path, caplog):
    """Draws texts in the context of `drawing`; fails on any warning, such as that of a missing glyph."""

    def render(names):
        with warnings.catch_warnings(), caplog.at_level(logging.WARNING, "matplotlib"):
            warnings.simplefilter("error")
            with drawing(names) as drawn:
                figure = Figure(figsize=(3, 3))
                for number, name in enumerate(drawn):
                    figure.text(0.1, 0.9 - 0.8 * number / len(drawn), name)
                figure.savefig(tmp_path / "names.png")
        assert not caplog.records
        return drawn

    return render


# By hand: the name, and what is drawn where the only font is DejaVu Sans.
WITHOUT_OTHER_FONTS = {
    "plain cat_1": "plain cat_1",
    "crème brûlée": "crème brûlée",
    "cre\u0300me": "crème",  # decomposed
    "گربه\u200cها": "گربهها",  # zero-width non-joiner
    "सेब": "#4",
    "ネコ": "#5",
    "がむ": "#6",  # NFKD would make another letter of the first
    "한": "#7",
    "ＡＢＣ（１）": "ABC(1)",  # full width
    "👩\u200d🌾": "#9",  # a sequence with a zero-width joiner
    "cat 👩": "#10",
    "♥\ufe0f": "♥",  # variation selector
    "$x^2$": "$x^2$",
    f"{SCRIPT_G}old": "gold",
    K_WITH_HOOK: "#14",
    "\u200b\u2060": "#15",
    "a\u3000b": "a b",  # wide space
    "ṩq\u0303": "ṩq\u0303",
    "_hidden": "_hidden",
    "\U000e0101": "#19",
    "x\u0489": "x\u0489",
    "\ue000": "#21",  # private use
    "a\u0359": "a",  # an accent that DejaVu Sans lacks
    "к\u0359": "#23",
    "\u2800": "#24",  # a blank glyph
}


def test_without_other_fonts_names_are_drawn_plain_or_as_numbers(install, render):
    names = list(WITHOUT_OTHER_FONTS)
    assert drawn_names(names) == list(WITHOUT_OTHER_FONTS.values())
    numbers = {text: name for name, text in WITHOUT_OTHER_FONTS.items() if text.startswith("#")}
    assert replaced_names(names) == numbers
    assert render(names) == [name.replace("$", r"\$") for name in WITHOUT_OTHER_FONTS.values()]


def test_a_font_that_has_the_missing_characters_is_used(install, render):
    install([("cmr10.ttf", "A Sans"), ("STIXGeneral.ttf", "Test serif")])
    names = ["cat", f"{SCRIPT_G}o{K_WITH_HOOK}", "ネコ"]
    assert drawn_names(names) == ["cat", names[1], "#2"]
    usual = list(rcParams["font.family"])
    with drawing(names):
        families = list(rcParams["font.family"])
    assert families[: len(usual)] == usual
    assert "Test serif" in families and "A Sans" not in families
    assert list(rcParams["font.family"]) == usual
    assert render(names)[1] == names[1]


def test_the_text_has_the_glyph_of_the_other_font(install, tmp_path):
    """Its picture is that of the font used alone, and not the box of a missing glyph."""
    install([("STIXGeneral.ttf", "Test serif")])

    def picture(**options):
        figure = Figure(figsize=(1, 1))
        figure.text(0.1, 0.1, K_WITH_HOOK, fontsize=50, **options)
        figure.savefig(tmp_path / "text.png")
        return (tmp_path / "text.png").read_bytes()

    with drawing([K_WITH_HOOK]):
        drawn = picture()
    assert drawn == picture(fontfamily="Test serif")
    with pytest.warns(UserWarning, match="Glyph"):
        assert drawn != picture()


def test_an_upright_font_is_preferred(install):
    install([("STIXGeneral.ttf", "Slanted sans", "italic"), ("DejaVuSerif.ttf", "Upright serif")])
    with drawing([ARROW]):
        assert rcParams["font.family"][-1] == "Upright serif"


def test_a_usual_font_with_few_characters_is_completed_by_matplotlibs_own(install, render):
    install([("cmr10.ttf", "Few characters")])
    with rc_context({"font.family": ["Few characters"]}):
        assert render(["cat", "кот", "↪"]) == ["cat", "кот", "↪"]
        assert render(["x" * 40]) == ["x" * 29 + "…"]
        with drawing(["кот"]):
            assert rcParams["font.family"][0] == "Few characters"
    class_labels._fonts.cache_clear()


@pytest.mark.parametrize("name", ["Last Resort High-Efficiency", ".LastResort", "Adobe Blank", ".hidden"])
def test_fonts_of_boxes_are_not_used(name, install):
    install([("STIXGeneral.ttf", name)])
    assert drawn_names([K_WITH_HOOK]) == ["#0"]


def test_fonts_that_are_blank_or_not_readable_are_not_used(install, monkeypatch, tmp_path):
    install([("STIXGeneral.ttf", "Colours alone"), ("DejaVuSerif.ttf", "Other serif"), ("cmr10.ttf", "Gone Sans")])
    fonts = font_manager.fontManager.ttflist
    fonts[-1] = dataclasses.replace(fonts[-1], fname=str(tmp_path / "gone.ttf"))
    has_ink = class_labels._has_ink
    blank = ("STIXGeneral",)
    monkeypatch.setattr(
        class_labels, "_has_ink", lambda font, code: font.family_name not in blank and has_ink(font, code)
    )
    with drawing([ARROW]) as drawn:
        assert rcParams["font.family"][-1] == "Other serif"
        assert "Colours alone" not in rcParams["font.family"]
    assert drawn == [ARROW]
    blank = ("STIXGeneral", "DejaVu Serif")
    class_labels._fonts.cache_clear()
    assert drawn_names([ARROW]) == ["#0"]


def test_other_fonts_are_not_opened_if_the_usual_ones_suffice(install, monkeypatch):
    opened = []
    monkeypatch.setattr(class_labels, "_fonts_with", lambda missing: opened.append(missing) or {})
    drawn_names(["a cat", "crème", "گربه\u200cها", "кот"])
    assert opened == []
    drawn_names(["猫"])
    assert opened == [{"猫"}]


def test_different_names_are_drawn_as_different_texts(install):
    long = "a rather long name of a class of images, "
    names = ["é", "e\u0301", "a\u200cb", "ab", "Ａ", "A", "A #4", "#8", "猫", "犬", "#8 #7", "a b", "a\u3000b"]
    names += [f"{long}{number}" for number in range(20)]
    assert len({unicodedata.normalize("NFC", name) for name in names}) == len(names) - 1
    for some in (names, names[::-1], names[4:9]):
        for function in (drawn_names, table_names):
            assert len(set(function(some))) == len(some)
    drawn = drawn_names(names)
    assert drawn[:7] == ["é #0", "é #1", "ab #2", "ab #3", "A #4 #4", "A #5", "A #4 #6"]
    assert drawn[7:13] == ["#8 #7 #7", "#8 #8", "#9", "#8 #7 #10", "a b #11", "a b #12"]
    replaced = replaced_names(names)
    assert replaced[drawn[8]] == "猫" and replaced["#9"] == "犬"
    assert set(replaced) == {text for text, name in zip(drawn, names, strict=True) if "#" in text and text != name}


def test_numbers_make_all_short_lists_of_texts_distinct():
    """Every list of up to four of these texts, some of which look like the others with a number."""
    for length in range(5):
        for texts in itertools.product(["a", "a #0", "a #1", "a #1 #1"], repeat=length):
            numbered = distinct(list(texts))
            assert len(set(numbered)) == length
            assert all(new.startswith(old) for new, old in zip(numbered, texts, strict=True))
            if len(set(texts)) == length:
                assert numbered == list(texts)


def test_800_names_that_no_font_has_are_numbered(install):
    names = [chr(0x4E00 + number) * 3 for number in range(800)]
    assert drawn_names(names) == [f"#{number}" for number in range(800)]
    assert drawn_names(names[::-1]) == [f"#{number}" for number in range(800)]


def test_a_name_that_looks_like_a_number_is_not_explained():
    assert replaced_names(["#0", "cat #1"]) == {}


def test_long_texts_are_cut_to_their_width():
    assert shortened("x" * 30) == "x" * 30
    assert shortened("x" * 31) == "x" * 29 + "…"
    assert shortened("猫" * 15) == "猫" * 15
    assert shortened("猫" * 16) == "猫" * 14 + "…"
    assert shortened("a" * 28 + " bcd") == "a" * 28 + "…"
    assert shortened("q\u0303" * 31) == "q\u0303" * 29 + "…"
    assert shortened("abcdef", 4) == "abc…"


def test_the_width_of_a_text_is_that_in_a_terminal():
    # By hand: Latin, Chinese, full width, a combining tilde, a zero-width non-joiner, half-width Japanese.
    widths = {"": 0, "cat": 3, "猫": 2, "Ａ1": 3, "q\u0303": 1, "گ\u200cب": 2, "ﾈｺ": 2, "한글": 4, "é": 1, "…": 1}
    assert {text: display_width(text) for text in widths} == widths
