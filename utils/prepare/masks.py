"""Encode masks: from polygons, run lengths and PNG files to compressed COCO RLE."""

import io
import reprlib
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from utils.prepare.annotations import Entry

FARTHEST = 100_000  # pixels from the origin; pycocotools counts the points of an outline in ints
_LONGEST_RUN = 7  # characters of a run length in compressed form, 5 bits each


def to_record(entry: Entry) -> dict[str, Any]:
    """Complete the record of an entry with its mask; ``ValueError`` names place and reason."""
    height, width = entry.record["height"], entry.record["width"]
    assert height is not None and width is not None, "entries of unreadable images are no records"
    return {**entry.record, "rle": encode_mask(entry.segmentation, height, width, entry.place)}


def encode_mask(segmentation: Any, height: int, width: int, place: str) -> str:
    """Encode the mask of a segmentation as the text of a compressed COCO RLE.

    It is the union of COCO polygons, the mask of a COCO RLE (its counts as list, text or bytes),
    or all pixels of a PNG file that are not 0. Polygons are rasterised by pycocotools, as other
    fillers draw other borders; what is outside the image is cut off. The mask may be empty.

    Raises:
        ValueError: begins with ``place`` and says what is wrong with the segmentation.
    """
    try:
        if isinstance(segmentation, Path):
            pixels = _read_png(segmentation, height, width)
            rle = coco_mask.encode(np.asfortranarray(pixels.astype(np.uint8)))
        elif isinstance(segmentation, dict):
            counts = _run_lengths(segmentation, height, width)
            rle = coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)
        else:
            _check_polygons(segmentation)
            rle = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None
    return rle["counts"].decode("ascii")


def check_segmentation(segmentation: Any, height: int | None, width: int | None) -> None:
    """Raise what ``encode_mask`` would, without a place, as far as that needs no image."""
    if isinstance(segmentation, Path):
        _check_present(segmentation)
    elif not isinstance(segmentation, dict):
        _check_polygons(segmentation)
    elif height is not None and width is not None:
        _run_lengths(segmentation, height, width)


def _check_present(path: Path) -> None:
    if not path.is_file():
        raise ValueError(f"mask {path} is missing; put it there or correct its name")


def _check_polygons(parts: Any) -> None:
    """Raise ``ValueError`` unless ``parts`` are lists of x, y pairs of at least three points."""
    if (
        not isinstance(parts, list)
        or not parts
        or not all(isinstance(part, list) for part in parts)
    ):
        raise ValueError(
            f"segmentation {reprlib.repr(parts)} should be a list of polygons, each a list of x, y "
            "pairs, or an RLE with size and counts"
        )
    for number, part in enumerate(parts):
        name = f"polygon {number} (counted from 0)"
        # pycocotools would take four numbers for a box
        if len(part) < 6 or len(part) % 2:
            raise ValueError(
                f"{name} has {len(part)} numbers; should have x, y pairs of at least three points"
            )
        if not all(type(value) in (int, float) for value in part):
            wrong = next(value for value in part if type(value) not in (int, float))
            raise ValueError(f"{name} holds {reprlib.repr(wrong)}; should hold numbers alone")
        if not all(-FARTHEST <= value <= FARTHEST for value in part):
            wrong = next(value for value in part if not -FARTHEST <= value <= FARTHEST)
            raise ValueError(
                f"{name} holds {reprlib.repr(wrong)}; should hold pixels, {FARTHEST:,} at most"
            )


def _run_lengths(rle: dict[str, Any], height: int, width: int) -> np.ndarray:
    """Read runs of 0 and 1 in turn, column by column, of an RLE that fits the image.

    Checked here since pycocotools decodes damaged runs to any mask or reads beyond their end.
    """
    if missing := {"size", "counts"} - rle.keys():
        raise ValueError(f"RLE has no {' and no '.join(sorted(missing))}; should have both")
    if rle["size"] not in ([height, width], (height, width)):
        raise ValueError(
            f"RLE has size {reprlib.repr(rle['size'])}, its image {[height, width]} "
            "(height, width); they should be equal"
        )
    counts = rle["counts"]
    if isinstance(counts, str | bytes):
        runs = _decompress(counts)
    elif isinstance(counts, list) and all(type(run) is int for run in counts):
        runs = np.asarray(counts) if all(0 <= run <= height * width for run in counts) else None
    else:
        raise ValueError(f"RLE has counts {reprlib.repr(counts)}; should be whole numbers or text")
    if runs is None or (runs < 0).any() or runs.sum() != height * width:
        raise ValueError(
            f"RLE is damaged: its counts do not add up to the {height} x {width} pixels of its "
            "image; export it again"
        )
    return runs


def _decompress(counts: str | bytes) -> np.ndarray | None:
    """Decode the run lengths of a compressed RLE; None if no encoder writes such a text.

    A number has 5 bits a character, lowest first, of which bit 5 says that another follows; its
    highest bit is the sign. From the fourth on, numbers are differences to the last but one.
    """
    data = counts if isinstance(counts, bytes) else counts.encode("ascii", "replace")
    codes = np.frombuffer(data, np.uint8).astype(np.int64) - ord("0")
    if not codes.size or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        return None
    ends = np.flatnonzero(codes & 32 == 0)
    lengths = np.diff(ends, prepend=-1)
    if lengths.max() > _LONGEST_RUN:
        return None
    starts = ends + 1 - lengths
    shifts = 5 * (np.arange(codes.size) - np.repeat(starts, lengths))
    numbers = np.add.reduceat((codes & 31) << shifts, starts)
    numbers -= (codes[ends] & 16 > 0) * (1 << 5 * lengths)
    for first in (1, 2):
        numbers[first::2] = np.cumsum(numbers[first::2])
    return numbers


def _read_png(path: Path, height: int, width: int) -> np.ndarray:
    """Read which pixels of a PNG are not 0 in some colour or in their index: bool (H, W)."""
    from PIL import Image, UnidentifiedImageError

    _check_present(path)
    data = path.read_bytes()
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            image.verify()  # checksums: some wrong bits only give other pixels
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            size, mode = image.size, image.mode
            pixels = np.asarray(image) if size == (width, height) else None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = "no PNG" if isinstance(error, UnidentifiedImageError) else error
        raise ValueError(f"mask {path} cannot be read as PNG ({reason}); write it again") from None
    if pixels is None:
        raise ValueError(
            f"mask {path} has {size[0]} x {size[1]} pixels, its image {width} x {height} "
            "(width x height); they should be equal"
        )
    bit_depth = data[24]  # the header is first in every PNG, and the depth follows width and height
    if bit_depth == 16 and not mode.startswith("I"):
        import cv2

        # Pillow keeps the upper eight of 16 bits
        pixels = np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED))
    if pixels.ndim == 2:
        return pixels != 0
    return (pixels[..., : len(mode.removesuffix("A"))] != 0).any(axis=-1)  # without alpha
