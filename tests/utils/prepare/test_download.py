"""Downloads from a server on the loopback, broken off or wrong, and zip archives."""

import errno
import hashlib
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from loguru import logger

from utils.prepare.download import (
    CHUNK,
    DownloadError,
    check_space,
    download,
    download_from_any,
    unpack,
)

CONTENT = bytes(range(256)) * 4096  # 1 MiB
SIZE = len(CONTENT)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
PATTERN = r"refs\(\w+\)\.p|instances\.json"
FILES = {"instances.json": b"{}" * 5000, "refs(unc).p": bytes(range(256)) * 40}


@pytest.fixture
def get(server: Any, tmp_path: Path) -> Callable[..., Path]:
    """``get("cut", "range")``: downloads with this plan, knowing SHA-256 and size."""
    server.files["/file"] = CONTENT

    def get(*plan: str, **options: Any) -> Path:
        server.plan["/file"] = list(plan or ["range"])
        path = tmp_path / "file"
        download(f"{server.url}/file", path, **{"sha256": SHA256, "size": SIZE} | options)
        return path

    return get


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """``disk(1000)``: as if so many bytes were free."""

    def set_free(free: int) -> None:
        usage = shutil.disk_usage("/")._replace(free=free)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)

    return set_free


def ranges(server: Any) -> list[str | None]:
    return [wanted for _, wanted in server.requests]


@pytest.mark.parametrize("size", [SIZE, None])
@pytest.mark.parametrize("last", ["range", "no range", "overlap"])
def test_a_cut_is_taken_up_where_it_was(
    get: Callable, server: Any, last: str, size: int | None
) -> None:
    path = get("cut", "503", last, size=size)
    assert path.read_bytes() == CONTENT and list(path.parent.iterdir()) == [path]
    assert ranges(server) == [None, *2 * [f"bytes={SIZE // 2}-"]]


def test_the_next_call_goes_on(get: Callable, server: Any, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=f"file.part keeps {SIZE // 2:,} bytes"):
        get("cut", retries=0)
    assert not (tmp_path / "file").exists()
    assert get("range").read_bytes() == CONTENT
    assert ranges(server)[-1] == f"bytes={SIZE // 2}-"


def test_what_is_complete_already_is_only_verified(
    get: Callable, server: Any, tmp_path: Path
) -> None:
    (tmp_path / "file.part").write_bytes(CONTENT)
    assert get("404").read_bytes() == CONTENT and server.requests == []


def test_redirects_are_followed_and_keep_the_range(
    get: Callable, server: Any, tmp_path: Path
) -> None:
    server.files["/moved"] = CONTENT
    (tmp_path / "file.part").write_bytes(CONTENT[:1000])
    assert get("to /moved").read_bytes() == CONTENT
    assert server.requests == [("/file", "bytes=1000-"), ("/moved", "bytes=1000-")]


@pytest.mark.parametrize("left", [b"", b"stale", CONTENT + b"too long", b"x" * SIZE])
@pytest.mark.parametrize("size", [SIZE, None])
def test_a_wrong_part_is_fetched_anew_and_a_wrong_file_thrown_away(
    get: Callable, tmp_path: Path, left: bytes, size: int | None
) -> None:
    part = tmp_path / "file.part"
    part.write_bytes(left)
    with pytest.raises(DownloadError, match=SHA256):
        get("wrong", size=size)
    assert list(tmp_path.iterdir()) == []
    part.write_bytes(left)
    assert get("range", size=size).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("step", "named"),
    [("404", "404 Not Found"), ("page", "21 bytes .*1,048,576"), ("502", "502 Bad Gateway")],
)
def test_what_an_address_answers_instead_never_harms_the_part(
    get: Callable, server: Any, tmp_path: Path, step: str, named: str
) -> None:
    (tmp_path / "file.part").write_bytes(CONTENT[:1000])
    with pytest.raises(DownloadError, match=f"/file: .*{named}"):
        get(step)
    assert (tmp_path / "file.part").read_bytes() == CONTENT[:1000]
    assert len(server.requests) <= 2, "an address that sent nothing is not worth waiting for"


