"""Read a packed data set whole, and find what is no longer as it was packed."""

import hashlib
import json
import zlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from utils.data.store import (
    Index,
    Mark,
    ReferStore,
    mask_areas,
    open_store,
    packing_command,
    readable,
    scan,
)
from utils.prepare.images import MOST_LISTED, image_size
from utils.prepare.masks import encode_mask
from utils.prepare.pack import count_index, fingerprint, make_index
from utils.prepare.workers import Map, split_chunks, start_workers

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
        start_workers(workers, total) as run,
        tqdm(total=total, desc=dataset, disable=not shows_progress) as bar,
    ):
        packed = store.image_marks()
        names = {name for split in store.splits for name in store.file_names(split)}
        marks = {name: packed[name] for name in names if name in packed}
        faults = [f"image {name} is missing" for name in sorted(names - marks.keys())]
        for split in store.splits:
            faults += _split_faults(store, split, marks, run, bar)
        find_faults = partial(image_faults, store.images_path)
        for chunk in run(find_faults, split_chunks(sorted(marks.items()), CHUNK_IMAGES)):
            faults += filter(None, chunk)
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
    store: ReferStore, split: str, marks: Mapping[str, Mark], run: Map, bar: Any
) -> list[str]:
    """List what is wrong with the records of a split, with its index and with its counts."""
    faults: list[str] = []
    records: list[dict[str, Any]] = []
    areas: list[int] = []
    checksums: list[int] = []
    num_bytes = 0
    lines = (line for _, line in scan(open_store(store.path), f"{split}/"))
    for chunk in run(read_lines, split_chunks(lines, CHUNK_RECORDS)):
        for record, area, size, checksum, fault in chunk:
            records.append(record)
            areas.append(area)
            checksums.append(checksum)
            num_bytes += size
            mark, shape = marks.get(record["file_name"]), (record["height"], record["width"])
            if mark and (mark.height, mark.width) != shape:
                fault = fault or f"reference {record['ref_id']}: its image is not {shape}"
            faults += [f"{split}: {fault}"] if fault else []
        bar.update(len(chunk))
    stored = store.index(split)
    if not len(stored.checksum):  # packed by an earlier version
        checksums = []
    index = make_index(records, stored.position, areas, checksums)
    faults += [
        f"{split}: {name} of its index is not that of its records"
        for name in Index._fields
        if not np.array_equal(getattr(index, name), getattr(stored, name))
    ]
    if not faults:
        packed = store.header["splits"][split]
        faults += [
            f"{split}: {key} is {value}, its header has {packed[key]}"
            for key, value in count_index(index, marks, num_bytes=num_bytes).items()
            if packed.get(key, value) != value  # earlier versions have fewer keys
        ]
    return faults


def read_lines(lines: list[bytes]) -> list[tuple[dict[str, Any], int, int, int, str]]:
    """Read records without masks; with each the pixels of its mask, its bytes, its checksum and
    what is wrong."""
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
        results.append((record, area, len(line), zlib.crc32(line), fault))
    return results


def image_faults(path: Path, marks: list[tuple[str, Mark]]) -> list[str]:
    """Say what is wrong with images of a store; an empty text for each that is as packed."""
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
