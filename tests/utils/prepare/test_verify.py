"""Verifying a packed data set finds whatever was changed in it."""

import hashlib
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from utils.data.dataset import ReferDataset
from utils.data.store import Index, ReferStore, store_path
from utils.prepare.verify import verify_dataset


@pytest.fixture
def change(packed_copy: Path, change_store: Callable) -> Callable[[str, str, Any], None]:
    """``change("demo", key, new)``: change what the packed demo has under a key."""
    return lambda store, key, new: change_store(store_path(packed_copy, store), {key: new})


@pytest.fixture
def image_name(packed_copy: Path) -> str:
    """The image of a reference."""
    return ReferStore(packed_copy, "demo").reference("val", 3)["file_name"]


@pytest.mark.parametrize("workers", [1, 2])
def test_what_is_as_it_was_packed_passes(demo_root: Path, workers: int) -> None:
    verify_dataset(demo_root, "demo", workers=workers)


def flip(data: bytes) -> bytes:
    return data[:200] + bytes([data[200] ^ 1]) + data[201:]


@pytest.mark.parametrize(
    ("new", "message"),
    [
        (flip, "has another checksum"),
        (lambda data: data[:50], "has another checksum"),
        (lambda _: None, "is missing"),
    ],
)
def test_a_changed_image_is_named(
    packed_copy: Path, change: Callable, image_name: str, new: Callable, message: str
) -> None:
    change("demo-images", image_name, new)
    with pytest.raises(ValueError, match=rf"demo\.lmdb: image {image_name} {message}.* --force"):
        verify_dataset(packed_copy, "demo")


def test_an_image_that_was_never_good_is_named(
    packed_copy: Path, change: Callable, image_name: str
) -> None:
    text = b"no image"
    mark = [hashlib.sha256(text).hexdigest(), len(text), 100, 120]
    change("demo-images", image_name, lambda _: text)
    change("demo-images", f"sha256/{image_name}", lambda _: json.dumps(mark).encode())
    with pytest.raises(ValueError, match=f"image {image_name}: no image file"):
        verify_dataset(packed_copy, "demo")


def with_field(**fields: object) -> Callable[[bytes], bytes]:
    return lambda line: json.dumps(json.loads(line) | fields, sort_keys=True).encode()


def of_same_length(line: bytes) -> bytes:
    record = json.loads(line)
    return with_field(category_id=record["category_id"] ^ 1)(line)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rle": "5"}, r"val: reference \d+: RLE is damaged"),
        ({"height": 3}, r"val: reference \d+: RLE is damaged"),
        ({"file_name": "x.jpg"}, "val: file_name of its index"),
        ({"sentences": [[0, "a"]]}, "val: num_sentences of its index"),
    ],
)
def test_a_changed_record_is_noticed(
    packed_copy: Path, change: Callable, fields: dict, message: str
) -> None:
    change("demo", "val/00000003", with_field(**fields))
    with pytest.raises(ValueError, match=message):
        verify_dataset(packed_copy, "demo")


def without_checksums(data: bytes) -> bytes:
    """The index as earlier versions wrote it."""
    with np.load(io.BytesIO(data)) as arrays:
        file = io.BytesIO()
        np.savez(file, **{name: arrays[name] for name in arrays if name != "checksum"})
    return file.getvalue()


def test_a_damaged_record_is_never_read(packed_copy: Path, change: Callable) -> None:
    store = ReferStore(packed_copy, "demo")
    number = re.search(rb"\d", store._read(store.path, b"val/00000003"))
    assert number is not None
    place = number.start()
    change("demo", "val/00000003", lambda line: line[:place] + b"7" + line[place + 1 :])
    dataset = ReferDataset(packed_copy, "demo", "val", image_size=64, all_sentences=True)
    reads = [lambda: store.reference("val", 3), lambda: store.references("val")]
    for read in [*reads, lambda: [dataset[index] for index in range(len(dataset))]]:
        with pytest.raises(ValueError, match="record 3 of val"):
            read()
    assert store.reference("val", 2)
    with pytest.raises(ValueError, match="val: checksum of its index"):
        verify_dataset(packed_copy, "demo")


def test_stores_of_earlier_versions_are_read_and_verified(
    packed_copy: Path, change: Callable
) -> None:
    for split in ReferStore(packed_copy, "demo").splits:
        change("demo", f"index/{split}", without_checksums)
    change("demo", "header", lambda data: re.sub(rb', "images_sha256": "\w+"', b"", data))
    verify_dataset(packed_copy, "demo")
    assert len(ReferDataset(packed_copy, "demo", "train", image_size=64)[0]["ids"]) == 17
    assert ReferStore(packed_copy, "demo").references("val")
    change("demo", "val/00000003", of_same_length)
    with pytest.raises(ValueError, match=r"its fingerprint is \w{64}, its header has \w{64}"):
        verify_dataset(packed_copy, "demo")


@pytest.mark.parametrize("name", ["area", "tokens", "num_tokens"])
def test_a_changed_index_is_noticed(packed_copy: Path, change: Callable, name: str) -> None:
    def new(data: bytes) -> bytes:
        index = Index.from_bytes(data)
        array = np.array(getattr(index, name))
        array[2] += 1
        return index._replace(**{name: array}).to_bytes()

    change("demo", "index/testA", new)
    with pytest.raises(ValueError, match=f"testA: {name} of its index"):
        verify_dataset(packed_copy, "demo")


def test_changed_counts_are_noticed(packed_copy: Path, change: Callable) -> None:
    def new(data: bytes) -> bytes:
        header = json.loads(data)
        header["splits"]["val"]["over_17"] = 4
        return json.dumps(header).encode()

    change("demo", "header", new)
    with pytest.raises(ValueError, match="val: over_17 is 0, its header has 4"):
        verify_dataset(packed_copy, "demo")


def test_ten_faults_are_listed_and_the_others_counted(packed_copy: Path, change: Callable) -> None:
    for row in range(25):
        change("demo", f"val/{row:08d}", with_field(rle="5"))
    with pytest.raises(ValueError, match=r"; and 17 faults more; pack it again: ") as info:
        verify_dataset(packed_copy, "demo")
    assert str(info.value).count("RLE is damaged") == 10
