"""Download files and unpack zip archives.

A download resumes where it broke off, is compared with its SHA-256, and is renamed when complete.
"""

import errno
import os
import re
import shutil
import sys
import time
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from utils.files import sha256_of

if TYPE_CHECKING:
    import requests

CHUNK = 1 << 16  # bytes that a broken connection may cost
TIMEOUT = (10, 30)  # seconds to connect, and without a byte
SPARE = 1 << 24  # bytes of a disk that stay free
MAX_WAIT = 15.0  # seconds before a transfer is tried again
# what zipfile raises for members that are damaged, encrypted or compressed in an unknown way
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)


class DownloadError(ValueError):
    """An address does not give the file; another one may."""


class _BrokenTransferError(Exception):
    """The transfer broke off and may be resumed."""


def download_from_any(urls: Sequence[str], path: Path, *, sha256: str, size: int) -> None:
    """Download ``path`` from the first of several addresses that gives the file of this SHA-256.

    The next address continues what one has sent, as the checksum of the whole file decides. The
    log has a line for each address that fails.

    Raises:
        ValueError: no address gave the file, or the disk has no room for its ``size`` bytes.
    """
    from loguru import logger

    failures = []
    for url in urls:
        try:
            download(url, path, sha256=sha256, size=size)
            return
        except DownloadError as error:
            failures.append(str(error))
            rest = len(urls) - len(failures)
            logger.warning(f"{error}; {rest or 'no'} other address{'es' * (rest != 1)} to try")
    raise ValueError(
        f"{path} could not be fetched from any of {len(urls)} addresses ({'; '.join(failures)}); "
        f"run the command again later to continue, or get {path.name} by hand and put it at {path}"
    )


