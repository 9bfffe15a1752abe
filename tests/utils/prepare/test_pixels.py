"""Resized images: the same pixels, never decoded, never those of another file."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from utils.data.dataset import ReferDataset
from utils.data.store import ReferStore, store_path
from utils.prepare import pixels, writer
from utils.prepare.pixels import pack_pixels

SIZE = 80


def open_train(root: Path) -> ReferDataset:
    return ReferDataset(root, "demo", "train", image_size=SIZE)


def forbid(*_: Any) -> Any:
    raise AssertionError("an image was decoded")


def test_resized_images_are_the_same_and_not_decoded(
    demo_root: Path, packed_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pack_pixels(packed_copy, "demo", SIZE, workers=1)
    expected = open_train(demo_root)
    indices = range(0, 60, 7)
    images = [expected[index]["image"] for index in indices]
    monkeypatch.setattr("utils.data.dataset.decode_image", forbid)
    kept = open_train(packed_copy)
    for index, image in zip(indices, images, strict=True):
        assert torch.equal(kept[index]["image"], image)
        assert torch.equal(kept.image(index), image)
    assert len({kept.letterbox(index).inner for index in indices}) > 2
    assert path == packed_copy / "pixels" / f"demo-images-{SIZE}.lmdb"
    with pytest.raises(AssertionError):  # another size does not use them
        ReferDataset(packed_copy, "demo", "val", image_size=SIZE + 1)[0]


def test_what_was_made_from_another_file_does_not_count(
    packed_copy: Path, change_store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # data that an earlier version packed have no digest of their images
    monkeypatch.setattr(ReferStore, "check_images", lambda *_: None)
    pack_pixels(packed_copy, "demo", SIZE, workers=1)
    train = open_train(packed_copy)
    before, sample = train[0]["image"], train.info(0)
    black = np.zeros((sample.height, sample.width, 3), np.uint8)
    data = cv2.imencode(".png", black)[1].tobytes()
    mark = json.dumps(["0" * 64, len(data), sample.height, sample.width]).encode()
    items = {sample.file_name: data, f"sha256/{sample.file_name}": mark}
    change_store(store_path(packed_copy, "demo-images"), items)
    after = open_train(packed_copy)[0]["image"]
    assert before.amin(dim=0).max() > 0 and (after[:, SIZE // 2, SIZE // 2] == 0).all()
    path = pack_pixels(packed_copy, "demo", SIZE, workers=1)
    assert torch.equal(open_train(packed_copy)[0]["image"], after)
    written = path.stat().st_mtime_ns
    assert pack_pixels(packed_copy, "demo", SIZE, workers=1).stat().st_mtime_ns == written


def test_another_opencv_is_refused_until_they_are_packed_again(
    packed_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack_pixels(packed_copy, "demo", SIZE, workers=1)
    monkeypatch.setattr("cv2.__version__", "9.9")
    with pytest.raises(ValueError, match=rf"OpenCV [45].*--pixels {SIZE} --force"):
        open_train(packed_copy)
    with pytest.raises(ValueError, match=r"these are 1 and 9\.9"):
        pack_pixels(packed_copy, "demo", SIZE, workers=1)
    pack_pixels(packed_copy, "demo", SIZE, workers=1, force=True)
    assert open_train(packed_copy)[0]["image"].shape == (3, SIZE, SIZE)


def test_a_stopped_command_goes_on(packed_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
        pack_pixels(packed_copy, "demo", SIZE, workers=1)
    assert not (packed_copy / "pixels" / f"demo-images-{SIZE}.lmdb").exists()
    most = 0
    pack_pixels(packed_copy, "demo", SIZE, workers=1)
    assert len(done) == len(set(done)) > 8, "none twice"
