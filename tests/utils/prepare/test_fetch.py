"""Archives come from the first address that has them; tables say what is missing and packed."""

import hashlib
import io
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest

from utils.data.datasets import DATASETS, REFCOCO
from utils.data.store import store_path
from utils.prepare import fetch
from utils.prepare.fetch import (
    ARCHIVES,
    COCO,
    Job,
    archive_path,
    bytes_to_fetch,
    missing_files,
    obtain,
    summarise,
)
from utils.prepare.refer import refer_source

NAME = "COCO_train2014_000000000009.jpg"
FILES = {"instances.json": b"{}" * 1000, "refs(unc).p": b"refs" * 1000}


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in FILES.items():
            archive.writestr(f"refcoco/{name}", content)
    return file.getvalue()


CONTENT = zipped()


@pytest.fixture
def published(server: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The server, with RefCOCO's archive at its second address of two."""
    server.files["/copy/refcoco.zip"] = CONTENT
    archive = ARCHIVES["refcoco"]._replace(
        size=len(CONTENT),
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        urls=tuple(f"{server.url}/{folder}/refcoco.zip" for folder in ("official", "copy")),
    )
    monkeypatch.setitem(fetch.ARCHIVES, "refcoco", archive)
    return server


def write(path: Path, content: bytes = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def tree(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def jobs(root: Path, *names: str) -> list[Job]:
    return [Job(refer_source(root, name), None) for name in names]


def test_every_data_set_has_its_archives() -> None:
    for name in REFCOCO:
        facts = DATASETS[name]
        assert re.fullmatch(ARCHIVES[facts.folder].pattern, facts.refs)
        assert re.fullmatch(ARCHIVES[facts.folder].pattern, "instances.json")
        assert re.fullmatch(ARCHIVES[facts.images].pattern, NAME)
    for archive in ARCHIVES.values():
        assert re.fullmatch("[0-9a-f]{64}", archive.sha256)
        assert len(set(archive.urls)) == len(archive.urls) >= 3
        for url in archive.urls:
            assert re.match("https?://", url) and url.endswith(archive.name)


def test_an_archive_that_is_there_is_not_downloaded(published: Any, tmp_path: Path) -> None:
    path = write(archive_path(tmp_path, "refcoco"), CONTENT)
    write(tmp_path / "refcoco/instances.json", b"mine")
    assert bytes_to_fetch(tmp_path, "refcoco") == 0
    obtain(tmp_path, "refcoco", tmp_path / "refcoco")
    assert published.requests == [] and not path.exists()
    assert tree(tmp_path / "refcoco") == FILES | {"instances.json": b"mine"}


def test_a_part_counts_and_is_resumed(published: Any, tmp_path: Path) -> None:
    write(Path(f"{archive_path(tmp_path, 'refcoco')}.part"), CONTENT[:1000])
    assert bytes_to_fetch(tmp_path, "refcoco") == len(CONTENT) - 1000
    obtain(tmp_path, "refcoco", tmp_path / "refcoco")
    assert published.requests[-1] == ("/copy/refcoco.zip", "bytes=1000-")
    assert tree(tmp_path) == FILES, "the archive is deleted"


def test_space_for_archive_and_content_is_checked_first(
    published: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=len(CONTENT))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ValueError, match=rf"refcoco\.zip and .*{2 * len(CONTENT):,} bytes"):
        obtain(tmp_path, "refcoco", tmp_path / "refcoco")
    assert published.requests == []


def test_missing_files_are_listed_by_archive(tmp_path: Path) -> None:
    write(tmp_path / "refcocog/refs(umd).p")
    chosen = jobs(tmp_path, "refcocog_u", "refcocog_g", "refcoco")
    missing = missing_files(tmp_path, chosen, force=False)
    assert missing == {
        "refcocog": [tmp_path / "refcocog" / name for name in ("instances.json", "refs(google).p")],
        "refcoco": [tmp_path / "refcoco" / name for name in ("refs(unc).p", "instances.json")],
        COCO: [tmp_path / COCO],
    }
    assert list(missing)[-1] == COCO, "the largest comes last"
    packed = [job._replace(header={}) for job in chosen]
    assert missing_files(tmp_path, packed, force=False) == {}
    write(tmp_path / "train2014" / NAME)
    assert COCO not in missing_files(tmp_path, jobs(tmp_path, "refcoco"), force=False)


def test_images_may_be_packed_already(tmp_path: Path) -> None:
    write(store_path(tmp_path, "coco-images"))
    chosen = jobs(tmp_path, "refcoco+")
    assert COCO not in missing_files(tmp_path, chosen, force=False)
    assert COCO in missing_files(tmp_path, chosen, force=True)


@pytest.fixture
def header(tmp_path: Path) -> dict[str, Any]:
    """The header of a data set as it is published; its stores are a few bytes."""
    write(store_path(tmp_path, "refcocog_g"), bytes(1234))
    write(store_path(tmp_path, "coco-images"), bytes(5678))
    train = {"refs": 44822, "sentences": 85474, "images": 24698, "bytes": 4 * 10**9}
    train |= {"over_17": 3210, "over_22": 765, "seconds": 61.26}
    val = {"refs": 5000, "sentences": 9536, "images": 4650, "bytes": 7 * 10**8}
    val |= {"over_17": 43, "over_22": 21, "seconds": 0.04}
    return {
        "dataset": "refcocog_g",
        "images": "coco-images",
        "splits": {
            "train": train | {"empty_masks": 2, "empty_sentences": 3},
            "val": val | {"empty_masks": 1, "empty_sentences": 0},
        },
        "skipped": {"images": [], "refs": 0},
        "differences": [],
        "shared_images": {"train val": 3549},
    }


def test_the_summary_has_a_row_for_each_split_and_notes(tmp_path: Path, header: Any) -> None:
    lines = summarise(tmp_path, [header]).splitlines()
    rows = [" ".join(line.split()) for line in lines]
    train = "refcocog_g train 44,822 85,474 24,698 4,000,000,000 3,210 765 61.3"
    assert "refcocog_g val 5,000 9,536 4,650 700,000,000 43 21 0.0" in rows
    title, row = lines[1], lines[rows.index(train)]
    for name, number in (("expressions", "85,474"), (">17 tokens", "3,210"), (">22 tokens", "765")):
        assert title.index(name) + len(name) == row.index(number) + len(number)
    notes = "\n".join(lines[4:])
    for words in (
        "as published", "2 masks of train are empty, excluded from training",
        "1 masks of val are empty\n", "3 expressions of train have no words",
        "train and val share 3,549 images", "refcocog_g.lmdb, 1,234 bytes",
        "coco-images.lmdb, 5,678 bytes",
    ):  # fmt: skip
        assert notes.count(words) == 1
    assert "expressions of val have no words" not in notes


def test_the_summary_names_skipped_images_and_differences(tmp_path: Path, header: Any) -> None:
    header["skipped"] = {"images": [f"{number}.jpg" for number in range(1234)], "refs": 3000}
    header["differences"] = ["train has 1 reference", "val has 2"]
    shown = summarise(tmp_path, [header])
    skipped = "1,234 images were skipped with 3,000 references: 0.jpg, 1.jpg"
    assert skipped in shown and "9.jpg and 1,224 more" in shown and "10.jpg" not in shown
    assert "not as published: train has 1 reference; val has 2" in shown
    assert "as many" not in shown