def test_a_file_that_ends_before_the_part_is_another_one(
    get: Callable, server: Any, tmp_path: Path
) -> None:
    (tmp_path / "file.part").write_bytes(CONTENT[:1000])
    server.files["/file"] = CONTENT[:500]
    with pytest.raises(DownloadError, match=r"1,000 bytes .*1,048,576"):
        get("range")
    assert (tmp_path / "file.part").exists()


def test_addresses_are_tried_in_turn(server: Any, tmp_path: Path) -> None:
    log: list[str] = []
    number = logger.add(lambda line: log.append(str(line)), format="{message}")
    server.files |= dict.fromkeys(("/gone", "/busy", "/wrong", "/good", "/unused"), CONTENT)
    server.plan = {"/gone": ["404"], "/busy": ["cut", "503"], "/wrong": ["wrong"]}
    urls = [f"{server.url}{path}" for path in server.files]
    download_from_any(
        ["http://127.0.0.1:1/file", *urls], tmp_path / "file", sha256=SHA256, size=SIZE
    )
    logger.remove(number)
    assert (tmp_path / "file").read_bytes() == CONTENT
    paths = [path for path, _ in server.requests]
    assert paths.index("/gone") < paths.index("/busy") < paths.index("/wrong")
    assert server.requests[paths.index("/wrong")][1] == f"bytes={SIZE // 2}-", "goes on elsewhere"
    assert paths[-1] == "/good" and "/unused" not in paths
    reasons = ["no connection", "404 Not Found", "busy", "SHA-256"]
    assert [reason in line for reason, line in zip(reasons, log, strict=True)] == 4 * [True]
    assert "5 other addresses to try" in log[0] and "2 other addresses to try" in log[3]


def test_the_last_dead_address_lists_them_all(server: Any, tmp_path: Path) -> None:
    path = tmp_path / "downloads" / "file"
    urls = [f"{server.url}/none", "http://127.0.0.1:1/file", "nowhere/file"]
    with pytest.raises(ValueError) as caught:
        download_from_any(urls, path, sha256=SHA256, size=SIZE)
    text = str(caught.value)
    assert all(url in text for url in urls) and "\n" not in text
    assert "404 Not Found" in text and "Connection refused" in text and "No scheme" in text
    assert f"by hand and put it at {path}" in text


def test_space_is_checked_before_the_first_byte(
    get: Callable, tmp_path: Path, disk: Callable[[int], None]
) -> None:
    disk(SIZE)
    with pytest.raises(ValueError, match="1,048,576 bytes are needed") as caught:
        get()
    assert not isinstance(caught.value, DownloadError), "another address would not help"
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="all of it"):
        check_space(tmp_path / "some" / "new", SIZE, "all of it")


