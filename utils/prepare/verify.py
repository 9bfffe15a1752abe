"""Reading a packed data set whole, to find what is no longer as it was packed."""

import hashlib
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from utils.data.masks import mask_areas
from utils.data.store import Index, ReferStore, open_store, packing_command, readable, scan
from utils.prepare.image_files import Mark, image_size
from utils.prepare.images import MOST_LISTED, packed_marks
from utils.prepare.masks import encode_mask
from utils.prepare.records import count_index, encode_sentences, fingerprint, make_index
from utils.prepare.workers import Workers, in_chunks

CHUNK_RECORDS, CHUNK_IMAGES = 256, 16


def verify_dataset(
    root: str | Path, dataset: str, *, workers: int | None = None, shows_progress: bool = False
) -> None:
    """Read every image and every mask of a packed data set, and count everything again.

    Raises:
        ValueError: names what is wrong: images whose checksum, size or decoding is, masks that do
            not decode, an index or counts that disagree with the records, another fingerprint.
    """
    store = ReferStore(root, dataset)
    command = packing_command(root, dataset)
    total = sum(counts["refs"] + counts["images"] for counts in store.header["splits"].values())
    with (
        readable(store.path, command),
        Workers(workers, total) as processes,
        tqdm(total=total, desc=dataset, disable=not shows_progress) as bar,
    ):
        packed = packed_marks(store.images_path, command) or {}
        names = {name for split in store.splits for name in store.file_names(split)}
        marks = {name: packed[name] for name in names if name in packed}
        faults = [f"image {name} is missing" for name in sorted(names - marks.keys())]
        for split in store.splits:
            faults += _split_faults(store, split, marks, processes, bar)
        checked = partial(image_faults, store.images_path)
        for chunk in processes.map(checked, in_chunks(sorted(marks.items()), CHUNK_IMAGES)):
            faults += [fault for fault in chunk if fault]
            bar.update(len(chunk))
        found = fingerprint(open_store(store.path), store.splits, marks) if not faults else ""
    if not faults and found != store.header["fingerprint"]:
        faults.append(f"its fingerprint is {found}, its header has {store.header['fingerprint']}")
    if faults:
        others = len(faults) - MOST_LISTED
        raise ValueError(
            f"{store.path}: {'; '.join(faults[:MOST_LISTED])}"
            f"{f'; and {others:,} faults more' if others > 0 else ''}; "
            f"pack it again: {command} --force"
        )


def _split_faults(
    store: ReferStore, split: str, marks: Mapping[str, Mark], workers: Workers, bar: Any
) -> list[str]:
    """What is wrong with the records of a split, with its index and with its counts."""
    faults: list[str] = []
    records: list[dict[str, Any]] = []
    areas: list[int] = []
    tokens: list[list[int]] = []
    num_bytes = 0
    lines = (line for _, line in scan(open_store(store.path), f"{split}/"))
    for chunk in workers.map(read_lines, in_chunks(lines, CHUNK_RECORDS)):
        faults += [f"{split}: {fault}" for *_, fault in chunk if fault]
        records += [record for record, *_ in chunk]
        areas += [area for _, area, *_ in chunk]
        num_bytes += sum(size for _, _, size, _ in chunk)
        tokens += encode_sentences(record for record, *_ in chunk)
        bar.update(len(chunk))
    for record in records:
        mark, size = marks.get(record["file_name"]), (record["height"], record["width"])
        if mark and (mark.height, mark.width) != size:
            faults.append(f"{split}: reference {record['ref_id']}: its image is not {size}")
    stored = store.index(split)
    index = make_index(records, stored.position, areas, tokens)
    for name in Index._fields:
        if not np.array_equal(getattr(index, name), getattr(stored, name)):
            faults.append(f"{split}: {name} of its index is not that of its records")
    if not faults:
        counts = count_index(index, marks, num_bytes=num_bytes)
        packed = store.header["splits"][split]
        faults += [
            f"{split}: {key} is {num:,}, its header has {packed[key]:,}"
            for key, num in counts.items()
            if packed[key] != num
        ]
    return faults


def read_lines(lines: list[bytes]) -> list[tuple[dict[str, Any], int, int, str]]:
    """Records without masks; the pixels of each mask, the bytes of the line, what is wrong."""
    results = []
    for line in lines:
        record = json.loads(line)
        height, width = record["height"], record["width"]
        rle = {"size": [height, width], "counts": record.pop("rle")}
        area, fault = 0, ""
        try:
            text = encode_mask(rle, height, width, f"reference {record['ref_id']}")
            area = mask_areas([{**record, "rle": text}])[0]
        except ValueError as error:
            fault = str(error)
        results.append((record, area, len(line), fault))
    return results


def image_faults(path: Path, marks: list[tuple[str, Mark]]) -> list[str]:
    """What is wrong with images of a store; an empty text for each that is as it was packed."""
    return [_image_fault(path, name, mark) for name, mark in marks]


def _image_fault(path: Path, name: str, mark: Mark) -> str:
    with open_store(path).begin() as transaction:
        data = transaction.get(name.encode())
    if data is None:
        return f"image {name} is missing"
    if hashlib.sha256(data).hexdigest() != mark.sha256:
        return f"image {name} has another checksum than when it was packed"
    try:
        size = image_size(data)
    except ValueError as error:
        return f"image {name}: {error}"
    return "" if size == (mark.height, mark.width) else f"image {name} is {size} (height, width)"
