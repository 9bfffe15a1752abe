"""Draw pictures with their masks, as HTML for the browser and as files to download."""

import base64
import io
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import ImageColor

from .inputs import Example

# told apart by eyes that see red and green, and by those that do not
COLOURS = ("#e61978", "#00aaff", "#ffbe00", "#00be6e", "#9650ff", "#ff6e1e")
SIDE = 960  # longer side of a picture in the browser, in pixels
THUMBNAIL = 160  # longer side of an example's button, in pixels
RIM = 4  # thickness of outlines at SIDE, in pixels
TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
)


@dataclass(frozen=True, eq=False)
class Panel:
    """The answer of one adapter: probabilities (N, H, W), float32, and its time in seconds."""

    name: str
    probabilities: np.ndarray
    seconds: float


@dataclass(frozen=True, eq=False)
class Shown:
    """What a visitor sees: a picture (H, W, 3), its data URI, N sentences and their panels."""

    image: np.ndarray
    uri: str
    texts: Sequence[str] = ()
    panels: Sequence[Panel] = ()


def render_stage(shown: Shown | None, threshold: float) -> str:
    """Render the picture with the masks of every panel, or an empty place for it."""
    template = TEMPLATES.get_template("stage.html")
    if shown is None:
        return template.render(panels=[])
    panels: list[dict[str, Any]] = [] if shown.panels else [{"name": "", "rows": []}]
    for panel in shown.panels:
        rows = []
        masks = panel.probabilities > threshold
        for text, mask, colour in zip(shown.texts, masks, COLOURS, strict=False):
            area = mask.astype(np.uint8)
            area = cv2.resize(area, shown_size(mask), interpolation=cv2.INTER_NEAREST)
            share = f"{100 * mask.mean():.1f} % of the picture" if mask.any() else "nothing found"
            layers = {"fill": _tint(area, colour), "edge": _tint(_outline(area, RIM), colour)}
            rows.append({"text": text, "share": share, "colour": colour, **layers})
        panels.append({"name": panel.name, "time": f"{panel.seconds:.2f} s", "rows": rows})
    width, height = shown_size(shown.image)
    return template.render(panels=panels, picture=shown.uri, ratio=width / height)


def render_examples(examples: Sequence[Example]) -> str:
    """Render a button with a small picture for each example."""
    buttons = [
        (jpeg_uri(image, THUMBNAIL, quality=95), "; ".join(texts)) for image, texts in examples
    ]
    return TEMPLATES.get_template("examples.html").render(buttons=buttons)


def make_download(shown: Shown, threshold: float, opacity: float | None) -> dict[str, str]:
    """Make a file of the masks, or with ``opacity`` of the overlays; return its name and data URI.

    Masks are PNG, 0 or 255, called ``1-the-red-star-mask.png``; an overlay is the picture as it is
    shown, at its own size. Several files become a ZIP.
    """
    files = {}
    for panel in shown.panels:
        prefix = f"{_plain(panel.name)}-" if len(shown.panels) > 1 else ""
        masks = panel.probabilities > threshold
        if opacity is not None:
            drawn = cv2.cvtColor(lay_over(shown.image, masks, opacity), cv2.COLOR_RGB2BGR)
            files[f"{prefix}overlay.png"] = _png(drawn)
            continue
        for number, (text, mask) in enumerate(zip(shown.texts, masks, strict=True), 1):
            files[f"{prefix}{number}-{_plain(text)}-mask.png"] = _png(mask.astype(np.uint8) * 255)
    if len(files) == 1:
        [(name, content)] = files.items()
        return {"name": name, "uri": data_uri(content, "image/png")}
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as stream:  # PNGs are compressed already
        for name, content in files.items():
            stream.writestr(name, content)
    name = "masks.zip" if opacity is None else "overlays.zip"
    return {"name": name, "uri": data_uri(archive.getvalue(), "application/zip")}


def lay_over(image: np.ndarray, masks: np.ndarray, opacity: float) -> np.ndarray:
    """Mix ``opacity * colour + (1 - opacity) * image`` in each mask, and outline it: uint8 RGB."""
    drawn = image
    thickness = max(1, round(RIM * max(image.shape[:2]) / SIDE))
    tints = [np.full_like(image, ImageColor.getrgb(colour)) for colour in COLOURS[: len(masks)]]
    for mask, tint in zip(masks, tints, strict=True):
        mixed = cv2.addWeighted(drawn, 1 - opacity, tint, opacity, 0)
        drawn = np.where(mask[:, :, None], mixed, drawn)
    for mask, tint in zip(masks, tints, strict=True):
        rim = _outline(mask.astype(np.uint8), thickness)
        drawn = np.where(rim[:, :, None] > 0, tint, drawn)
    return drawn


def shown_size(image: np.ndarray, side: int = SIDE) -> tuple[int, int]:
    """Return width and height of ``image`` with its longer side at ``side``."""
    height, width = image.shape[:2]
    scale = side / max(height, width)
    return max(1, round(width * scale)), max(1, round(height * scale))


def jpeg_uri(image: np.ndarray, side: int = SIDE, *, quality: int = 90) -> str:
    """Encode an RGB picture, its longer side at ``side``, as a data URI."""
    size = shown_size(image, side)
    shrinks = size[0] < image.shape[1]
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
    stored = cv2.cvtColor(small, cv2.COLOR_RGB2BGR)
    content = cv2.imencode(".jpg", stored, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
    return data_uri(content, "image/jpeg")


def data_uri(content: bytes, kind: str) -> str:
    """Encode ``content`` as an address that needs no request."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _outline(area: np.ndarray, thickness: int) -> np.ndarray:
    """Find the rim of ``area`` (0 or 1), inside it: uint8 of 0 and 1."""
    # outside the picture there is nothing: the rim closes at its edge
    padded = cv2.copyMakeBorder(area, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=(0,))
    depth = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_3)[1:-1, 1:-1]
    return ((depth > 0) & (depth <= thickness)).astype(np.uint8)


def _tint(area: np.ndarray, colour: str) -> str:
    """Encode ``area`` in a colour, transparent elsewhere, as a data URI."""
    pixels = np.zeros((*area.shape, 4), np.uint8)
    pixels[area > 0] = (*ImageColor.getrgb(colour)[::-1], 255)  # BGRA
    return data_uri(_png(pixels), "image/png")


def _png(pixels: np.ndarray) -> bytes:
    return cv2.imencode(".png", pixels)[1].tobytes()


def _plain(text: str) -> str:
    return re.sub(r"[^\w]+", "-", text).strip("-")[:40].strip("-") or "sentence"
