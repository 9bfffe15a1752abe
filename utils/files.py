"""Write files whole or not at all, read and write JSON lines, hash files, check and lock paths."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

LONGEST_NAME = 255  # bytes of a file's name
Row = Mapping[str, Any]


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary file in the same folder, and rename it to ``path`` at the end.

    After an exception the temporary file is removed and ``path`` is as it was.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``path`` whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write ``path`` as UTF-8, whole or not at all."""
    write_bytes(path, text.encode())


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file, as lower-case hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json_lines(path: Path, rows: Iterable[Row]) -> None:
    """Write ``rows`` to ``path``, one JSON object a line."""
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Read the rows of ``path``, without a last line that a crash cut short.

    Raises:
        ValueError: naming the first line that is not a JSON object.
    """
    rows = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        if not line:
            continue
        try:
            row = json.loads(line.decode())
        except (ValueError, RecursionError):  # of UTF-8 and JSON, and for deep brackets
            row = None
        if not isinstance(row, dict):
            raise ValueError(
                f"{path}: line {number} is not a JSON object: {line[:40]!r}; "
                "remove the line or move the file away"
            )
        rows.append(row)
    return rows


def check_output(option: str, path: Path, endings: Sequence[str] = ()) -> None:
    """Refuse an output file that cannot be written, before the work whose result it will hold.

    Raises:
        ValueError: another ending than ``endings``, a folder, or a place that is not writable.
    """
    if endings and path.suffix not in endings:
        raise ValueError(
            f"{option} {path} should end in {'one of ' * (len(endings) > 1)}{', '.join(endings)}"
        )
    if path.is_dir():
        raise ValueError(f"{option} {path} is a folder; name a file")
    if not path.parent.is_dir():
        raise ValueError(f"{path.parent}, the folder of {option}, does not exist; create it")
    if not os.access(path.parent, os.W_OK):
        raise ValueError(f"{option} {path}: its folder is not writable; name another")


def check_folder(option: str, path: Path) -> None:
    """Refuse a folder that cannot be made or written into, before the work that fills it.

    Raises:
        ValueError: the folder or one above it is a file or not writable, or a name is too long.
    """
    if any(len(os.fsencode(part)) > LONGEST_NAME for part in path.parts):
        raise ValueError(f"{option} {path}: the name is too long; name another folder")
    existing = next(one for one in (path, *path.absolute().parents) if one.exists())
    if not existing.is_dir():
        raise ValueError(f"{option} {path}: {existing} is a file; name another folder")
    if not os.access(existing, os.W_OK):
        raise ValueError(f"{option} {path}: {existing} is not writable; name another folder")


@contextmanager
def locked(path: Path, refusal: str) -> Iterator[None]:
    """Hold the lock file ``path`` while the block runs, and delete it at the end.

    A process that has ended, however it did, holds no lock.

    Raises:
        ValueError: with the text ``refusal``, if another process holds it.
    """
    try:
        lock = FileLock(path).acquire(timeout=0)
    except Timeout:
        raise ValueError(refusal) from None
    with lock:
        try:
            yield
        finally:
            # a process that waits on the deleted file notices
            path.unlink(missing_ok=True)
