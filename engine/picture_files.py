"""Pictures of any kind as one: RGB, 8 bits, the right way up."""

import io
import warnings
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

Picture = str | Path | np.ndarray | Image.Image
# Of files that stand in a folder; whatever is named itself is tried.
SUFFIXES = {".avif", ".bmp", ".dib", ".gif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm"}
SUFFIXES |= {".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}


def as_rgb(picture: Picture) -> np.ndarray:
    """A path, an array or a PIL image as uint8 (H, W, 3), RGB.

    Files and PIL images are turned as their EXIF orientation says. Arrays are grey (H, W), RGB or
    RGBA, uint8, uint16 or bool. Of 16 bits the upper 8 are kept; transparency is left out.

    Raises:
        ValueError: a file that is missing or cannot be decoded, or an array of another kind.
    """
    if isinstance(picture, str | Path):
        return read_image(Path(picture))
    if isinstance(picture, np.ndarray):
        return _array_as_rgb(picture)
    if not isinstance(picture, Image.Image):
        raise ValueError(
            f"no picture: {type(picture).__name__}; give a path, a NumPy array or a PIL image"
        )
    upright = ImageOps.exif_transpose(picture)
    # Pillow would cut 16 bits off at 255
    deep = upright.mode.startswith("I;16")
    return _array_as_rgb(np.asarray(upright if deep else upright.convert("RGB")))


def read_image(path: Path) -> np.ndarray:
    """A picture as (H, W, 3) RGB uint8; ``ValueError`` if it is missing, damaged or no picture."""
    if path.is_dir():
        raise ValueError(f"{path}: no picture, but a folder; name one in it")
    if not path.is_file():
        raise ValueError(f"{path}: no such picture")
    try:
        data = path.read_bytes()
        pixels = np.frombuffer(data, np.uint8)
        image = cv2.imdecode(pixels, cv2.IMREAD_COLOR_RGB) if data else None
    except (OSError, cv2.error) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: cannot be read: {reason}") from None
    if image is None:
        raise ValueError(f"{path}: no picture that can be decoded; give a JPEG or PNG file")
    if _is_cut_short(data):
        raise ValueError(f"{path}: the file is cut short; copy it again")
    return image


def _array_as_rgb(array: np.ndarray) -> np.ndarray:
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.ndim not in (2, 3) or channels not in (1, 3, 4) or 0 in array.shape:
        raise ValueError(
            f"no picture: an array of shape {array.shape}; should be (H, W), (H, W, 3) or (H, W, 4)"
        )
    if array.dtype == np.uint16:
        array = (array >> 8).astype(np.uint8)
    elif array.dtype == bool:
        array = array.astype(np.uint8) * 255
    elif array.dtype != np.uint8:
        raise ValueError(
            f"no picture: an array of {array.dtype}; should be uint8 from 0 to 255 or uint16"
        )
    if channels == 1:
        array = np.repeat(array.reshape(*array.shape[:2], 1), 3, axis=2)
    return np.ascontiguousarray(array[:, :, :3])


def _is_cut_short(data: bytes) -> bool:
    """Whether the end is missing: OpenCV fills it with grey, Pillow says so."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data)) as image:
                image.draft("L", (1, 1))  # a JPEG's pixels at an eighth: all its bytes are read
                image.load()
    except Exception as error:  # on formats that Pillow lacks too, and OpenCV has read those
        return "truncated" in str(error)
    return False
