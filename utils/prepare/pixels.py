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
from utils.prepare.workers import split_chunks, start_workers
from utils.prepare.writer import StoreWriter, lock_folder

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
    """Resize the images of a packed data set that are not resized yet; return the store's path.

    A command that was stopped goes on where it stopped.

    Raises:
        ValueError: the data set is not packed, images cannot be added to the store (``force``
            writes it again), or the disk is full.
    """
    store = ReferStore(root, dataset)
    path, header = pixels_path(root, store, size), pixels_header(size)
    names = {name for split in store.splits for name in store.file_names(split)}
    with lock_folder(path.parent):
        basis = None if force or find_pixels(root, store, size) is None else path
        if basis and not _find_missing(open_store(path), store.images_path, names):
            return path
        plan = {**header, "basis": basis and basis.stat().st_mtime_ns}
        with closing(StoreWriter(path, plan, basis=basis, fresh=force)) as writer:
            missing = _find_missing(writer.environment, store.images_path, names)
            with (
                start_workers(workers, len(missing)) as run,
                tqdm(total=len(missing), unit="images", disable=not shows_progress) as bar,
            ):
                resized = partial(resize_images, store.images_path, size)
                for items in run(resized, split_chunks(missing, CHUNK_IMAGES)):
                    writer.put(items)
                    bar.update(len(items))
            writer.put([(HEADER, json.dumps(header).encode())])
            writer.finish()
    return path


def resize_images(images: Path, size: int, names: list[str]) -> list[tuple[bytes, bytes]]:
    """Return key and value of images: the mark of the file, then the pixels of ``resize_image``."""
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


def _find_missing(environment: Any, images: Path, names: Collection[str]) -> list[str]:
    """List those of ``names`` that are not there or were made from other files, sorted."""
    with environment.begin(buffers=True) as pixels, open_store(images).begin() as transaction:
        marks = {name: transaction.get(f"{CHECKSUM}{name}".encode()) for name in sorted(names)}
        return [
            name
            for name, mark in marks.items()
            if bytes(pixels.get(name.encode(), b"")[: len(mark)]) != mark
        ]
