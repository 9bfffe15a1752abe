"""Packed stores: complete or absent, shared images, and what is said of mistakes."""

import hashlib
import json
import os
import pickle
import shutil
import signal
from pathlib import Path

import lmdb
import pytest

from utils.data import packing
from utils.data.packing import pack_dataset, packed_header
from utils.data.refer import read_records, read_refs
from utils.data.store import ReferStore, store_path


def copy_as(root: Path, target: Path, dataset: str, *, first: int, last: int) -> None:
    """The demo's references ``first`` to ``last`` as if they were another data set."""
    folder = target / dataset
    folder.mkdir(parents=True, exist_ok=True)
    refs = read_refs(root / "demo" / "refs(unc).p")[first:last]
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    shutil.copy(root / "demo" / "instances.json", folder)
    shutil.copytree(root / "demo" / "images", target / "images/train2014", dirs_exist_ok=True)


def num_images(path: Path) -> int:
    with lmdb.open(str(path), subdir=False, readonly=True, lock=False) as environment:
        return (environment.stat()["entries"] - 1) // 2


def test_records_and_images_come_back_as_they_were(demo_root: Path) -> None:
    store = ReferStore(demo_root, "demo")
    records = read_records(demo_root, "demo")
    for split in ("train", "val", "testA", "testB"):
        assert store.references(split) == [row for row in records if row["split"] == split]
    for name in {record["file_name"] for record in records}:
        assert store.image(name) == (demo_root / "demo" / "images" / name).read_bytes()


def test_header_counts_and_checksums(demo_root: Path) -> None:
    header = ReferStore(demo_root, "demo").header
    records = [row for row in read_records(demo_root, "demo") if row["split"] == "val"]
    assert header["splits"]["val"] == {
        "refs": len(records),
        "sentences": sum(len(record["sentences"]) for record in records),
        "images": len({record["file_name"] for record in records}),
    }
    for name, checksum in header["sources"].items():
        data = (demo_root / "demo" / name).read_bytes()
        assert checksum == hashlib.sha256(data).hexdigest()
    assert len(header["fingerprint"]) == 64


def test_fingerprint_follows_the_content(demo_root: Path, tmp_path: Path) -> None:
    copy_as(demo_root, tmp_path, "refcoco", first=0, last=20)
    first = pack_dataset(tmp_path, "refcoco")["fingerprint"]
    assert pack_dataset(tmp_path, "refcoco")["fingerprint"] == first
    copy_as(demo_root, tmp_path, "refcoco", first=0, last=19)
    assert pack_dataset(tmp_path, "refcoco")["fingerprint"] != first
    copy_as(demo_root, tmp_path, "refcoco", first=0, last=20)
    name = ReferStore(tmp_path, "refcoco").references("train")[0]["file_name"]
    with (tmp_path / "images/train2014" / name).open("ab") as file:
        file.write(b"x")
    assert pack_dataset(tmp_path, "refcoco")["fingerprint"] != first


def test_data_sets_on_the_same_images_share_them(demo_root: Path, tmp_path: Path) -> None:
    copy_as(demo_root, tmp_path, "refcoco", first=0, last=20)
    copy_as(demo_root, tmp_path, "refcoco+", first=10, last=40)
    pack_dataset(tmp_path, "refcoco")
    images = store_path(tmp_path, "coco-images")
    store = ReferStore(tmp_path, "refcoco")
    name = store.references("train")[0]["file_name"]
    before, data = num_images(images), store.image(name)
    shutil.rmtree(tmp_path / "images/train2014")
    with pytest.raises(ValueError, match=r"images are not in .*train2014, COCO_"):
        pack_dataset(tmp_path, "refcoco+")
    copy_as(demo_root, tmp_path, "refcoco+", first=10, last=40)
    pack_dataset(tmp_path, "refcoco+")
    names = {
        row["file_name"] for name in ("refcoco", "refcoco+")
        for row in ReferStore(tmp_path, name).references("train")
    }  # fmt: skip
    assert num_images(images) == len(names) > before
    assert store.image(name) == data, "a reader notices that the file was replaced"


