"""One's own data: a file of JSON lines, or annotation lists of the CRIS family."""

import json
import re
import reprlib
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

from utils.data.datasets import DATASETS, SPLITS
from utils.prepare.annotations import Entry, Source
from utils.prepare.entry_builder import EntryBuilder
from utils.prepare.fields import clean_text, read_sentences, relative_path

OUTLINES = ("mask", "rle", "polygon")
KEYS = ("image", *OUTLINES, "sentences", "split")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,99}")


def jsonl_source(path: str | Path, *, images: str | Path, name: str) -> Source:
    """Data described by one line of JSON an object, as docs/own-data.md explains.

    Raises:
        ValueError: the name cannot be used or the file is missing. Lines are looked at by ``read``
            alone, whose error lists up to ten of those that are wrong, and counts the others.
    """
    path = Path(path)
    check_name(name)
    if not path.is_file():
        raise ValueError(f"{path} is missing; --custom names a file of JSON lines")
    read = partial(_read_lines, path, Path(images))
    return Source(name, (path,), Path(images), f"{name}-images", SPLITS, read, {}, True)


def lists_source(folder: str | Path, *, images: str | Path, masks: str | Path, name: str) -> Source:
    """Data in the lists of CRIS: ``SPLIT.json`` with ``img_name``, ``segment_id``, ``sentences``.

    The mask of an entry is ``MASKS/SEGMENT_ID.png``, or ``MASKS/MASK_NAME`` if it has a
    ``mask_name``. Other keys are not needed and not read.

    Raises:
        ValueError: the name or a folder cannot be used. Entries are looked at by ``read`` alone,
            whose error lists up to ten of those that are wrong, and counts the others.
    """
    folder, masks = Path(folder), Path(masks)
    check_name(name)
    known = {f"{split}.json": split for split in SPLITS}
    found = {path.name for path in folder.glob("*.json")}
    if not found & known.keys():
        raise ValueError(f"{folder} holds none of {', '.join(known)}; name the folder of the lists")
    if others := sorted(found - known.keys()):
        raise ValueError(
            f"{folder} holds {others[0]}, which is no list of a split; name it as one of "
            f"{', '.join(known)}, or move it elsewhere"
        )
    if not masks.is_dir():
        raise ValueError(f"the folder {masks} is missing; --masks names that of the mask images")
    files = tuple(folder / file for file in known if file in found)
    splits = tuple(split for file, split in known.items() if file in found)
    read = partial(_read_lists, files, Path(images), masks)
    return Source(name, files, Path(images), f"{name}-images", splits, read, {}, True)


def check_name(name: str) -> None:
    """ValueError if one's own data cannot have this name."""
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} cannot be the name of a data set; take letters, digits and _ . + - "
            "(a letter or digit first, 100 at most)"
        )
    stores = {facts.image_store for facts in DATASETS.values()}
    if name in DATASETS or name.endswith("-images") or f"{name}-images" in stores:
        raise ValueError(
            f"{name!r} cannot be the name of one's own data: {', '.join(DATASETS)}, coco and all "
            "that ends in '-images' mean something else already; take another"
        )


def _read_lines(path: Path, images: Path) -> list[Entry]:
    builder = EntryBuilder(images)
    with path.open("rb") as file:
        for number, data in enumerate(file, start=1):
            place = f"{path}: line {number}"
            with builder.collecting(place):
                if text := _decode(data).strip():
                    line = _check_keys(text)
                    fields = {
                        "file_name": _image(line["image"], "image"),
                        "split": _split(line["split"]),
                        "sentences": [[None, text] for text in _texts(line["sentences"])],
                    }
                    builder.add(place, number, fields, _outline(line, path.parent))
    return builder.finish(path)


