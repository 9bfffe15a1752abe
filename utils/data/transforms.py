"""Letterbox an image of any shape into the middle of a square, and sample the way back."""

from typing import NamedTuple

import cv2
import numpy as np
import torch
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
        """Fit the largest centred copy of the image into the square."""
        scale = size / max(height, width)
        box = cls(height, width, size, scale, 0, 0)
        inner_height, inner_width = box.inner
        return box._replace(top=(size - inner_height) // 2, left=(size - inner_width) // 2)

    @property
    def inner(self) -> tuple[int, int]:
        """Height and width of the resized image, without padding."""
        return max(1, round(self.height * self.scale)), max(1, round(self.width * self.scale))

    @property
    def window(self) -> tuple[slice, slice]:
        """Rows and columns of the square that the resized image takes."""
        height, width = self.inner
        return slice(self.top, self.top + height), slice(self.left, self.left + width)


def resize_image(image: np.ndarray, box: Letterbox) -> np.ndarray:
    """Resize (bicubic) without padding: uint8 (H, W, 3) -> uint8 (*box.inner, 3)."""
    return cv2.resize(image, box.inner[::-1], interpolation=cv2.INTER_CUBIC)


def letterbox_image(image: np.ndarray, size: int) -> tuple[np.ndarray, Letterbox]:
    """Resize (bicubic) and pad: uint8 (H, W, 3) -> uint8 (size, size, 3) and its geometry."""
    box = Letterbox.fit(image.shape[0], image.shape[1], size)
    square = np.full((size, size, 3), PADDING, np.uint8)
    square[box.window] = resize_image(image, box)
    return square, box


def pad_to_planes(resized: np.ndarray, box: Letterbox) -> np.ndarray:
    """Pad what ``resize_image`` returns, a plane for each colour: uint8 -> (3, size, size)."""
    planes = np.empty((3, box.size, box.size), np.uint8)
    planes[:] = np.array(PADDING, np.uint8)[:, None, None]
    cv2.split(resized, list(planes[:, *box.window]))  # a tenth of the time of a permuted copy
    return planes


def letterbox_mask(mask: np.ndarray, box: Letterbox) -> np.ndarray:
    """Letterbox a mask like its image: bool (H, W) -> uint8 (size, size) of 0 and 1.

    A pixel is set where the bilinearly resized mask reaches one half.
    """
    grey = cv2.resize(mask.view(np.uint8) * 255, box.inner[::-1], interpolation=cv2.INTER_LINEAR)
    square = np.zeros((box.size, box.size), np.uint8)
    cv2.threshold(grey, 127, 1, cv2.THRESH_BINARY, dst=square[box.window])
    return square


def letterbox_matrices(height: int, width: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Compute the released code's letterbox as matrices (2, 3): image -> square, and back.

    Sides and padding are not rounded to whole pixels there. Each matrix comes of three corners in
    float32; corners of pixels, not their centres, lie on each other.
    """
    scale = min(size / height, size / width)
    inner_height, inner_width = height * scale, width * scale
    top, left = (size - inner_height) / 2, (size - inner_width) / 2
    image = np.array([[0, 0], [width, 0], [0, height]], np.float32)
    square = np.array([[left, top], [left + inner_width, top], [left, top + inner_height]])
    square = square.astype(np.float32)
    return cv2.getAffineTransform(image, square), cv2.getAffineTransform(square, image)


def warp_mask(mask: np.ndarray, size: int) -> np.ndarray:
    """Warp a mask as the released code trains on it: bool (H, W) -> uint8 (size, size).

    255 in the target, 0 outside, grey on its border: bilinear, 0 beyond the image.
    """
    height, width = mask.shape
    matrix, _ = letterbox_matrices(height, width, size)
    grey = mask.view(np.uint8) * 255
    return cv2.warpAffine(grey, matrix, (size, size), flags=cv2.INTER_LINEAR, borderValue=0)


def warp_to_image(square: np.ndarray, box: Letterbox) -> np.ndarray:
    """Warp a map of the square to the image, as the released code scores it: float32 (H, W).

    Bicubic, 0 beyond the square; ``square`` is float32 (size, size).
    """
    _, back = letterbox_matrices(box.height, box.width, box.size)
    size = (box.width, box.height)
    return cv2.warpAffine(square, back, size, flags=cv2.INTER_CUBIC, borderValue=0)


def restore_logits(logits: Tensor, box: Letterbox) -> Tensor:
    """Sample logits of the square at every pixel of the original image, bilinearly, once.

    Pixel ``i`` of the image has its centre at ``(i + 0.5) * inner / height + top`` in the square;
    the logits ``(..., h, w)`` cover the whole square whatever their resolution. Beyond the
    outermost logits the nearest one holds. No map changes another one's numbers.

    Returns:
        float32 ``(..., H, W)`` at the size of the original image.
    """
    inner_height, inner_width = box.inner
    rows = (inner_height, box.height, box.top, box.size)
    columns = (inner_width, box.width, box.left, box.size)
    # Whole rows are copied, which is faster than single numbers: so columns become rows first.
    wide = _sample_rows(logits.float().mT.contiguous(), *columns).mT.contiguous()
    return _sample_rows(wide, *rows)


def _sample_rows(x: Tensor, inner: int, length: int, before: int, size: int) -> Tensor:
    """Sample ``x (..., h, w)`` at ``length`` places of its rows: ``(..., length, w)``."""
    num_rows, device = x.shape[-2], x.device
    centres = torch.arange(length, dtype=torch.float64, device=device) + 0.5
    place = (centres * (inner / length) + before) * (num_rows / size) - 0.5
    place = place.clamp(0, num_rows - 1)
    first = place.floor()
    share = (place - first).float()[:, None]  # (length, 1)
    index = first.long()
    second = x.index_select(-2, (index + 1).clamp(max=num_rows - 1))
    return x.index_select(-2, index).lerp_(second, share)
