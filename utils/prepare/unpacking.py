"""Zip archives: checked before anything is written, unpacked aside, then moved into place."""

import os
import re
import shutil
import stat
import zipfile
import zlib
from pathlib import Path

from utils.prepare.download import check_space, explain_full_disk

CHUNK = 1 << 20
ENCRYPTED = 1  # of a member's flags
# what zipfile raises for members that are damaged or compressed in a way it does not know
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError)


def unpack(
    archive: Path, folder: Path, pattern: str, *, shows_progress: bool = False
) -> tuple[int, int]:
    """Write the files of a zip archive whose own names match ``pattern`` into ``folder``.

    Folders of the archive are dropped, and no other file is written. What lies in ``folder``
    already stays as it is. Files come to a folder aside first, where a call that was interrupted
    is continued, and are moved at the end.

    Returns:
        how many files were written, and how many were there already.

    Raises:
        ValueError: the archive is damaged, names a path outside of its folder or a link, holds
            none of the files, or more than the disk has room for.
    """
    aside = part_folder(folder)
    try:
        with zipfile.ZipFile(archive) as opened:
            members = _members(archive, opened.infolist(), pattern)
            new = {name: info for name, info in members.items() if not (folder / name).exists()}
            _write(opened, new, aside, shows_progress=shows_progress)
    except _DAMAGE as error:
        raise ValueError(
            f"{archive} is no zip archive that can be read ({error}); delete it and fetch it again"
        ) from error
    _move(aside, folder, new)
    return len(new), len(members) - len(new)


def part_folder(folder: Path) -> Path:
    """The folder aside, which an interrupted call leaves."""
    return folder.with_name(f"{folder.name}.part")


def _members(
    archive: Path, infos: list[zipfile.ZipInfo], pattern: str
) -> dict[str, zipfile.ZipInfo]:
    """File name -> member, of those that are wanted; every member is checked."""
    members: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        _check_member(archive, info)
        parts = info.filename.replace("\\", "/").split("/")
        if parts[0] == "__MACOSX" or not re.fullmatch(pattern, parts[-1]):
            continue
        if parts[-1] in members:
            raise ValueError(
                f"{archive} holds two files named {parts[-1]} ({members[parts[-1]].filename} and "
                f"{info.filename}); unpack the right one by hand"
            )
        members[parts[-1]] = info
    if not members:
        raise ValueError(f"{archive} holds no file {pattern}; take it from another place")
    return members


def _check_member(archive: Path, info: zipfile.ZipInfo) -> None:
    name = info.filename.replace("\\", "/")
    kind = stat.S_IFMT(info.external_attr >> 16)
    fault = None
    if name.startswith("/") or re.match("[A-Za-z]:", name) or ".." in name.split("/"):
        fault = "a path outside of its folder"
    elif kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        fault = "a link or a device"
    elif info.flag_bits & ENCRYPTED:
        fault = "an encrypted file"
    if fault is not None:
        raise ValueError(
            f"{archive} holds {info.filename!r}, {fault}; nothing was unpacked, "
            "take the archive from another place"
        )


def _write(
    opened: zipfile.ZipFile, new: dict[str, zipfile.ZipInfo], aside: Path, *, shows_progress: bool
) -> None:
    """Write members to the folder aside, but for those that an earlier call wrote whole."""
    from tqdm import tqdm

    archive = Path(opened.filename or "")
    total, there = sum(info.file_size for info in new.values()), 0
    for path in aside.iterdir() if aside.is_dir() else ():
        if path.name in new:
            there += path.stat().st_size
        else:
            path.unlink()  # of another archive
    check_space(aside, total - there, f"what {archive.name} holds")
    aside.mkdir(parents=True, exist_ok=True)
    with (
        explain_full_disk(aside, total),
        tqdm(total=total, unit="B", unit_scale=True, disable=not shows_progress) as bar,
    ):
        bar.set_description(f"unpacking {archive.name}")
        for name, info in new.items():
            if not _is_written(aside / name, info):
                with opened.open(info) as source, (aside / name).open("wb") as file:
                    shutil.copyfileobj(source, file, CHUNK)
            bar.update(info.file_size)


def _is_written(path: Path, info: zipfile.ZipInfo) -> bool:
    if not path.exists() or path.stat().st_size != info.file_size:
        return False
    return _crc(path) == info.CRC


def _crc(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            checksum = zlib.crc32(chunk, checksum)
    return checksum


def _move(aside: Path, folder: Path, new: dict[str, zipfile.ZipInfo]) -> None:
    if not folder.exists():
        os.replace(aside, folder)  # at once, so that a folder that exists is complete
        return
    for name in new:
        os.replace(aside / name, folder / name)
    aside.rmdir()
