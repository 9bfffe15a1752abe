"""Masks as pictures: layers that a browser lays over each other, and the files to download."""

import base64
import io
import re
import zipfile
from collections.abc import Sequence

import cv2
import numpy as np

from .answers import Answer

# as far apart as colours can be, for eyes that tell red from green and those that do not
COLOURS = (
    (230, 25, 120),
    (0, 170, 255),
    (255, 190, 0),
    (0, 190, 110),
    (150, 80, 255),
    (255, 110, 30),
)
SIDE = 960  # longer side of what a browser shows, in pixels
RIM = 4  # thickness of outlines at that size
QUALITY = 90


def shown_size(image: np.ndarray) -> tuple[int, int]:
    """Width and height of ``image`` with its longer side at ``SIDE``."""
    height, width = image.shape[:2]
    scale = SIDE / max(height, width)
    return max(1, round(width * scale)), max(1, round(height * scale))


def picture_uri(image: np.ndarray) -> str:
    """``image`` (H, W, 3) at the size it is shown, as a data URI."""
    size = shown_size(image)
    shrinks = size[0] < image.shape[1]
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
    stored = cv2.cvtColor(small, cv2.COLOR_RGB2BGR)
    content = cv2.imencode(".jpg", stored, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes()
    return data_uri(content, "image/jpeg")


def layer_uris(mask: np.ndarray, number: int) -> tuple[str, str]:
    """The filled mask and its outline in colour ``number``, transparent elsewhere."""
    size = shown_size(mask)
    area = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    edge = _outline(area, thickness=RIM)
    return _tinted(area, COLOURS[number]), _tinted(edge, COLOURS[number])


def lay_over(image: np.ndarray, masks: Sequence[np.ndarray], opacity: float) -> np.ndarray:
    """``opacity * colour + (1 - opacity) * image`` in each mask, with outlines: uint8 (H, W, 3)."""
    drawn = image
    thickness = max(1, round(RIM * max(image.shape[:2]) / SIDE))
    for mask, colour in zip(masks, COLOURS, strict=False):
        tint = np.full_like(image, colour)
        mixed = cv2.addWeighted(drawn, 1 - opacity, tint, opacity, 0)
        drawn = np.where(mask[:, :, None], mixed, drawn)
    for mask, colour in zip(masks, COLOURS, strict=False):
        rim = _outline(mask.astype(np.uint8), thickness=thickness)
        drawn = np.where(rim[:, :, None] > 0, np.array(colour, np.uint8), drawn)
    return drawn


def mask_files(answer: Answer, threshold: float) -> tuple[str, bytes]:
    """A name and its content: ``1-the-red-star-mask.png`` (0 or 255), or all of them as ZIP."""
    files = {}
    for panel in answer.panels:
        for number, (text, mask) in enumerate(
            zip(answer.texts, panel.masks(threshold), strict=True), 1
        ):
            name = f"{_prefix(answer, panel.name)}{number}-{_plain(text)}-mask.png"
            files[name] = _png(mask.astype(np.uint8) * 255)
    return _one_file(files, "masks.zip")


def overlay_files(answer: Answer, threshold: float, opacity: float) -> tuple[str, bytes]:
    """A name and its content: ``overlay.png``, or one for each adapter as ZIP."""
    files = {}
    for panel in answer.panels:
        drawn = lay_over(answer.image, list(panel.masks(threshold)), opacity)
        name = f"{_prefix(answer, panel.name)}overlay.png"
        files[name] = _png(cv2.cvtColor(drawn, cv2.COLOR_RGB2BGR))
    return _one_file(files, "overlays.zip")


def data_uri(content: bytes, kind: str) -> str:
    """``content`` as an address that needs no request."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _outline(area: np.ndarray, *, thickness: int) -> np.ndarray:
    """The rim of ``area`` (0 or 1), inside it: uint8 of 0 and 1."""
    # beyond the edge of the picture there is nothing: the rim closes there
    padded = cv2.copyMakeBorder(area, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=(0,))
    depth = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_3)[1:-1, 1:-1]
    return ((depth > 0) & (depth <= thickness)).astype(np.uint8)


def _tinted(area: np.ndarray, colour: tuple[int, int, int]) -> str:
    red, green, blue = colour
    pixels = np.zeros((*area.shape, 4), np.uint8)
    pixels[area > 0] = (blue, green, red, 255)
    return data_uri(_png(pixels), "image/png")


def _png(pixels: np.ndarray) -> bytes:
    return cv2.imencode(".png", pixels)[1].tobytes()


def _one_file(files: dict[str, bytes], name: str) -> tuple[str, bytes]:
    if len(files) == 1:
        return next(iter(files.items()))
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:  # PNGs are compressed already
        for inner, one in files.items():
            archive.writestr(inner, one)
    return name, content.getvalue()


def _prefix(answer: Answer, name: str) -> str:
    return f"{_plain(name)}-" if len(answer.panels) > 1 else ""


def _plain(text: str) -> str:
    return re.sub(r"[^\w]+", "-", text).strip("-")[:40].strip("-") or "sentence"
