"""Stores in the making: an LMDB file beside the store, which takes its place when complete.

A store that exists is complete, therefore, and a reader that still holds its predecessor keeps
reading that. What was written before a kill stays, and the next command goes on from it.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lmdb

from utils.data.store import close_store, open_reader, used_bytes

PLAN = b"plan"  # what a file aside is made from; it goes on only with the same
ITEM_BYTES = 1 << 13  # room for an item besides its own bytes: pages are rounded up
SPARE_BYTES = 1 << 24


class Part:
    """An LMDB file aside, open for writing; ``begin_part`` makes one.

    Attributes:
        environment: for reading what it holds.
        expected: bytes that are still to come, as far as is known, for the message on a full disk.
    """

    def __init__(self, store: Path) -> None:
        self.store, self.path, self.expected = store, part_path(store), 0
        self.environment = _open_writer(self.path)

    def put(self, items: Sequence[tuple[bytes, bytes]]) -> None:
        """Write items in one transaction; ``ValueError`` if there is no room on the disk."""
        size = sum(len(key) + len(value) for key, value in items)
        with explained(self.path, max(size, self.expected)):
            room = used_bytes(self.environment) + size + len(items) * ITEM_BYTES + SPARE_BYTES
            if room > self.environment.info()["map_size"]:
                self.environment.set_mapsize(room)
            with self.environment.begin(write=True) as transaction:
                for key, value in items:
                    transaction.put(key, value)
        self.expected = max(0, self.expected - size)

    def get(self, key: bytes) -> bytes | None:
        """The value of a key."""
        with self.environment.begin() as transaction:
            return transaction.get(key)

    def finish(self) -> None:
        """Close the file, which takes the store's place."""
        size = used_bytes(self.environment)
        self.environment.close()
        with explained(self.path, 0):
            # pages at the end that are free may never have been written
            if self.path.stat().st_size < size:
                os.truncate(self.path, size)
            close_store(self.store)
            os.replace(self.path, self.store)

    def close(self) -> None:
        """Close the file, which stays for the next command to go on from."""
        self.environment.close()


def part_path(store: Path) -> Path:
    """The file aside of a store."""
    return store.with_name(f"{store.name}.part")


def begin_part(
    store: Path, plan: dict[str, Any], *, basis: Path | None = None, fresh: bool = False
) -> Part:
    """Open the file aside of a store: the one of an earlier command, or a new one.

    The earlier one is kept if it was made from the same ``plan``; a line says so if it was not,
    or if it is damaged. A new one holds ``plan`` and what ``basis`` holds; with ``fresh`` it is
    always new.
    """
    path = part_path(store)
    if path.exists() and not fresh:
        reason = _difference(path, plan)
        if reason:
            print(f"{path}: {reason}, so it is begun anew", flush=True)
    if fresh or not path.exists() or reason:
        _make_part(path, plan, basis)
    return Part(store)


def _difference(path: Path, plan: dict[str, Any]) -> str:
    """Why a file aside cannot be gone on with; empty if it can."""
    try:
        environment = open_reader(path)
        with environment, environment.begin() as transaction:
            found = json.loads(transaction.get(PLAN) or b"null")
    except (lmdb.Error, OSError, ValueError) as error:
        return f"left by an earlier command and damaged ({error})"
    return "" if found == plan else "left by an earlier command with other files or options"


def _make_part(path: Path, plan: dict[str, Any], basis: Path | None) -> None:
    """Write a new file aside; it gets its name when it holds all that it begins with."""
    new = path.with_name(f"{path.name}.new")
    with explained(new, basis.stat().st_size if basis else 0):
        new.unlink(missing_ok=True)
        if basis:
            shutil.copyfile(basis, new)
        with _open_writer(new) as environment:
            environment.set_mapsize(used_bytes(environment) + SPARE_BYTES)
            with environment.begin(write=True) as transaction:
                transaction.put(PLAN, json.dumps(plan).encode())
        os.replace(new, path)


def _open_writer(path: Path) -> Any:
    # the lock of the folder keeps others away, so it needs none of its own
    with explained(path, 0):
        return lmdb.open(str(path), subdir=False, lock=False, readahead=False)


@contextmanager
def explained(path: Path, needed: int) -> Iterator[None]:
    """Turn what a full or forbidden disk raises into a ``ValueError`` that says how much is free.

    ``needed`` are the bytes to come, 0 if that is not known.
    """
    try:
        yield
    except (OSError, lmdb.Error) as error:
        free = shutil.disk_usage(path.parent).free if path.parent.is_dir() else 0
        more = f" and {needed:,} more are needed" if needed else ""
        raise ValueError(
            f"{path} cannot be written ({error}); {free:,} bytes are free there{more}; make room, "
            "or make it writable, and give the same command again: it goes on from here"
        ) from error


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Make a folder and keep other packing commands out of it while the block runs.

    Raises:
        ValueError: another command is in it.
    """
    path = folder / "packing.lock"
    with explained(path, 0):
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.fstat(file.fileno()).st_nlink:  # the other command has just ended
                raise BlockingIOError
        except BlockingIOError as error:
            raise ValueError(
                f"another command is packing into {folder}; wait until it is done"
            ) from error
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
