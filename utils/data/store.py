"""Read packed data sets: LMDB files of JSON records and of images as their original bytes.

``ROOT/lmdb/DATASET.lmdb`` has a header, a record for each reference and an index for each split,
``ROOT/lmdb/IMAGES.lmdb`` every image once, shared by the data sets that use it. ``utils.prepare``
writes them; docs/data-format.md describes them.
"""

import difflib
import hashlib
import io
import json
import os
import re
import shlex
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import lmdb
import numpy as np
from pycocotools import mask as coco_mask

from utils.data import datasets
from utils.data.datasets import DATASETS

FORMAT = 2
HEADER = b"header"
CHECKSUM = "sha256/"  # key of an image's mark, before its name
FOREIGN_KEYS = (b"__keys__", b"__len__")  # of the tools of CRIS, ETRIS and BarLeRIa
NAME = re.compile(r"[A-Za-z0-9_.+-]+")


def store_path(root: str | Path, name: str) -> Path:
    """Return the path of a packed data set, or of the images of several."""
    return Path(root) / "lmdb" / f"{name}.lmdb"


def packing_command(root: str | Path, dataset: str) -> str:
    """Return the command that packs a data set."""
    what = "--dataset" if dataset in DATASETS else "--custom FILE --images FOLDER --name"
    words = shlex.join([dataset, "--root", str(root)])
    return f"python tools/prepare_datasets.py {what} {words}"


