"""Overlays and contact sheets: what is marked, what stays visible, how much room it takes."""

import numpy as np
import pytest

from tools.reference_sheet import OUTLINE, RING, SIDE, Reference, reference_sheet
from utils.pictures import TRUTH, Case, contact_sheet, overlay

GREY = np.full((60, 90, 3), 120, np.uint8)


def mask_of(rows: slice, columns: slice, shape: tuple[int, int] = (60, 90)) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[rows, columns] = True
    return mask


def reference(mask: np.ndarray, *sentences: str, is_asked: bool = True) -> Reference:
    image = np.full((*mask.shape, 3), 120, np.uint8)
    return Reference("title", image, mask, [(text, is_asked) for text in sentences])


def outlined(sheet: np.ndarray) -> np.ndarray:
    """Where the outline is: bool (H, W)."""
    return (sheet == OUTLINE).all(axis=-1)


def test_overlay_keeps_what_is_found_and_outlines_it() -> None:
    mask = mask_of(slice(20, 40), slice(30, 60))
    drawn = overlay(GREY, mask, TRUTH, brightness=0.5)
    assert (drawn[30, 45] == 120).all() and (drawn[5, 5] == 60).all()
    assert tuple(drawn[20, 45]) == TRUTH
    assert (overlay(GREY, mask)[5, 5] == 40).all()


def test_cases_of_one_group_stand_below_each_other() -> None:
    case = Case(GREY, mask_of(slice(9), slice(9)), mask_of(slice(5), slice(5)), "左边的猫", 0.5)
    one, two = contact_sheet({"best": [case]}), contact_sheet({"best": [case, case]})
    assert one.shape[1] == two.shape[1] and len(two) > len(one)
    long = case._replace(sentence="a very long sentence " * 40)
    assert contact_sheet({"best": [long]}).shape == one.shape
    assert contact_sheet({"best": [case], "worst": [case]}).shape[1] == 2 * one.shape[1]


@pytest.mark.parametrize("shape", [(60, 90), (2000, 1400), (900, 30), (8, 2000), (1, 1)])
def test_the_smallest_object_keeps_its_outline(shape: tuple[int, int]) -> None:
    mask = mask_of(slice(shape[0] // 2, shape[0] // 2 + 1), slice(shape[1] - 1, None), shape)
    assert outlined(reference_sheet([reference(mask, "the dot")])).any()


def test_an_empty_mask_has_no_outline() -> None:
    assert not outlined(reference_sheet([reference(mask_of(slice(0), slice(0)), "none")])).any()


def test_a_dot_has_a_ring() -> None:
    dot = mask_of(slice(700, 705), slice(300, 305), (1500, 1500))
    rows, columns = np.nonzero(outlined(reference_sheet([reference(dot, "the dot")])))
    assert RING < np.ptp(rows) <= 2 * RING and RING < np.ptp(columns) <= 2 * RING


def test_every_sentence_has_room() -> None:
    mask = mask_of(slice(20, 40), slice(30, 60))
    heights = [
        len(reference_sheet([reference(mask, *sentences)]))
        for sentences in (["one"], ["one", "two"], ["one " * 60, "two"], ["s"] * 8, ["s"] * 500)
    ]
    assert heights == sorted(set(heights))
    assert heights[-1] < heights[-2] + 40  # the rest is counted, not shown


def test_what_was_not_asked_for_is_grey() -> None:
    mask = mask_of(slice(20, 40), slice(30, 60))
    asked, other = (
        reference_sheet([reference(mask, "left", is_asked=flag)])[-40:] for flag in (True, False)
    )
    assert asked.min() < 50 < other.min()


def test_pictures_stand_in_rows_of_six() -> None:
    cells = [reference(mask_of(slice(20, 40), slice(30, 60)), "left")] * 14
    one, sheet = reference_sheet(cells[:1]), reference_sheet(cells)
    assert one.shape[1] >= SIDE and sheet.shape[1] > 6 * SIDE
    assert len(sheet) > 2.8 * len(one) - 100
