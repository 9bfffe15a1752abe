"""Draw masks over pictures, and write pictures."""

from pathlib import Path

import cv2
import numpy as np

from utils.files import write_bytes

TRUTH, PREDICTION = (60, 200, 80), (235, 60, 60)  # green, red
Colour = tuple[int, int, int]


def overlay(
    image: np.ndarray, mask: np.ndarray, colour: Colour = PREDICTION, *, brightness: float = 1 / 3
) -> np.ndarray:
    """Outline ``mask`` (H, W) in ``image`` (H, W, 3) and darken all else to ``brightness``.

    The object keeps its own colours, so that a red outline is visible on a red object.
    """
    drawn = np.where(mask[:, :, None], image, (image * brightness).astype(np.uint8))
    outline, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(drawn, outline, -1, colour, thickness=max(1, max(mask.shape) // 150))


def write_image(path: Path, image: np.ndarray) -> None:
    """Write ``image``, (H, W, 3) RGB or (H, W), as PNG, whole or not at all."""
    stored = cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.ndim == 3 else image
    write_bytes(path, cv2.imencode(".png", stored)[1].tobytes())
