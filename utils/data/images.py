"""Decode packed images, and read the resized copies that may lie beside them.

``ROOT/pixels/IMAGES-SIZE.lmdb`` changes no pixel of a sample: an image that it lacks, or that was
resized from another file than the image store has now, is decoded from its file.
"""

from pathlib import Path
from typing import Any

import cv2
import numpy as np

from utils.data.store import CHECKSUM, ReferStore, open_store, packing_command, raw_header, readable
from utils.data.transforms import Letterbox

FORMAT = 1
READ_FLAGS = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION


def decode_image(data: bytes) -> np.ndarray | None:
    """Decode an image file as its pixels are stored: uint8 (H, W, 3), RGB; None if damaged."""
    return cv2.imdecode(np.frombuffer(data, np.uint8), READ_FLAGS)


class PixelStore:
    """Read resized images; it holds no open file, so it can be sent to other processes.

    Raises:
        ValueError: the store is damaged, of another format, or made by another OpenCV, whose
            pixels may differ.
    """

    def __init__(self, root: str | Path, store: ReferStore, size: int) -> None:
        self.path = pixels_path(root, store, size)
        self._images = store.images_path
        self._command = f"{packing_command(root, store.dataset)} --pixels {size}"
        header = raw_header(self.path, self._command)
        if header != pixels_header(size):
            raise ValueError(
                f"{self.path} was made by format {header.get('format')} and OpenCV "
                f"{header.get('opencv')}, and these are {FORMAT} and {cv2.__version__}; "
                f"delete it, or make it again: {self._command} --force"
            )

    def get(self, name: str, box: Letterbox) -> np.ndarray | None:
        """Read what ``resize_image`` gives: uint8 (*box.inner, 3); None if it is not stored.

        An image counts only if it was made from the very file that the image store holds.
        """
        with readable(self._images, self._command), open_store(self._images).begin() as images:
            mark = images.get(f"{CHECKSUM}{name}".encode(), b"")
        with readable(self.path, self._command), open_store(self.path).begin() as pixels:
            value = pixels.get(name.encode(), b"")
        height, width = box.inner
        if not mark or not value.startswith(mark) or len(value) != len(mark) + height * width * 3:
            return None
        return np.frombuffer(value, np.uint8, offset=len(mark)).reshape(height, width, 3)


def pixels_path(root: str | Path, store: ReferStore, size: int) -> Path:
    """Return where the resized images of a data set lie, if there are any."""
    return Path(root) / "pixels" / f"{store.images_path.stem}-{size}.lmdb"


def pixels_header(size: int) -> dict[str, Any]:
    """Return the header of a store of images resized to ``size`` by this code."""
    return {"format": FORMAT, "size": size, "opencv": cv2.__version__}


def find_pixels(root: str | Path, store: ReferStore, size: int) -> PixelStore | None:
    """Open the resized images of a data set; None if there are none."""
    return PixelStore(root, store, size) if pixels_path(root, store, size).exists() else None
