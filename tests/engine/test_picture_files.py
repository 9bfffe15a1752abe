"""Pictures of every kind become the same: RGB, 8 bits, the right way up."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from engine.picture_files import as_rgb, read_image

UPRIGHT = np.zeros((20, 12, 3), np.uint8)
UPRIGHT[:6, :5] = (250, 10, 130)
TURN_RIGHT = 6  # EXIF: the stored picture must be turned by 90 degrees clockwise


def turned(folder: Path, kind: str) -> Path:
    """A file whose pixels lie on their side, with an EXIF note that says so."""
    exif = Image.Exif()
    exif[274] = TURN_RIGHT
    path = folder / f"turned.{kind}"
    Image.fromarray(np.rot90(UPRIGHT).copy()).save(path, exif=exif)
    return path


@pytest.mark.parametrize("kind", ["png", "jpg", "webp", "tiff"])
def test_turned_files_come_the_right_way_up(tmp_path: Path, kind: str) -> None:
    image = read_image(turned(tmp_path, kind))
    assert image.shape == UPRIGHT.shape
    far = np.abs(image.astype(int) - UPRIGHT)[[2, 15], [2, 9]]
    assert far.max() < (40 if kind in ("jpg", "webp") else 1)


def test_pil_images_are_turned_too(tmp_path: Path) -> None:
    assert np.array_equal(as_rgb(Image.open(turned(tmp_path, "png"))), UPRIGHT)


DEEP = np.arange(240, dtype=np.uint16).reshape(20, 12) * 256 + 7
GREY = (DEEP >> 8).astype(np.uint8)


@pytest.mark.parametrize(
    ("stored", "wanted"),
    [
        (GREY, np.dstack([GREY] * 3)),
        (DEEP, np.dstack([GREY] * 3)),
        (np.dstack([DEEP] * 3), np.dstack([GREY] * 3)),
        (np.dstack([UPRIGHT, GREY]), UPRIGHT[:, :, ::-1]),  # OpenCV stores BGR
    ],
    ids=["grey", "grey of 16 bits", "colours of 16 bits", "transparent"],
)
def test_kinds_of_files_are_read(tmp_path: Path, stored: np.ndarray, wanted: np.ndarray) -> None:
    cv2.imwrite(str(tmp_path / "picture.png"), stored)
    assert np.array_equal(read_image(tmp_path / "picture.png"), wanted)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (GREY, np.dstack([GREY] * 3)),
        (GREY[:, :, None], np.dstack([GREY] * 3)),
        (DEEP, np.dstack([GREY] * 3)),
        (np.dstack([UPRIGHT, GREY]), UPRIGHT),
        (GREY > 9, np.dstack([(GREY > 9).astype(np.uint8) * 255] * 3)),
        (Image.fromarray(DEEP), np.dstack([GREY] * 3)),
        (Image.fromarray(UPRIGHT).convert("RGBA"), UPRIGHT),
        (Image.fromarray(GREY).convert("P"), np.dstack([GREY] * 3)),
    ],
    ids=["grey", "channel", "16 bits", "RGBA", "bool", "PIL 16 bits", "PIL RGBA", "PIL palette"],
)
def test_arrays_and_pil_images_are_read(given: Any, wanted: np.ndarray) -> None:
    image = as_rgb(given)
    assert image.dtype == np.uint8 and np.array_equal(image, wanted)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((4, 4, 3)), "an array of float64; should be uint8 from 0 to 255 or uint16"),
        (np.zeros((4, 4, 2), np.uint8), r"of shape \(4, 4, 2\)"),
        (np.zeros((0, 4), np.uint8), r"of shape \(0, 4\)"),
        (7, "no picture: int; give a path"),
        ("missing.png", "missing.png: no such picture"),
    ],
)
def test_what_is_no_picture_is_explained(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        as_rgb(given)


def shortened(kind: str) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, kind)
    return file.getvalue()[: len(file.getvalue()) // 2]


@pytest.mark.parametrize(
    "content",
    [lambda: shortened("JPEG"), lambda: shortened("PNG"), lambda: b"no picture", lambda: b""],
    ids=["half a JPEG", "half a PNG", "text", "empty"],
)
def test_damaged_files_are_refused(tmp_path: Path, content: Callable[[], bytes]) -> None:
    path = tmp_path / "damaged.jpg"
    path.write_bytes(content())
    with pytest.raises(ValueError, match=r"damaged.jpg: (no picture that can be|the file is cut)"):
        read_image(path)
