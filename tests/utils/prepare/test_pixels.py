"""Resized images: the same pixels, never decoded, never those of another file."""

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import lmdb
import numpy as np
import pytest
import torch

from utils.data.dataset import ReferDataset
from utils.data.store import close_store, store_path
from utils.prepare import pixels, writer
from utils.prepare.pixels import pack_pixels

SIZE = 80


@pytest.fixture
def root(demo_root: Path, tmp_path: Path) -> Path:
    shutil.copytree(demo_root / "lmdb", tmp_path / "lmdb")
    return tmp_path


def open_train(root: Path) -> ReferDataset:
    return ReferDataset(root, "demo", "train", image_size=SIZE)


def forbid(*_: Any) -> Any:
    raise AssertionError("an image was decoded")


def test_resized_images_are_the_same_and_not_decoded(
    demo_root: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pack_pixels(root, "demo", SIZE, workers=1)
    expected = open_train(demo_root)
    indices = range(0, 60, 7)
    images = [expected[index]["image"] for index in indices]
    monkeypatch.setattr("utils.data.dataset.decode_image", forbid)
    kept = open_train(root)
    for index, image in zip(indices, images, strict=True):
        assert torch.equal(kept[index]["image"], image)
        assert torch.equal(kept.image(index), image)
    assert len({kept.letterbox(index).inner for index in indices}) > 2
    assert path == root / "pixels" / f"demo-images-{SIZE}.lmdb"
    with pytest.raises(AssertionError):  # another size does not use them
        ReferDataset(root, "demo", "val", image_size=SIZE + 1)[0]


def replace_image(root: Path, name: str) -> None:
    """Put another picture of the same size in an image store, with its mark."""
    path = store_path(root, "demo-images")
    close_store(path)
    with (
        lmdb.open(str(path), subdir=False, lock=False, map_size=1 << 28) as environment,
        environment.begin(write=True) as transaction,
    ):
        key = f"sha256/{name}".encode()
        _, _, height, width = json.loads(transaction.get(key))
        data = cv2.imencode(".png", np.zeros((height, width, 3), np.uint8))[1].tobytes()
        transaction.put(name.encode(), data)
        transaction.put(key, json.dumps(["0" * 64, len(data), height, width]).encode())


def test_what_was_made_from_another_file_does_not_count(root: Path) -> None:
    pack_pixels(root, "demo", SIZE, workers=1)
    before = open_train(root)[0]["image"]
    replace_image(root, open_train(root).info(0).file_name)
    after = open_train(root)[0]["image"]
    assert before.amin(dim=0).max() > 0 and (after[:, SIZE // 2, SIZE // 2] == 0).all()
    path = pack_pixels(root, "demo", SIZE, workers=1)
    assert torch.equal(open_train(root)[0]["image"], after)
    written = path.stat().st_mtime_ns
    assert pack_pixels(root, "demo", SIZE, workers=1).stat().st_mtime_ns == written


def test_another_opencv_is_refused_until_they_are_packed_again(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack_pixels(root, "demo", SIZE, workers=1)
    monkeypatch.setattr("cv2.__version__", "9.9")
    with pytest.raises(ValueError, match=rf"OpenCV 5.*--pixels {SIZE} --force"):
        open_train(root)
    with pytest.raises(ValueError, match=r"these are 1 and 9\.9"):
        pack_pixels(root, "demo", SIZE, workers=1)
    pack_pixels(root, "demo", SIZE, workers=1, force=True)
    assert open_train(root)[0]["image"].shape == (3, SIZE, SIZE)


def test_a_stopped_command_goes_on(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    resize_images, most = pixels.resize_images, 8

    def resize_some(images: Path, size: int, names: list[str]) -> list[tuple[bytes, bytes]]:
        if len(done) == most:
            raise ValueError("stopped")
        done.extend(names)
        return resize_images(images, size, names)

    monkeypatch.setattr(writer, "COMMIT_BYTES", 1)
    monkeypatch.setattr(pixels, "CHUNK_IMAGES", 4)
    monkeypatch.setattr(pixels, "resize_images", resize_some)
    with pytest.raises(ValueError, match="stopped"):
        pack_pixels(root, "demo", SIZE, workers=1)
    assert not (root / "pixels" / f"demo-images-{SIZE}.lmdb").exists()
    most = 0
    pack_pixels(root, "demo", SIZE, workers=1)
    assert len(done) == len(set(done)) > 8, "none twice"
