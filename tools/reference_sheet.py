"""A contact sheet of references: each picture with its mask, and what people said under it."""

from typing import NamedTuple

import cv2
import numpy as np

from utils.lettering import BLACK, GREY, lettering, wrap
from utils.pictures import overlay

SIDE = 300  # the longer side of a picture, in pixels
GAP = 16
COLUMNS = 6
SMALL = 12  # letters of the title
INDENT = 12
MOST_SENTENCES = 8  # one's own data may have any number
MOST_ROWS = 6  # of a sentence
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
    """Pictures in rows of six, uint8 (H, W, 3); sentences that were not asked for are grey."""
    rows = []
    for first in range(0, len(references), COLUMNS):
        cells = [_cell(reference) for reference in references[first : first + COLUMNS]]
        height = max(len(cell) for cell in cells) + GAP
        rows.append(np.hstack([_pad(cell, height=height, width=SIDE + GAP) for cell in cells]))
    width = max(row.shape[1] for row in rows)
    rows = [_pad(row, height=len(row), width=width) for row in rows]
    return np.pad(np.concatenate(rows), ((GAP, 0), (GAP, 0), (0, 0)), constant_values=255)


def _cell(reference: Reference) -> np.ndarray:
    """Picture, title and sentences: (H, SIDE, 3)."""
    strips = [_picture(reference), _blank(6)]
    title = wrap(reference.title, SIDE, size=SMALL, most_rows=1)
    strips += [lettering(title, SIDE, size=SMALL, colour=GREY), _blank(4)]
    for text, is_asked in reference.sentences[:MOST_SENTENCES]:
        rows = wrap(text, SIDE - INDENT, most_rows=MOST_ROWS)
        colour = BLACK if is_asked else GREY
        bullet = lettering(["•", *[""] * (len(rows) - 1)], INDENT, colour=colour)
        strips.append(np.hstack([bullet, lettering(rows, SIDE - INDENT, colour=colour)]))
    if (more := len(reference.sentences) - MOST_SENTENCES) > 0:
        strips.append(lettering([f"and {more} more"], SIDE, size=SMALL, colour=GREY))
    return np.concatenate(strips)


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


def _pad(picture: np.ndarray, *, height: int, width: int) -> np.ndarray:
    below, beside = height - picture.shape[0], width - picture.shape[1]
    return np.pad(picture, ((0, below), (0, beside), (0, 0)), constant_values=255)
