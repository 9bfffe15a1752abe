"""Check what predict.py reads (pictures, folders, tables) and the files that it writes."""

import io
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo
from pycocotools import mask as coco_mask

from engine.prediction_io import (
    KINDS,
    as_rgb,
    box_of,
    coco_rle,
    describe,
    draw,
    find_pictures,
    folder_names,
    read_image,
    read_pairs,
)

UPRIGHT = np.zeros((20, 12, 3), np.uint8)
UPRIGHT[:6, :5] = (250, 10, 130)
DEEP = np.arange(240, dtype=np.uint16).reshape(20, 12) * 256 + 7
GREY = (DEEP >> 8).astype(np.uint8)
GREY_RGB = np.dstack([GREY] * 3)
BINARY_RGB = np.dstack([(GREY > 9).astype(np.uint8) * 255] * 3)


@pytest.mark.parametrize("kind", ["png", "jpg", "webp", "tiff"])
def test_exif_orientation_is_applied(tmp_path: Path, kind: str) -> None:
    exif = Image.Exif()
    exif[274] = 6  # the stored picture must be turned by 90 degrees clockwise
    path = tmp_path / f"turned.{kind}"
    Image.fromarray(np.rot90(UPRIGHT).copy()).save(path, exif=exif)
    for image in (read_image(path), as_rgb(Image.open(path))):
        assert image.shape == UPRIGHT.shape
        difference = np.abs(image.astype(int) - UPRIGHT)[[2, 15], [2, 9]]
        assert difference.max() < (40 if kind in ("jpg", "webp") else 1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    """WebP may begin its chunk with ``Exif\\0\\0``, PNG may have XMP instead."""
    stored = np.random.default_rng(0).integers(0, 256, (12, 20, 3), np.uint8)
    exif, kinds = Image.Exif(), {"webp": {"lossless": True}, "tiff": {}, "png": {}}
    exif[274] = orientation
    xmp = f'<x:xmpmeta><rdf:Description tiff:Orientation="{orientation}"/></x:xmpmeta>'
    text = PngInfo()
    text.add_itxt("XML:com.adobe.xmp", xmp)
    Image.fromarray(stored).save(tmp_path / "xmp.png", pnginfo=text)
    for kind, options in kinds.items():
        content = b"Exif\0\0" + exif.tobytes().removeprefix(b"Exif\0\0")
        Image.fromarray(stored).save(tmp_path / f"exif.{kind}", exif=content, **options)
    for path in tmp_path.iterdir():
        wanted = np.asarray(ImageOps.exif_transpose(Image.open(path)))
        assert (wanted.shape == stored.shape) == (orientation < 5), path.name
        for image in (read_image(path), as_rgb(path), as_rgb(Image.open(path))):
            assert np.array_equal(image, wanted), path.name


@pytest.mark.parametrize(
    ("stored", "wanted"),
    [
        (GREY, GREY_RGB),
        (DEEP, GREY_RGB),
        (np.dstack([DEEP] * 3), GREY_RGB),
        (np.dstack([UPRIGHT, GREY]), UPRIGHT[:, :, ::-1]),  # OpenCV stores BGR
    ],
    ids=["grey", "grey of 16 bits", "colours of 16 bits", "transparent"],
)
def test_kinds_of_files_are_read(tmp_path: Path, stored: np.ndarray, wanted: np.ndarray) -> None:
    cv2.imwrite(str(tmp_path / "picture.png"), stored)
    assert np.array_equal(read_image(tmp_path / "picture.png"), wanted)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (GREY, GREY_RGB),
        (GREY[:, :, None], GREY_RGB),
        (DEEP, GREY_RGB),
        (np.dstack([UPRIGHT, GREY]), UPRIGHT),
        (GREY > 9, BINARY_RGB),
        (Image.fromarray(DEEP), GREY_RGB),
        (Image.fromarray(DEEP.astype(np.int32)), GREY_RGB),
        (Image.frombytes("I;16B", DEEP.shape[::-1], DEEP.astype(">u2").tobytes()), GREY_RGB),
        (Image.fromarray(UPRIGHT).convert("RGBA"), UPRIGHT),
        (Image.fromarray(GREY).convert("P"), GREY_RGB),
    ],
    ids=[
        *("grey", "channel", "16 bits", "RGBA", "bool"),
        *("PIL 16 bits", "PIL I", "PIL I;16B", "PIL RGBA", "PIL palette"),
    ],
)
def test_arrays_and_pil_images_are_read(given: Any, wanted: np.ndarray) -> None:
    image = as_rgb(given)
    assert image.dtype == np.uint8 and np.array_equal(image, wanted)


