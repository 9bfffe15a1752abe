"""Pack a data set: from annotations and image files to the LMDB files that ``store.py`` reads.

A split is packed in one piece: the next command goes on with the first split that is not complete.
"""

import hashlib
import heapq
import json
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from utils.data.store import (
    CHECKSUM,
    FORMAT,
    HEADER,
    Index,
    Mark,
    ReferStore,
    images_digest,
    index_key,
    mask_areas,
    packing_command,
    raw_header,
    record_key,
    scan,
    store_path,
)
from utils.files import sha256_of
from utils.prepare.annotations import Entry, Source
from utils.prepare.images import ImagePacker, PackedImages, Size
from utils.prepare.masks import to_record
from utils.prepare.workers import Map, split_chunks, start_workers
from utils.prepare.writer import StoreWriter, lock_folder

# Of what the fingerprint runs over, not of the store: results that exist keep theirs.
FINGERPRINT_VERSION = 1
CHUNK_ENTRIES = 256
BARE = 2  # tokens of a sentence without words: start and end
DONE = "done/"  # key of the counts of a finished split, before its name

Record = dict[str, Any]
Groups = Mapping[str, dict[int, Entry]]  # split -> place in the annotation files -> entry


def pack_dataset(
    root: str | Path,
    source: Source,
    *,
    force: bool = False,
    skip_bad: bool = False,
    accept_differences: bool = False,
    workers: int | None = None,
    shows_progress: bool = False,
) -> dict[str, Any]:
    """Read a data set's files, pack its images and its references, and return the header.

    A command that was stopped goes on where it stopped, split by split. Images that are packed
    already, for this or another data set, stay as they are.

    Args:
        force: pack everything again, whatever is there.
        skip_bad: leave out references whose image is missing or damaged; the header names them.
        accept_differences: pack what is not as published; the header says what differs.
        workers: processes; None for one a core, or this one alone for a small data set.

    Raises:
        ValueError: a file is missing, damaged, does not belong to the others or is not what is
            published; another command packs into ``root``; the disk is full.
    """
    from utils.data.tokenizer import tokenizer_name  # here, since it brings torch

    root = Path(root)
    path, images_path = (store_path(root, name) for name in (source.dataset, source.image_store))
    command = packing_command(root, source.dataset)
    for store in (path, images_path):
        if store.is_dir():  # which could not be replaced in the end
            raw_header(store, command)
    with lock_folder(path.parent):
        groups = group_entries(source)
        checksums = source_checksums(source)
        differences = find_differences(source, groups)
        if differences and not accept_differences:
            raise ValueError(
                f"{source.file_list}: not {source.dataset} as it is published: "
                f"{'; '.join(differences)}; take the files that datasets/README.md names, or pack "
                "these as they are with --accept-differences, which is recorded"
            )
        num_refs = sum(map(len, groups.values()))
        packer = ImagePacker(
            source.dataset,
            images_path,
            source.images,
            _annotated_sizes(groups),
            command=command,
            force=force,
            skip_bad=skip_bad,
        )
        with start_workers(workers, num_refs) as run:
            images = packer.pack(_image_names(groups), run, shows_progress=shows_progress)
            groups = _with_packed_images(source, groups, images.marks)
            header = {
                "format": FORMAT,
                "dataset": source.dataset,
                "images": source.image_store,
                "sources": checksums,
                "tokenizer": tokenizer_name(),
                "skipped": {
                    "images": sorted(images.bad),
                    "refs": num_refs - sum(map(len, groups.values())),
                },
                "differences": differences,
                "shared_images": shared_images(groups),
            }
            return pack_records(
                path, header, groups, images, run, force=force, shows_progress=shows_progress
            )


def packed_header(root: str | Path, source: Source) -> dict[str, Any] | None:
    """Read the header of a finished store; None if there is none, or one of an older format.

    None, too, if its image store was packed again since, without all of its images.

    Raises:
        ValueError: its source files have changed since, or it is not one of ours.
    """
    path = store_path(root, source.dataset)
    images = store_path(root, source.image_store)
    command = packing_command(root, source.dataset)
    headers = {store: raw_header(store, command) for store in (path, images) if store.exists()}
    for store, header in headers.items():
        if header.get("format", 0) > FORMAT:
            raise ValueError(
                f"{store} has format {header['format']} and this code writes {FORMAT}; "
                f"use the code that packed it, or pack it again: {command} --force"
            )
    if [header.get("format") for header in headers.values()] != [FORMAT, FORMAT]:
        return None
    is_present = all(file.is_file() for file in source.files)
    if is_present and source_checksums(source) != headers[path]["sources"]:
        raise ValueError(
            f"{path} was packed from other files than {source.file_list}; add --force to pack these"
        )
    packed = ReferStore(root, source.dataset)
    names = {name for split in packed.splits for name in packed.file_names(split)}
    return packed.header if names <= packed.image_marks().keys() else None


