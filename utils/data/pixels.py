"""Images as training reads them: decoded and resized once, not for every sentence of every epoch.

``ROOT/pixels/IMAGES-SIZE.lmdb`` may stand beside an image store and changes no pixel: what it
lacks, or made from another file than the image store holds now, is made from the file.
"""

import json
from collections.abc import Collection
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from utils.data.absent import packing_command
from utils.data.images import CHECKSUM
from utils.data.store import HEADER, ReferStore, open_store, raw_header, readable
from utils.data.transforms import Letterbox, resize_image
from utils.data.workers import Workers, in_chunks
from utils.prepare.aside import alone_in, begin_part

FORMAT = 1
CHUNK_IMAGES = 32  # 12 MB at 416 x 416
READ_FLAGS = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION


def decode_image(data: bytes) -> np.ndarray | None:
    """An image file's pixels as they are stored: uint8 (H, W, 3), RGB; None for a damaged one."""
    return cv2.imdecode(np.frombuffer(data, np.uint8), READ_FLAGS)


class PixelStore:
    """Reads resized images; holds no open file, so it can be sent to other processes.

    Raises:
        ValueError: it is damaged, of another format, or made by another OpenCV, whose pixels may
            differ.
    """

    def __init__(self, root: str | Path, store: ReferStore, size: int) -> None:
        self.path = pixels_path(root, store, size)
        self._images = store.images_path
        self._command = f"{packing_command(root, store.dataset)} --pixels {size}"
        header = raw_header(self.path, self._command)
        if header != _header(size):
            raise ValueError(
                f"{self.path} was made by format {header.get('format')} and OpenCV "
                f"{header.get('opencv')}, and these are {FORMAT} and {cv2.__version__}; "
                f"make it anew, or delete it: {self._command} --force"
            )

    def get(self, name: str, box: Letterbox) -> np.ndarray | None:
        """What ``resize_image`` gives for an image: uint8 (*box.inner, 3); None if it is not here.

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
    """Where the resized images of a data set lie, if there are any."""
    return Path(root) / "pixels" / f"{store.images_path.stem}-{size}.lmdb"


def find_pixels(root: str | Path, store: ReferStore, size: int) -> PixelStore | None:
    """The resized images of a data set, None without any; ``ValueError`` like ``PixelStore``."""
    return PixelStore(root, store, size) if pixels_path(root, store, size).exists() else None


def pack_pixels(
    root: str | Path,
    dataset: str,
    size: int,
    *,
    force: bool = False,
    workers: int | None = None,
    shows_progress: bool = False,
) -> Path:
    """Resize the images of a packed data set that are not there yet, and return the store's path.

    A command that was ended goes on where it stopped.

    Raises:
        ValueError: the data set is not packed, the store that is there cannot be built upon
            (``force`` makes it anew), or the disk is full.
    """
    store = ReferStore(root, dataset)
    path = pixels_path(root, store, size)
    names = {name for split in store.splits for name in store.file_names(split)}
    with alone_in(path.parent):
        basis = None if force or find_pixels(root, store, size) is None else path
        if basis and not _lacking(open_store(path), store.images_path, names):
            return path
        plan = {**_header(size), "basis": basis and basis.stat().st_mtime_ns}
        with closing(begin_part(path, plan, basis=basis, fresh=force)) as part:
            lacking = _lacking(part.environment, store.images_path, names)
            part.expected = len(lacking) * 3 * size * size
            resized = partial(resize_images, store.images_path, size)
            with (
                Workers(workers, len(lacking)) as processes,
                tqdm(total=len(lacking), unit="images", disable=not shows_progress) as bar,
            ):
                for items in processes.map(resized, in_chunks(lacking, CHUNK_IMAGES)):
                    part.put(items)
                    bar.update(len(items))
            part.put([(HEADER, json.dumps(_header(size)).encode())])
            part.finish()
    return path


def resize_images(images: Path, size: int, names: list[str]) -> list[tuple[bytes, bytes]]:
    """Key and value of images: the mark of the file, then the pixels of ``resize_image``."""
    items = []
    with open_store(images).begin() as transaction:
        for name in names:
            image = decode_image(transaction.get(name.encode()))
            if image is None:
                raise ValueError(f"{images}: {name} cannot be decoded; pack it again")
            box = Letterbox.fit(image.shape[0], image.shape[1], size)
            mark = transaction.get(f"{CHECKSUM}{name}".encode())
            items.append((name.encode(), mark + resize_image(image, box).tobytes()))
    return items


def _lacking(environment: Any, images: Path, names: Collection[str]) -> list[str]:
    """Those of ``names`` that are not there, or were made from other files, sorted."""
    with environment.begin(buffers=True) as pixels, open_store(images).begin() as transaction:
        marks = {name: transaction.get(f"{CHECKSUM}{name}".encode()) for name in sorted(names)}
        return [
            name
            for name, mark in marks.items()
            if bytes(pixels.get(name.encode(), b"")[: len(mark)]) != mark
        ]


def _header(size: int) -> dict[str, Any]:
    return {"format": FORMAT, "size": size, "opencv": cv2.__version__}
