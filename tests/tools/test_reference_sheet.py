"""Every object has a visible outline, every sentence has room, rows hold six pictures."""

import numpy as np
import pytest

from tools.reference_sheet import OUTLINE, RING, SIDE, Reference, reference_sheet


def mask_of(rows: slice, columns: slice, shape: tuple[int, int] = (60, 90)) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[rows, columns] = True
    return mask


MASK = mask_of(slice(20, 40), slice(30, 60))


def reference(mask: np.ndarray, *sentences: str, is_asked: bool = True) -> Reference:
    image = np.full((*mask.shape, 3), 120, np.uint8)
    return Reference("title", image, mask, [(text, is_asked) for text in sentences])


def outlined(sheet: np.ndarray) -> np.ndarray:
    """Where the outline is: bool (H, W)."""
    return (sheet == OUTLINE).all(axis=-1)


@pytest.mark.parametrize("shape", [(60, 90), (2000, 1400), (900, 30), (8, 2000), (1, 1)])
def test_the_smallest_object_keeps_its_outline(shape: tuple[int, int]) -> None:
    mask = mask_of(slice(shape[0] // 2, shape[0] // 2 + 1), slice(shape[1] - 1, None), shape)
    assert outlined(reference_sheet([reference(mask, "the dot")])).any()


def test_an_empty_mask_has_no_outline() -> None:
    assert not outlined(reference_sheet([reference(np.zeros((60, 90), bool), "none")])).any()


def test_a_dot_has_a_ring() -> None:
    dot = mask_of(slice(700, 705), slice(300, 305), (1500, 1500))
    rows, columns = np.nonzero(outlined(reference_sheet([reference(dot, "the dot")])))
    assert RING < np.ptp(rows) <= 2 * RING and RING < np.ptp(columns) <= 2 * RING


def test_every_sentence_has_room() -> None:
    heights = [
        len(reference_sheet([reference(MASK, *sentences)]))
        for sentences in (["one"], ["one", "two"], ["one " * 60, "two"], ["s"] * 8, ["s"] * 500)
    ]
    assert heights == sorted(set(heights))
    assert heights[-1] < heights[-2] + 40  # the rest is counted, not shown


def test_sentences_not_asked_for_are_grey() -> None:
    asked, other = (
        reference_sheet([reference(MASK, "left", is_asked=flag)])[-40:] for flag in (True, False)
    )
    assert asked.min() < 50 < other.min()


def test_rows_hold_six_pictures() -> None:
    one, sheet = (reference_sheet([reference(MASK, "left")] * number) for number in (1, 14))
    assert one.shape[1] >= SIDE and sheet.shape[1] > 6 * SIDE
    assert len(sheet) > 2.8 * len(one) - 100
