"""Images: decoded whole before they are packed, and every bad one is listed."""

import io
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from utils.data.dataset import ReferDataset
from utils.data.store import ReferStore, store_path
from utils.prepare.annotations import Source
from utils.prepare.images import image_size
from utils.prepare.pack import pack_dataset

Copy = Callable[..., Source]


SIZE = (37, 61)


def encoded(
    form: str = "JPEG", mode: str = "RGB", size: tuple[int, int] = SIZE, **options: object
) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (size[0] + 2, *size[1:], 3))
    pixels = ((noise[:-2] + noise[1:-1] + noise[2:]) // 3).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, form, **options)
    return file.getvalue()


JPEGS = {
    "baseline": encoded(),
    "progressive": encoded(progressive=True),
    "grey": encoded(mode="L"),
    "inks": encoded(mode="CMYK"),
    "restarts": encoded(restart_marker_rows=1),
}
OTHERS = {
    "png": encoded("PNG"),
    "palette": encoded("PNG", mode="P"),
    "bmp": encoded("BMP"),
    "webp": encoded("WEBP", lossless=True),
}


@pytest.mark.parametrize("kind", [*JPEGS, *OTHERS])
def test_images_of_many_kinds_are_measured(kind: str) -> None:
    assert image_size((JPEGS | OTHERS)[kind]) == SIZE


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
@pytest.mark.parametrize("size", [(1, 1), (2, 9), (16, 3)])
def test_small_images_are_measured(form: str, size: tuple[int, int]) -> None:
    assert image_size(encoded(form, size=size)) == size


def test_a_turned_photograph_keeps_the_size_of_its_pixels() -> None:
    turned = Image.Exif()
    turned[0x0112] = 6  # orientation
    assert image_size(encoded(exif=turned)) == SIZE


@pytest.mark.parametrize("kind", JPEGS)
def test_a_jpeg_is_refused_wherever_it_is_cut(kind: str) -> None:
    data = JPEGS[kind]
    for length in [0, 1, 20, *range(100, len(data), 97), *range(len(data) - 9, len(data))]:
        with pytest.raises(ValueError, match=r"no image file|damaged: "):
            image_size(data[:length])


@pytest.mark.parametrize("kind", [*JPEGS, "png"])
def test_a_file_whose_end_was_never_written_is_refused(kind: str) -> None:
    data = (JPEGS | OTHERS)[kind]
    with pytest.raises(ValueError, match=r"damaged: |OpenCV"):
        image_size(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))


def test_bytes_behind_the_end_are_allowed() -> None:
    assert image_size(JPEGS["baseline"] + b"\r\nsaved by a camera") == SIZE


@pytest.mark.parametrize("form", ["PCX", "TGA"])
def test_what_opencv_cannot_read_is_refused(form: str) -> None:
    with pytest.raises(ValueError, match="OpenCV"):
        image_size(encoded(form))


def damage(folder: Path, names: list[str]) -> dict[str, str]:
    """Damage four images in four ways; name -> the reason that is reported."""
    missing, cut, text, small = names
    (folder / missing).unlink()
    os.truncate(folder / cut, (folder / cut).stat().st_size - 700)
    (folder / text).write_text("<html>404</html>")
    (folder / small).write_bytes(JPEGS["baseline"])
    return {
        missing: "missing",
        cut: "damaged: image file is truncated",
        text: "no image file",
        small: "37 x 61 pixels (height x width) where ",
    }


@pytest.mark.parametrize("workers", [1, 2])
def test_all_bad_images_are_listed_at_once(copy_as: Copy, tmp_path: Path, workers: int) -> None:
    source = copy_as("refcoco", range(30))
    names = sorted(path.name for path in source.images.iterdir())
    reasons = damage(source.images, names[1:5])
    with pytest.raises(ValueError) as info:
        pack_dataset(tmp_path, source, accept_differences=True, workers=workers)
    message = str(info.value)
    assert message.startswith(f"4 of {len(names)} images in {source.images} ")
    for name, reason in reasons.items():
        assert f"{name} ({reason}" in message
    assert "--skip-bad" in message and "more" not in message and "\n" not in message
    assert not list((tmp_path / "lmdb").glob("*.lmdb"))


def test_ten_bad_images_are_listed_and_the_others_counted(copy_as: Copy, tmp_path: Path) -> None:
    source = copy_as("refcoco", range(61))
    for path in sorted(source.images.iterdir())[:13]:
        path.unlink()
    with pytest.raises(ValueError, match=r"^13 of .* and 3 more; ") as info:
        pack_dataset(tmp_path, source, accept_differences=True)
    assert str(info.value).count("(missing)") == 10


def test_the_way_out_of_bad_images_is_recorded(copy_as: Copy, tmp_path: Path) -> None:
    source = copy_as("refcoco", range(40))
    entries = source.read()
    names = sorted({entry.record["file_name"] for entry in entries})
    reasons = damage(source.images, names[1:5])
    kept = [entry.record["ref_id"] for entry in entries if entry.record["file_name"] not in reasons]
    header = pack_dataset(tmp_path, source, accept_differences=True, skip_bad=True)
    assert header["skipped"] == {"images": sorted(reasons), "refs": 40 - len(kept)}
    store = ReferStore(tmp_path, "refcoco")
    assert store.header == header and header["splits"]["train"]["refs"] == len(kept) < 40
    assert [record["ref_id"] for record in store.references("train")] == kept
    for path in source.images.iterdir():
        path.write_text("")
    with pytest.raises(ValueError, match=re.escape(str(source.images))):
        pack_dataset(tmp_path, source, accept_differences=True, skip_bad=True, force=True)
    source = source._replace(images=tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"nowhere is missing; .* --images"):
        pack_dataset(tmp_path, source, accept_differences=True, force=True)


