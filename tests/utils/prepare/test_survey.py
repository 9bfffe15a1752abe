"""What is missing, and how many bytes it will take to have and to pack it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from utils.data.store import store_path
from utils.prepare import survey
from utils.prepare.mirrors import ARCHIVES, COCO
from utils.prepare.survey import Item, bytes_to_write, examine, missing_folders

NAME = "COCO_train2014_{:012d}.jpg"


def write(path: Path, size: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(size)  # of any size without its bytes
    return path


@pytest.fixture
def items(tmp_path: Path) -> Callable[..., list[Item]]:
    """``items("refcoco", packed=["refcoco+"])``: as if these were to be packed, or are packed."""

    def items(*names: str, packed: Any = ()) -> list[Item]:
        found = [Item(examine(tmp_path, name, force=True).source, None) for name in names]
        headers: list[dict[str, Any]] = [{} for _ in packed]
        sources = [examine(tmp_path, name, force=True).source for name in packed]
        for name in packed:
            write(store_path(tmp_path, name), 5)
            write(store_path(tmp_path, "coco-images"), 1_000_000)
        return found + [Item(*pair) for pair in zip(sources, headers, strict=True)]

    return items


def test_what_is_packed_misses_nothing(tmp_path: Path, items: Callable) -> None:
    packed = items(packed=["refcoco", "refcocog_u"])
    assert missing_folders(tmp_path, packed, force=False) == {}
    assert bytes_to_write(tmp_path, packed, [], force=False) == 0


def test_missing_files_are_listed_by_archive(tmp_path: Path, items: Callable) -> None:
    write(tmp_path / "refcocog/refs(umd).p")
    chosen = items("refcocog_u", "refcocog_g", "refcoco")
    missing = missing_folders(tmp_path, chosen, force=False)
    assert missing == {
        "refcocog": [tmp_path / "refcocog" / name for name in ("instances.json", "refs(google).p")],
        "refcoco": [tmp_path / "refcoco" / name for name in ("refs(unc).p", "instances.json")],
        COCO: [tmp_path / COCO],
    }
    assert list(missing)[-1] == COCO, "the largest comes last"
    write(tmp_path / "train2014" / NAME.format(1))
    assert COCO not in missing_folders(tmp_path, items("refcoco"), force=False)


def test_images_may_be_packed_already(tmp_path: Path, items: Callable) -> None:
    chosen = items("refcoco+", packed=["refcoco"])
    assert COCO not in missing_folders(tmp_path, chosen, force=False)
    assert COCO in missing_folders(tmp_path, chosen, force=True)


def test_all_of_it_needs_the_archive_beside_its_images(tmp_path: Path, items: Callable) -> None:
    chosen = items("refcoco", "refcoco+", "refcocog_u", "refcocog_g")
    folders = list(missing_folders(tmp_path, chosen, force=False))
    needed = bytes_to_write(tmp_path, chosen, folders, force=False)
    unpacked = sum(archive.unpacked for archive in ARCHIVES.values())
    assert needed == unpacked + ARCHIVES[COCO].size
    part = write(tmp_path / "downloads/train2014.zip.part", 10**10)
    assert bytes_to_write(tmp_path, chosen, folders, force=False) < needed - 5 * 10**9
    write(part.with_suffix(""), ARCHIVES[COCO].size)
    write(tmp_path / "images/train2014.part" / NAME.format(1), 10**10)
    least = unpacked - 10**10 + 6 * 10**9
    assert least < bytes_to_write(tmp_path, chosen, folders, force=False) < least + 2 * 10**9


def test_packing_counts_each_image_once(tmp_path: Path, items: Callable) -> None:
    one = bytes_to_write(tmp_path, items("refcoco"), [], force=False)
    assert 3.2e9 < one < 3.5e9, "19,994 photographs"
    both = bytes_to_write(tmp_path, items("refcoco", "refcoco+"), [], force=False)
    assert one < both < one + 1e8, "they are on the same images"
    g_ref = bytes_to_write(tmp_path, items("refcocog_u", "refcocog_g"), [], force=False)
    assert 4.2e9 < g_ref < 4.5e9, "25,799 photographs"
    later = bytes_to_write(tmp_path, items("refcoco+", packed=["refcoco"]), [], force=False)
    assert later < 1e8
    added = bytes_to_write(tmp_path, items("refcocog_u", packed=["refcoco"]), [], force=False)
    assert added > g_ref - 1e8


def test_a_few_small_images_need_little_and_a_part_less(tmp_path: Path, items: Callable) -> None:
    for number in range(10):
        write(tmp_path / "train2014" / NAME.format(number), 1_000_000)
    chosen = items("refcoco")
    needed = bytes_to_write(tmp_path, chosen, [], force=False)
    assert needed == 10_000_000 + 50_000 * survey.RECORD_BYTES
    write(Path(f"{store_path(tmp_path, 'coco-images')}.part"), 7_000_000)
    assert bytes_to_write(tmp_path, chosen, [], force=False) == needed - 7_000_000
    assert bytes_to_write(tmp_path, chosen, [], force=True) == needed
