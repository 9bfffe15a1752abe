"""Packing: from REFER and image files to the LMDB files that ``store.py`` reads.

Every store is written aside and renamed, so one that exists is complete, and a reader that still
holds its predecessor keeps reading that.
"""

import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import lmdb
from tqdm import tqdm

from utils.data.refer import dataset_facts, read_records, source_files
from utils.data.store import (
    FORMAT,
    HEADER,
    close_images,
    open_reader,
    read_header,
    store_path,
)

CHECKSUM = "sha256/"  # key of an image's checksum, before its name
ITEM_BYTES = 1 << 14  # room for an item besides its own bytes: pages are rounded up
SPARE_BYTES = 1 << 24
ITEMS_PER_COMMIT = 512
JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"


def pack_dataset(
    root: str | Path, dataset: str, *, force: bool = False, shows_progress: bool = False
) -> dict[str, Any]:
    """Read a data set's files, pack its images and its references, and return the header.

    Images that are packed already, for this or another data set, are read again with ``force``.

    Raises:
        ValueError: a file is missing, damaged, or does not belong to the others.
    """
    root = Path(root)
    facts = dataset_facts(dataset)
    checksums = source_checksums(root, dataset)
    records = read_records(root, dataset)
    names = sorted({record["file_name"] for record in records})
    images = pack_images(
        root / facts.images,
        names,
        store_path(root, facts.image_store),
        force=force,
        shows_progress=shows_progress,
    )
    lines = [json.dumps(record, sort_keys=True) for record in records]
    header = {
        "format": FORMAT,
        "dataset": dataset,
        "images": facts.image_store,
        "splits": {split: _count(records, split) for split in facts.splits},
        "sources": checksums,
        "fingerprint": _fingerprint(lines, images),
    }
    items = [(HEADER, json.dumps(header).encode())]
    for position, (record, line) in enumerate(zip(records, lines, strict=True)):
        items.append((f"{record['split']}/{position:08d}".encode(), line.encode()))
    size = sum(len(value) for _, value in items)
    _write_aside(store_path(root, dataset), items, size=size, count=len(items))
    return header


def packed_header(root: str | Path, dataset: str) -> dict[str, Any] | None:
    """The header of a finished store, None if there is none.

    Raises:
        ValueError: its source files have changed since, or its format is another.
    """
    path = store_path(root, dataset)
    images = store_path(root, dataset_facts(dataset).image_store)
    if not path.is_file() or not images.is_file():
        return None
    header = read_header(path)
    present = all(file.is_file() for file in source_files(Path(root), dataset))
    if present and source_checksums(Path(root), dataset) != header["sources"]:
        raise ValueError(
            f"{path} was packed from other files than those now in {root}; "
            f"add --force to pack these"
        )
    return header


def source_checksums(root: Path, dataset: str) -> dict[str, str]:
    """SHA-256 of every annotation file by its name; a missing one raises ``ValueError``."""
    checksums = {}
    for path in source_files(root, dataset):
        if not path.is_file():
            raise ValueError(
                f"{path} is missing; put it there (datasets/README.md says where it comes from)"
            )
        with path.open("rb") as file:
            checksums[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return checksums


def pack_images(
    folder: Path, names: list[str], path: Path, *, force: bool = False, shows_progress: bool = False
) -> dict[str, str]:
    """Add image files to an image store; returns name -> SHA-256 for ``names``.

    Images that are packed stay as they are, unless ``force`` or a file of another size lies in
    ``folder``.

    Raises:
        ValueError: an image is missing, no JPEG, or cut short.
    """
    packed = _packed_images(path)
    sizes = {name: _file_size(folder / name) for name in names}
    new = [
        name
        for name, size in sizes.items()
        if force or name not in packed or size not in (None, packed[name][1])
    ]
    absent = [name for name in new if sizes[name] is None]
    if absent:
        raise ValueError(
            f"{len(absent)} of {len(names)} images are not in {folder}, {absent[0]} for one; "
            "put them there (datasets/README.md says where they come from)"
        )

    def items() -> Iterator[tuple[bytes, bytes]]:
        yield HEADER, json.dumps({"format": FORMAT}).encode()
        for name in tqdm(new, unit="images", disable=not shows_progress):
            data = read_jpeg(folder / name)
            packed[name] = hashlib.sha256(data).hexdigest(), len(data)
            yield name.encode(), data
            yield f"{CHECKSUM}{name}".encode(), json.dumps(packed[name]).encode()

    if new:
        total = sum(sizes[name] or 0 for name in new)
        _write_aside(path, items(), size=total, count=2 * len(new), keep=True)
    return {name: packed[name][0] for name in names}


def _file_size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def read_jpeg(path: Path) -> bytes:
    """The bytes of a JPEG file; ValueError if it is none or its end is missing."""
    data = path.read_bytes()
    if not data.startswith(JPEG_START):
        raise ValueError(f"{path} is no JPEG file; fetch it again")
    # no entropy-coded data contains the end marker; some files carry a few bytes behind it
    if JPEG_END not in data[-1024:]:
        raise ValueError(f"{path} is cut short after {len(data)} bytes; fetch it again")
    return data


def _packed_images(path: Path) -> dict[str, tuple[str, int]]:
    """name -> (SHA-256, bytes) of all images that a store holds."""
    images: dict[str, tuple[str, int]] = {}
    if not path.is_file():
        return images
    close_images(path)
    read_header(path)
    with open_reader(path) as environment, environment.begin() as transaction:
        cursor = transaction.cursor()
        found = cursor.set_range(CHECKSUM.encode())
        while found and cursor.key().startswith(CHECKSUM.encode()):
            checksum, size = json.loads(cursor.value())
            images[cursor.key().decode()[len(CHECKSUM) :]] = checksum, size
            found = cursor.next()
    return images


def _count(records: list[dict[str, Any]], split: str) -> dict[str, int]:
    chosen = [record for record in records if record["split"] == split]
    return {
        "refs": len(chosen),
        "sentences": sum(len(record["sentences"]) for record in chosen),
        "images": len({record["file_name"] for record in chosen}),
    }


def _fingerprint(lines: Iterable[str], images: dict[str, str]) -> str:
    digest = hashlib.sha256(f"format {FORMAT}\n".encode())
    for line in lines:
        digest.update(f"{line}\n".encode())
    for name, checksum in sorted(images.items()):
        digest.update(f"{checksum}  {name}\n".encode())
    return digest.hexdigest()


def _write_aside(
    path: Path,
    items: Iterable[tuple[bytes, bytes]],
    *,
    size: int,
    count: int,
    keep: bool = False,
) -> None:
    """Write items to a file beside ``path`` that takes its place at the end.

    ``size`` and ``count`` are the bytes and the items to come; with ``keep`` they are added to
    what ``path`` already holds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.part")
    aside.unlink(missing_ok=True)
    if keep and path.is_file():
        with open_reader(path) as environment, aside.open("wb") as file:
            environment.copyfd(file.fileno())
        size += aside.stat().st_size
    room = size + (count + 1) * ITEM_BYTES + SPARE_BYTES
    items = iter(items)
    # nobody else knows the file aside, so it needs no lock
    with lmdb.open(str(aside), subdir=False, lock=False, map_size=room) as environment:
        # in pieces, as LMDB keeps what is not committed in memory
        while piece := list(itertools.islice(items, ITEMS_PER_COMMIT)):
            with environment.begin(write=True) as transaction:
                for key, value in piece:
                    transaction.put(key, value)
    os.replace(aside, path)
