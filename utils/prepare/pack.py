"""Packing: from a source of annotations and its image files to the LMDB files of ``store.py``."""

import hashlib
from itertools import chain
from pathlib import Path
from typing import Any

from utils.data.store import FORMAT, ReferStore, packing_command, raw_header, store_path
from utils.prepare.annotations import Source
from utils.prepare.counts import (
    Groups,
    Numbered,
    files_of,
    find_differences,
    group_entries,
    image_names,
    refuse_differences,
    shared_images,
)
from utils.prepare.image_files import Size
from utils.prepare.images import ImagePacker, PackedImages, packed_marks
from utils.prepare.records import pack_records
from utils.prepare.verify import verify_dataset
from utils.prepare.workers import Workers
from utils.prepare.writer import lock_folder

__all__ = ["pack_dataset", "packed_header", "source_checksums", "verify_dataset"]


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

    A command that was ended goes on where it stopped, split by split. Images that are packed
    already, for this or another data set, stay as they are.

    Args:
        force: do everything anew, whatever is there.
        skip_bad: leave out references whose image is missing or damaged; the header names them.
        accept_differences: pack what is not as published; the header says what differs.
        workers: processes; None for one a core, or this one alone for a small data set.

    Raises:
        ValueError: a file is missing, damaged, does not belong to the others or is not what is
            published; another command packs into ``root``; the disk is full.
    """
    from utils.data.tokenizer import tokenizer_name  # here, since it brings torch

    root = Path(root)
    path = store_path(root, source.dataset)
    for store in (path, store_path(root, source.image_store)):
        if store.is_dir():  # which could not be replaced in the end
            raw_header(store, packing_command(root, source.dataset))
    with lock_folder(path.parent):
        groups = group_entries(source, source.read())
        checksums = source_checksums(source)
        differences = find_differences(source, groups)
        if not accept_differences:
            refuse_differences(source, differences)
        num_refs = sum(map(len, groups.values()))
        packer = _image_packer(root, source, groups, force=force, skip_bad=skip_bad)
        with Workers(workers, num_refs) as processes:
            images = packer.pack(image_names(groups), processes, shows_progress=shows_progress)
            groups = _good_groups(source, groups, images)
            num_skipped = num_refs - sum(map(len, groups.values()))
            header = {
                "format": FORMAT,
                "dataset": source.dataset,
                "images": source.image_store,
                "sources": checksums,
                "tokenizer": tokenizer_name(),
                "skipped": {"images": sorted(images.bad), "refs": num_skipped},
                "differences": differences,
                "shared_images": shared_images(groups),
            }
            return pack_records(
                path, header, groups, images, processes, force=force, shows_progress=shows_progress
            )


def _image_packer(
    root: Path, source: Source, groups: Groups, *, force: bool, skip_bad: bool
) -> ImagePacker:
    return ImagePacker(
        store_path(root, source.image_store),
        source.images,
        _annotated_sizes(groups),
        command=packing_command(root, source.dataset),
        force=force,
        skip_bad=skip_bad,
    )


def packed_header(root: str | Path, source: Source) -> dict[str, Any] | None:
    """The header of a finished store; None if there is none, or one of an older format.

    None, too, if its image store was made anew since, without all of its images.

    Raises:
        ValueError: its source files have changed since, or it is none of ours.
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
            f"{path} was packed from other files than {files_of(source)}; add --force to pack these"
        )
    packed = ReferStore(root, source.dataset)
    names = {name for split in packed.splits for name in packed.file_names(split)}
    is_whole = names <= (packed_marks(images, command) or {}).keys()
    return packed.header if is_whole else None


def source_checksums(source: Source) -> dict[str, str]:
    """SHA-256 of every annotation file by its name; a missing one raises ``ValueError``."""
    checksums = {}
    for path in source.files:
        if not path.is_file():
            raise ValueError(
                f"{path} is missing; put it there (datasets/README.md says where it comes from)"
            )
        with path.open("rb") as file:
            name = str(path) if path.name in checksums else path.name
            checksums[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return checksums


def _annotated_sizes(groups: Groups) -> dict[str, Size | None]:
    """Height and width of every image as its annotations give them, None if they do not.

    Raises:
        ValueError: they give two sizes for one image.
    """
    sizes: dict[str, Size | None] = {}
    for row in chain.from_iterable(groups.values()):
        record = row.entry.record
        size = None if record["height"] is None else (record["height"], record["width"])
        if sizes.setdefault(row.file_name, size) != size:
            raise ValueError(
                f"{row.entry.place}: image {row.file_name} has the size {size} (height, width), "
                f"and {sizes[row.file_name]} elsewhere in the file; correct one of them"
            )
    return sizes


def _good_groups(source: Source, groups: Groups, images: PackedImages) -> Groups:
    """The references whose image is packed, with the image's size where theirs is unknown."""
    good: dict[str, list[Numbered]] = {split: [] for split in groups}
    for split, rows in groups.items():
        for position, entry in rows:
            record = entry.record
            if mark := images.marks.get(record["file_name"]):
                if record["height"] is None:
                    record = record | {"height": mark.height, "width": mark.width}
                good[split].append(Numbered(position, entry._replace(record=record)))
    if not any(good.values()):
        raise ValueError(f"{source.images}: no image of {source.dataset} can be packed")
    return good
