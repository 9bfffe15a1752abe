"""Pack images as training reads them: decoded and resized once, not in every epoch."""

import json
from collections.abc import Collection
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from utils.data.images import decode_image, find_pixels, pixels_header, pixels_path
from utils.data.store import CHECKSUM, HEADER, ReferStore, open_store
from utils.data.transforms import Letterbox, resize_image
from utils.prepare.workers import Workers, in_chunks
from utils.prepare.writer import begin_part, lock_folder

CHUNK_IMAGES = 32  # 12 MB at 416 x 416


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
    with lock_folder(path.parent):
        basis = None if force or find_pixels(root, store, size) is None else path
        if basis and not _lacking(open_store(path), store.images_path, names):
            return path
        plan = {**pixels_header(size), "basis": basis and basis.stat().st_mtime_ns}
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
            part.put([(HEADER, json.dumps(pixels_header(size)).encode())])
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