def half_of_a(kind: str) -> bytes:
    noise, file = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8), io.BytesIO()
    Image.fromarray(noise).save(file, kind)
    return file.getvalue()[: len(file.getvalue()) // 2]


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (np.zeros((4, 4, 3)), "float64"),
        (np.zeros((4, 4, 2), np.uint8), "(4, 4, 2)"),
        (np.zeros((0, 4), np.uint8), "(0, 4)"),
        (7, "int"),
        (Image.fromarray(np.zeros((4, 4), np.float32)), "mode F"),
        (Image.fromarray(np.full((4, 4), 1 << 16, np.int32)), "16 bits"),
        ("missing.png", "missing.png"),
        (half_of_a("JPEG"), "damaged.jpg"),
        (half_of_a("PNG"), "damaged.jpg"),
        (b"no picture", "damaged.jpg"),
        (b"", "damaged.jpg"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_picture_is_refused(tmp_path: Path, given: Any, named: str) -> None:
    if isinstance(given, bytes):
        path = tmp_path / "damaged.jpg"
        path.write_bytes(given)
        given = path
    with pytest.raises(ValueError, match=re.escape(named)):
        as_rgb(given)


@pytest.mark.parametrize(
    ("words", "paths", "unusable"),
    [
        (["some"], ["some/a.jpg", "some/b.PNG"], []),
        (["some/**/*.png"], ["some/inside/d.png"], []),
        (["some/b.PNG", "some"], ["some/b.PNG", "some/a.jpg"], []),
        (["[1].png"], ["[1].png"], []),
        (["some/notes.txt"], ["some/notes.txt"], []),
        (["no.png", "[1].png"], ["[1].png"], ["no.png"]),
        (["empty", "*.gif"], [], ["empty", "*.gif"]),
    ],
)
def test_words_name_pictures(
    tmp_path: Path, monkeypatch: Any, words: list[str], paths: list[str], unusable: list[str]
) -> None:
    (tmp_path / "some" / "inside").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    for name in ("b.PNG", "a.jpg", "notes.txt", ".c.png", "inside/d.png", "../[1].png"):
        (tmp_path / "some" / name).touch()
    monkeypatch.chdir(tmp_path)
    inputs = find_pictures(words, ["a star", "a ring"])
    assert [path.as_posix() for path in inputs.texts] == paths
    assert all(texts == ["a star", "a ring"] for texts in inputs.texts.values())
    assert [problem.partition(":")[0] for problem in inputs.problems] == unusable
    assert inputs.is_single == (words in (["[1].png"], ["some/notes.txt"]))


CSV = '\ufeffimage, sentence,id\nb.png,a star,1\na.png,"the ""big"", red one",2\n'
CSV += 'b.png,"ein Stern, grün",3\n,nothing,4\nb.png, ,5\n'
JSONL = """{"image": "b.png", "sentence": "a star"}
{"image": "a.png", "sentence": "the \\"big\\", red one"}

{"image": "b.png", "sentence": "ein Stern, grün"}
{"image": 3, "sentence": "nothing"}
{"image": "b.png"
"""


@pytest.mark.parametrize(("name", "content"), [("pairs.csv", CSV), ("pairs.jsonl", JSONL)])
def test_tables_give_pairs_and_name_bad_lines(tmp_path: Path, name: str, content: str) -> None:
    table = tmp_path / name
    table.write_text(content, encoding="utf-8")
    inputs = read_pairs(table)
    assert list(inputs.texts.items()) == [
        (tmp_path / "b.png", ["a star", "ein Stern, grün"]),
        (tmp_path / "a.png", ['the "big", red one']),
    ]
    assert not inputs.is_single
    for line, problem in zip((5, 6), inputs.problems, strict=True):
        assert problem.startswith(f"{table}: line {line}: ")


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("pairs.csv", b"picture,sentence\n", "no column image;"),
        ("pairs.csv", b"", "no column image, sentence;"),
        ("pairs.csv", b"image,sentence\n\xff,a\n", "UTF-8"),
        ("pairs.csv", b"image,sentence\na.png," + b"a" * 140_000, "not CSV"),
        ("pairs.xlsx", b"", ".csv or .jsonl"),
        ("none.csv", None, "no such table"),
    ],
)
def test_wrong_tables_are_refused(
    tmp_path: Path, name: str, content: bytes | None, named: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{re.escape(name)}.*{re.escape(named)}"):
        read_pairs(tmp_path / name)


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (
            ["x/a.jpg", "y/a.png", "A.jpg", "a-2.jpg", "predictions.json.png", "a-2-2.gif"],
            ["a", "a-2", "A-3", "a-2-2", "predictions.json-2", "a-2-2-2"],
        ),
        (["...png", ". ..png"], ["picture", "_"]),
        (["a b:c*d\\e\n.png", "größe.png"], ["a_b_c_d_e_", "größe"]),
        (["图" * 99 + ".png"], ["图" * 40]),
    ],
)
def test_folder_names_are_unique_and_safe(paths: list[str], names: list[str]) -> None:
    assert folder_names([Path(path) for path in paths]) == names


MASK = np.zeros((9, 12), bool)
MASK[2:5, 3:9] = True


def test_drawn_files_are_of_mask_and_probability() -> None:
    image = np.random.default_rng(0).integers(1, 256, (9, 12, 3), dtype=np.uint8)
    probability = np.where(MASK, np.float32(0.75), np.float32(0.1))
    mask, overlay, cutout, stored = (draw(kind, image, MASK, probability) for kind in KINDS)
    assert np.array_equal(mask, MASK * np.uint8(255)) and stored.dtype == np.uint16
    assert np.allclose(stored / 65535, probability, atol=1e-5)
    bgr = image[:, :, ::-1]
    assert np.array_equal(cutout[MASK], np.insert(bgr[MASK], 3, 255, axis=1))
    assert not cutout[~MASK].any()
    assert np.array_equal(overlay[3, 4:8], bgr[3, 4:8])
    assert np.array_equal(overlay[0], bgr[0] // 3)


def test_run_lengths_and_boxes_are_those_of_coco() -> None:
    rle = coco_rle(MASK)
    assert isinstance(rle["counts"], str) and np.array_equal(coco_mask.decode(rle), MASK)
    assert box_of(MASK) == coco_mask.toBbox(rle).tolist() == [3, 2, 6, 3]
    assert describe(MASK) == "16.7 % of the picture, x 3 to 8, y 2 to 4"
    assert box_of(MASK & False) is None and describe(MASK & False) == "nothing found"
