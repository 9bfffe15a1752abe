"""Masks equal pycocotools' own, PNGs of every kind are read, and damage never becomes a mask."""

import pickle
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from pycocotools import mask as coco_mask

from utils.data.store import decode_mask, mask_areas
from utils.prepare.annotations import Entry
from utils.prepare.masks import check_segmentation, encode_mask, to_record

ROOT = Path(__file__).parents[3]
H, W = 20, 30
SQUARE = [2, 3, 12, 3, 12, 13, 2, 13]
PLACE = "file: reference 7"
WRONG_COUNTS = ([599], [10, 10, 581], [700, -100], [2**70], [], "", "hb", "hé0")


def decode(segmentation: Any, height: int = H, width: int = W) -> np.ndarray:
    rle = encode_mask(segmentation, height, width, PLACE)
    return decode_mask({"height": height, "width": width, "rle": rle})


def oracle(parts: list[list[float]], height: int, width: int) -> np.ndarray:
    rles = coco_mask.frPyObjects(parts, height, width)
    return coco_mask.decode(rles).any(axis=2)


def runs_of(mask: np.ndarray) -> list[int]:
    """COCO's counts by their definition: runs of 0 and 1 in turn, column by column."""
    runs, value, length = [], False, 0
    for pixel in mask.T.ravel():
        if pixel != value:
            runs.append(length)
            value, length = bool(pixel), 0
        length += 1
    return [*runs, length]


coordinates = st.floats(-80, 120, allow_nan=False)
polygons = st.integers(3, 9).flatmap(
    lambda points: st.lists(coordinates, min_size=2 * points, max_size=2 * points)
)
masks = st.tuples(st.integers(1, 25), st.integers(1, 25)).flatmap(
    lambda shape: arrays(np.bool_, shape)
)


@given(parts=st.lists(polygons, min_size=1, max_size=4), size=st.tuples(*[st.integers(1, 50)] * 2))
def test_polygons_give_the_union_of_pycocotools_masks(
    parts: list[list[float]], size: tuple[int, int]
) -> None:
    np.testing.assert_array_equal(decode(parts, *size), oracle(parts, *size))


@given(mask=masks)
def test_run_lengths_in_every_form_give_the_mask(mask: np.ndarray) -> None:
    size = list(mask.shape)
    packed = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
    for counts in (runs_of(mask), packed, packed.decode()):
        rle = encode_mask({"size": size, "counts": counts}, *mask.shape, PLACE)
        assert rle == packed.decode()
        np.testing.assert_array_equal(decode({"size": size, "counts": counts}, *size), mask)


def test_overlapping_parts_count_once() -> None:
    parts = [SQUARE, [7, 3, 17, 3, 17, 13, 7, 13]]
    record = {"height": H, "width": W, "rle": encode_mask(parts, H, W, PLACE)}
    assert mask_areas([record, record]) == [150, 150]
    assert mask_areas([record] * 256) == [150] * 256
    assert mask_areas([]) == []


