"""Text in pictures: broken between words, cut with an ellipsis, drawn whatever the script."""

import numpy as np
import pytest

from utils.lettering import lettering, wrap

SENTENCE = "the man on the left in the red shirt who holds an umbrella"


def ink(text: str, width: int) -> np.ndarray:
    """Columns of pixels that a row of text has."""
    return (lettering([text], width) < 128).any(axis=(0, 2))


@pytest.mark.parametrize("width", [120, 200, 1000])
def test_rows_keep_all_words_and_fit(width: int) -> None:
    rows = wrap(SENTENCE, width)
    assert " ".join(rows) == SENTENCE
    assert all(np.flatnonzero(ink(row, 1200)).max() <= width for row in rows)
    assert len(wrap(SENTENCE, 120)) > len(wrap(SENTENCE, 200)) > len(wrap(SENTENCE, 1000)) == 1


@pytest.mark.parametrize("word", ["wordwithoutanyspaces" * 4, "左边的猫" * 10])
def test_a_word_wider_than_a_row_is_broken(word: str) -> None:
    rows = wrap(f"a {word} b", 100)
    assert "".join(rows).replace(" ", "") == f"a{word}b"
    assert len(rows) > 3 and all(np.flatnonzero(ink(row, 1200)).max() <= 100 for row in rows)


def test_what_is_too_much_ends_in_an_ellipsis() -> None:
    rows = wrap(SENTENCE, 120, most_rows=2)
    assert len(rows) == 2 and rows[1].endswith("…")
    assert SENTENCE.startswith(" ".join(rows).removesuffix("…"))
    assert np.flatnonzero(ink(rows[1], 1200)).max() <= 120
    assert wrap("short", 120, most_rows=2) == ["short"]
    assert wrap("", 120) == [""]


@pytest.mark.parametrize("text", ["é", "ß", "ж", "ω", "左", "猫", "ق"])
def test_letters_of_any_script_are_drawn(text: str) -> None:
    drawn = lettering([text], 60)
    assert (drawn < 128).any()
    assert not np.array_equal(drawn, lettering(["?"], 60))
    assert not np.array_equal(drawn, lettering(["\N{GRINNING FACE}"], 60))  # which it lacks


def test_rows_lie_below_each_other_in_their_colour() -> None:
    strip = lettering(["top", "", "low"], 60, size=12, colour=(255, 0, 0))
    thirds = np.split(strip, 3)
    assert strip.shape == (3 * len(thirds[0]), 60, 3)
    assert [bool((third < 128).any()) for third in thirds] == [True, False, True]
    assert (strip[..., 0] == 255).all()
