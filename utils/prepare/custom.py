"""Read the user's own data: a file of JSON lines, or annotation lists as CRIS has them.

These files have no identifiers and no image sizes: entries and images are counted from 1, and
sizes are read from the image files.
"""

import codecs
import contextlib
import json
import re
import reprlib
from collections.abc import Iterator
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from utils.data.datasets import DATASETS, SPLITS
from utils.prepare.annotations import (
    Entry,
    Source,
    clean_text,
    number_sentences,
    read_sentences,
    relative_path,
)
from utils.prepare.masks import check_segmentation

MASK_KEYS = ("mask", "rle", "polygon")
KEYS = ("image", *MASK_KEYS, "sentences", "split")
MAX_LISTED = 10  # errors
NO_CATEGORY = 0
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,99}")


def jsonl_source(path: str | Path, *, images: str | Path, name: str) -> Source:
    """Read data of one JSON line for each object, as docs/own-data.md explains.

    Raises:
        ValueError: the name cannot be used or the file is missing. Only ``read`` looks at lines;
            its error lists up to ten wrong lines, and counts the others.
    """
    path = Path(path)
    check_name(name)
    if not path.is_file():
        raise ValueError(f"{path} is missing; --custom names a file of JSON lines")
    read = partial(_read_lines, path, Path(images))
    return Source(name, (path,), Path(images), f"{name}-images", SPLITS, read, {}, True)


def lists_source(folder: str | Path, *, images: str | Path, masks: str | Path, name: str) -> Source:
    """Read lists of CRIS: ``SPLIT.json`` with ``img_name``, ``segment_id`` and ``sentences``.

    The mask of an entry is ``MASKS/SEGMENT_ID.png``, or ``MASKS/MASK_NAME`` if it has a
    ``mask_name``. Other keys are not needed and not read.

    Raises:
        ValueError: the name or a folder cannot be used. Only ``read`` looks at entries; its error
            lists up to ten wrong entries, and counts the others.
    """
    folder, masks = Path(folder), Path(masks)
    check_name(name)
    known = {f"{split}.json": split for split in SPLITS}
    found = {path.name for path in folder.glob("*.json")}
    if not found & known.keys():
        raise ValueError(f"{folder} holds none of {', '.join(known)}; name the folder of the lists")
    if others := sorted(found - known.keys()):
        raise ValueError(
            f"{folder} holds {others[0]}, which is no list of a split; rename it to one of "
            f"{', '.join(known)}, or move it elsewhere"
        )
    if not masks.is_dir():
        raise ValueError(f"the folder {masks} is missing; --masks names that of the mask images")
    files = tuple(folder / file for file in known if file in found)
    splits = tuple(split for file, split in known.items() if file in found)
    read = partial(_read_lists, files, Path(images), masks)
    return Source(name, files, Path(images), f"{name}-images", splits, read, {}, True)


def check_name(name: str) -> None:
    """Refuse a name that one's own data cannot have, with a ``ValueError``."""
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} cannot be the name of a data set; take letters, digits and _ . + - "
            "(a letter or digit first, 100 at most)"
        )
    stores = {facts.image_store for facts in DATASETS.values()}
    if name in DATASETS or name.endswith("-images") or f"{name}-images" in stores:
        raise ValueError(
            f"{name!r} cannot be the name of your own data: {', '.join(DATASETS)}, coco and names "
            "that end in '-images' are taken; choose another"
        )


class _EntryBuilder:
    """Collect entries and the errors of those that cannot be read."""

    def __init__(self, images: Path) -> None:
        self.images = images
        self.entries: list[Entry] = []
        self.errors: list[str] = []
        self._image_ids: dict[str, int] = {}
        self._sizes: dict[str, tuple[int | None, int | None]] = {}

    @contextlib.contextmanager
    def collecting_errors(self, place: str) -> Iterator[None]:
        """Store a ``ValueError`` of the block as an error at ``place``, and continue."""
        try:
            yield
        except ValueError as error:
            self.errors.append(f"{place}: {error}")

    def add(
        self, place: str, number: int, name: str, split: str, sentences: list, segmentation: Any
    ) -> None:
        """Add reference ``number`` about the image ``name``; ValueError for a wrong segmentation.

        ``segmentation`` may also be the counts of an RLE alone.
        """
        image_id = self._image_ids.setdefault(name, len(self._image_ids) + 1)
        if name not in self._sizes:
            self._sizes[name] = _image_size(self.images / name)
        height, width = self._sizes[name]
        if isinstance(segmentation, str):
            segmentation = {"size": [height, width], "counts": segmentation}
        check_segmentation(segmentation, height, width)
        record = {
            "ref_id": number,
            "ann_id": number,
            "image_id": image_id,
            "category_id": NO_CATEGORY,
            "file_name": name,
            "split": split,
            "sentences": sentences,
            "height": height,
            "width": width,
        }
        self.entries.append(Entry(record, segmentation, place))

    def finish(self, source: Path) -> list[Entry]:
        """Return all entries with numbered sentences, or raise the errors, one on each line."""
        if self.errors:
            num_more = len(self.errors) - MAX_LISTED
            more = [f"{source}: {num_more:,} more errors after these"] if num_more > 0 else []
            raise ValueError("\n".join([*self.errors[:MAX_LISTED], *more]))
        if not self.entries:
            raise ValueError(f"{source} describes no object; docs/own-data.md shows what to write")
        number_sentences(self.entries)
        return self.entries


