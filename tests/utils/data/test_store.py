"""Packed stores: what was put in comes out, and everything else is a clear error."""

import json
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from utils.data.store import ReferStore, close_store, decode_mask, store_path
from utils.data.tokenizer import encode
from utils.prepare.annotations import Source
from utils.prepare.masks import to_record
from utils.prepare.pack import pack_dataset, packed_header
from utils.prepare.refer import refer_source

Copy = Callable[..., Source]
Change = Callable[[Path, dict], None]


def test_records_images_and_indices_come_back(demo_root: Path) -> None:
    store, source = ReferStore(demo_root, "demo"), refer_source(demo_root, "demo")
    all_records = [to_record(entry) for entry in source.read()]
    assert store.splits == ("train", "val", "testA", "testB")
    for split in store.splits:
        records = [row for row in all_records if row["split"] == split]
        assert store.references(split) == records
        assert [store.reference(split, row) for row in range(len(records))] == records
        assert store.file_names(split) == {row["file_name"] for row in records}
        index = store.index(split)
        assert [all_records[place] for place in index.position] == records
        assert index.num_sentences.tolist() == [len(row["sentences"]) for row in records]
        assert index.area.tolist() == [decode_mask(row).sum() for row in records]
        assert [name.decode() for name in index.file_name] == [row["file_name"] for row in records]
        tokens = [encode(text) for row in records for _, text in row["sentences"]]
        assert index.num_tokens.tolist() == [len(ids) for ids in tokens]
        assert index.tokens.tolist() == [token for ids in tokens for token in ids]
        types = [array.dtype for array in index]
        assert types[:3] == [np.int32, np.int32, np.int64] and types[4:6] == [np.int32, np.uint16]
    for name in {record["file_name"] for record in all_records}:
        assert store.image(name) == (source.images / name).read_bytes()


def test_names_beyond_ascii_come_back(copy_as: Copy, tmp_path: Path) -> None:
    source = copy_as("refcoco", range(8))
    entries = source.read()
    old, new = entries[0].record["file_name"], "klinik/β-Aufnahme 1.jpg"
    (source.images / "klinik").mkdir()
    (source.images / old).rename(source.images / new)
    for entry in entries:
        if entry.record["file_name"] == old:
            entry.record["file_name"] = new
    source = source._replace(read=lambda: entries, dataset="mine", published={})
    pack_dataset(tmp_path, source)
    store = ReferStore(tmp_path, "mine")
    assert store.splits == ("train",), "the others are neither there nor published"
    assert new in store.file_names("train")
    assert store.image(new) == (source.images / new).read_bytes()


@pytest.mark.parametrize("name", ["demo", "demo-images"])
def test_an_older_format_is_packed_again_and_a_newer_one_refused(
    demo_root: Path, packed_copy: Path, change_store: Change, name: str
) -> None:
    source, root = refer_source(demo_root, "demo"), packed_copy
    change_store(store_path(root, name), {"header": json.dumps({"format": 99}).encode()})
    for function in (lambda: ReferStore(root, "demo"), lambda: packed_header(root, source)):
        with pytest.raises(ValueError, match=rf"{name}\.lmdb has format 99 "):
            function()
    change_store(store_path(root, name), {"header": json.dumps({"format": 1}).encode()})
    with pytest.raises(ValueError, match=rf"{name}\.lmdb has format 1 .*: python tools/prep"):
        ReferStore(root, "demo")
    assert packed_header(root, source) is None
    assert pack_dataset(root, source)["format"] == 2
    assert ReferStore(root, "demo").header == packed_header(root, source)


@pytest.mark.parametrize("name", ["demo", "demo-images"])
@pytest.mark.parametrize("damage", ["text", "cut", "empty"])
def test_damaged_stores_are_refused(
    demo_root: Path, packed_copy: Path, name: str, damage: str
) -> None:
    root, path = packed_copy, store_path(packed_copy, name)
    if damage == "cut":
        os.truncate(path, path.stat().st_size // 2)
    else:
        path.write_bytes(b"something else" * 1000 if damage == "text" else b"")
    message = rf"{name}\.lmdb is no readable store \(.*--dataset demo --root .* --force"
    source = refer_source(demo_root, "demo")
    for function in (lambda: ReferStore(root, "demo"), lambda: packed_header(root, source)):
        with pytest.raises(ValueError, match=message):
            function()
    assert pack_dataset(root, source, force=True)["format"] == 2
    assert ReferStore(root, "demo").references("val")


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda _: b"x", lambda _: b""])
def test_a_damaged_index_is_refused(
    packed_copy: Path, change_store: Change, damage: Callable[[bytes], bytes]
) -> None:
    store = ReferStore(packed_copy, "demo")
    change_store(store.path, {"index/val": damage})
    with pytest.raises(ValueError, match=re.escape(str(store.path))):
        store.index("val")


