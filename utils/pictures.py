"""Pictures of what the model finds: overlays, and contact sheets of the best and worst cases."""

from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from utils.data.transforms import letterbox_image
from utils.files import write_bytes
from utils.lettering import lettering, wrap

PANEL = 208  # side of a picture on a sheet, in pixels
GAP = 8
ROWS = 2  # of text above a case
TRUTH, PREDICTION = (60, 200, 80), (235, 60, 60)  # green, red


class Case(NamedTuple):
    """One sentence on a sheet: image (H, W, 3) uint8 RGB, truth and prediction (H, W) bool."""

    image: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray
    sentence: str
    iou: float


def overlay(
    image: np.ndarray,
    mask: np.ndarray,
    colour: tuple[int, int, int] = PREDICTION,
    *,
    brightness: float = 1 / 3,
) -> np.ndarray:
    """``image`` (H, W, 3) with ``mask`` (H, W) outlined and all else darkened to ``brightness``.

    What is found keeps its colours, so that red on red can be seen too.
    """
    drawn = np.where(mask[:, :, None], image, (image * brightness).astype(np.uint8))
    outline, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(drawn, outline, -1, colour, thickness=max(1, max(mask.shape) // 150))


def contact_sheet(groups: dict[str, list[Case]]) -> np.ndarray:
    """A sheet (H, W, 3): a column for each group, in it a row for each case.

    A row shows the image, the truth (green) and the prediction (red), below its IoU and sentence.
    """
    columns = []
    for name, cases in groups.items():
        title = _text(f"{name}: image, truth (green), prediction (red)", 3 * PANEL + 2 * GAP, 1)
        columns.append(np.concatenate([title, *(_row(case) for case in cases)]))
    height = max(len(column) for column in columns)
    padded = [
        np.pad(c, ((0, height - len(c)), (GAP, GAP), (0, 0)), constant_values=255) for c in columns
    ]
    return np.concatenate(padded, axis=1)


def write_image(path: Path, image: np.ndarray) -> None:
    """Write ``image``, (H, W, 3) RGB or (H, W), as PNG: whole or not at all."""
    stored = cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.ndim == 3 else image
    write_bytes(path, cv2.imencode(".png", stored)[1].tobytes())


def _row(case: Case) -> np.ndarray:
    panels = (
        case.image,
        overlay(case.image, case.truth, TRUTH),
        overlay(case.image, case.prediction, PREDICTION),
    )
    gap = np.full((PANEL, GAP, 3), 255, np.uint8)
    squares = [letterbox_image(panel, PANEL)[0] for panel in panels]
    pictures = np.hstack([squares[0], gap, squares[1], gap, squares[2]])
    text = _text(f"IoU {100 * case.iou:.1f}  {case.sentence}", pictures.shape[1], ROWS)
    return np.concatenate([pictures, text])


def _text(text: str, width: int, num_rows: int) -> np.ndarray:
    """Text in exactly ``num_rows`` rows, and a gap: (H, ``width``, 3)."""
    rows = wrap(text, width, most_rows=num_rows)
    strip = lettering([*rows, *[""] * (num_rows - len(rows))], width)
    return np.pad(strip, ((0, GAP), (0, 0), (0, 0)), constant_values=255)