def explain_missing(root: str | Path, dataset: str) -> str:
    """Say why a data set cannot be opened: packed by other tools, not packed, or unknown."""
    if NAME.fullmatch(dataset):
        command = packing_command(root, dataset)
        if files := sorted((Path(root) / "lmdb" / dataset).glob("*.lmdb")):
            # one file a split, as they have it
            return foreign_message(files[0], command, is_in_the_way=False)
        if dataset in DATASETS:
            return f"{store_path(root, dataset)} is missing; make it with: {command}"
    stems = (path.name.removesuffix(".lmdb") for path in (Path(root) / "lmdb").glob("*.lmdb"))
    packed = sorted(stem for stem in stems if not stem.endswith("-images"))
    near = difflib.get_close_matches(dataset, {*DATASETS, *packed}, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    own = ", ".join(name for name in packed if name not in DATASETS)
    also = f", and packed in {Path(root) / 'lmdb'} are {own}" if own else ""
    command = packing_command(root, dataset if NAME.fullmatch(dataset) else "NAME")
    return (
        f"no data set {dataset!r}{hint}; known are {', '.join(DATASETS)}{also}; "
        f"files of your own are packed by: {command}"
    )


def foreign_message(path: Path, command: str, *, is_in_the_way: bool) -> str:
    """Say that other tools packed an LMDB file, and that it is in the way of ours if it is."""
    return (
        f"{path} was packed by other tools, those of CRIS, ETRIS or BarLeRIa (pickle or pyarrow "
        f"records), which is not read; {'move it away and ' if is_in_the_way else ''}rebuild the "
        f"data set from its annotations and images: {command}"
    )


class Mark(NamedTuple):
    """What is known of a packed image beside its bytes."""

    sha256: str
    num_bytes: int
    height: int
    width: int


class Index(NamedTuple):
    """What is known of a split without its texts and masks; N references, M expressions.

    Attributes:
        position: int32 (N,), place of the reference in the annotation files.
        num_sentences: int32 (N,).
        area: int64 (N,), pixels of the mask.
        file_name: bytes (N,), UTF-8 name of the image.
        num_tokens: int32 (M,), start and end included.
        tokens: uint16, those of all expressions one after the other, none cut.
        checksum: uint32 (N,), CRC-32 of the record's bytes; empty if an earlier version packed it.
    """

    position: np.ndarray
    num_sentences: np.ndarray
    area: np.ndarray
    file_name: np.ndarray
    num_tokens: np.ndarray
    tokens: np.ndarray
    checksum: np.ndarray

    def to_bytes(self) -> bytes:
        """Encode the arrays as an uncompressed ``.npz`` file."""
        file = io.BytesIO()
        np.savez(file, **self._asdict())
        return file.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Index":
        """Decode what ``to_bytes`` encoded; ``lmdb.CorruptedError`` for anything else."""
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                fields = {"checksum": np.zeros(0, np.uint32), **arrays}
                return cls(**{name: fields[name] for name in cls._fields})
        except (ValueError, KeyError, EOFError, TypeError, AttributeError, BadZipFile) as error:
            raise lmdb.CorruptedError("an index in it is damaged") from error


def record_key(split: str, row: int) -> bytes:
    """Return the key of the record of a split's reference ``row``."""
    return f"{split}/{row:08d}".encode()


def index_key(split: str) -> bytes:
    """Return the key of the index of a split."""
    return f"index/{split}".encode()


class ReferStore:
    """Read one packed data set; it holds no open file, so it can be sent to other processes.

    Attributes:
        header: format, dataset, images (name of the image store), splits (name -> counts), sources
            (file -> SHA-256), fingerprint (SHA-256 over all records and their images), and what
            was out of the ordinary: skipped, differences, shared_images.
        splits: names of its splits.

    Raises:
        ValueError: the data set is unknown, not packed, or packed by other tools or in another
            format.
    """

    def __init__(self, root: str | Path, dataset: str) -> None:
        self.dataset = dataset
        self.path = store_path(root, dataset)
        if not self.path.exists():
            raise ValueError(explain_missing(root, dataset))
        self._command = packing_command(root, dataset)
        self.header = read_header(self.path, self._command)
        if "splits" not in self.header:
            raise ValueError(f"{self.path} holds images, no data set; name one that uses them")
        self.splits: tuple[str, ...] = tuple(self.header["splits"])
        self.images_path = store_path(root, self.header["images"])
        if not self.images_path.exists():
            raise ValueError(f"{self.images_path} is missing; make it with: {self._command}")
        read_header(self.images_path, self._command)

    def check_split(self, split: str) -> None:
        """Raise ``ValueError`` with the splits if ``split`` is none of them."""
        datasets.check_split(self.dataset, split, self.splits)

    def references(self, split: str) -> list[dict[str, Any]]:
        """Read all records of a split, in the order of the annotation file."""
        checksums = self.index(split).checksum
        with readable(self.path, self._command):
            lines = [value for _, value in scan(open_store(self.path), f"{split}/")]
        return [self._parse(split, row, line, checksums) for row, line in enumerate(lines)]

    def reference(
        self, split: str, row: int, checksums: np.ndarray | None = None
    ) -> dict[str, Any]:
        """Read one record of a split; ``IndexError`` beyond its end.

        ``checksums`` are those of the split's index, which is read without them.
        """
        self.check_split(split)
        if not 0 <= row < self.header["splits"][split]["refs"]:
            raise IndexError(f"reference {row} of {split}")
        line = self._read(self.path, record_key(split, row))
        checksums = self.index(split).checksum if checksums is None else checksums
        return self._parse(split, row, line, checksums)

    def _parse(self, split: str, row: int, line: bytes, checksums: np.ndarray) -> dict[str, Any]:
        if row < len(checksums) and zlib.crc32(line) != checksums[row]:
            raise ValueError(
                f"{self.path}: record {row} of {split} is damaged (its checksum differs); "
                f"pack it again: {self._command} --force"
            )
        return json.loads(line)

    def index(self, split: str) -> Index:
        """Read the index of a split."""
        self.check_split(split)
        data = self._read(self.path, index_key(split))
        with readable(self.path, self._command):
            return Index.from_bytes(data)

    def file_names(self, split: str) -> set[str]:
        """Read the names of the images of a split."""
        return {name.decode() for name in np.unique(self.index(split).file_name)}

    def check_images(self, split: str, index: Index) -> None:
        """Check by their marks that the images of a split are those that it was packed with.

        Raises:
            ValueError: the image store was packed again from other files, or replaced.
        """
        expected = self.header["splits"][split].get("images_sha256")
        if expected is None:  # packed by an earlier version
            return
        keys = [CHECKSUM.encode() + name for name in np.unique(index.file_name).tolist()]
        with readable(self.images_path, self._command):
            with open_store(self.images_path).begin() as transaction:
                marks = transaction.cursor().getmulti(keys)
            close_store(self.images_path)  # the pages that marks are on count as memory while open
        if images_digest(marks) != expected:
            raise ValueError(
                f"{self.images_path} has other images than {self.dataset} {split} was packed with; "
                f"pack it again from the images that you mean: {self._command} --force"
            )

    def image(self, file_name: str) -> bytes:
        """Read the bytes of an image file."""
        return self._read(self.images_path, file_name.encode())

    def image_marks(self) -> dict[str, Mark]:
        """Read the marks of all images of the image store, which other data sets may share."""
        with readable(self.images_path, self._command):
            return read_marks(open_store(self.images_path))

    def _read(self, path: Path, key: bytes) -> bytes:
        with readable(path, self._command), open_store(path).begin() as transaction:
            data = transaction.get(key)
        if data is None:
            what = f"image {key.decode()}" if path == self.images_path else key.decode()
            raise ValueError(f"{path} holds no {what}; pack again: {self._command} --force")
        return data


def images_digest(marks: Iterable[tuple[bytes, bytes]]) -> str:
    """Compute a SHA-256 over the keys and values of images' marks, in the order of the keys."""
    return hashlib.sha256(b"\n".join(key + mark for key, mark in marks)).hexdigest()


def read_header(path: Path, command: str) -> dict[str, Any]:
    """Read the header of a store; ``command`` packs it.

    Raises:
        ValueError: it is not one of ours, damaged, or of another format.
    """
    header = raw_header(path, command)
    if header.get("format") != FORMAT:
        raise ValueError(
            f"{path} has format {header.get('format')} and this code reads {FORMAT}; "
            f"pack it again: {command}"
        )
    return header


def raw_header(path: Path, command: str) -> dict[str, Any]:
    """Read the header of a store of any of our formats; ``ValueError`` like ``read_header``."""
    if path.is_dir():
        raise ValueError(foreign_message(path, command, is_in_the_way=True))
    with readable(path, command):
        with open_store(path).begin() as transaction:
            data = transaction.get(HEADER)
            is_foreign = data is None and any(transaction.get(key) for key in FOREIGN_KEYS)
        header = dict(json.loads(data or b"{}"))
    if is_foreign:
        raise ValueError(foreign_message(path, command, is_in_the_way=True))
    return header


@contextmanager
def readable(path: Path, command: str) -> Iterator[None]:
    """Turn the error of a damaged store into a ``ValueError``; ``command`` packs it."""
    try:
        yield
    except (lmdb.Error, OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise ValueError(
            f"{path} is no readable store ({reason}); pack it again: {command} --force"
        ) from error


def scan(environment: Any, prefix: str) -> Iterator[tuple[str, bytes]]:
    """Yield all keys that begin with ``prefix``, without it, and their values, in order."""
    start = prefix.encode()
    with environment.begin() as transaction:
        cursor = transaction.cursor()
        found = cursor.set_range(start)
        while found and cursor.key().startswith(start):
            yield cursor.key()[len(start) :].decode(), cursor.value()
            found = cursor.next()


def read_marks(environment: Any) -> dict[str, Mark]:
    """Read the marks of all images of an image store, by name."""
    return {name: Mark(*json.loads(value)) for name, value in scan(environment, CHECKSUM)}


_OPENED: dict[tuple[int, int], tuple[Any, int]] = {}  # device, inode -> environment, process


def open_store(path: Path) -> Any:
    """Open a store for reading, once in a process; LMDB refuses to open a file twice.

    It is opened again after a fork, which LMDB handles must not cross, and when another file took
    its place.

    Raises:
        lmdb.Error: the file is no LMDB file, or its end is missing.
        OSError: it is gone.
    """
    identity = _identity(path)
    environment, process = _OPENED.get(identity, (None, 0))
    if process != os.getpid():
        close_store(path)
        environment = open_reader(path)
        _OPENED[identity] = environment, os.getpid()
    return environment


def open_reader(path: Path) -> Any:
    """Open an LMDB file that the caller closes; ``lmdb.Error`` if it is damaged."""
    if not path.stat().st_size:
        raise lmdb.InvalidError("it is empty")
    # read ahead: an image takes dozens of pages, which a disk would otherwise be asked for singly
    environment = lmdb.open(str(path), subdir=False, readonly=True, lock=False)
    if path.stat().st_size < used_bytes(environment):
        environment.close()
        # LMDB would read beyond the end of the file, which ends the process
        raise lmdb.CorruptedError("its end is missing")
    return environment


def used_bytes(environment: Any) -> int:
    """Return the size of the file of an environment up to its last used page."""
    return (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]


def close_store(path: Path) -> None:
    """Close this process's environment of a store, if it has one."""
    if path.exists() and (opened := _OPENED.pop(_identity(path), None)):
        opened[0].close()


def _identity(path: Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def decode_mask(record: dict[str, Any]) -> np.ndarray:
    """Decode the mask of a record, compressed COCO RLE: bool (H, W)."""
    # pycocotools stores it by columns, which every reader of rows would pay for
    return np.ascontiguousarray(coco_mask.decode(_rle(record)).view(bool))


def mask_areas(records: Iterable[dict[str, Any]]) -> list[int]:
    """Count the pixels of every record's mask."""
    # one by one: given 256 or more, pycocotools overflows a byte that should hold their number
    return [int(coco_mask.area(_rle(record))) for record in records]


def _rle(record: dict[str, Any]) -> dict[str, Any]:
    return {"size": [record["height"], record["width"]], "counts": record["rle"].encode("ascii")}
