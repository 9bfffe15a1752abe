"""Image files: read whole and decoded whole, so that what is damaged is found before training."""

import hashlib
import io
from pathlib import Path

from utils.data.store import Mark

Size = tuple[int, int]  # height and width in pixels


def read_images(folder: Path, names: list[str]) -> list[tuple[str, bytes, Mark | str]]:
    """Read image files: name, bytes and mark, or in its place why they cannot be packed."""
    return [(name, *_read_image(folder / name)) for name in names]


def _read_image(path: Path) -> tuple[bytes, Mark | str]:
    try:
        data = path.read_bytes()
        height, width = image_size(data)
    except FileNotFoundError:
        return b"", "missing"
    except OSError as error:
        return b"", error.strerror or str(error)
    except ValueError as error:
        return b"", str(error)
    return data, Mark(hashlib.sha256(data).hexdigest(), len(data), height, width)


def image_size(data: bytes) -> Size:
    """Height and width of an image, after decoding all of it.

    Raises:
        ValueError: the reason why it cannot be decoded whole, without its name.
    """
    # here, as scripts that only show their help must not wait for them
    import cv2
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            factor = 8 if image.format in ("JPEG", "MPO") else 1
            image.draft("L", (1, 1))  # a JPEG's pixels at an eighth: all its bytes are read
            image.load()
    except UnidentifiedImageError as error:
        raise ValueError("no image file") from error
    except Exception as error:  # decoders raise anything on damaged bytes
        raise ValueError(f"damaged: {error}") from error
    # Pillow sees where a file is cut short, OpenCV is what reads it in training
    flags = cv2.IMREAD_REDUCED_GRAYSCALE_8 if factor == 8 else cv2.IMREAD_COLOR
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        pixels = None
    if pixels is None or pixels.shape[:2] != (-(-height // factor), -(-width // factor)):
        raise ValueError("OpenCV, which reads it in training, cannot decode it")
    return height, width