def test_a_killed_pack_leaves_no_store(demo_root: Path, tmp_path: Path) -> None:
    copy_as(demo_root, tmp_path, "refcoco", first=0, last=30)
    process = os.fork()
    if not process:
        read, calls = packing.read_jpeg, []

        def read_and_die(path: Path) -> bytes:
            calls.append(path)
            if len(calls) > 5:
                os.kill(os.getpid(), signal.SIGKILL)
            return read(path)

        packing.read_jpeg = read_and_die
        pack_dataset(tmp_path, "refcoco")
        os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(process, 0)[1])
    assert not list((tmp_path / "lmdb").glob("*.lmdb"))
    assert packed_header(tmp_path, "refcoco") is None
    with pytest.raises(ValueError, match=r"prepare_datasets\.py --dataset refcoco"):
        ReferStore(tmp_path, "refcoco")
    pack_dataset(tmp_path, "refcoco")
    assert sorted(path.name for path in (tmp_path / "lmdb").iterdir()) == [
        "coco-images.lmdb",
        "refcoco.lmdb",
    ]


@pytest.mark.parametrize(("damage", "message"), [("cut", "cut short"), ("html", "no JPEG file")])
def test_damaged_images_are_named(
    demo_root: Path, tmp_path: Path, damage: str, message: str
) -> None:
    copy_as(demo_root, tmp_path, "refcoco", first=0, last=5)
    name = read_records(tmp_path, "refcoco")[2]["file_name"]
    path = tmp_path / "images/train2014" / name
    path.write_bytes(path.read_bytes()[:-1500] if damage == "cut" else b"<html>404</html>")
    with pytest.raises(ValueError, match=f"{name} is {message}"):
        pack_dataset(tmp_path, "refcoco")
    assert not list((tmp_path / "lmdb").glob("*.lmdb"))


def test_changed_sources_are_noticed(demo_root: Path, tmp_path: Path) -> None:
    copy_as(demo_root, tmp_path, "refcoco", first=0, last=8)
    header = pack_dataset(tmp_path, "refcoco")
    assert packed_header(tmp_path, "refcoco") == header
    copy_as(demo_root, tmp_path, "refcoco", first=0, last=9)
    with pytest.raises(ValueError, match=r"packed from other files .* --force"):
        packed_header(tmp_path, "refcoco")
    shutil.rmtree(tmp_path / "refcoco")
    assert packed_header(tmp_path, "refcoco") == header, "the store alone is enough"


def test_force_reads_images_again(demo_root: Path, tmp_path: Path) -> None:
    copy_as(demo_root, tmp_path, "refcoco", first=0, last=8)
    pack_dataset(tmp_path, "refcoco")
    name = read_records(tmp_path, "refcoco")[0]["file_name"]
    path = tmp_path / "images/train2014" / name
    changed = bytearray(path.read_bytes())
    changed[-40] ^= 1
    path.write_bytes(changed)
    pack_dataset(tmp_path, "refcoco", force=True)
    assert ReferStore(tmp_path, "refcoco").image(name) == bytes(changed)


def test_other_formats_and_other_files_are_refused(demo_root: Path, tmp_path: Path) -> None:
    shutil.copytree(demo_root / "lmdb", tmp_path / "lmdb")
    path = store_path(tmp_path, "demo")
    with (
        lmdb.open(str(path), subdir=False, lock=False) as environment,
        environment.begin(write=True) as transaction,
    ):
        transaction.put(b"header", json.dumps({"format": 99}).encode())
    with pytest.raises(ValueError, match=r"demo\.lmdb has format 99"):
        ReferStore(tmp_path, "demo")
    path.write_bytes(b"something else" * 1000)
    with pytest.raises(ValueError, match=r"demo\.lmdb is no readable store"):
        ReferStore(tmp_path, "demo")


def test_unknown_names_list_the_known_ones(demo_root: Path) -> None:
    with pytest.raises(ValueError, match="known are demo, refcoco"):
        ReferStore(demo_root, "coco")
    store = ReferStore(demo_root, "demo")
    with pytest.raises(ValueError, match="it has train, val, testA, testB"):
        store.references("test")
    with pytest.raises(ValueError, match=r"holds no image x\.jpg"):
        store.image("x.jpg")
