"""Write an LMDB to ``*.part``, resume it after a kill, and rename it when it is complete.

So a store under its own name is complete, and a reader that has the old file open keeps reading it.
"""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lmdb

from utils.data.store import close_store, open_reader, used_bytes
from utils.files import locked

PLAN = b"plan"  # key of what a file is written from; only the same plan resumes it
COMMIT_BYTES = 1 << 26  # LMDB keeps in memory what is not committed
ITEM_BYTES = 1 << 13  # room for an item besides its own bytes: pages are rounded up
SPARE_BYTES = 1 << 24


class StoreWriter:
    """Write a store into ``STORE.part``.

    The file that an earlier command left is resumed if it was written from the same ``plan``. A new
    file begins with the items of ``basis``.

    Args:
        fresh: never resume.

    Attributes:
        environment: for reading what is committed.
    """

    def __init__(
        self, store: Path, plan: dict[str, Any], *, basis: Path | None = None, fresh: bool = False
    ) -> None:
        self.store, self.path = store, part_path(store)
        self._items: list[tuple[bytes, bytes]] = []
        self._size = 0
        if not fresh and self.path.exists() and (reason := _find_difference(self.path, plan)):
            print(f"{self.path} {reason}, so it is written again", flush=True)
            fresh = True
        is_new = fresh or not self.path.exists()
        with explain_disk_errors(self.path):
            if is_new:
                self.path.unlink(missing_ok=True)
            if is_new and basis:
                shutil.copyfile(basis, self.path)
            # the lock of the folder keeps others away, so it needs none of its own
            self.environment = lmdb.open(str(self.path), subdir=False, lock=False, readahead=False)
        if is_new:
            # after the copy: a file whose copy was killed has another plan
            self.put([(PLAN, json.dumps(plan).encode())])
            self.commit()

    def put(self, items: Sequence[tuple[bytes, bytes]]) -> None:
        """Add keys and values; they are on the disk after the next ``commit``, or earlier."""
        self._items += items
        self._size += sum(len(key) + len(value) + ITEM_BYTES for key, value in items)
        if self._size >= COMMIT_BYTES:
            self.commit()

    def commit(self) -> None:
        """Write what was put in one transaction; ``ValueError`` if the disk has no room."""
        with explain_disk_errors(self.path):
            room = used_bytes(self.environment) + self._size + SPARE_BYTES
            if room > self.environment.info()["map_size"]:
                self.environment.set_mapsize(room)
            with self.environment.begin(write=True) as transaction:
                for key, value in self._items:
                    transaction.put(key, value)
        self._items, self._size = [], 0

    def finish(self) -> None:
        """Commit, close the file and rename it to the store."""
        self.commit()
        size = used_bytes(self.environment)
        self.environment.close()
        with explain_disk_errors(self.path):
            # LMDB may never have written free pages at the end
            if self.path.stat().st_size < size:
                os.truncate(self.path, size)
            close_store(self.store)
            os.replace(self.path, self.store)

    def close(self) -> None:
        """Close the file; the next command resumes it."""
        self.environment.close()


def part_path(store: Path) -> Path:
    """Return the file in which a store is written."""
    return store.with_name(f"{store.name}.part")


def _find_difference(path: Path, plan: dict[str, Any]) -> str:
    """Say why a file cannot be resumed; empty if it can."""
    try:
        environment = open_reader(path)
        with environment, environment.begin() as transaction:
            found = json.loads(transaction.get(PLAN) or b"null")
    except (lmdb.Error, OSError, ValueError) as error:
        return f"is of an earlier command and damaged ({error})"
    return "" if found == plan else "is of an earlier command with other files or options"


@contextmanager
def explain_disk_errors(path: Path) -> Iterator[None]:
    """Turn the error of a full or read-only disk into a ``ValueError`` with the free bytes."""
    try:
        yield
    except (OSError, lmdb.Error) as error:
        free = shutil.disk_usage(path.parent).free if path.parent.is_dir() else 0
        raise ValueError(
            f"{path} cannot be written ({error}); {free:,} bytes are free there; make room, "
            "or make it writable, and run the same command again: it continues from here"
        ) from error


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Create a folder and keep other packing commands out of it while the block runs.

    Raises:
        ValueError: another command packs into it.
    """
    path = folder / "packing.lock"
    with explain_disk_errors(path):
        folder.mkdir(parents=True, exist_ok=True)
        path.touch()
    with locked(path, f"another command is packing into {folder}; wait until it is done"):
        yield
