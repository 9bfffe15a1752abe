"""Packed data sets: LMDB files of JSON records and of images as their original bytes.

``ROOT/lmdb/DATASET.lmdb`` holds a header and one record a reference, ``ROOT/lmdb/IMAGES.lmdb``
every image once, shared by the data sets that use it. ``packing.py`` writes them.
"""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import lmdb

from utils.data.refer import check_split, dataset_facts

FORMAT = 1
HEADER = b"header"


def store_path(root: str | Path, name: str) -> Path:
    """Where a packed data set, or the images of several, lie."""
    return Path(root) / "lmdb" / f"{name}.lmdb"


def open_reader(path: Path) -> Any:
    """An LMDB environment for reading, to be closed by the caller."""
    return lmdb.open(str(path), subdir=False, readonly=True, lock=False, readahead=False)


def read_header(path: Path) -> dict[str, Any]:
    """What a store says of itself; ValueError if it is none of ours or of another format."""
    try:
        with open_reader(path) as environment, environment.begin() as transaction:
            header = json.loads(transaction.get(HEADER) or b"{}")
    except lmdb.Error as error:
        raise ValueError(f"{path} is no readable store ({error}); pack it again") from error
    if header.get("format") != FORMAT:
        raise ValueError(
            f"{path} has format {header.get('format')} and this code reads {FORMAT}; "
            "pack it again with tools/prepare_datasets.py --force"
        )
    return header


class ReferStore:
    """Reads one packed data set; holds no open file, so it can be sent to other processes.

    Attributes:
        header: format, dataset, images, splits (name -> refs, sentences, images), sources (file
            -> SHA-256) and fingerprint (SHA-256 over all records and their images).

    Raises:
        ValueError: the data set is unknown, not packed, or packed in another format.
    """

    def __init__(self, root: str | Path, dataset: str) -> None:
        self.dataset = dataset
        self.path = store_path(root, dataset)
        self.images_path = store_path(root, dataset_facts(dataset).image_store)
        for path in (self.path, self.images_path):
            if not path.is_file():
                raise ValueError(
                    f"{path} is missing; make it with: python tools/prepare_datasets.py "
                    f"--dataset {dataset} --root {root}"
                )
        self.header = read_header(self.path)

    def references(self, split: str) -> list[dict[str, Any]]:
        """All records of a split, in the order of the annotation file (see ``read_records``)."""
        check_split(self.dataset, split)
        prefix = f"{split}/".encode()
        records = []
        with open_reader(self.path) as environment, environment.begin() as transaction:
            cursor = transaction.cursor()
            found = cursor.set_range(prefix)
            while found and cursor.key().startswith(prefix):
                records.append(json.loads(cursor.value()))
                found = cursor.next()
        return records

    def image(self, file_name: str) -> bytes:
        """The bytes of an image file as they were packed."""
        with _images(self.images_path).begin() as transaction:
            data = transaction.get(file_name.encode())
        if data is None:
            raise ValueError(
                f"{self.images_path} holds no image {file_name}; "
                f"pack {self.dataset} again with tools/prepare_datasets.py --force"
            )
        return data


class _Opened(NamedTuple):
    environment: Any
    process: int
    file: tuple[int, int]


_OPENED: dict[Path, _Opened] = {}


def _images(path: Path) -> Any:
    """The process's one environment of an image store, opened at first use.

    One for all data sets on the same images, since LMDB refuses to open a file twice. It is opened
    anew after a fork, which LMDB handles must not cross, and where another file took its place.
    """
    status = os.stat(path)
    identity = (status.st_ino, status.st_mtime_ns)
    opened = _OPENED.get(path)
    if opened is None or (opened.process, opened.file) != (os.getpid(), identity):
        close_images(path)
        opened = _OPENED[path] = _Opened(open_reader(path), os.getpid(), identity)
    return opened.environment


def close_images(path: Path) -> None:
    """Close this process's environment of an image store, if it has one."""
    if opened := _OPENED.pop(path, None):
        opened.environment.close()