def test_outside_the_image_is_cut_off_and_may_leave_nothing() -> None:
    assert decode([[-50, -50, 10, -50, 10, 50, -50, 50]]).sum() == 10 * H
    assert decode([[100, 100, 150, 100, 150, 150]]).sum() == 0
    assert decode([[5, 5, 9, 5, 7, 5]]).sum() == 0
    assert decode({"size": [H, W], "counts": [H * W]}).sum() == 0


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[1, 2, 3, 4]], "polygon 0 (counted from 0) has 4 numbers"),
        ([SQUARE, [1, 2, 3, 4, 5]], "polygon 1 (counted from 0) has 5 numbers"),
        ([[1, 2, 3, 4, 5, 6, 7]], "has 7 numbers"),
        ([[]], "has 0 numbers"),
        ([[1, 2, 3, float("nan"), 5, 6]], "polygon 0 (counted from 0) holds nan"),
        ([[1, 2, 3, float("inf"), 5, 6]], "holds inf"),
        ([[1, 2, 3, 1e300, 5, 6]], "holds 1e+300"),
        ([[1, 2, 3, 10**400, 5, 6]], "100,000"),
        ([[1, 2, 3, "4", 5, 6]], "holds '4'"),
        ([[1, 2, 3, None, 5, 6]], "holds None"),
        ([[1, 2, 3, True, 5, 6]], "holds True"),
        (SQUARE, "list of polygons"),
        ([], "segmentation []"),
        (None, "segmentation None"),
        ("abc", "segmentation 'abc'"),
        ({}, "RLE has no counts and no size"),
        ({"counts": [600]}, "RLE has no size"),
        ({"size": [H, W]}, "RLE has no counts"),
        ({"size": [W, H], "counts": [600]}, "RLE has size [30, 20], its image [20, 30]"),
        ({"size": None, "counts": [600]}, "RLE has size None"),
        *(({"size": [H, W], "counts": counts}, f"the {H} x {W} pixels") for counts in WRONG_COUNTS),
        ({"size": [H, W], "counts": [1.5, 598.5]}, "counts [1.5, 598.5]"),
        ({"size": [H, W], "counts": 600}, "counts 600"),
    ],
)
def test_what_is_no_mask_is_refused(segmentation: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        encode_mask(segmentation, H, W, PLACE)
    assert str(caught.value).startswith(f"{PLACE}: ") and "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=re.escape(message)):
        check_segmentation(segmentation, H, W)


@given(counts=st.binary(max_size=12) | st.text(st.characters(max_codepoint=127), max_size=12))
def test_random_run_lengths_are_refused_or_true(counts: bytes | str) -> None:
    try:
        rle = encode_mask({"size": [4, 5], "counts": counts}, 4, 5, PLACE)
    except ValueError as error:
        assert "do not add up" in str(error)
    else:
        mask = decode_mask({"height": 4, "width": 5, "rle": rle})
        assert coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["size"] == [4, 5]
        text = counts if isinstance(counts, bytes) else counts.encode()
        np.testing.assert_array_equal(
            coco_mask.decode({"size": [4, 5], "counts": text}).astype(bool), mask
        )


def test_damaged_run_lengths_cannot_end_the_process() -> None:
    program = f"""
import random, sys
sys.path.insert(0, {str(ROOT)!r})
from utils.prepare.masks import encode_mask
chance = random.Random(0)
refused = 0
for _ in range(3000):
    text = "".join(chr(chance.randrange(48, 112)) for _ in range(chance.randrange(60)))
    try:
        encode_mask({{"size": [480, 640], "counts": text}}, 480, 640, "x")
    except ValueError:
        refused += 1
print(refused)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "3000\n"), result.stderr


def shape() -> np.ndarray:
    mask = np.zeros((H, W), bool)
    mask[3:13, 2:12] = True
    mask[15, 29] = True
    return mask


def chunk(name: bytes, data: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(name + data))
    return struct.pack(">I", len(data)) + name + data + checksum


def save(path: Path, kind: str, mask: np.ndarray) -> None:
    """A mask image in which the object is as faint as the kind allows."""
    ones = mask.astype(np.uint8)
    if kind == "palette":  # both entries of the palette are black: the index counts
        image = Image.fromarray(ones, "L").convert("P")
        image.putdata(ones.ravel().tolist())
        image.putpalette([0, 0, 0] * 256)
        image.save(path, bits=1)
    elif kind in ("16-bit colours", "16-bit colours and alpha"):  # 1 of 65535, in green alone
        pixels = np.zeros((H, W, 3 + kind.endswith("alpha")), np.uint16)
        pixels[..., 1] = ones
        if kind.endswith("alpha"):
            pixels[..., 3] = 65535
        cv2.imwrite(str(path), pixels)
    elif kind == "16-bit grey and alpha":  # OpenCV writes no such file
        rows = b"".join(
            b"\0" + b"".join(struct.pack(">HH", value, 65535) for value in row) for row in ones
        )
        header = struct.pack(">IIBBBBB", W, H, 16, 4, 0, 0, 0)
        chunks = {b"IHDR": header, b"IDAT": zlib.compress(rows), b"IEND": b""}
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(map(chunk, chunks, chunks.values())))
    else:
        image = {
            "1-bit": lambda: Image.fromarray(mask),
            "grey": lambda: Image.fromarray(ones),
            "grey of 255": lambda: Image.fromarray(ones * 255),
            "16-bit grey": lambda: Image.fromarray(ones.astype(np.uint16)),
            "grey and alpha": lambda: Image.fromarray(np.dstack([ones, ones * 0 + 255]), "LA"),
            "colours": lambda: Image.fromarray(np.dstack([ones * 0, ones * 0, ones])),
            "colours and alpha": lambda: Image.fromarray(
                np.dstack([ones * 0, ones, ones * 0, ones * 0 + 255])
            ),
        }[kind]()
        image.save(path)


@pytest.mark.parametrize(
    "kind",
    [
        "1-bit", "grey", "grey of 255", "16-bit grey", "grey and alpha", "16-bit grey and alpha",
        "colours", "colours and alpha", "16-bit colours", "16-bit colours and alpha", "palette",
    ],
)  # fmt: skip
def test_png_masks_of_every_kind(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "mask.png"
    save(path, kind, shape())
    np.testing.assert_array_equal(decode(path), shape())


def test_wrong_png_masks_are_named(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    with pytest.raises(ValueError, match=r"reference 7: mask .*mask\.png is missing"):
        decode(path)
    with pytest.raises(ValueError, match=r"mask\.png is missing"):
        check_segmentation(path, H, W)
    Image.fromarray(shape().T).save(path)
    with pytest.raises(ValueError, match=r"has 20 x 30 pixels, its image 30 x 20 \(width x height"):
        decode(path)
    Image.fromarray(shape()).convert("RGB").save(path, "JPEG")
    with pytest.raises(ValueError, match=r"mask\.png cannot be read as PNG \(no PNG\)"):
        decode(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"no PNG"):
        decode(path)


def test_damaged_png_masks_are_refused_or_true(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    Image.fromarray(np.dstack([shape() * np.uint8(200)] * 2), "LA").save(path)
    good = path.read_bytes()
    damaged = [good[:cut] for cut in range(0, len(good) - 12, 5)]
    for position in range(0, len(good)):
        for bit in (1, 16):
            copy = bytearray(good)
            copy[position] ^= bit
            damaged.append(bytes(copy))
    refused = 0
    for data in damaged:
        path.write_bytes(data)
        try:
            np.testing.assert_array_equal(decode(path), shape())
        except ValueError as error:
            assert str(error).startswith(f"{PLACE}: mask {path}")
            refused += 1
    assert refused > 0.9 * len(damaged)


def test_a_record_is_complete_and_plain() -> None:
    fields = {"ref_id": 1, "height": H, "width": W, "sentences": [[3, "left"]]}
    entry = Entry(fields, [SQUARE], PLACE)
    record = pickle.loads(pickle.dumps(to_record))(entry)
    assert record == {**fields, "rle": encode_mask([SQUARE], H, W, PLACE)}
    assert "rle" not in fields
    with pytest.raises(ValueError, match=r"^file: reference 7: polygon 0"):
        to_record(entry._replace(segmentation=[[1]]))