# a pickle of a list of bytes; reading it must not be tried
FOREIGN = {"__keys__": pickle.dumps([b"0"]), "__len__": pickle.dumps(1), "0": b"\x80\x04}."}


@pytest.mark.parametrize("place", ["refcoco/train.lmdb", "refcoco.lmdb", "refcoco.lmdb/data.mdb"])
def test_stores_of_other_tools_are_recognised(
    copy_as: Copy, change_store: Change, tmp_path: Path, place: str
) -> None:
    path, source = tmp_path / "lmdb" / place, copy_as("refcoco", range(9))
    change_store(path, FOREIGN)
    command = f"python tools/prepare_datasets.py --dataset refcoco --root {tmp_path}"
    with pytest.raises(ValueError, match=f"CRIS, ETRIS or Bar.*{re.escape(command)}$") as info:
        ReferStore(tmp_path, "refcoco")
    is_in_the_way = not place.startswith("refcoco/")
    assert ("move it away" in str(info.value)) == is_in_the_way
    if is_in_the_way:
        with pytest.raises(ValueError, match="move it away"):
            packed_header(tmp_path, source)
    else:
        assert packed_header(tmp_path, source) is None
        pack_dataset(tmp_path, source, accept_differences=True)
        assert ReferStore(tmp_path, "refcoco").references("train")
        assert path.is_file()
    if place.endswith("data.mdb"):
        with pytest.raises(ValueError, match="move it away"):
            pack_dataset(tmp_path, source, accept_differences=True, force=True)


def test_unknown_names_are_named(demo_root: Path, tmp_path: Path) -> None:
    store = ReferStore(demo_root, "demo")
    with pytest.raises(ValueError, match=r"'coco'; did you mean 'refcoco'.* known are demo"):
        ReferStore(demo_root, "coco")
    with pytest.raises(ValueError, match=r"--custom FILE .*--name x"):
        ReferStore(tmp_path, "x")
    for name in ("../demo", "", "a b", "/demo"):
        with pytest.raises(ValueError, match=f"'{name}'.* known are demo"):
            ReferStore(demo_root, name)
    with pytest.raises(ValueError, match="demo-images"):
        ReferStore(demo_root, "demo-images")
    with pytest.raises(ValueError, match=r"'test'.* train, val, testA, testB"):
        store.references("test")
    with pytest.raises(ValueError, match=r"image x\.jpg"):
        store.image("x.jpg")
    with pytest.raises(IndexError):
        store.reference("val", len(store.index("val").area))
    with pytest.raises(ValueError, match=r"--root '.*my data'"):  # quoted
        ReferStore(tmp_path / "my data", "refcoco")


def test_an_image_store_packed_again_is_noticed(copy_as: Copy, tmp_path: Path) -> None:
    first, second = copy_as("refcoco", range(20)), copy_as("refcoco+", range(10, 40))
    second = second._replace(dataset="mine", published={})
    for source in (first, second):
        pack_dataset(tmp_path, source, accept_differences=True)
    with pytest.raises(ValueError, match=r"did you mean 'mine'\?"):
        ReferStore(tmp_path, "mime")
    close_store(store_path(tmp_path, "coco-images"))
    store_path(tmp_path, "coco-images").unlink()
    with pytest.raises(ValueError, match=r"coco-images\.lmdb is missing.*--name mine"):
        ReferStore(tmp_path, "mine")
    assert packed_header(tmp_path, first) is None
    header = pack_dataset(tmp_path, first, accept_differences=True)
    assert packed_header(tmp_path, first) == header
    assert packed_header(tmp_path, second) is None
