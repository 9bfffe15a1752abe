"""Pack images: each one once, as the bytes of its file, after decoding all of it."""

import hashlib
import io
import json
import time
from collections.abc import Collection, Iterable, Mapping
from contextlib import closing
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from utils.data.store import (
    CHECKSUM,
    FORMAT,
    HEADER,
    Mark,
    ReferStore,
    open_store,
    raw_header,
    read_marks,
)
from utils.prepare.workers import Map, split_chunks
from utils.prepare.writer import PLAN, StoreWriter

Size = tuple[int, int]  # height and width in pixels

LONGEST_NAME = 511 - len(CHECKSUM)  # bytes; LMDB takes no longer key
CHUNK_IMAGES = 4  # that a worker reads at a time: one's own may take 10 MB each
MOST_LISTED = 10


class PackedImages(NamedTuple):
    """The images of a data set: those that are packed, and why the others are not.

    Attributes:
        marks: name -> mark.
        bad: name -> reason.
        seconds: by split, what reading its images took this time.
    """

    marks: dict[str, Mark]
    bad: dict[str, str]
    seconds: dict[str, float]


class ImagePacker:
    """Add images of a folder to a store.

    Args:
        dataset: name of the data set that uses the images.
        store: path of the image store.
        folder: where the files are.
        sizes: name of every image -> height and width that its annotation gives; None for any.
        command: the command that packs them, for messages.
        force: read images again that are packed.
        skip_bad: go on without images that cannot be packed.
    """

    def __init__(
        self,
        dataset: str,
        store: Path,
        folder: Path,
        sizes: Mapping[str, Size | None],
        *,
        command: str,
        force: bool,
        skip_bad: bool,
    ) -> None:
        self.dataset, self.store, self.folder, self.sizes = dataset, store, folder, sizes
        self.command, self.force, self.skip_bad = command, force, skip_bad
        self.marks: dict[str, Mark] = {}
        self.packed: dict[str, Mark] = {}
        self.bad: dict[str, str] = {}
        self._num_bytes = {name: _file_bytes(folder / name) for name in sizes}

    def pack(
        self, groups: Mapping[str, Collection[str]], run: Map, *, shows_progress: bool
    ) -> PackedImages:
        """Pack the images of every split, in ``groups``, that are not packed or have changed.

        Raises:
            ValueError: the folder is missing, or images of it are missing, damaged or of another
                size than annotated, or are not those that other packed data sets use under the
                same name. The good ones need not be read again.
        """
        seconds = dict.fromkeys(groups, 0.0)
        packed = self._read_packed()
        self.packed = packed or {}
        self.marks = {} if self.force else self.packed
        if any(map(self._is_missing, self.sizes)):
            with closing(self._open_writer(None if packed is None else self.store)) as writer:
                total = sum(map(self._is_missing, self.sizes))
                with tqdm(total=total, unit="images", disable=not shows_progress) as bar:
                    for split, names in groups.items():
                        began = time.monotonic()
                        self._add(writer, sorted(filter(self._is_missing, names)), run, bar)
                        seconds[split] = time.monotonic() - began
                self._refuse_bad()
                writer.put([(HEADER, json.dumps({"format": FORMAT}).encode())])
                writer.finish()
        self._refuse_bad()
        good = {name: self.marks[name] for name in self.sizes if name not in self.bad}
        return PackedImages(good, self.bad, seconds)

    def _read_packed(self) -> dict[str, Mark] | None:
        """Read the marks of the store; None if images cannot be added to a copy of it."""
        try:
            return packed_marks(self.store, self.command)
        except ValueError as error:
            if not self.force:
                raise
            print(f"{error}: this is done now, for the images of this data set", flush=True)
            return None

    def _open_writer(self, basis: Path | None) -> StoreWriter:
        """Begin or resume a store that has what ``basis`` has, for other data sets too."""
        if not self.folder.is_dir():
            raise ValueError(
                f"the folder {self.folder} is missing; put the images there "
                "(datasets/README.md says where they come from), or name theirs with --images"
            )
        status = basis and basis.stat()
        plan = {"format": FORMAT, "basis": status and [status.st_size, status.st_mtime_ns]}
        writer = StoreWriter(self.store, plan, basis=basis, fresh=self.force)
        self.marks = {} if self.force else read_marks(writer.environment)
        return writer

    def _is_missing(self, name: str) -> bool:
        """Tell whether to read an image: it is not packed, or its file has another length."""
        mark, num_bytes = self.marks.get(name), self._num_bytes[name]
        is_packed = mark is not None and num_bytes in (None, mark.num_bytes)
        return not is_packed and name not in self.bad

    def _add(self, writer: StoreWriter, names: Iterable[str], run: Map, bar: Any) -> None:
        """Read images in the worker processes and write the good ones."""
        chunks = split_chunks(names, CHUNK_IMAGES)
        for results in run(partial(read_images, self.folder), chunks):
            for name, data, mark in results:
                bar.update()
                fault = mark if isinstance(mark, str) else self._find_fault(name, mark)
                if fault:
                    self.bad[name] = fault
                    continue
                before = self.packed.get(name, mark)
                if before.sha256 != mark.sha256:
                    self._check_only_user(name)
                self.marks[name] = mark
                key = f"{CHECKSUM}{name}".encode()
                writer.put([(name.encode(), data), (key, json.dumps(mark).encode())])
        writer.commit()

    def _check_only_user(self, name: str) -> None:
        """Raise ``ValueError`` if another packed data set uses the image of this name."""
        users = [dataset for dataset, names in self._images_of_others.items() if name in names]
        if users:
            stores = ", ".join(str(self.store.with_name(f"{user}.lmdb")) for user in users)
            raise ValueError(
                f"{self.folder / name} is not the image that {self.store} has under this name, "
                f"and {' and '.join(users)} use that one; name the folder of those images, choose "
                f"another --root, or delete {stores} and pack them again too"
            )

    @cached_property
    def _images_of_others(self) -> dict[str, set[str]]:
        """Read which images of this store every other data set uses."""
        root, users = self.store.parent.parent, {}
        for path in sorted(self.store.parent.glob("*.lmdb")):
            name = path.name.removesuffix(".lmdb")
            if path == self.store or name == self.dataset or not path.is_file():
                continue
            if raw_header(path, self.command).get("images") == self.store.stem:
                other = ReferStore(root, name)
                users[name] = set().union(*map(other.file_names, other.splits))
        return users

    def _find_fault(self, name: str, mark: Mark) -> str:
        """Say why an image cannot be packed although it can be read; empty if it can."""
        key = name.encode(errors="replace")
        if len(key) > LONGEST_NAME:
            return f"its name is longer than {LONGEST_NAME} bytes"
        if key in (HEADER, PLAN) or name.startswith(CHECKSUM):
            return "the store needs that name itself"
        expected = self.sizes[name]
        if expected not in (None, (mark.height, mark.width)):
            return (
                f"{mark.height} x {mark.width} pixels (height x width) where its annotation says "
                "{} x {}".format(*expected)
            )
        return ""

    def _refuse_bad(self) -> None:
        """Raise ``ValueError`` with the images that cannot be packed, unless they are skipped."""
        for name in self.sizes:
            if name in self.marks and (fault := self._find_fault(name, self.marks[name])):
                self.bad[name] = fault
        if not self.bad or self.skip_bad:
            return
        listed = [f"{name} ({self.bad[name]})" for name in sorted(self.bad)[:MOST_LISTED]]
        others = len(self.bad) - len(listed)
        raise ValueError(
            f"{len(self.bad):,} of {len(self.sizes):,} images in {self.folder} cannot be packed: "
            f"{', '.join(listed)}{f' and {others:,} more' if others else ''}; fetch them again "
            "(datasets/README.md says where they come from), or skip their references "
            "with --skip-bad"
        )


def packed_marks(store: Path, command: str) -> dict[str, Mark] | None:
    """Read the marks of an image store by name; None without a store of this format.

    Raises:
        ValueError: the file is not one of ours; ``command`` packs it.
    """
    if not store.exists():
        return None
    version = raw_header(store, command).get("format")
    if version != FORMAT:
        print(f"{store} has format {version}: its images are packed again", flush=True)
        return None
    return read_marks(open_store(store))


def read_images(folder: Path, names: list[str]) -> list[tuple[str, bytes, Any]]:
    """Read image files: name, bytes and mark, or instead of the mark why they cannot be packed."""
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
    """Return height and width of an image, after decoding all of it.

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


def _file_bytes(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return None
