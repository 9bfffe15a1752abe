"""Archives come from the first mirror that has them, are unpacked and deleted."""

import hashlib
import io
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
from loguru import logger

from utils.data.datasets import DATASETS, REFCOCO
from utils.prepare import download, mirrors
from utils.prepare.mirrors import ARCHIVES, archive_path, bytes_to_fetch, obtain


def zipped(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file.getvalue()


CONTENT = zipped({"refcoco/instances.json": b"{}" * 1000, "refcoco/refs(unc).p": b"refs" * 1000})


@pytest.fixture
def log() -> Any:
    """The lines of the log."""
    lines: list[str] = []
    number = logger.add(lambda line: lines.append(str(line)), format="{message}")
    yield lines
    logger.remove(number)


@pytest.fixture
def published(server: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The server, with RefCOCO's archive at its second address of two."""
    server.files["/copy/refcoco.zip"] = CONTENT
    archive = ARCHIVES["refcoco"]._replace(
        size=len(CONTENT),
        unpacked=6000,
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        urls=tuple(f"{server.url}/{folder}/refcoco.zip" for folder in ("official", "copy")),
    )
    monkeypatch.setitem(mirrors.ARCHIVES, "refcoco", archive)
    return server


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_every_data_set_has_its_archives() -> None:
    for name in REFCOCO:
        facts = DATASETS[name]
        assert re.fullmatch(ARCHIVES[facts.folder].pattern, facts.refs)
        assert re.fullmatch(ARCHIVES[facts.folder].pattern, "instances.json")
        assert re.fullmatch(ARCHIVES[facts.images].pattern, "COCO_train2014_000000000009.jpg")
    for archive in ARCHIVES.values():
        assert re.fullmatch("[0-9a-f]{64}", archive.sha256) and archive.unpacked > archive.size
        assert len(set(archive.urls)) == len(archive.urls) >= 3
        assert all(
            re.match("https?://", url) and url.endswith(archive.name) for url in archive.urls
        )


def test_from_the_second_mirror_into_the_folder(
    published: Any, tmp_path: Path, log: list[str]
) -> None:
    assert bytes_to_fetch(tmp_path, "refcoco") == len(CONTENT)
    obtain(tmp_path, "refcoco", tmp_path / "refcoco")
    assert names(tmp_path) == ["refcoco/instances.json", "refcoco/refs(unc).p"]
    assert not (tmp_path / "downloads").exists()
    assert [path for path, _ in published.requests] == [
        "/official/refcoco.zip",
        "/copy/refcoco.zip",
    ]
    assert "404 Not Found" in log[1] and "refcoco.zip is deleted" in log[2]


def test_what_is_here_is_neither_fetched_nor_overwritten(
    published: Any, tmp_path: Path, log: list[str]
) -> None:
    path = archive_path(tmp_path, "refcoco")
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    (tmp_path / "refcoco").mkdir()
    (tmp_path / "refcoco/instances.json").write_bytes(b"mine")
    assert bytes_to_fetch(tmp_path, "refcoco") == 0
    obtain(tmp_path, "refcoco", tmp_path / "refcoco")
    assert published.requests == [] and not path.exists()
    assert (tmp_path / "refcoco/instances.json").read_bytes() == b"mine"
    assert (tmp_path / "refcoco/refs(unc).p").read_bytes() == b"refs" * 1000
    assert "1 that were there stay" in log[-1]


def test_a_part_counts_and_is_continued(published: Any, tmp_path: Path) -> None:
    part = Path(f"{archive_path(tmp_path, 'refcoco')}.part")
    part.parent.mkdir()
    part.write_bytes(CONTENT[:1000])
    assert bytes_to_fetch(tmp_path, "refcoco") == len(CONTENT) - 1000
    obtain(tmp_path, "refcoco", tmp_path / "refcoco")
    assert published.requests[-1] == ("/copy/refcoco.zip", "bytes=1000-")


def test_dead_mirrors_say_where_to_put_the_file(published: Any, tmp_path: Path) -> None:
    published.files.clear()
    with pytest.raises(ValueError, match="from any of 2 addresses") as caught:
        obtain(tmp_path, "refcoco", tmp_path / "refcoco")
    assert f"put it at {archive_path(tmp_path, 'refcoco')}" in str(caught.value)
    assert not (tmp_path / "refcoco").exists()


def test_a_broken_archive_put_there_by_hand_is_named(published: Any, tmp_path: Path) -> None:
    path = archive_path(tmp_path, "refcoco")
    path.parent.mkdir()
    path.write_bytes(CONTENT[:-10])
    with pytest.raises(ValueError, match=r"refcoco.zip is no zip archive that can be read"):
        obtain(tmp_path, "refcoco", tmp_path / "refcoco")
    assert path.exists() and not (tmp_path / "refcoco").exists()


def test_space_for_archive_and_content_is_checked_first(
    published: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: usage._replace(free=5000))
    with pytest.raises(ValueError, match=f"refcoco.zip and .*{len(CONTENT) + 6000:,} bytes"):
        obtain(tmp_path, "refcoco", tmp_path / "refcoco")
    assert published.requests == []
