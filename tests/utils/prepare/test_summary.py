"""The table and the notes at the end."""

from pathlib import Path
from typing import Any

import pytest

from utils.data.store import store_path
from utils.prepare.summary import summarise


@pytest.fixture
def header(tmp_path: Path) -> dict[str, Any]:
    """Of a data set as it is published; its stores are a few bytes."""
    for name, size in (("refcocog_g", 1234), ("coco-images", 5678)):
        store_path(tmp_path, name).parent.mkdir(exist_ok=True)
        store_path(tmp_path, name).write_bytes(bytes(size))
    train = {"refs": 44822, "sentences": 85474, "images": 24698, "bytes": 4 * 10**9}
    train |= {
        "over_17": 3210,
        "over_22": 765,
        "seconds": 61.26,
        "empty_masks": 2,
        "empty_sentences": 3,
    }
    val = {"refs": 5000, "sentences": 9536, "images": 4650, "bytes": 7 * 10**8}
    val |= {"over_17": 43, "over_22": 21, "seconds": 0.04, "empty_masks": 1, "empty_sentences": 0}
    return {
        "dataset": "refcocog_g",
        "images": "coco-images",
        "splits": {"train": train, "val": val},
        "skipped": {"images": [], "refs": 0},
        "differences": [],
        "shared_images": {"train val": 3549},
    }


def test_a_row_a_split_and_what_is_unusual(tmp_path: Path, header: dict[str, Any]) -> None:
    lines = summarise(tmp_path, [header, header]).splitlines()
    rows = [line.split() for line in lines]
    train = "refcocog_g train 44,822 85,474 24,698 4,000,000,000 3,210 765 61.3"
    assert train.split() in rows
    assert [
        "refcocog_g",
        "val",
        "5,000",
        "9,536",
        "4,650",
        "700,000,000",
        "43",
        "21",
        "0.0",
    ] in rows
    title = next(line for line in lines if "data set" in line)
    row = next(line for line in lines if line.split() == train.split())
    for name, number in (("expressions", "85,474"), (">17 tokens", "3,210"), (">22 tokens", "765")):
        assert title.index(name) + len(name) == row.index(number) + len(number)
    assert "refcocog_g: references and expressions of every split are as many as published" in lines
    assert "refcocog_g: 2 masks of train are empty, left out of training" in lines
    assert "refcocog_g: 1 masks of val are empty" in lines
    assert "refcocog_g: 3 expressions of train have no words" in lines
    assert not any("of val have no words" in line for line in lines)
    assert "refcocog_g: train and val share 3,549 images" in lines
    assert [line for line in lines if "bytes" in line and ".lmdb" in line] == [
        f"{store_path(tmp_path, 'refcocog_g')}: 1,234 bytes",
        f"{store_path(tmp_path, 'coco-images')}: 5,678 bytes",
    ]


def test_skipped_images_and_differences(tmp_path: Path, header: dict[str, Any]) -> None:
    header["skipped"] = {"images": [f"{number}.jpg" for number in range(1234)], "refs": 3000}
    header["differences"] = ["train has 1 reference", "val has 2"]
    shown = summarise(tmp_path, [header])
    skipped = "1,234 images were skipped with 3,000 references: 0.jpg, 1.jpg"
    assert skipped in shown and "9.jpg and 1,224 more" in shown and "10.jpg" not in shown
    assert "accepted, not as published: train has 1 reference; val has 2" in shown
    assert "as many as published" not in shown