def download(
    url: str, path: Path, *, sha256: str, size: int | None = None, retries: int = 5
) -> None:
    """Download ``url`` to ``path``, resuming what an earlier call left in ``path``.part.

    A broken transfer is resumed at most ``retries`` times without a new byte (once, if the address
    never sent any). A resumed file with a wrong checksum is downloaded once more from the start.
    ``path`` itself is always a complete and verified file.

    Raises:
        DownloadError: the server refuses, the connection is lost, or the file has another
            checksum or another ``size``.
        ValueError: the disk is full; the part stays.
    """
    part = path.with_name(f"{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    if size is not None and _size(part) > size:
        part.unlink()
    was_resumed = _size(part) > 0
    _receive(url, part, size=size, retries=retries)
    found = sha256_of(part)
    if found != sha256 and was_resumed:
        part.unlink()  # the earlier bytes may be wrong
        _receive(url, part, size=size, retries=retries)
        found = sha256_of(part)
    if found != sha256:
        part.unlink()
        raise DownloadError(
            f"{url}: the SHA-256 of the file is {found}, not {sha256}; the file was deleted"
        )
    os.replace(part, path)


def check_space(folder: Path, needed: int, purpose: str) -> None:
    """Raise ``ValueError`` if the disk of ``folder`` has no ``needed`` bytes for ``purpose``."""
    free = free_space(folder)
    if needed + SPARE > free:
        raise ValueError(
            f"{folder}: no space for {purpose}: {needed:,} bytes are needed, {free:,} are free; "
            "make room, or choose a folder on another disk"
        )


def free_space(folder: Path) -> int:
    """Count the free bytes on the disk of ``folder``, which need not exist yet."""
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    return shutil.disk_usage(existing).free


@contextmanager
def _explain_full_disk(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ValueError(
            f"{path}: no space left, {free_space(path):,} bytes are free; what is written so far "
            "stays, make room and run the command again"
        ) from None


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _receive(url: str, part: Path, *, size: int | None, retries: int) -> None:
    """Complete ``part``, resuming the transfer where it breaks off."""
    first, failures = _size(part), 0
    while size is None or _size(part) != size:
        before = _size(part)
        try:
            _transfer(url, part, size=size)
            return
        except _BrokenTransferError as error:
            failures = 1 if _size(part) > before else failures + 1
            if failures > (retries if _size(part) > first else min(retries, 1)):
                kept = f"; {part} keeps {_size(part):,} bytes" if _size(part) else ""
                raise DownloadError(f"{url}: {error}{kept}") from None
            time.sleep(min(2.0**failures / 2, MAX_WAIT))


def _transfer(url: str, part: Path, *, size: int | None) -> None:
    """Append the missing bytes; ``_BrokenTransferError`` when the body ends too early."""
    import requests

    start = _size(part)
    # identity: byte positions must count bytes of the file, not of a compressed form of it
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    try:
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
            if start and response.status_code == requests.codes.requested_range_not_satisfiable:
                if size is not None:
                    raise DownloadError(f"{url}: it has {start:,} bytes or fewer, not {size:,}")
                return  # nothing is missing; the checksum decides
            begin = _start_of_body(url, response, start)
            length = response.headers.get("Content-Length")
            total = begin + int(length) if length else size
            if size is not None and total != size:
                raise DownloadError(f"{url}: it offers {total:,} bytes and the file has {size:,}")
            if total is not None:
                check_space(part.parent, total - start, f"the rest of {part.name}")
            with _explain_full_disk(part):
                _write_body(response, part, begin, total)
    except (requests.ConnectionError, requests.Timeout) as error:
        raise _BrokenTransferError(f"no connection ({_innermost(error)})") from error
    except requests.exceptions.ChunkedEncodingError as error:
        raise _BrokenTransferError("the connection broke off") from error
    except requests.exceptions.RequestException as error:
        raise DownloadError(f"{url}: {error}") from None
    if total is not None and _size(part) < total:
        raise _BrokenTransferError("the connection broke off")


def _start_of_body(url: str, response: "requests.Response", wanted: int) -> int:
    """Return where in the file the body begins: 0 unless the server honours the Range header."""
    answer = f"{response.status_code} {response.reason}"
    if response.status_code in (429, 500, 502, 503, 504):
        raise _BrokenTransferError(f"the server is busy ({answer})")
    if response.status_code >= 400:
        raise DownloadError(f"{url}: the server answers {answer}")
    if response.status_code != 206:
        return 0
    start = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
    if not start.isdecimal() or int(start) > wanted:
        raise DownloadError(f"{url}: the server answers with another range than bytes={wanted}-")
    return int(start)


def _write_body(response: "requests.Response", part: Path, begin: int, total: int | None) -> None:
    """Write a body into ``part`` from byte ``begin`` on."""
    from tqdm import tqdm

    part.touch()
    label = part.name.removesuffix(".part")
    pace = 0.1 if sys.stderr.isatty() else 30.0  # a log file gets a line now and then
    bar = tqdm(total=total, initial=begin, desc=label, unit="B", unit_scale=True, mininterval=pace)
    with bar, part.open("r+b") as file:
        file.seek(begin)  # a server without ranges sends the first bytes again
        for chunk in response.iter_content(CHUNK):
            file.write(chunk)
            bar.update(len(chunk))


def _innermost(error: Exception) -> str:
    """Return the innermost cause, since the outer ones repeat the address and object names."""
    while isinstance(inner := error.__cause__ or error.__context__, Exception):
        error = inner
    return str(error)


def unpack(
    archive: Path, folder: Path, pattern: str, *, shows_progress: bool = False
) -> tuple[int, int]:
    """Write the files of a zip archive whose own names match ``pattern`` into ``folder``.

    Folders of the archive are ignored, so that no path in it leaves ``folder``. Files that exist
    stay as they are. A new folder is called ``folder``.part until it is complete.

    Returns:
        how many files were written, and how many existed.

    Raises:
        ValueError: the archive is damaged, holds none of the files or two of one name, or more
            than the disk has room for.
    """
    from tqdm import tqdm

    place = folder if folder.exists() else folder.with_name(f"{folder.name}.part")
    try:
        with zipfile.ZipFile(archive) as opened:
            members = _members(archive, opened.infolist(), pattern)
            new = {name: info for name, info in members.items() if not (place / name).exists()}
            total = sum(info.file_size for info in new.values())
            check_space(place, total, f"what {archive.name} holds")
            place.mkdir(parents=True, exist_ok=True)
            bar = tqdm(total=total, unit="B", unit_scale=True, disable=not shows_progress)
            bar.set_description(f"unpacking {archive.name}")
            with bar, _explain_full_disk(place):
                for name, info in new.items():
                    part = place / f"{name}.part"
                    with opened.open(info) as source, part.open("wb") as file:
                        shutil.copyfileobj(source, file)
                    os.replace(part, place / name)
                    bar.update(info.file_size)
    except _DAMAGE as error:
        raise ValueError(
            f"{archive} is no zip archive that can be read ({error}); delete it and fetch it again"
        ) from error
    if place != folder:
        os.replace(place, folder)
    return len(new), len(members) - len(new)


def _members(
    archive: Path, infos: list[zipfile.ZipInfo], pattern: str
) -> dict[str, zipfile.ZipInfo]:
    """Map file names to the members whose names match ``pattern``."""
    members: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        *folders, name = info.filename.replace("\\", "/").split("/")
        if folders[:1] == ["__MACOSX"] or not re.fullmatch(pattern, name):
            continue
        if name in members:
            raise ValueError(
                f"{archive} holds two files named {name} ({members[name].filename} and "
                f"{info.filename}); unpack the right one by hand"
            )
        members[name] = info
    if not members:
        raise ValueError(f"{archive} holds no file {pattern}; take it from another place")
    return members