def source_checksums(source: Source) -> dict[str, str]:
    """Compute the SHA-256 of every annotation file; a missing one raises ``ValueError``."""
    checksums: dict[str, str] = {}
    for path in source.files:
        if not path.is_file():
            raise ValueError(
                f"{path} is missing; put it there (datasets/README.md says where it comes from)"
            )
        checksums[str(path) if path.name in checksums else path.name] = sha256_of(path)
    return checksums


def group_entries(source: Source) -> Groups:
    """Read the entries of every split that is published or has any, in the order of the splits.

    Raises:
        ValueError: an entry names a split that the data set does not have, or there is no entry.
    """
    groups: dict[str, dict[int, Entry]] = {split: {} for split in source.splits}
    for position, entry in enumerate(source.read()):
        split = entry.record["split"]
        if split not in groups:
            known = ", ".join(source.splits)
            raise ValueError(f"{entry.place}: split {split!r} is none of {known}")
        groups[split][position] = entry
    if not any(groups.values()):
        raise ValueError(f"{source.file_list}: there is no reference in it")
    return {name: rows for name, rows in groups.items() if rows or name in source.published}


def shared_images(groups: Groups) -> dict[str, int]:
    """Count the images that two splits have in common: ``"train val"`` -> images, if any."""
    names = _image_names(groups)
    pairs = {f"{a} {b}": len(names[a] & names[b]) for a, b in combinations(names, 2)}
    return {pair: num for pair, num in pairs.items() if num}


def find_differences(source: Source, groups: Groups) -> list[str]:
    """Describe what differs from the publication: counts of a split, and shared images."""
    differences = []
    for split, rows in groups.items():
        published = source.published.get(split)
        counts = len(rows), sum(len(entry.record["sentences"]) for entry in rows.values())
        if published and published.refs and counts != tuple(published):
            differences.append(
                "{} has {:,} references and {:,} expressions, published are {:,} and {:,}".format(
                    split, *counts, *published
                )
            )
    if not source.shares_images:
        for pair, num in shared_images(groups).items():
            names = " and ".join(pair.split())
            differences.append(f"{names} have {num:,} images in common, published are none")
    return differences


def _image_names(groups: Groups) -> dict[str, set[str]]:
    return {
        split: {entry.record["file_name"] for entry in rows.values()}
        for split, rows in groups.items()
    }


def _annotated_sizes(groups: Groups) -> dict[str, Size | None]:
    """Collect height and width of every image as annotated, None where they are not.

    Raises:
        ValueError: the annotations give two sizes for one image.
    """
    sizes: dict[str, Size | None] = {}
    for rows in groups.values():
        for record, _, place in rows.values():
            name = record["file_name"]
            size = None if record["height"] is None else (record["height"], record["width"])
            if sizes.setdefault(name, size) != size:
                raise ValueError(
                    f"{place}: image {name} has the size {size} (height, width), "
                    f"and {sizes[name]} elsewhere in the file; correct one of them"
                )
    return sizes


def _with_packed_images(source: Source, groups: Groups, marks: Mapping[str, Mark]) -> Groups:
    """Keep the references whose image is packed, with the image's size where theirs is unknown."""
    good: dict[str, dict[int, Entry]] = {split: {} for split in groups}
    for split, rows in groups.items():
        for position, entry in rows.items():
            record = entry.record
            if mark := marks.get(record["file_name"]):
                if record["height"] is None:
                    record = record | {"height": mark.height, "width": mark.width}
                good[split][position] = entry._replace(record=record)
    if not any(good.values()):
        raise ValueError(f"{source.images}: no image of {source.dataset} can be packed")
    return good


