"""Unpacking: what is wanted, nothing else, nowhere else, and nothing that is there is lost."""

import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest

from utils.prepare import download
from utils.prepare.unpacking import unpack

PATTERN = r"refs\(\w+\)\.p|instances\.json"
FILES = {"refcoco/instances.json": b"{}" * 5000, "refcoco/refs(unc).p": bytes(range(256)) * 40}


def write_zip(path: Path, members: dict[Any, bytes], **options: Any) -> Path:
    """A zip archive; the keys are names or ``ZipInfo``."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content, **options)
    return path


def tree(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    others = {
        "refcoco/refs(google).p": b"google",
        "refcoco/": b"",
        "refcoco/read me.txt": b"hello",
        "refcoco/.DS_Store": b"mac",
        "__MACOSX/refcoco/._instances.json": b"mac",
        "__MACOSX/refcoco/instances.json": b"mac",
    }
    return write_zip(tmp_path / "refcoco.zip", FILES | others)


def test_only_what_is_wanted_is_written(archive: Path, tmp_path: Path) -> None:
    target = tmp_path / "data" / "refcoco"
    assert unpack(archive, target, PATTERN) == (3, 0)
    expected = {Path(name).name: content for name, content in FILES.items()}
    assert tree(tmp_path / "data") == {
        f"refcoco/{name}": content for name, content in expected.items()
    } | {"refcoco/refs(google).p": b"google"}
    assert archive.exists()


def test_what_is_there_stays(archive: Path, tmp_path: Path) -> None:
    target = tmp_path / "refcoco"
    target.mkdir()
    (target / "instances.json").write_bytes(b"mine")
    (target / "notes.txt").write_bytes(b"mine too")
    assert unpack(archive, target, PATTERN) == (2, 1)
    assert tree(target) == {
        "instances.json": b"mine",
        "notes.txt": b"mine too",
        "refs(unc).p": FILES["refcoco/refs(unc).p"],
        "refs(google).p": b"google",
    }
    assert unpack(archive, target, PATTERN) == (0, 3)
    assert not (tmp_path / "refcoco.part").exists()


def test_an_interrupted_call_is_continued(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied: list[str] = []

    def copy(source: Any, file: Any, length: int) -> None:
        if len(copied) == 1:
            file.write(b"half")
            raise KeyboardInterrupt
        copied.append(source.name)
        file.write(source.read())

    target = tmp_path / "refcoco"
    monkeypatch.setattr(shutil, "copyfileobj", copy)
    with pytest.raises(KeyboardInterrupt):
        unpack(archive, target, PATTERN)
    assert not target.exists(), "a folder that exists is complete"
    (tmp_path / "refcoco.part" / "left by another archive").write_bytes(b"x")
    copied[:] = ["", ""]
    assert unpack(archive, target, PATTERN) == (3, 0)
    assert len(copied) == 2 + 2, "what was whole is not written again"
    assert set(tree(tmp_path)) == {
        "refcoco.zip", *(f"refcoco/{Path(name).name}" for name in FILES), "refcoco/refs(google).p"
    }  # fmt: skip


def link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, 0o120777 << 16
    return info


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("/etc/instances.json", "a path outside of its folder"),
        ("../instances.json", "a path outside of its folder"),
        ("refcoco/../../instances.json", "a path outside of its folder"),
        ("..\\instances.json", "a path outside of its folder"),
        ("C:\\instances.json", "a path outside of its folder"),
        ("c:instances.json", "a path outside of its folder"),
        ("\\\\server\\instances.json", "a path outside of its folder"),
        (link("refcoco/instances.json"), "a link or a device"),
        (link("refcoco/elsewhere"), "a link or a device"),
    ],
    ids=str,
)
def test_evil_members_are_refused_before_anything_is_written(
    tmp_path: Path, name: Any, fault: str
) -> None:
    evil = write_zip(tmp_path / "evil.zip", {"refcoco/refs(unc).p": b"good", name: b"evil"})
    before = tree(tmp_path)
    with pytest.raises(ValueError, match=f"evil.zip holds .*, {fault}; nothing was unpacked"):
        unpack(evil, tmp_path / "deep" / "refcoco", PATTERN)
    assert tree(tmp_path) == before


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    names = {"refcoco/instances.json": b"a", "refcoco+/instances.json": b"b"}
    path = write_zip(tmp_path / "all.zip", names)
    with pytest.raises(
        ValueError, match=r"two files named instances.json \(refcoco/inst.* by hand"
    ):
        unpack(path, tmp_path / "refcoco", PATTERN)


def test_an_archive_of_something_else_is_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "other.zip", {"refcoco.py": b"a"})
    with pytest.raises(ValueError, match=r"other.zip holds no file refs"):
        unpack(path, tmp_path / "refcoco", PATTERN)


def test_damage_is_named(archive: Path, tmp_path: Path) -> None:
    content = archive.read_bytes()
    start = content.index(b"instances.json") + 20
    damaged = content[:start] + bytes(8) + content[start + 8 :]
    for name, data in {"cut": content[:-30], "page": b"<html>", "damaged": damaged}.items():
        path = tmp_path / f"{name}.zip"
        path.write_bytes(data)
        with pytest.raises(ValueError, match=rf"{name}.zip is no zip archive that can be read"):
            unpack(path, tmp_path / "target", PATTERN)
        assert not (tmp_path / "target").exists()


def test_an_encrypted_archive_is_refused(archive: Path, tmp_path: Path) -> None:
    content = bytearray(archive.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(content)
    with pytest.raises(ValueError, match="an encrypted file"):
        unpack(archive, tmp_path / "target", PATTERN)


def test_a_bomb_is_measured_before_it_goes_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bomb = write_zip(tmp_path / "bomb.zip", {"instances.json": bytes(50_000_000)})
    assert bomb.stat().st_size < 100_000
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: usage._replace(free=50_000_000))
    with pytest.raises(ValueError, match=r"what bomb.zip holds: 50,000,000 bytes are needed"):
        unpack(bomb, tmp_path / "target", PATTERN)
    assert list(tmp_path.iterdir()) == [bomb]


def test_a_member_that_is_larger_than_it_says_is_damage(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "lie.zip", {"instances.json": bytes(1000)})
    content = bytearray(path.read_bytes())
    size = content.rindex((1000).to_bytes(4, "little"))  # in the directory at the end
    content[size : size + 4] = (10).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(ValueError, match="no zip archive that can be read"):
        unpack(path, tmp_path / "target", PATTERN)
    written = tree(tmp_path).items()
    assert all(len(data) <= 10 for name, data in written if "target" in name)
