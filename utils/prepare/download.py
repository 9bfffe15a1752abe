"""Downloads: taken up where they broke off, verified, and only then renamed into place."""

import errno
import hashlib
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import requests

CHUNK = 1 << 16  # what a broken connection may cost
TIMEOUT = (10, 30)  # seconds until a connection stands, and without a byte
LARGE = 1 << 28  # bytes whose checksum takes long enough to show how far it is
SPARE = 1 << 24  # bytes of a disk that are left free


class DownloadError(ValueError):
    """An address does not give the file that was asked for; another one may."""


class _BrokenTransferError(Exception):
    """The transfer broke off and may be continued."""


def fetch(urls: Sequence[str], path: Path, *, sha256: str, size: int) -> None:
    """Fetch ``path`` from the first of several addresses that gives the file of this SHA-256.

    What one address sent is continued from the next, as the checksum over the whole file decides.
    An address that fails is a line in the log.

    Raises:
        ValueError: no address gave the file, or the disk is too full for its ``size`` bytes.
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
        f"run the command again later to go on, or get {path.name} by hand and put it at {path}"
    )


def download(
    url: str, path: Path, *, sha256: str, size: int | None = None, retries: int = 5
) -> None:
    """Fetch ``url`` to ``path``, continuing what an earlier call left in ``path``.part.

    A transfer that breaks off is taken up again, at most ``retries`` times without a new byte
    (once, if the address never sent any). If what was continued turns out wrong, the whole is
    fetched once more. ``path`` itself is only ever a complete and verified file.

    Raises:
        DownloadError: the server refuses, the connection is lost for good, or what it gives has
            another checksum or another ``size``.
        ValueError: the disk is full; the part stays.
    """
    part = path.with_name(f"{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    if size is not None and _size(part) > size:
        part.unlink()
    is_continued = _size(part) > 0
    _receive(url, part, size=size, retries=retries)
    found = file_sha256(part)
    if found != sha256 and is_continued:
        part.unlink()  # what lay there may have been the wrong half
        _receive(url, part, size=size, retries=retries)
        found = file_sha256(part)
    if found != sha256:
        part.unlink()
        raise DownloadError(
            f"{url}: the SHA-256 of what came is {found}, not {sha256}; it was thrown away"
        )
    os.replace(part, path)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hex."""
    from tqdm import tqdm

    digest, total = hashlib.sha256(), path.stat().st_size
    hidden = total < LARGE or not sys.stderr.isatty()
    options: dict[str, Any] = {"unit": "B", "unit_scale": True, "leave": False, "disable": hidden}
    with (
        path.open("rb") as file,
        tqdm(total=total, desc=f"verifying {path.name}", **options) as bar,
    ):
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            bar.update(len(chunk))
    return digest.hexdigest()


def check_space(folder: Path, needed: int, purpose: str) -> None:
    """ValueError if the disk of ``folder`` (or of its nearest parent) lacks ``needed`` bytes."""
    free = free_space(folder)
    if needed + SPARE > free:
        raise ValueError(
            f"{folder}: no space for {purpose}: {needed:,} bytes are needed, {free:,} are free; "
            "make room, or choose a folder on another disk"
        )


def free_space(folder: Path) -> int:
    """Bytes that are free on the disk where ``folder`` is, or would be made."""
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    return shutil.disk_usage(existing).free


@contextmanager
def explain_full_disk(path: Path, needed: int) -> Iterator[None]:
    """Turn the error of a disk that runs full while ``path`` is written into a ``ValueError``.

    ``needed`` is the size in bytes that the file, or the files of the folder, will have.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ValueError(
            f"{path}: no space left: {needed:,} bytes are needed in all, {free_space(path):,} are "
            "free; what is written so far stays, make room and run the command again"
        ) from None


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _receive(url: str, part: Path, *, size: int | None, retries: int) -> None:
    """Fill ``part`` up to the end, taking the transfer up again where it breaks off."""
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
            time.sleep(min(2.0**failures, 30.0) / 2)


def _transfer(url: str, part: Path, *, size: int | None) -> None:
    """Append what is missing; ``_BrokenTransferError`` when the body ends too early."""
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
            _refuse_errors(url, response)
            begin = _start_of_body(url, response, start)
            length = response.headers.get("Content-Length")
            total = begin + int(length) if length else size
            if size is not None and total != size:
                raise DownloadError(f"{url}: it offers {total:,} bytes and the file has {size:,}")
            if total is not None:
                check_space(part.parent, total - start, f"the rest of {part.name}")
            _append(response, part, skip=start - begin, total=total)
    except (requests.ConnectionError, requests.Timeout) as error:
        raise _BrokenTransferError(f"no connection ({_reason(error)})") from error
    except requests.exceptions.ChunkedEncodingError as error:
        raise _BrokenTransferError("the connection broke off") from error
    except requests.exceptions.RequestException as error:
        raise DownloadError(f"{url}: {error}") from None
    if total is not None and _size(part) < total:
        raise _BrokenTransferError("the connection broke off")


def _append(response: "requests.Response", part: Path, *, skip: int, total: int | None) -> None:
    """Write a body to the end of ``part`` but for its first ``skip`` bytes, which are there."""
    from tqdm import tqdm

    start = _size(part)
    # a log file gets a line now and then, not ten a second
    pace = 0.1 if sys.stderr.isatty() else 30.0
    options: dict[str, Any] = {"unit": "B", "unit_scale": True, "mininterval": pace}
    label = part.name.removesuffix(".part")
    with (
        explain_full_disk(part, total or start),
        part.open("ab") as file,
        tqdm(total=total, initial=start, desc=label, **options) as bar,
    ):
        for chunk in response.iter_content(CHUNK):
            new = chunk[skip:]
            skip -= len(chunk) - len(new)
            file.write(new)
            bar.update(len(new))


def _refuse_errors(url: str, response: "requests.Response") -> None:
    answer = f"{response.status_code} {response.reason}"
    if response.status_code in (429, 500, 502, 503, 504):
        raise _BrokenTransferError(f"the server is busy ({answer})")
    if response.status_code >= 400:
        raise DownloadError(f"{url}: the server answers {answer}")


def _start_of_body(url: str, response: "requests.Response", wanted: int) -> int:
    """Where in the file the body begins: 0 unless the server honours the Range header."""
    if response.status_code != 206:
        return 0
    start = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
    if not start.isdecimal() or int(start) > wanted:
        raise DownloadError(f"{url}: the server answers with a range nobody asked for")
    return int(start)


def _reason(error: Exception) -> str:
    """The innermost cause, since the outer ones repeat the address and object names."""
    while isinstance(inner := error.__cause__ or error.__context__, Exception):
        error = inner
    return str(error)
