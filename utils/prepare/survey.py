"""What is there of data sets before they are packed: files, images, stores, space on the disk."""

import os
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from utils.data.datasets import DATASETS, dataset_facts
from utils.data.store import packing_command, store_path
from utils.prepare.annotations import Source
from utils.prepare.download import free_space
from utils.prepare.images import packed_marks
from utils.prepare.locate import annotation_places, has_images, image_places, locate
from utils.prepare.mirrors import ARCHIVES, COCO, bytes_to_fetch, bytes_to_unpack
from utils.prepare.pack import packed_header
from utils.prepare.refer import refer_source
from utils.prepare.writer import part_path

# RefCOCO and RefCOCO+ are on the same images, but for two of them
POOLS = {"refcoco": "refcoco", "refcoco+": "refcoco", "refcocog": "refcocog"}
IMAGE_BYTES = ARCHIVES[COCO].size // ARCHIVES[COCO].num_images
RECORD_BYTES = 1500  # of a packed reference, about
SAMPLE = 500  # files whose sizes tell how large images are


class Item(NamedTuple):
    """A data set to be packed; ``header`` is that of its finished store, None without one."""

    source: Source
    header: dict[str, Any] | None


def examine(root: Path, dataset: str, *, images: Path | None = None, force: bool = False) -> Item:
    """Find the files of a published data set, and its store unless it is made anew.

    Raises:
        ValueError: the store was packed from other files.
    """
    refs, instances, folder = locate(root, dataset, images)
    source = refer_source(root, dataset, refs=refs, instances=instances, images=folder or images)
    return Item(source, None if force else packed_header(root, source))


def missing_folders(root: Path, items: Sequence[Item], *, force: bool) -> dict[str, list[Path]]:
    """Folder below the root, as the archives name it -> what is missing of it; images last.

    Images may be missing where some are packed already; whether they are all is seen later.
    """
    missing: dict[str, list[Path]] = {}
    for source, header in items:
        if header is not None:
            continue
        facts = dataset_facts(source.dataset)
        absent = [path for path in source.files if not path.is_file()]
        if absent:
            missing.setdefault(facts.folder, []).extend(absent)
        is_packed = store_path(root, source.image_store).exists() and not force
        if not has_images(source.images) and not is_packed:
            missing.setdefault(facts.images, [source.images])
    folders = sorted(missing, key=lambda folder: folder == COCO)
    return {folder: list(dict.fromkeys(missing[folder])) for folder in folders}


def num_lacking_images(root: Path, source: Source) -> int:
    """How many images of a data set are neither packed nor in its folder; reads its files."""
    names = {entry.record["file_name"] for entry in source.read()}
    command = packing_command(root, source.dataset)
    names -= (packed_marks(store_path(root, source.image_store), command) or {}).keys()
    return len(names - set(os.listdir(source.images) if source.images.is_dir() else ()))


def bytes_to_write(
    root: Path, items: Sequence[Item], folders: Sequence[str], *, force: bool
) -> int:
    """About how many bytes fetching ``folders``, unpacking and packing need at the same time."""
    archives = [bytes_to_fetch(root, folder) for folder in folders]
    unpacked = sum(bytes_to_unpack(root, folder) for folder in folders)
    # every archive is deleted before the next one comes, and all of them before packing begins
    return unpacked + max([*archives, _bytes_to_pack(root, items, force=force)])


def _bytes_to_pack(root: Path, items: Sequence[Item], *, force: bool) -> int:
    to_pack = [source for source, header in items if header is None]
    if not to_pack:
        return 0
    names = {source.dataset for source in to_pack}
    done = {
        POOLS.get(facts.folder)
        for name, facts in DATASETS.items()
        if name not in names and store_path(root, name).exists()
    }
    folders = {dataset_facts(name).folder for name in names}
    pools = {POOLS[folder]: ARCHIVES[folder].num_images for folder in folders}
    new = sum(number for pool, number in pools.items() if force or pool not in done)
    number, size = count_images(to_pack[0].images)
    records = sum(split.refs for source in to_pack for split in source.published.values())
    store = store_path(root, to_pack[0].image_store)
    # new images are added to a copy of the store
    copied = _file_size(store) if new and not force else 0
    total = min(new, number or new) * (size or IMAGE_BYTES) + copied + records * RECORD_BYTES
    return max(total - (0 if force else _file_size(part_path(store))), 0)


