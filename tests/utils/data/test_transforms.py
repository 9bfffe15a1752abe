"""The letterbox and its inverse, at odd sizes and shapes."""

import cv2
import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.data.transforms import (
    PADDING,
    Letterbox,
    letterbox_image,
    letterbox_mask,
    letterbox_matrices,
    restore_logits,
    warp_mask,
)

SIDES = st.integers(41, 333)
SIZES = st.sampled_from([96, 128, 160, 224])


def ellipse(height: int, width: int, x: float, y: float) -> np.ndarray:
    mask = np.zeros((height, width), np.uint8)
    center = (round(width * x), round(height * y))
    cv2.ellipse(mask, center, (max(9, width // 4), max(9, height // 4)), 20, 0, 360, 1, -1)
    return mask.astype(bool)


@settings(max_examples=40)
@given(SIDES, SIDES, SIZES, st.floats(0, 1), st.floats(0, 1))
def test_a_mask_comes_back(height: int, width: int, size: int, x: float, y: float) -> None:
    mask = ellipse(height, width, x, y)
    box = Letterbox.fit(height, width, size)
    square = letterbox_mask(mask, box)
    assert square.dtype == np.uint8 and square.shape == (size, size)
    assert set(np.unique(square)) <= {0, 1}
    restored = restore_logits(torch.from_numpy(square).float() - 0.5, box).numpy() > 0
    # one pixel of the square may be lost around the edge
    rim = max(1.0, 1 / box.scale)
    perimeter = np.pi * (width / 4 + height / 4) + 40
    assert restored.shape == mask.shape
    assert (restored ^ mask).sum() <= 0.75 * rim * perimeter


def test_iou_of_restored_masks_is_near_one() -> None:
    for height, width in [(95, 131), (480, 640), (333, 200), (97, 97), (61, 300)]:
        mask = ellipse(height, width, 0.4, 0.6)
        box = Letterbox.fit(height, width, 320)
        restored = restore_logits(torch.from_numpy(letterbox_mask(mask, box)).float() - 0.5, box)
        found = restored.numpy() > 0
        assert (found & mask).sum() / (found | mask).sum() > 0.96


@settings(max_examples=40)
@given(SIDES, SIDES, SIZES, st.sampled_from([1, 4, 16]))
def test_restoring_samples_at_pixel_centres(h: int, w: int, size: int, stride: int) -> None:
    """Logits that hold their own position in the square say where each pixel was sampled."""
    box = Letterbox.fit(h, w, size)
    centres = (torch.arange(size // stride) + 0.5) * stride
    inner_height, inner_width = box.inner
    for axis, (inner, start, length) in enumerate(
        [(inner_height, box.top, h), (inner_width, box.left, w)]
    ):
        shape = (-1, 1) if axis == 0 else (1, -1)
        logits = centres.view(shape).expand(size // stride, size // stride)
        expected = (torch.arange(length) + 0.5) * inner / length + start
        # beyond the outermost logits the nearest one holds
        expected = expected.clamp(centres[0], centres[-1]).view(shape).expand(h, w)
        torch.testing.assert_close(restore_logits(logits, box), expected, atol=2e-3, rtol=0)


def test_restoring_inverts_the_resizing_of_images() -> None:
    columns, rows = np.meshgrid(np.arange(150), np.arange(101))
    image = np.stack([columns, rows + 60, (columns + rows) / 2], axis=-1).astype(np.uint8)
    square, box = letterbox_image(image, 224)
    for channel in range(3):
        restored = restore_logits(torch.from_numpy(square[..., channel].copy()), box).numpy()
        assert np.abs(restored - image[..., channel])[3:-3, 3:-3].max() < 1.1


@settings(max_examples=40)
@given(st.integers(1, 900), st.integers(1, 900), SIZES)
def test_the_image_fills_one_side_and_is_centred(height: int, width: int, size: int) -> None:
    image = np.zeros((height, width, 3), np.uint8)
    square, box = letterbox_image(image, size)
    assert square.shape == (size, size, 3) and square.dtype == np.uint8
    inner_height, inner_width = box.inner
    assert max(inner_height, inner_width) == size
    assert abs(2 * box.top + inner_height - size) <= 1
    assert abs(2 * box.left + inner_width - size) <= 1
    inside = np.zeros((size, size), bool)
    inside[box.top : box.top + inner_height, box.left : box.left + inner_width] = True
    assert (square[inside] == 0).all()
    assert (square[~inside] == PADDING).all()


def test_logits_restored_together_are_as_each_alone() -> None:
    logits = torch.randn(3, 24, 24)
    box = Letterbox.fit(50, 70, 96)
    restored = restore_logits(logits, box)
    assert restored.shape == (3, 50, 70) and restored.dtype == torch.float32
    assert all(map(torch.equal, restored, [restore_logits(one, box) for one in logits]))


@settings(max_examples=40)
@given(SIDES, SIDES, SIZES)
def test_the_released_letterbox_goes_there_and_back(height: int, width: int, size: int) -> None:
    """Its corners lie at most a pixel from those of the whole-pixel letterbox."""
    there, back = letterbox_matrices(height, width, size)
    whole = np.vstack([back, [0, 0, 1]]) @ np.vstack([there, [0, 0, 1]])
    np.testing.assert_allclose(whole, np.eye(3), atol=1e-4)
    box = Letterbox.fit(height, width, size)
    (left, top), (right, bottom) = (there @ [x, y, 1] for x, y in ((0, 0), (width, height)))
    inner_height, inner_width = box.inner
    assert abs(left - box.left) <= 1 and abs(top - box.top) <= 1
    assert abs(right - box.left - inner_width) <= 1 and abs(bottom - box.top - inner_height) <= 1


def test_the_released_mask_is_grey_on_its_border_alone() -> None:
    mask = ellipse(97, 140, 0.4, 0.5)
    square = warp_mask(mask, 96)
    assert square.shape == (96, 96) and {0, 255} < set(np.unique(square).tolist())
    grey = ((square > 0) & (square < 255)).sum()
    assert 0 < grey < (square == 255).sum()