def test_a_disk_that_runs_full_keeps_the_part(
    get: Callable, server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tqdm.tqdm.update", fail)
    with pytest.raises(ValueError, match=r"file\.part: no space left") as caught:
        get()
    assert not isinstance(caught.value, DownloadError) and len(server.requests) == 1
    assert (tmp_path / "file.part").read_bytes() == CONTENT[:CHUNK]


def write_zip(path: Path, members: dict[Any, bytes]) -> Path:
    """A zip archive; the keys are names or ``ZipInfo``."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def tree(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """An archive of ``FILES`` and of files that nobody needs."""
    others = dict.fromkeys(
        ["refcoco/read me.txt", "refcoco/.DS_Store", "__MACOSX/refcoco/instances.json"], b"other"
    )
    wanted = {f"refcoco/{name}": content for name, content in FILES.items()}
    return write_zip(tmp_path / "refcoco.zip", {"refcoco/": b"", **others, **wanted})


def test_only_new_files_that_are_wanted_are_unpacked(archive: Path, tmp_path: Path) -> None:
    target = tmp_path / "data" / "refcoco"
    assert unpack(archive, target, PATTERN) == (2, 0)
    assert tree(target) == FILES and archive.exists()
    (target / "instances.json").write_bytes(b"mine")
    (target / "refs(unc).p").unlink()
    assert unpack(archive, target, PATTERN) == (1, 1)
    assert tree(target) == FILES | {"instances.json": b"mine"}
    assert unpack(archive, target, PATTERN) == (0, 2)


def test_an_interrupted_call_is_continued(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = []

    def copy(source: Any, file: Any) -> None:
        file.write(source.read() if not copied else b"half")
        if copied:
            raise KeyboardInterrupt
        copied.append(source.name)

    target = tmp_path / "refcoco"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "copyfileobj", copy)
        unpack(archive, target, PATTERN)
    assert not target.exists(), "a folder that exists is complete"
    assert unpack(archive, target, PATTERN) == (1, 1) and tree(target) == FILES
    assert sorted(path.name for path in tmp_path.iterdir()) == ["refcoco", "refcoco.zip"]


def link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, 0o120777 << 16
    return info


@pytest.mark.parametrize(
    "name",
    [
        "/etc/instances.json", "../instances.json", "a/../../instances.json", "..\\instances.json",
        "C:\\instances.json", "\\\\server\\instances.json", link("a/instances.json"),
    ],
    ids=str,
)  # fmt: skip
def test_no_member_is_written_outside_of_the_folder(tmp_path: Path, name: Any) -> None:
    evil = write_zip(tmp_path / "evil.zip", {name: b"evil"})
    target = tmp_path / "deep" / "refcoco"
    unpack(evil, target, PATTERN)
    assert tree(target) == {"instances.json": b"evil"}
    assert not (target / "instances.json").is_symlink()
    assert sorted(tree(tmp_path)) == ["deep/refcoco/instances.json", "evil.zip"]


@pytest.mark.parametrize(
    ("names", "named"),
    [
        (["refcoco/instances.json", "refcoco+/instances.json"], "refcoco/.* and refcoco\\+/"),
        (["refcoco.py"], "refs"),
        (["a/c:instances.json"], "refs"),
    ],
)
def test_archives_of_something_else_are_refused(
    tmp_path: Path, names: list[str], named: str
) -> None:
    path = write_zip(tmp_path / "other.zip", dict.fromkeys(names, b"a"))
    with pytest.raises(ValueError, match=rf"other\.zip holds .*{named}"):
        unpack(path, tmp_path / "refcoco", PATTERN)
    assert not (tmp_path / "refcoco").exists()


@pytest.mark.parametrize("damage", ["cut", "page", "damaged", "encrypted", "longer"])
def test_damage_is_named(archive: Path, tmp_path: Path, damage: str) -> None:
    content = bytearray(archive.read_bytes())
    start = content.index(b"instances.json", content.index(b"MACOSX") + 30) + 20
    size = content.rindex((10_000).to_bytes(4, "little"))  # in the directory at the end
    if damage == "cut":
        content = content[:-30]
    elif damage == "page":
        content = bytearray(b"<html>")
    elif damage == "damaged":
        content[start : start + 8] = bytes(8)
    elif damage == "encrypted":
        for place in range(len(content)):
            if content[place : place + 4] == b"PK\x01\x02":
                content[place + 8] |= 1
    else:
        content[size : size + 4] = (10).to_bytes(4, "little")
    archive.write_bytes(content)
    with pytest.raises(ValueError, match=r"refcoco\.zip is no zip archive that can be read"):
        unpack(archive, tmp_path / "target", PATTERN)
    written = tree(tmp_path / "target.part") if (tmp_path / "target.part").exists() else {}
    assert "instances.json" not in written and not (tmp_path / "target").exists()
    assert all(len(data) <= 10_000 for data in written.values())


def test_a_bomb_is_measured_before_it_goes_off(tmp_path: Path, disk: Callable[[int], None]) -> None:
    bomb = write_zip(tmp_path / "bomb.zip", {"instances.json": bytes(50_000_000)})
    disk(50_000_000)
    with pytest.raises(ValueError, match=r"bomb\.zip holds: 50,000,000 bytes"):
        unpack(bomb, tmp_path / "target", PATTERN)
    assert list(tmp_path.iterdir()) == [bomb]
