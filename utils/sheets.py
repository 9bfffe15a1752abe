"""Draw text of any script, and sheets of pictures with captions."""

import textwrap
from collections.abc import KeysView, Sequence
from functools import cache
from itertools import zip_longest
from typing import NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, fontManager, get_font

from utils.data.transforms import letterbox_image
from utils.images import PREDICTION, TRUTH, overlay

PANEL = 208  # side of a picture on a contact sheet, in pixels
GAP = 8  # between the cells of a sheet, in pixels
SHEET_COLUMN = 3 * (PANEL + GAP)  # three pictures, each with a gap
SIZE = 14  # height of a line's letters, in pixels
LINE_HEIGHT = 1.35  # over the height of the letters
FONT = "DejaVu Sans"  # comes with matplotlib
BLACK, GREY = "black", "dimgrey"


class Case(NamedTuple):
    """One sentence on a sheet: image (H, W, 3) uint8 RGB, truth and prediction (H, W) bool."""

    image: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray
    sentence: str
    iou: float


def draw_text(
    text: str, width: int, *, size: int = SIZE, colour: str = BLACK, max_lines: int | None = None
) -> np.ndarray:
    """Draw ``text`` on white in lines of at most ``width`` pixels: uint8 (H, ``width``, 3).

    After ``max_lines`` it ends in an ellipsis. A character is drawn if any installed font has it.
    """
    others = {_find_family(character) for character in "".join(text.split())} - {FONT}
    font = FontProperties(family=[FONT, *sorted(others)], size=size)
    lines = [
        line
        for paragraph in text.splitlines() or [""]
        for line in _wrap(" ".join(paragraph.split()), width, font, max_lines)
    ]
    step = round(size * LINE_HEIGHT)
    height = step * len(lines)
    # at 72 dpi a point is a pixel; half a pixel more, since matplotlib rounds sizes down
    figure = Figure(((width + 0.5) / 72, (height + 0.5) / 72), dpi=72)
    for number, line in enumerate(lines):
        baseline = 1 - (step * number + size) / height
        figure.text(0, baseline, line, font=font, color=colour, parse_math=False)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[:, :, :3]


def stack(strips: Sequence[np.ndarray]) -> np.ndarray:
    """Lay pictures below each other, from the left edge, on white: (H, W, 3)."""
    width = max(strip.shape[1] for strip in strips)
    return np.concatenate([_pad(strip, len(strip), width) for strip in strips])


def grid(cells: Sequence[np.ndarray], columns: int, *, gap: int = GAP) -> np.ndarray:
    """Lay pictures in rows of ``columns`` on white, ``gap`` to the right of and below each."""
    rows = []
    for first in range(0, len(cells), columns):
        row = cells[first : first + columns]
        height = max(len(cell) for cell in row) + gap
        rows.append(np.hstack([_pad(cell, height, cell.shape[1] + gap) for cell in row]))
    return stack(rows)


def contact_sheet(groups: dict[str, list[Case]]) -> np.ndarray:
    """Draw a sheet (H, W, 3): a column for each group, in it the cases below each other.

    A case is its image, the truth (green) and the prediction (red) over its IoU and sentence.
    """
    blank = np.full((1, SHEET_COLUMN, 3), 255, np.uint8)
    title = "{}: image, truth (green), prediction (red)"
    cells = [draw_text(title.format(name), SHEET_COLUMN) for name in groups]
    for row in zip_longest(*groups.values()):
        cells += [blank if case is None else _draw_case(case) for case in row]
    return np.pad(grid(cells, len(groups)), ((GAP, 0), (GAP, 0), (0, 0)), constant_values=255)


def _draw_case(case: Case) -> np.ndarray:
    truth = overlay(case.image, case.truth, TRUTH)
    prediction = overlay(case.image, case.prediction, PREDICTION)
    squares = [letterbox_image(image, PANEL)[0] for image in (case.image, truth, prediction)]
    caption = f"IoU {100 * case.iou:.1f}  {case.sentence}"
    return stack([grid(squares, 3), draw_text(caption, SHEET_COLUMN, max_lines=2)])


def _pad(image: np.ndarray, height: int, width: int) -> np.ndarray:
    missing = ((0, height - image.shape[0]), (0, width - image.shape[1]), (0, 0))
    return np.pad(image, missing, constant_values=255)


def _wrap(text: str, width: int, font: FontProperties, max_lines: int | None) -> list[str]:
    """Break ``text`` into lines that ``font`` draws in ``width`` pixels."""
    measure = FigureCanvasAgg(Figure(dpi=72)).get_renderer().get_text_width_height_descent
    num_characters = max(1, len(text))
    while True:
        lines = textwrap.wrap(text, num_characters, max_lines=max_lines, placeholder="…") or [""]
        widest = max(measure(line, font, ismath=False)[0] for line in lines)
        if widest <= width or num_characters == 1:
            return lines
        num_characters = max(1, min(num_characters - 1, int(num_characters * width / widest)))


@cache
def _find_family(character: str) -> str:
    """Find an installed font that has ``character``, the default one first."""
    fonts = [font for font in fontManager.ttflist if not font.name.startswith("Last Resort")]
    fonts.sort(key=lambda font: font.name != FONT)
    return next((f.name for f in fonts if ord(character) in _characters(f.fname)), FONT)


@cache
def _characters(path: str) -> KeysView[int]:
    return get_font(path).get_charmap().keys()