def test_good_images_are_not_read_again(copy_as: Copy, tmp_path: Path) -> None:
    source = copy_as("refcoco", range(40))
    bad, *good = sorted(source.images.iterdir())
    data = bad.read_bytes()
    bad.write_bytes(data[:-500])
    with pytest.raises(ValueError, match="1 of "):
        pack_dataset(tmp_path, source, accept_differences=True)
    bad.write_bytes(data)
    for path in good:
        path.unlink()
    pack_dataset(tmp_path, source, accept_differences=True)
    assert ReferStore(tmp_path, "refcoco").image(bad.name) == data


def test_an_image_that_was_replaced_is_read_again(copy_as: Copy, tmp_path: Path) -> None:
    source = copy_as("refcoco", range(8))
    first = pack_dataset(tmp_path, source, accept_differences=True)
    path = next(source.images.iterdir())
    path.write_bytes(path.read_bytes() + b"x")
    second = pack_dataset(tmp_path, source, accept_differences=True)
    assert ReferStore(tmp_path, "refcoco").image(path.name) == path.read_bytes()
    assert second["fingerprint"] != first["fingerprint"]
    changed = bytearray(path.read_bytes())
    changed[-40] ^= 1
    path.write_bytes(changed)
    pack_dataset(tmp_path, source, accept_differences=True)
    assert ReferStore(tmp_path, "refcoco").image(path.name) != changed, "of the same length"
    pack_dataset(tmp_path, source, accept_differences=True, force=True)
    assert ReferStore(tmp_path, "refcoco").image(path.name) == changed


def test_names_that_no_store_can_hold_are_bad(copy_as: Copy, tmp_path: Path) -> None:
    long = "/".join(["folder" * 20] * 5) + ".jpg"
    source = copy_as("refcoco", range(30))
    entries = source.read()
    images = sorted({entry.record["file_name"] for entry in entries})[:3]
    names = dict(zip(images, ["header", "sha256/x.jpg", long], strict=True))
    for old, new in names.items():
        (source.images / new).parent.mkdir(parents=True, exist_ok=True)
        (source.images / old).rename(source.images / new)
    for entry in entries:
        name = entry.record["file_name"]
        entry.record["file_name"] = names.get(name, name)
    source = source._replace(read=lambda: entries)
    with pytest.raises(ValueError) as info:
        pack_dataset(tmp_path, source, accept_differences=True)
    for reason in ("header (the store", "sha256/x.jpg (the store", "jpg (its name is longer"):
        assert reason in str(info.value)


def test_an_unknown_size_is_that_of_the_image(copy_as: Copy, tmp_path: Path) -> None:
    source = copy_as("refcoco", range(12))
    expected = pack_dataset(tmp_path, source, accept_differences=True)["fingerprint"]
    entries = [
        entry._replace(record=entry.record | {"height": None, "width": None})
        for entry in source.read()
    ]
    store_path(tmp_path, "refcoco").unlink()
    unknown = source._replace(read=lambda: entries)
    assert pack_dataset(tmp_path, unknown, accept_differences=True)["fingerprint"] == expected
    entries = source.read()
    entries[5] = entries[5]._replace(record=entries[5].record | {"height": 3, "width": 4})
    source = source._replace(read=lambda: entries)
    with pytest.raises(ValueError, match=entries[5].record["file_name"]):
        pack_dataset(tmp_path, source, accept_differences=True)


def test_images_that_another_data_set_uses_never_change(copy_as: Copy, tmp_path: Path) -> None:
    first = copy_as("refcoco", range(8))
    pack_dataset(tmp_path, first, accept_differences=True)
    store = ReferStore(tmp_path, "refcoco")
    names = sorted(store.file_names("train"))
    images = {name: store.image(name) for name in names}
    second = copy_as("refcoco+", range(30))
    (first.images / names[2]).write_bytes(images[names[2]] + b"of another copy")
    for force in (False, True):
        with pytest.raises(ValueError, match=f"{re.escape(names[2])} .* refcoco use"):
            pack_dataset(tmp_path, second, accept_differences=True, force=force)
        assert {name: ReferStore(tmp_path, "refcoco").image(name) for name in names} == images
    (first.images / names[2]).write_bytes(images[names[2]])
    pack_dataset(tmp_path, second, accept_differences=True)
    for dataset in ("refcoco", "refcoco+"):
        ReferDataset(tmp_path, dataset, "train", image_size=64)


def test_an_image_store_of_other_images_is_refused(copy_as: Copy, tmp_path: Path) -> None:
    source = copy_as("refcoco", range(8))
    pack_dataset(tmp_path, source, accept_differences=True)
    images = store_path(tmp_path, source.image_store)
    other = images.with_suffix(".other")
    images.rename(other)
    path = next(source.images.iterdir())
    path.write_bytes(path.read_bytes() + b"x")
    pack_dataset(tmp_path, source, accept_differences=True)
    other.replace(images)
    with pytest.raises(ValueError, match=re.escape(str(images))):
        ReferDataset(tmp_path, "refcoco", "train", image_size=64)
