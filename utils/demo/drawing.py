"""Draw images and masks of demo scenes."""

import cv2
import numpy as np

from utils.demo.scenes import Object, Scene

SHIFT = 4  # polygons are drawn with 1/16 pixel
# OpenCV paints every pixel that an edge touches, antialiased edges a little beyond; drawn that
# much inside the outline, a shape covers its true area (measured to 2 %).
INSET = 0.5
SMOOTH_INSET = 0.55


def render(scene: Scene) -> np.ndarray:
    """Paint the scene with antialiased edges: uint8 (H, W, 3), RGB."""
    size = (scene.width, scene.height)
    image = cv2.resize(scene.background, size, interpolation=cv2.INTER_LINEAR)
    for shape in scene.objects:
        parts = [_fixed_point(part, SMOOTH_INSET) for part in shape.parts]
        cv2.fillPoly(image, parts, shape.rgb, lineType=cv2.LINE_AA, shift=SHIFT)
    strength, cell, seed = scene.noise
    if strength:
        rows, columns = -(-scene.height // cell), -(-scene.width // cell)
        grain = np.frombuffer(np.random.default_rng(seed).bytes(rows * columns), np.uint8)
        grain = grain.reshape(rows, columns) % np.uint8(2 * strength + 1)
        if cell > 1:
            grain = cv2.resize(grain, size, interpolation=cv2.INTER_LINEAR)
        image = cv2.add(image, cv2.merge([grain] * 3))
        image = cv2.subtract(image, (strength, strength, strength, 0))
    return image


def visible_masks(scene: Scene, *, scale: int = 1) -> list[np.ndarray]:
    """Draw the visible part of every object: bool (scale * H, scale * W) that share no pixel."""
    owner = np.zeros((scene.height * scale, scene.width * scale), np.uint8)
    for number, shape in enumerate(scene.objects, start=1):
        _fill(owner, shape, number, scale)
    return [owner == number for number in range(1, len(scene.objects) + 1)]


def full_mask(scene: Scene, index: int, *, scale: int = 1) -> np.ndarray:
    """Draw a whole object as if nothing covered it: bool (scale * H, scale * W)."""
    canvas = np.zeros((scene.height * scale, scene.width * scale), np.uint8)
    _fill(canvas, scene.objects[index], 1, scale)
    return canvas.astype(bool)


def _fill(canvas: np.ndarray, shape: Object, value: int, scale: int) -> None:
    parts = [_fixed_point(part * scale, INSET) for part in shape.parts]
    cv2.fillPoly(canvas, parts, value, shift=SHIFT)


def _fixed_point(part: np.ndarray, inset: float) -> np.ndarray:
    """Move a polygon inwards, and return fixed-point integers with pixel centres as wholes.

    A corner between edges of normals n and m moves by ``inset * (n + m) / (1 + n . m)``.
    """
    edges = np.concatenate([part[1:], part[:1]]) - part
    edges /= np.sqrt((edges * edges).sum(axis=1, keepdims=True))
    normals = edges[:, ::-1] * np.array([-1, 1], np.float32)  # inwards: outlines run clockwise
    before = np.concatenate([normals[-1:], normals[:-1]])
    corners = (normals + before) / (1 + (normals * before).sum(axis=1, keepdims=True))
    return np.rint((part + inset * corners - 0.5) * (1 << SHIFT)).astype(np.int32)
