"""The command that looks at a packed data set: its numbers, its sheet, its mistakes."""

import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tools.inspect_dataset import (
    OUTLINE,
    RING,
    SIDE,
    Reference,
    contains_words,
    draw_sheet,
    main,
    split_statistics,
    words_of,
)
from utils.data.store import ReferStore
from utils.demo.writer import run_lengths
from utils.prepare.annotations import Entry, Source
from utils.prepare.pack import pack_dataset

# image, box of the mask in an image of 20 x 10 pixels, category, sentences
OBJECTS = [
    ("a.jpg", (0, 0, 10, 10), 1, ["the LEFT man", "left"]),
    ("a.jpg", (10, 0, 20, 10), 1, ["man's left hand, on the right of it", "a leftover"]),
    ("b.jpg", (0, 0, 2, 1), 7, ["red red red t-shirt"]),
    ("b.jpg", (0, 0, 0, 0), 7, ["nothing at all"]),
]


def entry(position: int) -> Entry:
    name, (left, top, right, bottom), category, sentences = OBJECTS[position]
    record: dict[str, Any] = {
        "ref_id": position, "ann_id": position, "image_id": int(name == "b.jpg"),
        "category_id": category, "split": "val", "file_name": name, "height": 10, "width": 20,
        "sentences": [[10 * position + number, text] for number, text in enumerate(sentences)],
    }  # fmt: skip
    mask = mask_of(slice(top, bottom), slice(left, right), (10, 20))
    return Entry(record, run_lengths(mask), f"object {position}")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with a packed data set of ``OBJECTS``."""
    root = tmp_path_factory.mktemp("known")
    for name in ("a.jpg", "b.jpg"):
        cv2.imwrite(str(root / name), np.full((10, 20, 3), 99, np.uint8))
    (root / "list.txt").write_text("known")
    source = Source(
        dataset="known",
        files=(root / "list.txt",),
        images=root,
        image_store="known-images",
        splits=("train", "val"),
        read=lambda: [entry(position) for position in range(len(OBJECTS))],
        published={},
        shares_images=True,
    )
    pack_dataset(root, source)
    return root


@pytest.fixture
def store(root: Path) -> ReferStore:
    return ReferStore(root, "known")


def test_all_of_a_split(store: ReferStore) -> None:
    found = split_statistics(store, "val")
    assert found.rows.tolist() == [0, 1, 2, 3]
    assert found.shares.tolist() == [0.5, 0.5, 0.01, 0.0]
    assert found.num_objects.tolist() == [2, 2]
    assert found.num_words.tolist() == [3, 1, 8, 2, 4, 3]
    assert found.num_tokens.tolist()[:2] == [5, 3]
    assert found.num_categories == 2
    assert found.words["red"] == 3 and found.words["left"] == 3 and found.words["man"] == 1
    assert "the" not in found.words


def test_sentences_with_words(store: ReferStore) -> None:
    found = split_statistics(store, "val", "Left")
    assert found.rows.tolist() == [0, 1]
    assert found.num_words.tolist() == [3, 1, 8]
    assert found.num_tokens.tolist()[:2] == [5, 3] and len(found.num_tokens) == 3
    assert found.num_objects.tolist() == [2] and found.num_categories == 1
    assert split_statistics(store, "val", "man left").rows.tolist() == [0]


def test_words() -> None:
    assert words_of("The man's T-shirt, (left)  –  Größe 3!") == [
        "the", "man's", "t-shirt", "left", "größe", "3",
    ]  # fmt: skip
    assert words_of("左边的猫") == ["左边的猫"] and words_of("...") == []
    assert contains_words("on the Left side", "left ON") and contains_words("anything", "")
    assert not contains_words("leftmost", "left")


def mask_of(rows: slice, columns: slice, shape: tuple[int, int] = (60, 90)) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[rows, columns] = True
    return mask


MASK = mask_of(slice(20, 40), slice(30, 60))


def sheet_of(
    mask: np.ndarray, *sentences: str, is_asked: bool = True, number: int = 1
) -> np.ndarray:
    """A sheet of a grey picture, as often as ``number``."""
    image = np.full((*mask.shape, 3), 120, np.uint8)
    reference = Reference("title", image, mask, [(text, is_asked) for text in sentences])
    return draw_sheet([reference] * number)


def outlined(sheet: np.ndarray) -> np.ndarray:
    """Where the outline is: bool (H, W)."""
    return (sheet == OUTLINE).all(axis=-1)


@pytest.mark.parametrize("shape", [(60, 90), (2000, 1400), (900, 30), (8, 2000), (1, 1)])
def test_the_smallest_object_keeps_its_outline(shape: tuple[int, int]) -> None:
    mask = mask_of(slice(shape[0] // 2, shape[0] // 2 + 1), slice(shape[1] - 1, None), shape)
    assert outlined(sheet_of(mask, "the dot")).any()
    assert not outlined(sheet_of(np.zeros(shape, bool), "none")).any()


def test_a_dot_has_a_ring() -> None:
    dot = mask_of(slice(700, 705), slice(300, 305), (1500, 1500))
    rows, columns = np.nonzero(outlined(sheet_of(dot, "the dot")))
    assert RING < np.ptp(rows) <= 2 * RING and RING < np.ptp(columns) <= 2 * RING


def test_every_sentence_has_room() -> None:
    texts = (["one"], ["one", "two"], ["one " * 60, "two"], ["s"] * 8, ["s"] * 500)
    heights = [len(sheet_of(MASK, *sentences)) for sentences in texts]
    assert heights == sorted(set(heights))
    assert heights[-1] < heights[-2] + 40  # the rest is counted, not shown


def test_sentences_not_asked_for_are_grey() -> None:
    asked, other = (sheet_of(MASK, "left", is_asked=flag)[-40:] for flag in (True, False))
    assert asked.min() < 50 < other.min()


def test_rows_hold_six_pictures() -> None:
    one, sheet = (sheet_of(MASK, "left", number=number) for number in (1, 14))
    assert one.shape[1] >= SIDE and sheet.shape[1] > 6 * SIDE
    assert len(sheet) > 2.8 * len(one) - 100


def inspect(root: Path, *arguments: str) -> int:
    return main(["--root", str(root), "--dataset", "known", "--split", "val", *arguments])


def test_the_command_prints_counts_and_writes_a_sheet(
    root: Path, store: ReferStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new" / "sheet.png"
    assert inspect(root, "--output", str(path)) == 0
    shown = capsys.readouterr().out
    for words in (
        "references +4", "expressions +6", "images +2", "categories +2", "left 3 .*red 3",
        "0 longer than 17, 0 longer than 22", "1 empty",
    ):  # fmt: skip
        assert re.search(rf"  {words}|; {words}", shown)
    assert store.header["fingerprint"] in shown and f"{path}: 4 references" in shown
    assert all(f"{sha}  {name}" in shown for name, sha in store.header["sources"].items())
    assert [child.name for child in path.parent.iterdir()] == ["sheet.png"]
    assert inspect(root, "--sentence", "Left", "--sample", "0") == 0
    shown = capsys.readouterr().out
    assert re.search(r"references +2\n +expressions +3\n", shown) and "png" not in shown


def test_the_sheet_depends_on_the_seed_alone(root: Path, tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for path, seed in zip(paths, "001", strict=True):
        assert inspect(root, "--sample", "2", "--seed", seed, "--output", str(path)) == 0
    first, again, other = (path.read_bytes() for path in paths)
    assert first == again != other


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--split", "test"], "no split 'test'; it has val"),
        (["--dataset", "refcoco"], "python tools/prepare_datasets.py --dataset refcoco"),
        (["--sentence", "zebra"], "val' has no sentence with the words of 'zebra'"),
        (["--sentence", "?"], "--sentence '?'"),
        (["--sample", "-1"], "--sample is -1"),
        (["--seed", "-1"], "--seed is -1"),
        (["--output", "sheet.jpg"], "--output sheet.jpg"),
        (["--output", "/dev/null/sheet.png"], "/dev/null/sheet.png"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_2(
    root: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], named: str
) -> None:
    assert inspect(root, *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and named in error
    assert error.count("\n") == 1
