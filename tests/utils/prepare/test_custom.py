"""One's own data: lines of JSON and lists of CRIS become records, and mistakes name their line."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from utils.data.store import ReferStore
from utils.prepare.annotations import Entry
from utils.prepare.custom import jsonl_source, lists_source
from utils.prepare.masks import encode_mask, to_record
from utils.prepare.pack import pack_dataset

H, W = 20, 30
SQUARE = [2, 3, 12, 3, 12, 13, 2, 13]
COUNTS = encode_mask([SQUARE], H, W, "")
Make = Callable[..., list[Entry]]


def make_line(**changes: Any) -> dict[str, Any]:
    """A line as it should be; ``None`` takes a key away."""
    line = {"image": "a.jpg", "polygon": SQUARE, "sentences": ["the star"], "split": "train"}
    return {key: value for key, value in (line | changes).items() if value is not None}


def make_row(**changes: Any) -> dict[str, Any]:
    """An entry of CRIS's lists; ``None`` takes a key away."""
    row = {"bbox": [2, 3, 10, 10], "cat": 0, "segment_id": 4, "img_name": "a.jpg"}
    row |= {"sentences": [{"idx": 0, "sent_id": 7, "sent": "the star "}], "sentences_num": 1}
    return {key: value for key, value in (row | changes).items() if value is not None}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images ``a.jpg`` and ``sub/b.png``, a broken one, and masks of the square, one empty."""
    for name in ("images/sub", "masks/deep"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("a.jpg", "sub/b.png"):
        Image.new("RGB", (W, H), "red").save(tmp_path / "images" / name)
    (tmp_path / "images" / "broken.jpg").write_bytes(b"no image")
    mask = np.zeros((H, W), bool)
    Image.fromarray(mask).save(tmp_path / "masks" / "empty.png")
    mask[3:13, 2:12] = True
    for name in ("4", "polyp_0", "deep/1"):
        Image.fromarray(mask).save(tmp_path / "masks" / f"{name}.png")
    return tmp_path


@pytest.fixture
def read_lines(folder: Path) -> Make:
    """Write a file of lines, objects or bytes, and read it."""

    def write_and_read(*lines: Any) -> list[Entry]:
        path = folder / "mine.jsonl"
        encoded = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
        path.write_bytes(b"\n".join(encoded))
        return jsonl_source(path, images=folder / "images", name="mine").read()

    return write_and_read


@pytest.fixture
def read_lists(folder: Path) -> Make:
    """Write the lists of splits and read them."""

    def write_and_read(**lists: Any) -> list[Entry]:
        (folder / "lists").mkdir(exist_ok=True)
        for split, rows in lists.items():
            content = rows if isinstance(rows, bytes) else json.dumps(rows).encode()
            (folder / "lists" / f"{split}.json").write_bytes(content)
        images, masks = folder / "images", folder / "masks"
        return lists_source(folder / "lists", images=images, masks=masks, name="mine").read()

    return write_and_read


def test_lines_become_records(folder: Path, read_lines: Make) -> None:
    first, second = read_lines(
        make_line(sentences=["the star ", "{left} 猫"]),
        b"  ",
        make_line(image="./sub//b.png", sentences=" one", split="testA"),
    )
    assert to_record(first) == {
        "ref_id": 1, "ann_id": 1, "image_id": 1, "category_id": 0, "split": "train",
        "file_name": "a.jpg", "height": H, "width": W, "rle": COUNTS,
        "sentences": [[1, "the star"], [2, "{left} 猫"]],
    }  # fmt: skip
    assert second.place == f"{folder / 'mine.jsonl'}: line 3"
    assert to_record(second) == {
        "ref_id": 3, "ann_id": 3, "image_id": 2, "category_id": 0, "split": "testA",
        "file_name": "sub/b.png", "height": H, "width": W, "rle": COUNTS, "sentences": [[3, "one"]],
    }  # fmt: skip


@pytest.mark.parametrize(
    "outline",
    [
        {"polygon": SQUARE},
        {"polygon": [[2, 3, 7, 3, 7, 13, 2, 13], [7, 3, 12, 3, 12, 13, 7, 13]]},
        {"rle": {"size": [H, W], "counts": [43, *[10, 10] * 9, 10, 367]}},
        {"rle": {"size": [H, W], "counts": COUNTS}},
        {"rle": COUNTS},
        {"mask": "masks/4.png"},
        {"mask": "{folder}/masks/4.png"},
    ],
)
def test_every_kind_of_mask(folder: Path, read_lines: Make, outline: dict) -> None:
    if "mask" in outline:
        outline = {"mask": outline["mask"].format(folder=folder)}
    (entry,) = read_lines(make_line(**({"polygon": None} | outline)))
    assert to_record(entry)["rle"] == COUNTS


@pytest.mark.parametrize("name", ["broken.jpg", "absent.jpg"])
def test_an_unreadable_image_has_no_size(read_lines: Make, name: str) -> None:
    outlines = ({}, {"polygon": None, "rle": "any"}, {"polygon": None, "rle": {"size": [1, 2]}})
    for outline in outlines:
        (entry,) = read_lines(make_line(image=name, **outline))
        assert (entry.record["height"], entry.record["width"]) == (None, None)


def test_a_mark_and_windows_lines_are_no_mistake(read_lines: Make) -> None:
    data = json.dumps(make_line()).encode()
    assert len(read_lines(b"\xef\xbb\xbf" + data + b"\r", data)) == 2


@pytest.mark.parametrize(
    ("line", "named"),
    [
        (b"{", "JSON"),
        (b"[" * 100_000, "JSON"),
        (b'{"image": "caf\xe9"}', "0xe9"),
        ([1], "[1]"),
        (make_line(sentence=["a"]), "'sentence'; did you mean 'sentences'?"),
        (make_line(zzz=1), "'zzz'"),
        (make_line(image=None, split=None), "image, split"),
        (make_line(polygon=None), "none of mask, rle, polygon"),
        (make_line(mask="masks/4.png"), "mask and polygon"),
        (make_line(image=3), "image: 3"),
        (make_line(image=" "), "image: ' '"),
        (make_line(image="/etc/a.jpg"), "image: '/etc/a.jpg'"),
        (make_line(image="sub/../../a.jpg"), "image: 'sub/../../a.jpg'"),
        (make_line(image="sub\\b.png"), "image: 'sub\\\\b.png'"),
        (make_line(image="."), "image: '.'"),
        (make_line(split="validation"), "split: 'validation'"),
        (make_line(split="vall"), "split: 'vall' is none of the splits; did you mean 'val'?"),
        (make_line(split=["val"]), "split: ['val']"),
        (make_line(sentences=[]), "sentences: []"),
        (make_line(sentences={"a": 1}), "sentences: {'a': 1}"),
        (make_line(sentences=["a", " "]), "sentences[1]"),
        (make_line(sentences=["a", 3]), "sentences[1]: 3"),
        (make_line(sentences=""), "sentences[0]"),
        (make_line(polygon=[1, 2, 3, 4]), "polygon 0 (counted from 0) has 4 numbers"),
        (make_line(polygon=[SQUARE, [1, 2, 3, 4, 5, "6"]]), "polygon 1 (counted from 0) holds '6'"),
        (make_line(polygon=[]), "polygon: []"),
        (make_line(polygon="x"), "polygon: 'x'"),
        (make_line(polygon=None, rle=[1]), "rle: [1]"),
        (make_line(polygon=None, rle="zz"), "RLE"),
        (make_line(polygon=None, rle={"counts": "zz"}), "RLE has no size"),
        (make_line(polygon=None, mask=3), "mask: 3"),
        (make_line(polygon=None, mask="masks/5.png"), "masks/5.png"),
        (make_line(polygon=None, mask="masks"), "masks is missing"),
    ],
)
def test_wrong_lines_are_named(folder: Path, read_lines: Make, line: Any, named: str) -> None:
    with pytest.raises(ValueError, match=re.escape(named)) as caught:
        read_lines(make_line(), line)
    assert str(caught.value).startswith(f"{folder / 'mine.jsonl'}: line 2: ")


def test_ten_errors_are_listed_and_the_others_counted(folder: Path, read_lines: Make) -> None:
    path = folder / "mine.jsonl"
    wrong = [make_line(split="dev")] * 10
    with pytest.raises(ValueError) as caught:
        read_lines(make_line(), *wrong)
    lines = str(caught.value).split("\n")
    assert [line.split(": split")[0] for line in lines] == [
        f"{path}: line {number}" for number in range(2, 12)
    ]
    with pytest.raises(ValueError) as caught:
        read_lines(*wrong, make_line(), *wrong)
    assert str(caught.value).split("\n")[10:] == [f"{path}: 10 more errors after these"]


@pytest.mark.parametrize("lines", [[], [b"", b" "]])
def test_a_file_without_lines_is_named(read_lines: Make, lines: list) -> None:
    with pytest.raises(ValueError, match=r"mine\.jsonl"):
        read_lines(*lines)


@pytest.mark.parametrize("name", ["mine", "A", "a-b_c.d+1", "refcoco2", "7"])
def test_sources_of_lines(folder: Path, name: str) -> None:
    path = folder / "mine.jsonl"
    with pytest.raises(ValueError, match=r"mine\.jsonl is missing"):
        jsonl_source(path, images=folder, name=name)
    path.touch()
    source = jsonl_source(path, images=folder, name=name)
    assert (source.dataset, source.image_store, source.files) == (name, f"{name}-images", (path,))
    assert source.splits == ("train", "val", "test", "testA", "testB")
    assert (source.images, source.published, source.shares_images) == (folder, {}, True)


@pytest.mark.parametrize(
    "name",
    ["", "a b", "a/b", "../a", "-a", ".a", "ä", "a\n", "x" * 101, "refcoco", "coco", "x-images"],
)
def test_names_that_data_cannot_have(name: str, folder: Path) -> None:
    (folder / "mine.jsonl").touch()
    with pytest.raises(ValueError, match=re.escape(repr(name))):
        jsonl_source(folder / "mine.jsonl", images=folder, name=name)
    with pytest.raises(ValueError, match=re.escape(repr(name))):
        lists_source(folder, images=folder, masks=folder, name=name)


def test_lists_become_records(folder: Path, read_lists: Make) -> None:
    polyp = make_row(segment_id="polyp_0", img_name="sub/b.png", sentences_num=None)
    one, two, three = read_lists(val=[polyp], train=[make_row(), make_row()])
    assert to_record(one) == {
        "ref_id": 1, "ann_id": 1, "image_id": 1, "category_id": 0, "split": "train",
        "file_name": "a.jpg", "height": H, "width": W, "rle": COUNTS,
        "sentences": [[7, "the star"]],
    }  # fmt: skip
    assert [entry.record["ref_id"] for entry in (one, two, three)] == [1, 2, 3]
    assert three.record["split"] == "val" and three.record["file_name"] == "sub/b.png"
    assert to_record(three)["rle"] == COUNTS
    assert three.place == f"{folder / 'lists' / 'val.json'}: entry 0 (counted from 0)"


def test_lists_of_other_projects(read_lists: Make) -> None:
    row = make_row(
        segment_id=None, mask_name="deep/1.png", sentences=["left", {"idx": 1, "sent": "right"}],
        sentences_num=2, prompts={"p0": ""}, bbox=None, cat="polyp",
    )  # fmt: skip
    (entry,) = read_lists(testB=[row])
    assert entry.record["sentences"] == [[1, "left"], [2, "right"]]
    assert to_record(entry)["rle"] == COUNTS


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ([1], "[1]"),
        (make_row(img_name=None, segment_id=None), "img_name, segment_id"),
        (make_row(img_name="../a.jpg"), "img_name: '../a.jpg'"),
        (make_row(segment_id=[4]), "segment_id: [4]"),
        (make_row(segment_id="../4"), "segment_id: '../4.png'"),
        (make_row(mask_name=4), "mask_name: 4"),
        (make_row(segment_id=5), "masks/5.png"),
        (make_row(sentences="a"), "sentences: 'a'"),
        (make_row(sentences=[]), "sentences: []"),
        (make_row(sentences=[{"idx": 0}]), "sentences[0] has neither 'sent' nor 'raw'"),
        (make_row(sentences=[{"sent": ""}]), "sentences[0]"),
        (make_row(sentences_num=2), "sentences_num is 2, and sentences holds 1"),
        (make_row(sentences=[{"sent": "a", "sent_id": "x"}]), "sentences[0]: sent_id: 'x'"),
    ],
)
def test_wrong_entries_of_lists_are_named(
    folder: Path, read_lists: Make, row: Any, named: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(named)) as caught:
        read_lists(train=[make_row(), row])
    place = f"{folder / 'lists' / 'train.json'}: entry 1 (counted from 0): "
    assert str(caught.value).startswith(place)


@pytest.mark.parametrize(("content", "named"), [(b"[", "no JSON"), (b"{}", "holds {}")])
def test_wrong_lists_are_named_beside_others(read_lists: Make, content: bytes, named: str) -> None:
    with pytest.raises(ValueError, match=rf"train\.json: .*{named}") as caught:
        read_lists(train=content, val=[make_row(), 3])
    assert "val.json: entry 1" in str(caught.value).split("\n")[1]


def test_wrong_folders_of_lists_are_named(folder: Path, read_lists: Make) -> None:
    places = {"images": folder / "images", "name": "mine"}
    with pytest.raises(ValueError, match=r"holds none of train\.json, val\.json"):
        lists_source(folder, masks=folder, **places)
    with pytest.raises(ValueError, match="lists describes no object"):
        read_lists(train=[], val=[])
    with pytest.raises(ValueError, match="absent"):
        lists_source(folder / "lists", masks=folder / "absent", **places)
    (folder / "lists" / "validation.json").touch()
    with pytest.raises(ValueError, match=r"validation\.json"):
        lists_source(folder / "lists", masks=folder, **places)


def test_own_data_can_be_packed_and_read(folder: Path, read_lines: Make) -> None:
    read_lines(
        make_line(image="sub/b.png", split="val"),
        make_line(polygon=None, mask="masks/4.png"),
        make_line(polygon=None, mask="masks/empty.png"),
    )
    source = jsonl_source(folder / "mine.jsonl", images=folder / "images", name="mine")
    header = pack_dataset(folder / "root", source)
    assert {split: count["refs"] for split, count in header["splits"].items()} == {
        "train": 2, "val": 1,
    }  # fmt: skip
    store = ReferStore(folder / "root", "mine")
    assert store.references("val") == [to_record(source.read()[0])]
    assert store.image("sub/b.png") == (folder / "images" / "sub" / "b.png").read_bytes()


def test_a_mask_of_another_size_is_named_in_packing(folder: Path, read_lines: Make) -> None:
    Image.new("1", (5, 6)).save(folder / "masks" / "small.png")
    read_lines(make_line(), make_line(polygon=None, mask="masks/small.png"))
    source = jsonl_source(folder / "mine.jsonl", images=folder / "images", name="mine")
    with pytest.raises(ValueError, match=r"jsonl: line 2: mask .*small\.png has 5 x 6 pixels"):
        pack_dataset(folder / "root", source)
