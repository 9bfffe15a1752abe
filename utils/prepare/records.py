"""The records of a data set, packed split by split: lines of JSON and an index."""

import hashlib
import heapq
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from utils.data.masks import mask_areas
from utils.data.store import HEADER, Index, index_key, record_key, scan
from utils.prepare.annotations import Entry
from utils.prepare.counts import Groups, Numbered
from utils.prepare.image_files import Mark
from utils.prepare.images import PackedImages
from utils.prepare.masks import to_record
from utils.prepare.workers import Workers, in_chunks
from utils.prepare.writer import Part, begin_part

# Of what the fingerprint runs over, not of the store: results that exist keep theirs.
FINGERPRINT_VERSION = 1
CHUNK_ENTRIES = 256
BARE = 2  # tokens of a sentence without words: start and end
DONE = "done/"  # key of what a finished split holds, before its name


def pack_records(
    path: Path,
    header: dict[str, Any],
    groups: Groups,
    images: PackedImages,
    workers: Workers,
    *,
    force: bool,
    shows_progress: bool,
) -> dict[str, Any]:
    """Pack the references of every split that is not packed yet, and return the whole header.

    ``header`` is all of it but ``splits`` and ``fingerprint``. A file aside that was begun with
    another one, or with other images, is not gone on with.
    """
    digest = hashlib.sha256(mark_lines(images.marks).encode()).hexdigest()
    plan = {**header, "images_digest": digest}
    with closing(begin_part(path, plan, fresh=force)) as part:
        done = [split for split in groups if split in packed_splits(part)]
        if done:
            left = [split for split in groups if split not in done]
            then = f"going on with {left[0]}" if left else "only the header is missing"
            print(f"{header['dataset']}: {', '.join(done)} packed already, {then}", flush=True)
        total = sum(len(rows) for split, rows in groups.items() if split not in done)
        with tqdm(total=total, unit="references", disable=not shows_progress) as bar:
            for split, rows in groups.items():
                if split not in done:
                    pack_split(part, split, rows, images=images, workers=workers, bar=bar)
        packed = packed_splits(part)
        header = {
            **header,
            "splits": {split: packed[split] for split in groups},
            "fingerprint": fingerprint(part.environment, groups, images.marks),
        }
        part.put([(HEADER, json.dumps(header).encode())])
        part.finish()
    return header


def encode_entries(entries: list[Entry]) -> list[tuple[str, int]]:
    """The line of JSON of every entry, mask included, and the pixels of its mask."""
    records = [to_record(entry) for entry in entries]
    lines = [json.dumps(record, sort_keys=True) for record in records]
    return list(zip(lines, mask_areas(records), strict=True))


def pack_split(
    part: Part,
    split: str,
    rows: list[Numbered],
    *,
    images: PackedImages,
    workers: Workers,
    bar: Any,
) -> None:
    """Write a split in one transaction: its records, its index, and what the header says of it."""
    began = time.monotonic()
    lines: list[bytes] = []
    areas: list[int] = []
    tokens: list[list[int]] = []
    chunks = list(in_chunks([row.entry for row in rows], CHUNK_ENTRIES))
    for entries, result in zip(chunks, workers.map(encode_entries, chunks), strict=True):
        lines += [line.encode() for line, _ in result]
        areas += [area for _, area in result]
        tokens += encode_sentences([entry.record for entry in entries])
        bar.update(len(entries))
    positions = np.array([row.position for row in rows], np.int32)
    index = make_index([row.entry.record for row in rows], positions, areas, tokens)
    counts = count_index(index, images.marks, num_bytes=sum(map(len, lines)))
    counts["seconds"] = round(images.seconds[split] + time.monotonic() - began, 2)
    items = [(record_key(split, row), line) for row, line in enumerate(lines)]
    items.append((index_key(split), index.to_bytes()))
    items.append((f"{DONE}{split}".encode(), json.dumps(counts).encode()))
    part.put(items)


def encode_sentences(records: Iterable[dict[str, Any]]) -> list[list[int]]:
    """The tokens of all sentences of the records, none cut."""
    from utils.data.tokenizer import encode  # here, since it brings torch

    return [encode(text) for record in records for _, text in record["sentences"]]


def make_index(
    records: list[dict[str, Any]],
    positions: np.ndarray,
    areas: list[int],
    tokens: list[list[int]],
) -> Index:
    """The index of records, of their masks' pixels and of all their sentences' tokens."""
    names = [record["file_name"].encode() for record in records]
    return Index(
        position=positions,
        num_sentences=np.array([len(record["sentences"]) for record in records], np.int32),
        area=np.array(areas, np.int64),
        file_name=np.array(names, np.bytes_),
        num_tokens=np.array([len(ids) for ids in tokens], np.int32),
        tokens=np.array([token for ids in tokens for token in ids], np.uint16),
    )


def count_index(index: Index, marks: Mapping[str, Mark], *, num_bytes: int) -> dict[str, Any]:
    """What the header says of a split whose lines take ``num_bytes``."""
    names = {name.decode() for name in index.file_name}
    return {
        "refs": len(index.area),
        "sentences": len(index.num_tokens),
        "images": len(names),
        "empty_masks": int((index.area == 0).sum()),
        "empty_sentences": int((index.num_tokens <= BARE).sum()),
        "over_17": int((index.num_tokens > 17).sum()),
        "over_22": int((index.num_tokens > 22).sum()),
        "bytes": num_bytes + sum(marks[name].num_bytes for name in names),
    }


def packed_splits(part: Part) -> dict[str, dict[str, Any]]:
    """What ``pack_split`` has finished, by split."""
    return {split: json.loads(value) for split, value in scan(part.environment, DONE)}


def fingerprint(environment: Any, splits: Iterable[str], marks: Mapping[str, Mark]) -> str:
    """SHA-256 over all records, in the order of the annotation files, and over their images."""
    digest = hashlib.sha256(f"format {FINGERPRINT_VERSION}\n".encode())
    for _, line in heapq.merge(*(_numbered_lines(environment, split) for split in splits)):
        digest.update(line + b"\n")
    digest.update(mark_lines(marks).encode())
    return digest.hexdigest()


def mark_lines(marks: Mapping[str, Mark]) -> str:
    """A line with checksum and name for every image, sorted by name."""
    return "".join(f"{mark.sha256}  {name}\n" for name, mark in sorted(marks.items()))


def _numbered_lines(environment: Any, split: str) -> Iterator[tuple[int, bytes]]:
    with environment.begin() as transaction:
        index = Index.from_bytes(transaction.get(index_key(split)))
    lines = (line for _, line in scan(environment, f"{split}/"))
    yield from zip(index.position.tolist(), lines, strict=True)
