"""A contact sheet of references: each picture with its mask, and what people said under it."""

from typing import NamedTuple

import cv2
import numpy as np

from utils.images import BLACK, GREY, draw_text, grid, overlay, stack

SIDE = 300  # the longer side of a picture, in pixels
GAP = 16
COLUMNS = 6
SMALL = 11  # letters of the title
INDENT = 12
MOST_SENTENCES = 8  # one's own data may have any number
MOST_LINES = 6  # of a sentence
OUTLINE = (255, 0, 200)  # which photographs hardly have
RING = 10  # pixels around an object that is smaller than that
DIMMED = 0.55  # brightness beside the mask: dark enough to see it, light enough to see the rest


class Reference(NamedTuple):
    """One reference: image uint8 (H, W, 3), RGB, mask bool (H, W), and (sentence, whether asked
    for)."""

    title: str
    image: np.ndarray
    mask: np.ndarray
    sentences: list[tuple[str, bool]]


def reference_sheet(references: list[Reference]) -> np.ndarray:
    """Draw pictures in rows of six, uint8 (H, W, 3); sentences not asked for are grey."""
    sheet = grid([_cell(reference) for reference in references], COLUMNS, gap=GAP)
    return np.pad(sheet, ((GAP, 0), (GAP, 0), (0, 0)), constant_values=255)


def _cell(reference: Reference) -> np.ndarray:
    """Draw picture, title and sentences: (H, SIDE, 3)."""
    strips = [_picture(reference), _blank(6)]
    strips += [draw_text(reference.title, SIDE, size=SMALL, colour=GREY, max_lines=1), _blank(4)]
    for text, is_asked in reference.sentences[:MOST_SENTENCES]:
        colour = BLACK if is_asked else GREY
        lines = draw_text(text, SIDE - INDENT, colour=colour, max_lines=MOST_LINES)
        strips.append(grid([draw_text("•", INDENT, colour=colour), lines], 2, gap=0))
    if (more := len(reference.sentences) - MOST_SENTENCES) > 0:
        strips.append(draw_text(f"and {more} more", SIDE, size=SMALL, colour=GREY))
    return stack(strips)


def _picture(reference: Reference) -> np.ndarray:
    """The picture at its size on the sheet, its mask outlined: (H, SIDE, 3)."""
    height, width = reference.mask.shape
    scale = SIDE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    image = cv2.resize(
        reference.image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    )
    # any pixel that the mask touches, so that the smallest object keeps its outline
    mask = cv2.resize(
        reference.mask.astype(np.float32),
        size,
        interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST,
    )
    drawn = overlay(image, mask > 0, OUTLINE, brightness=DIMMED)
    left, top, *extent = cv2.boundingRect((mask > 0).astype(np.uint8))
    if mask.any() and max(extent) < RING:
        middle = left + extent[0] // 2, top + extent[1] // 2
        cv2.circle(drawn, middle, RING, OUTLINE, 1, cv2.LINE_AA)
    before = (SIDE - size[0]) // 2
    after = SIDE - size[0] - before
    return np.pad(drawn, ((0, 0), (before, after), (0, 0)), constant_values=255)


def _blank(height: int) -> np.ndarray:
    return np.full((height, SIDE, 3), 255, np.uint8)
