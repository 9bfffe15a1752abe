"""Text is wrapped, cut and drawn in any script; overlays and contact sheets show what they must."""

import numpy as np
import pytest

from utils.images import TRUTH, overlay
from utils.sheets import FONT, Case, _find_family, contact_sheet, draw_text

SENTENCE = "the man on the left in the red shirt who holds an umbrella"
IMAGE = np.full((60, 90, 3), 120, np.uint8)
MASK = np.zeros((60, 90), bool)
MASK[20:40, 30:60] = True


def num_lines(text: str, width: int, max_lines: int | None = None) -> int:
    return len(draw_text(text, width, max_lines=max_lines)) // len(draw_text("one", width))


def right_edge(drawn: np.ndarray) -> int:
    return int(np.flatnonzero((drawn < 128).any(axis=(0, 2))).max())


@pytest.mark.parametrize(
    "text", [SENTENCE, "wordwithoutanyspaces" * 4, "ωжß" * 20, "WWWWWW i " * 9]
)
def test_text_is_wrapped_and_fits(text: str) -> None:
    wide = draw_text(text, 2000)
    assert right_edge(wide) < 1300
    lines = [num_lines(text, width) for width in (2000, 250, 120)]
    assert lines[0] == 1 < lines[1] < lines[2]
    # what does not fit is cut at the edge, so that its last column would have ink
    assert right_edge(draw_text(text, 250)) < 249
    assert num_lines(text, 120, max_lines=2) == 2


def test_text_after_the_last_line_becomes_an_ellipsis() -> None:
    cut = draw_text(SENTENCE, 2000, max_lines=1)
    assert np.array_equal(cut, draw_text(SENTENCE, 2000))
    assert np.array_equal(draw_text("one two", 50, max_lines=1), draw_text("one…", 50))


def test_lines_lie_below_each_other_in_their_colour() -> None:
    strip = draw_text("top\n\nlow", 60, size=12, colour="red")
    thirds = np.split(strip, 3)
    assert strip.shape[1:] == (60, 3) and strip.dtype == np.uint8
    assert [bool((third < 128).any()) for third in thirds] == [True, False, True]
    assert (strip[..., 0] == 255).all()


@pytest.mark.parametrize("character", ["é", "ß", "ж", "ω", "ق", "$", "左"])
def test_a_character_of_any_script_is_drawn(character: str) -> None:
    if character == "左" and _find_family(character) == FONT:
        pytest.skip("no installed font has Chinese")
    drawn = draw_text(character, 60)
    assert (drawn < 128).any()
    assert not np.array_equal(drawn, draw_text("?", 60))


def test_an_installed_font_is_found_for_a_character(monkeypatch: pytest.MonkeyPatch) -> None:
    fonts = {"/latin": ("Latin", {97}), "/han": ("Han", {97, 24038})}
    entries = [type("Entry", (), {"fname": path, "name": fonts[path][0]}) for path in fonts]
    monkeypatch.setattr("utils.sheets.fontManager", type("Manager", (), {"ttflist": entries}))
    monkeypatch.setattr("utils.sheets._characters", lambda path: fonts[path][1])
    found = [_find_family.__wrapped__(character) for character in ("a", "左", "ж")]
    assert found == ["Latin", "Han", FONT]


def test_overlay_keeps_the_object_and_outlines_it() -> None:
    drawn = overlay(IMAGE, MASK, TRUTH, brightness=0.5)
    assert (drawn[30, 45] == 120).all() and (drawn[5, 5] == 60).all()
    assert tuple(drawn[20, 45]) == TRUTH
    assert (overlay(IMAGE, MASK)[5, 5] == 40).all()


def test_a_contact_sheet_has_a_column_for_each_group() -> None:
    case = Case(IMAGE, MASK, MASK, SENTENCE, 0.5)
    one, two = contact_sheet({"best": [case]}), contact_sheet({"best": [case, case]})
    assert one.shape[1] == two.shape[1] and len(two) > len(one) + 200
    long = contact_sheet({"best": [case._replace(sentence=SENTENCE * 40)]})
    assert len(one) < len(long) < len(one) + 30
    both = contact_sheet({"best": [case, case], "worst": [case]})
    assert len(both) == len(two) and one.shape[1] < both.shape[1] < 2 * one.shape[1]
