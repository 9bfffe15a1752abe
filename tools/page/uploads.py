"""A picture that somebody sends: held to a size before it is decoded, and never kept."""

import contextlib
from pathlib import Path

import numpy as np
from PIL import Image

from engine.prediction_io import read_image

MOST_BYTES = 20 * 2**20
MOST_PIXELS = 25_000_000
# no format that Pillow would hand to another program
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000")


def read_limited(path: Path) -> np.ndarray:
    """The picture in ``path`` as (H, W, 3) RGB uint8, the right way up.

    Its header says how large it is: one that would fill the memory is refused before it is decoded.

    Raises:
        ValueError: a file that is missing, too large, damaged or no picture.
    """
    _check_size(path)
    return read_image(path)


def take_upload(path: Path) -> np.ndarray:
    """The picture in ``path`` as ``read_limited`` has it; the file is gone then, whatever it is.

    Raises:
        ValueError: as ``read_limited``, but it names the file without its folder.
    """
    try:
        return read_limited(path)
    except ValueError as error:
        raise ValueError(str(error).replace(str(path), path.name)) from None
    finally:
        remove_upload(path)


def remove_upload(path: Path) -> None:
    """Delete the file, and its folder if nothing else is in it: the name is a hash of the file."""
    path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        path.parent.rmdir()


def _check_size(path: Path) -> None:
    if not path.is_file():
        raise ValueError(f"{path}: no such picture")
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(
            f"{path}: {path.stat().st_size / 2**20:.1f} MB are too much; a picture may have "
            f"{MOST_BYTES / 2**20:.0f} MB"
        )
    most = f"a picture may have {MOST_PIXELS / 1e6:.0f} million pixels"
    try:
        with Image.open(path, formats=FORMATS) as header:
            width, height = header.size
    except Image.DecompressionBombError:
        raise ValueError(f"{path}: far too many pixels; {most}") from None
    except (OSError, SyntaxError, ValueError):  # what Pillow's readers raise on damaged headers
        raise ValueError(
            f"{path}: no picture that can be read; give a JPEG, PNG, WebP, GIF, BMP or TIFF file"
        ) from None
    if width * height > MOST_PIXELS:
        raise ValueError(f"{path}: {width} x {height} pixels are too many; {most}")