def pack_records(
    path: Path,
    header: dict[str, Any],
    groups: Groups,
    images: PackedImages,
    run: Map,
    *,
    force: bool,
    shows_progress: bool,
) -> dict[str, Any]:
    """Pack the references of every split that is not packed yet, and return the whole header.

    ``header`` is all of it but ``splits`` and ``fingerprint``. Only a file that was begun with the
    same header and images is resumed.
    """
    digest = hashlib.sha256(_mark_lines(images.marks).encode()).hexdigest()
    plan = {**header, "images_digest": digest}
    with closing(StoreWriter(path, plan, fresh=force)) as writer:
        done = {
            split: json.loads(counts) for split, counts in scan(writer.environment, DONE)
        }  # split -> counts
        left = {split: rows for split, rows in groups.items() if split not in done}
        if done:
            then = f"going on with {next(iter(left))}" if left else "only the header is missing"
            finished = ", ".join(split for split in groups if split in done)
            print(f"{header['dataset']}: {finished} packed already, {then}", flush=True)
        total = sum(map(len, left.values()))
        with tqdm(total=total, unit="references", disable=not shows_progress) as bar:
            for split, rows in left.items():
                done[split] = pack_split(writer, split, rows, images, run, bar)
        header = {
            **header,
            "splits": {split: done[split] for split in groups},
            "fingerprint": fingerprint(writer.environment, groups, images.marks),
        }
        writer.put([(HEADER, json.dumps(header).encode())])
        writer.finish()
    return header


def pack_split(
    writer: StoreWriter,
    split: str,
    rows: dict[int, Entry],
    images: PackedImages,
    run: Map,
    bar: Any,
) -> dict[str, Any]:
    """Write a split: its records, its index, and its counts for the header, which it returns."""
    began = time.monotonic()
    lines: list[bytes] = []
    areas: list[int] = []
    for result in run(encode_entries, split_chunks(rows.values(), CHUNK_ENTRIES)):
        lines += [line.encode() for line, _ in result]
        areas += [area for _, area in result]
        bar.update(len(result))
    records = [entry.record for entry in rows.values()]
    index = make_index(records, np.array(list(rows), np.int32), areas, map(zlib.crc32, lines))
    counts = count_index(index, images.marks, num_bytes=sum(map(len, lines)))
    counts["seconds"] = round(images.seconds[split] + time.monotonic() - began, 2)
    writer.put([(record_key(split, row), line) for row, line in enumerate(lines)])
    # last: the split is complete when this is written
    writer.put(
        [
            (index_key(split), index.to_bytes()),
            (f"{DONE}{split}".encode(), json.dumps(counts).encode()),
        ]
    )
    writer.commit()
    return counts


def encode_entries(entries: list[Entry]) -> list[tuple[str, int]]:
    """Encode every entry as a line of JSON, mask included, and count the pixels of its mask."""
    records = [to_record(entry) for entry in entries]
    lines = [json.dumps(record, sort_keys=True) for record in records]
    return list(zip(lines, mask_areas(records), strict=True))


def make_index(
    records: list[Record], positions: np.ndarray, areas: list[int], checksums: Iterable[int]
) -> Index:
    """Build the index of records, whose masks have ``areas`` pixels and lines ``checksums``."""
    from utils.data.tokenizer import encode  # here, since it brings torch

    tokens = [encode(text) for record in records for _, text in record["sentences"]]
    names = [record["file_name"].encode() for record in records]
    return Index(
        position=positions,
        num_sentences=np.array([len(record["sentences"]) for record in records], np.int32),
        area=np.array(areas, np.int64),
        file_name=np.array(names, np.bytes_),
        num_tokens=np.array([len(ids) for ids in tokens], np.int32),
        tokens=np.array([token for ids in tokens for token in ids], np.uint16),
        checksum=np.fromiter(checksums, np.uint32),
    )


def count_index(index: Index, marks: Mapping[str, Mark], *, num_bytes: int) -> dict[str, Any]:
    """Count what the header says of a split, whose lines take ``num_bytes``."""
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
        "images_sha256": images_digest(
            (f"{CHECKSUM}{name}".encode(), json.dumps(marks[name]).encode())
            for name in sorted(names)
        ),
    }


def fingerprint(environment: Any, splits: Iterable[str], marks: Mapping[str, Mark]) -> str:
    """Hash all records, in the order of the annotation files, and the checksums of their images."""
    digest = hashlib.sha256(f"format {FINGERPRINT_VERSION}\n".encode())
    for _, line in heapq.merge(*(_numbered_lines(environment, split) for split in splits)):
        digest.update(line + b"\n")
    digest.update(_mark_lines(marks).encode())
    return digest.hexdigest()


def _mark_lines(marks: Mapping[str, Mark]) -> str:
    """A line with checksum and name for every image, sorted by name."""
    return "".join(f"{mark.sha256}  {name}\n" for name, mark in sorted(marks.items()))


def _numbered_lines(environment: Any, split: str) -> Iterator[tuple[int, bytes]]:
    with environment.begin() as transaction:
        index = Index.from_bytes(transaction.get(index_key(split)))
    lines = (line for _, line in scan(environment, f"{split}/"))
    yield from zip(index.position.tolist(), lines, strict=True)
