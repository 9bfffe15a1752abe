"""What is written for a sentence about a picture: names that never collide, and the files."""

import re
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from utils.files import write_bytes
from utils.pictures import overlay

INDEX = "predictions.json"
LONGEST = 120  # bytes of a folder's name; file systems take 255


def draw_mask(_: np.ndarray, mask: np.ndarray, __: np.ndarray) -> np.ndarray:
    """0 and 255, at the size of the picture."""
    return mask.astype(np.uint8) * 255


def draw_overlay(image: np.ndarray, mask: np.ndarray, _: np.ndarray) -> np.ndarray:
    """The picture with what is found outlined and all else darkened."""
    return cv2.cvtColor(overlay(image, mask), cv2.COLOR_RGB2BGR)


def draw_cutout(image: np.ndarray, mask: np.ndarray, _: np.ndarray) -> np.ndarray:
    """The picture, transparent (and black) wherever nothing is found."""
    opaque = mask.astype(np.uint8)[:, :, None]
    return np.dstack([cv2.cvtColor(image, cv2.COLOR_RGB2BGR) * opaque, opaque * 255])


def draw_probability(_: np.ndarray, __: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """The probability in 16 bits: 65535 is 1."""
    return np.round(probability * 65535).astype(np.uint16)


# (image RGB, mask, probability) -> what OpenCV writes as PNG
KINDS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "mask": draw_mask,
    "overlay": draw_overlay,
    "cutout": draw_cutout,
    "probability": draw_probability,
}


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Write pixels as OpenCV has them: whole or not at all."""
    write_bytes(path, cv2.imencode(".png", pixels)[1].tobytes())


def folder_names(paths: Iterable[Path]) -> list[str]:
    """A folder's name for each picture: that of the file, made safe, and never the same twice.

    Letters, digits, ``.``, ``_`` and ``-`` stay; of names that differ only in case, which some file
    systems take for one, and of others that meet, the later ones get a number.
    """
    names, taken = [], {INDEX.casefold()}
    for path in paths:
        name = _safe(path.stem)
        number, unique = 1, name
        while unique.casefold() in taken:
            number += 1
            unique = f"{name}-{number}"
        taken.add(unique.casefold())
        names.append(unique)
    return names


def coco_rle(mask: np.ndarray) -> dict[str, Any]:
    """``mask`` (H, W) as compressed COCO RLE, with text for its counts."""
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": rle["counts"].decode("ascii")}


def box_of(mask: np.ndarray) -> list[int] | None:
    """The box around ``mask`` as COCO has it, ``[x, y, width, height]``; None around nothing."""
    if not mask.any():
        return None
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    left, top = int(columns[0]), int(rows[0])
    return [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1]


def describe(mask: np.ndarray) -> str:
    """The share of the picture that ``mask`` covers and the box around it, in pixels."""
    box = box_of(mask)
    if box is None:
        return "nothing found"
    left, top, width, height = box
    place = f"x {left} to {left + width - 1}, y {top} to {top + height - 1}"
    return f"{100 * mask.mean():.1f} % of the picture, {place}"


def _safe(stem: str) -> str:
    name = re.sub(r"[^\w.-]+", "_", unicodedata.normalize("NFC", stem)).strip(".")
    return name.encode()[:LONGEST].decode(errors="ignore") or "picture"
