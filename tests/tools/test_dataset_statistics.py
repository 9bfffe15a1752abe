"""Statistics of a split, against a small data set whose numbers are known."""

from typing import Any

import cv2
import numpy as np
import pytest

from tools.dataset_statistics import says, split_statistics, words_of
from utils.data.store import ReferStore
from utils.prepare.annotations import Entry, Source
from utils.prepare.pack import pack_dataset

# image, box of the mask in an image of 20 x 10 pixels, category, sentences
OBJECTS = [
    ("a.jpg", (0, 0, 10, 10), 1, ["the LEFT man", "left"]),
    ("a.jpg", (10, 0, 20, 10), 1, ["man's left hand, on the right of it", "a leftover"]),
    ("b.jpg", (0, 0, 2, 1), 7, ["red red red t-shirt"]),
    ("b.jpg", None, 7, ["nothing at all"]),
]


def entry(position: int) -> Entry:
    name, box, category, sentences = OBJECTS[position]
    mask = np.zeros((10, 20), np.uint8)
    if box:
        mask[box[1] : box[3], box[0] : box[2]] = 1
    counts = np.diff(np.flatnonzero(np.diff(mask.ravel("F"), prepend=2, append=2)))
    counts = counts.tolist() if mask.ravel("F")[0] == 0 else [0, *counts.tolist()]
    record: dict[str, Any] = {
        "ref_id": position, "ann_id": position, "image_id": int(name == "b.jpg"),
        "category_id": category, "split": "val", "file_name": name, "height": 10, "width": 20,
        "sentences": [[10 * position + number, text] for number, text in enumerate(sentences)],
    }  # fmt: skip
    return Entry(record, {"size": [10, 20], "counts": counts}, f"object {position}")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ReferStore:
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


@pytest.mark.parametrize(
    ("split", "phrase", "message"),
    [
        ("test", "", "has no split 'test'; it has val"),
        ("val", "zebra", r"lmdb: split 'val' has no sentence with the words of 'zebra'"),
    ],
)
def test_nothing_to_count(store: ReferStore, split: str, phrase: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split_statistics(store, split, phrase)


def test_words() -> None:
    assert words_of("The man's T-shirt, (left)  –  Größe 3!") == [
        "the", "man's", "t-shirt", "left", "größe", "3",
    ]  # fmt: skip
    assert words_of("左边的猫") == ["左边的猫"]
    assert words_of("...") == []
    assert says("on the Left side", "left ON") and not says("leftmost", "left")
    assert says("anything", "")