def _image_size(path: Path) -> tuple[int | None, int | None]:
    """Read height and width from the file's header, without turning by its EXIF orientation."""
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except (OSError, Image.DecompressionBombError):
        return None, None


def _read_lines(path: Path, images: Path) -> list[Entry]:
    builder = _EntryBuilder(images)
    with path.open("rb") as file:
        for number, data in enumerate(file, start=1):
            place = f"{path}: line {number}"
            with builder.collecting_errors(place):
                # some editors write a mark before the first line
                if data := data.removeprefix(codecs.BOM_UTF8).strip():
                    line = _parse_line(data)
                    image, split = relative_path(line["image"], "image"), _split(line["split"])
                    sentences = [[None, text] for text in _texts(line["sentences"])]
                    segmentation = _segmentation(line, path.parent)
                    builder.add(place, number, image, split, sentences, segmentation)
    return builder.finish(path)


def _parse_line(data: bytes) -> dict[str, Any]:
    """Read the object of a line, and check that it has the keys it needs and no other."""
    line = _parse_json(data, "write one object a line, in UTF-8")
    if not isinstance(line, dict):
        raise ValueError(f"{reprlib.repr(line)} should be an object: {{...}}")
    if unknown := [key for key in line if key not in KEYS]:
        near = get_close_matches(unknown[0], KEYS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(KEYS)}"
        raise ValueError(f"no key {reprlib.repr(unknown[0])}; {hint}")
    if missing := {"image", "sentences", "split"} - line.keys():
        raise ValueError(f"has no {', '.join(sorted(missing))}; every line needs it")
    given = [key for key in MASK_KEYS if key in line]
    if len(given) != 1:
        found = " and ".join(given) or "none"
        raise ValueError(f"has {found} of {', '.join(MASK_KEYS)}; write one of them")
    return line


def _parse_json(data: bytes, way_out: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is no JSON ({error}); {way_out}") from None


def _split(value: Any) -> str:
    if value in SPLITS:
        return value
    near = get_close_matches(str(value), SPLITS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"take one of {', '.join(SPLITS)}"
    raise ValueError(f"split: {reprlib.repr(value)} is none of the splits; {hint}")


def _texts(value: Any) -> list[str]:
    """Read the sentences of a line: one text or more, none of them empty."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts:
        raise ValueError(f"sentences: {reprlib.repr(value)} should be a text or a list of texts")
    found = [clean_text(text, f"sentences[{number}]") for number, text in enumerate(texts)]
    _refuse_empty(found)
    return found


def _refuse_empty(texts: list[str]) -> None:
    if "" in texts:
        raise ValueError(f"sentences[{texts.index('')}] is empty; write what describes the object")


def _segmentation(line: dict[str, Any], folder: Path) -> Any:
    """Read the mask of a line: polygons, an RLE, its counts, or the path of a mask image."""
    key = next(key for key in MASK_KEYS if key in line)
    value = line[key]
    if key == "polygon":
        if not isinstance(value, list) or not value:
            raise ValueError(f"polygon: {reprlib.repr(value)} should be a list of x, y pairs")
        return value if isinstance(value[0], list) else [value]
    if key == "rle":
        if not isinstance(value, dict | str):
            raise ValueError(
                f"rle: {reprlib.repr(value)} should be COCO's {{'size': ..., 'counts': ...}}, or "
                "the counts as text"
            )
        return value
    if not isinstance(value, str) or not value:
        raise ValueError(f"mask: {reprlib.repr(value)} should be the path of a PNG file")
    return folder / value


def _read_lists(files: tuple[Path, ...], images: Path, masks: Path) -> list[Entry]:
    builder = _EntryBuilder(images)
    number = 0
    for path in files:
        rows: list[Any] = []
        with builder.collecting_errors(str(path)):
            rows = _read_list(path)
        for position, row in enumerate(rows):
            number += 1
            place = f"{path}: entry {position} (counted from 0)"
            with builder.collecting_errors(place):
                image, sentences, mask = _read_row(row)
                builder.add(place, number, image, path.stem, sentences, masks / mask)
    return builder.finish(files[0].parent)


def _read_list(path: Path) -> list[Any]:
    rows = _parse_json(path.read_bytes(), "export it again")
    if not isinstance(rows, list):
        raise ValueError(f"holds {reprlib.repr(rows)}; should hold a list of entries")
    return rows


def _read_row(row: Any) -> tuple[str, list[list[Any]], str]:
    """Read image, sentences and mask file of an entry of CRIS's lists."""
    if not isinstance(row, dict):
        raise ValueError(f"{reprlib.repr(row)} should be an object: {{...}}")
    mask_key = "mask_name" if "mask_name" in row else "segment_id"
    if missing := {"img_name", "sentences", mask_key} - row.keys():
        raise ValueError(f"has no {', '.join(sorted(missing))}; every entry needs it")
    sentences = read_sentences(row["sentences"], "sentences")
    _refuse_empty([text for _, text in sentences])
    if (num := row.get("sentences_num", len(sentences))) != len(sentences):
        raise ValueError(
            f"sentences_num is {reprlib.repr(num)}, and sentences holds {len(sentences)}; "
            "correct one of them"
        )
    mask = row[mask_key]
    if mask_key == "segment_id":
        if type(mask) not in (int, str):
            raise ValueError(f"segment_id: {reprlib.repr(mask)} should be number or text")
        mask = f"{mask}.png"
    return relative_path(row["img_name"], "img_name"), sentences, relative_path(mask, mask_key)
