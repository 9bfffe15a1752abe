"""The letterbox: an image of any shape in the middle of a square, and the way back."""

from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# CLIP's mean colour: it is normalised to about 0, so the padding brings no signal of its own.
PADDING = (122, 117, 104)


class Letterbox(NamedTuple):
    """Where an image of height x width lies in a square of ``size`` pixels a side.

    Attributes:
        scale: ``size / max(height, width)``; the resized sides are rounded to whole pixels.
        top, left: padding before the image, in pixels of the square.
    """

    height: int
    width: int
    size: int
    scale: float
    top: int
    left: int

    @classmethod
    def fit(cls, height: int, width: int, size: int) -> "Letterbox":
        """The largest centred copy of the image that fits into the square."""
        scale = size / max(height, width)
        box = cls(height, width, size, scale, 0, 0)
        inner_height, inner_width = box.inner
        return box._replace(top=(size - inner_height) // 2, left=(size - inner_width) // 2)

    @property
    def inner(self) -> tuple[int, int]:
        """Height and width of the resized image, without padding."""
        return max(1, round(self.height * self.scale)), max(1, round(self.width * self.scale))


def _place(image: np.ndarray, box: Letterbox, interpolation: int, colour: tuple) -> np.ndarray:
    inner_height, inner_width = box.inner
    image = cv2.resize(image, (inner_width, inner_height), interpolation=interpolation)
    bottom = box.size - inner_height - box.top
    right = box.size - inner_width - box.left
    return cv2.copyMakeBorder(
        image, box.top, bottom, box.left, right, cv2.BORDER_CONSTANT, value=colour
    )


def letterbox_image(image: np.ndarray, size: int) -> tuple[np.ndarray, Letterbox]:
    """Resize (bicubic) and pad: uint8 (H, W, 3) -> uint8 (size, size, 3) and its geometry."""
    box = Letterbox.fit(image.shape[0], image.shape[1], size)
    return _place(image, box, cv2.INTER_CUBIC, PADDING), box


def letterbox_mask(mask: np.ndarray, box: Letterbox) -> np.ndarray:
    """The mask where the image went: bool (H, W) -> uint8 (size, size) of 0 and 1.

    A pixel is set where the bilinearly resized mask reaches one half.
    """
    return (_place(mask.astype(np.uint8) * 255, box, cv2.INTER_LINEAR, (0,)) > 127).astype(np.uint8)


def restore_logits(logits: Tensor, box: Letterbox) -> Tensor:
    """Sample logits of the square at every pixel of the original image, bilinearly, once.

    Pixel ``i`` of the image has its centre at ``(i + 0.5) * inner / height + top`` in the square;
    the logits, (1, h, w) or (h, w), cover the whole square whatever their resolution. Beyond the
    outermost logits the nearest one holds.

    Returns:
        float32 (H, W) at the size of the original image.
    """
    inner_height, inner_width = box.inner
    rows = torch.arange(box.height, dtype=torch.float64, device=logits.device) + 0.5
    columns = torch.arange(box.width, dtype=torch.float64, device=logits.device) + 0.5
    y = 2 * (rows * (inner_height / box.height) + box.top) / box.size - 1
    x = 2 * (columns * (inner_width / box.width) + box.left) / box.size - 1
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).float()  # (H, W, 2)
    source = logits.reshape(1, 1, *logits.shape[-2:]).float()
    restored = F.grid_sample(
        source, grid[None], mode="bilinear", padding_mode="border", align_corners=False
    )
    return restored[0, 0]
