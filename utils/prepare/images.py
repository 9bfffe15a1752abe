"""The image store: every image of a folder once, as its original bytes, each of them verified."""

import json
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from utils.data.store import (
    CHECKSUM,
    FORMAT,
    HEADER,
    Mark,
    open_store,
    raw_header,
    read_marks,
)
from utils.prepare.image_files import Size, read_images
from utils.prepare.workers import Workers
from utils.prepare.writer import PLAN, Part, begin_part

LONGEST_NAME = 511 - len(CHECKSUM)  # bytes; LMDB takes no longer key
CHUNK_BYTES = 1 << 22  # of image files that one worker reads at a time
COMMIT_BYTES, COMMIT_IMAGES = 1 << 26, 256  # LMDB keeps in memory what is not committed
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
    """Adds images of a folder to a store.

    Args:
        store: path of the image store.
        folder: where the files lie.
        sizes: name of every image -> height and width that its annotation gives; None for any.
        command: the command that packs them, for messages.
        force: read images again that are packed.
        skip_bad: go on without images that cannot be packed.
    """

    def __init__(
        self,
        store: Path,
        folder: Path,
        sizes: Mapping[str, Size | None],
        *,
        command: str,
        force: bool,
        skip_bad: bool,
    ) -> None:
        self.store, self.folder, self.sizes = store, folder, sizes
        self.command, self.force, self.skip_bad = command, force, skip_bad
        self.marks: dict[str, Mark] = {}
        self.bad: dict[str, str] = {}
        self._num_bytes = {name: _file_bytes(folder / name) for name in sizes}

    def pack(
        self, groups: Mapping[str, Collection[str]], workers: Workers, *, shows_progress: bool
    ) -> PackedImages:
        """Pack the images of every split, in ``groups``, that are not packed or changed since.

        Raises:
            ValueError: the folder is missing, or images of it are missing, damaged or of another
                size than annotated. The good ones need not be read again.
        """
        seconds = dict.fromkeys(groups, 0.0)
        packed = self._packed()
        self.marks = {} if self.force else packed or {}
        if any(self._is_lacking(name) for name in self.sizes):
            with closing(self._begin(is_kept=packed is not None)) as part:
                lacking = [name for name in self.sizes if self._is_lacking(name)]
                part.expected = sum(self._num_bytes[name] or 0 for name in lacking)
                with tqdm(total=len(lacking), unit="images", disable=not shows_progress) as bar:
                    for split, group in groups.items():
                        began = time.monotonic()
                        self._add(part, sorted(filter(self._is_lacking, group)), workers, bar)
                        seconds[split] = time.monotonic() - began
                self._refuse_bad()
                part.put([(HEADER, json.dumps({"format": FORMAT}).encode())])
                part.finish()
        self._refuse_bad()
        good = {name: self.marks[name] for name in self.sizes if name not in self.bad}
        return PackedImages(good, self.bad, seconds)

    def _packed(self) -> dict[str, Mark] | None:
        """The marks of the store that is there; None if it cannot be built upon."""
        try:
            return packed_marks(self.store, self.command)
        except ValueError as error:
            if not self.force:
                raise
            print(f"{error}: this is done now, for the images of this data set", flush=True)
            return None

    def _begin(self, *, is_kept: bool) -> Part:
        """Open the file aside, and put into ``marks`` what it holds already.

        ``is_kept`` if it begins with what the store holds, for other data sets too.
        """
        if not self.folder.is_dir():
            raise ValueError(
                f"the folder {self.folder} is missing; put the images there "
                "(datasets/README.md says where they come from), or name theirs with --images"
            )
        basis = self.store if is_kept else None
        status = basis and basis.stat()
        plan = {"format": FORMAT, "basis": status and [status.st_size, status.st_mtime_ns]}
        part = begin_part(self.store, plan, basis=basis, fresh=self.force)
        self.marks = {} if self.force else read_marks(part.environment)
        return part

    def _is_lacking(self, name: str) -> bool:
        """Whether an image has to be read: it is not packed, or its file has another length."""
        mark, num_bytes = self.marks.get(name), self._num_bytes[name]
        is_read = mark is not None and num_bytes in (None, mark.num_bytes)
        return not is_read and name not in self.bad

    def _add(self, part: Part, names: Iterable[str], workers: Workers, bar: Any) -> None:
        """Read images in the worker processes and write the good ones, some at a time."""
        items: list[tuple[bytes, bytes]] = []
        size = 0
        for results in workers.map(partial(read_images, self.folder), self._chunks(names)):
            for name, data, mark in results:
                bar.update()
                fault = mark if isinstance(mark, str) else self._fault(name, mark)
                if fault:
                    self.bad[name] = fault
                    continue
                assert isinstance(mark, Mark)
                self.marks[name] = mark
                items.append((name.encode(), data))
                items.append((f"{CHECKSUM}{name}".encode(), json.dumps(mark).encode()))
                size += len(data)
            if size >= COMMIT_BYTES or len(items) >= 2 * COMMIT_IMAGES:
                part.put(items)
                items, size = [], 0
        if items:
            part.put(items)

    def _chunks(self, names: Iterable[str]) -> Iterator[list[str]]:
        """Names in lists of about ``CHUNK_BYTES`` of files."""
        chunk: list[str] = []
        size = 0
        for name in names:
            chunk.append(name)
            size += self._num_bytes[name] or 0
            if size >= CHUNK_BYTES or len(chunk) >= COMMIT_IMAGES:
                yield chunk
                chunk, size = [], 0
        if chunk:
            yield chunk

    def _fault(self, name: str, mark: Mark) -> str:
        """Why an image cannot be packed although it can be read; empty if it can."""
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
        """``ValueError`` lists the images that cannot be packed, unless they are skipped."""
        for name in self.sizes:
            if name in self.marks and (fault := self._fault(name, self.marks[name])):
                self.bad[name] = fault
        if not self.bad or self.skip_bad:
            return
        listed = [f"{name} ({self.bad[name]})" for name in sorted(self.bad)[:MOST_LISTED]]
        others = len(self.bad) - len(listed)
        raise ValueError(
            f"{len(self.bad):,} of {len(self.sizes):,} images in {self.folder} cannot be packed: "
            f"{', '.join(listed)}{f' and {others:,} more' if others else ''}; fetch them again "
            "(datasets/README.md says where they come from), or leave out what refers to them "
            "with --skip-bad"
        )


def packed_marks(store: Path, command: str) -> dict[str, Mark] | None:
    """The marks of all images of a store by name; None without a store of this format.

    Raises:
        ValueError: there is a file that is none of ours; ``command`` is named in it.
    """
    if not store.exists():
        return None
    version = raw_header(store, command).get("format")
    if version != FORMAT:
        print(f"{store} has format {version}: its images are packed anew", flush=True)
        return None
    return read_marks(open_store(store))


def _file_bytes(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return None