def _file_size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def count_images(folder: Path) -> tuple[int, int]:
    """Number of JPEG files in a folder and the mean size of some of them, 0 and 0 without any."""
    if not folder.is_dir():
        return 0, 0
    with os.scandir(folder) as entries:
        files = [entry for entry in entries if entry.name.endswith(".jpg")]
    sizes = [entry.stat().st_size for entry in islice(files, SAMPLE) if entry.is_file()]
    return len(files), sum(sizes) // max(len(sizes), 1)


def describe(
    root: Path,
    items: Sequence[Item],
    missing: Sequence[str],
    needed: int,
    *,
    images: Path | None,
    fetches: bool,
) -> str:
    """A table of what is there and what is not, and what will be fetched and written.

    ``missing`` are the folders as the archives name them, ``needed`` the bytes to write.
    """
    rows = [row for source, header in items for row in _dataset_rows(root, source, header)]
    rows += _image_rows(root, items[0].source, images)
    lines = [f"{dataset:<12}{what:<13}{found}" for dataset, what, found in rows]
    names = ", ".join(ARCHIVES[folder].name for folder in missing)
    fetched = f"{sum(bytes_to_fetch(root, folder) for folder in missing):,} bytes ({names})"
    if missing:
        lines.append(f"to fetch: {fetched}" if fetches else f"with --download: {fetched}")
    free = free_space(root)
    lines.append(f"to write: about {needed:,} bytes in {root}; {free:,} are free there")
    return "\n".join(lines)


def describe_own(root: Path, source: Source) -> str:
    """The same for one's own data, whose images are counted when they are packed.

    Raises:
        ValueError: the folder of images is missing.
    """
    if not source.images.is_dir():
        raise ValueError(
            f"the folder {source.images} is missing; --images names that of the images"
        )
    files = [f"{file}, {file.stat().st_size:,} bytes" for file in source.files]
    rows = [("annotations", found) for found in files] + [("images", str(source.images))]
    stores = [store_path(root, name) for name in (source.dataset, source.image_store)]
    rows += [("packed", f"{path}, {_file_size(path):,} bytes") for path in stores if path.exists()]
    lines = [f"{source.dataset:<12}{what:<13}{found}" for what, found in rows]
    most = sum(path.stat().st_size for path in source.images.rglob("*") if path.is_file())
    free = free_space(root)
    lines.append(f"to write: at most about {most:,} bytes in {root}; {free:,} are free there")
    return "\n".join(lines)


def _dataset_rows(
    root: Path, source: Source, header: dict[str, Any] | None
) -> list[tuple[str, str, str]]:
    dataset, path = source.dataset, store_path(root, source.dataset)
    looked = annotation_places(root, dataset_facts(dataset))
    rows = []
    for what, file, places in zip(("references", "annotations"), source.files, looked, strict=True):
        is_there = file.is_file()
        found = f"{file}, {file.stat().st_size:,} bytes" if is_there else _missing(root, places)
        rows.append((dataset, what, found))
    if path.exists():
        fate = "is packed anew" if header is None else "stays as it is"
        rows.append((dataset, "packed", f"{path}, {path.stat().st_size:,} bytes, {fate}"))
    return rows


def _image_rows(root: Path, source: Source, images: Path | None) -> list[tuple[str, str, str]]:
    number, _ = count_images(source.images)
    whole = ARCHIVES[COCO].num_images
    found = f"{source.images}, {number:,} images (all of COCO's train2014 are {whole:,})"
    if not number:
        places = image_places(root, dataset_facts(source.dataset), images)
        found = _missing(images or root, places)
    rows = [("images", "files", found)]
    store = store_path(root, source.image_store)
    if store.exists():
        rows.append(("images", "packed", f"{store}, {store.stat().st_size:,} bytes"))
    return rows


def _missing(folder: Path, places: Sequence[Path]) -> str:
    names = ", ".join(str(place.relative_to(folder)) for place in places)
    return f"missing; looked in {folder} for {names}"