def _decode(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")  # some editors write a mark before the first line
    except UnicodeDecodeError as error:
        wrong = data[error.start : error.end]
        raise ValueError(f"{wrong!r} is no UTF-8; save the file with that encoding") from None


def _check_keys(text: str) -> dict[str, Any]:
    """The object of a line, which has the keys it needs and no other."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is no JSON ({error}); write one object a line") from None
    if not isinstance(line, dict):
        raise ValueError(f"{reprlib.repr(line)} should be an object: {{...}}")
    unknown = [key for key in line if key not in KEYS]
    if unknown:
        near = get_close_matches(unknown[0], KEYS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(KEYS)}"
        raise ValueError(f"no key {reprlib.repr(unknown[0])}; {hint}")
    if missing := {"image", "sentences", "split"} - line.keys():
        raise ValueError(f"has no {', '.join(sorted(missing))}; every line needs it")
    given = [key for key in OUTLINES if key in line]
    if len(given) != 1:
        found = " and ".join(given) or "none"
        raise ValueError(f"has {found} of {', '.join(OUTLINES)}; should have one")
    return line


def _image(value: Any, key: str) -> str:
    try:
        return relative_path(value)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None


def _split(value: Any) -> str:
    if value in SPLITS:
        return value
    near = get_close_matches(str(value), SPLITS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"take one of {', '.join(SPLITS)}"
    raise ValueError(f"split: {reprlib.repr(value)} is none of the splits; {hint}")


def _texts(value: Any) -> list[str]:
    """The sentences of a line: texts that are not empty, one at least."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts:
        raise ValueError(f"sentences: {reprlib.repr(value)} should be a text or a list of texts")
    found = []
    for position, text in enumerate(texts):
        try:
            found.append(clean_text(text))
        except ValueError as error:
            raise ValueError(f"sentences[{position}]: {error}") from None
    _refuse_empty(found)
    return found


def _refuse_empty(texts: list[str]) -> None:
    if "" in texts:
        raise ValueError(f"sentences[{texts.index('')}] is empty; write what tells the object")


def _outline(line: dict[str, Any], folder: Path) -> Any:
    """The segmentation of a line: polygons, an RLE, its counts, or the path of a mask."""
    if "polygon" in line:
        value = line["polygon"]
        if not isinstance(value, list) or not value:
            raise ValueError(f"polygon: {reprlib.repr(value)} should be a list of x, y pairs")
        return value if isinstance(value[0], list) else [value]
    if "rle" in line:
        value = line["rle"]
        if not isinstance(value, dict | str):
            raise ValueError(
                f"rle: {reprlib.repr(value)} should be COCO's {{'size': ..., 'counts': ...}}, or "
                "the counts as text"
            )
        return value
    value = line["mask"]
    if not isinstance(value, str) or not value:
        raise ValueError(f"mask: {reprlib.repr(value)} should be the path of a PNG file")
    return folder / value


def _read_lists(files: tuple[Path, ...], images: Path, masks: Path) -> list[Entry]:
    builder = EntryBuilder(images)
    number = 0
    for path in files:
        rows: list[Any] = []
        with builder.collecting(str(path)):
            rows = _read_list(path)
        for position, row in enumerate(rows):
            number += 1
            place = f"{path}: entry {position} (counted from 0)"
            with builder.collecting(place):
                fields, mask = _read_row(row, masks)
                builder.add(place, number, {**fields, "split": path.stem}, mask)
    return builder.finish(files[0].parent)


def _read_list(path: Path) -> list[Any]:
    try:
        rows = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is no JSON ({error}); export it again") from None
    if not isinstance(rows, list):
        raise ValueError(f"holds {reprlib.repr(rows)}; should hold a list of entries")
    return rows


def _read_row(row: Any, masks: Path) -> tuple[dict[str, Any], Path]:
    """Image and sentences of an entry of CRIS's lists, and the path of its mask."""
    if not isinstance(row, dict):
        raise ValueError(f"{reprlib.repr(row)} should be an object: {{...}}")
    needed = {"img_name", "sentences"} | (set() if "mask_name" in row else {"segment_id"})
    if missing := needed - row.keys():
        raise ValueError(f"has no {', '.join(sorted(missing))}; every entry needs it")
    sentences = read_sentences(row["sentences"])
    _refuse_empty([text for _, text in sentences])
    if (num := row.get("sentences_num", len(sentences))) != len(sentences):
        raise ValueError(
            f"sentences_num is {reprlib.repr(num)}, and sentences holds {len(sentences)}; "
            "correct one of them"
        )
    if "mask_name" in row:
        mask = _image(row["mask_name"], "mask_name")
    elif type(row["segment_id"]) in (int, str):
        mask = _image(f"{row['segment_id']}.png", "segment_id")
    else:
        raise ValueError(f"segment_id: {reprlib.repr(row['segment_id'])} should be number or text")
    return {"file_name": _image(row["img_name"], "img_name"), "sentences": sentences}, masks / mask
