"""Class names as tables on a terminal show them."""

import itertools

from pipeline.report.class_labels import display_width, distinct, shortened


def test_numbers_make_all_short_lists_of_texts_distinct():
    """Every list of up to four of these texts, some of which look like the others with a number."""
    for length in range(5):
        for texts in itertools.product(["a", "a #0", "a #1", "a #1 #1"], repeat=length):
            numbered = distinct(list(texts))
            assert len(set(numbered)) == length
            assert all(new.startswith(old) for new, old in zip(numbered, texts, strict=True))
            if len(set(texts)) == length:
                assert numbered == list(texts)


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
