"""Find the files of published data sets, or download their archives from their publishers."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tabulate import tabulate

from utils.data.datasets import LONG, REFCOCO, SHORT, dataset_facts
from utils.data.store import packing_command, store_path
from utils.prepare.annotations import Source
from utils.prepare.download import check_space, download_from_any, free_space, unpack
from utils.prepare.images import packed_marks
from utils.prepare.pack import packed_header
from utils.prepare.refer import COCO, annotation_places, has_images, image_places, refer_source
from utils.prepare.writer import lock_folder

NUM_COCO_IMAGES = 82_783  # in train2014
MAX_LISTED = 10  # skipped images
Header = dict[str, Any]


class Archive(NamedTuple):
    """A published zip archive.

    Attributes:
        name: file name of the archive.
        size: its bytes.
        sha256: its checksum.
        pattern: regular expression of the names of the files that are needed.
        urls: addresses, the official one first.
    """

    name: str
    size: int
    sha256: str
    pattern: str
    urls: tuple[str, ...]


def _annotations(name: str, *, size: int, sha256: str, captured: str) -> Archive:
    """Describe an archive of REFER; the Internet Archive copied it at ``captured``."""
    official = f"https://bvisionweb1.cs.unc.edu/licheng/referit/data/{name}"
    copies = "https://web.archive.org/web"
    # "id_" asks for the original bytes; the plain address is the one that people share
    urls = (official, f"{copies}/{captured}id_/{official}", f"{copies}/{captured}/{official}")
    return Archive(name, size, sha256, r"refs\(\w+\)\.p|instances\.json", urls)


# Folder below the root -> the archive that fills it. Each SHA-256 is in at least two public
# projects of different people, who downloaded the archive and hashed it: that of train2014.zip in
# tensorflow/datasets (url_checksums/coco.txt, with the size) and pytorch/vision (prototype,
# coco.py), those of the annotations in TarunTomar122/attention-is-all-you-need-for-vlms
# (docs/datasets.md, with the sizes) and mohsin651/clip-sam-research (scripts, notes). The archived
# copies are those of lichengunc/refer, issue 14; UNC's server is down since September 2022.
ARCHIVES = {
    "refcoco": _annotations(
        "refcoco.zip", size=53_993_993, captured="20220413011718",
        sha256="7f924bb7ed8dc4568058e4ff626281918d56e5206f4c868c5a80f088f38c8bf0",
    ),
    "refcoco+": _annotations(
        "refcoco+.zip", size=45_613_210, captured="20220413011656",
        sha256="5f1238112d63199e68da54a28f201471909b21ded7ed79a57d51b4c1443c6b45",
    ),
    "refcocog": _annotations(
        "refcocog.zip", size=56_712_951, captured="20220413012904",
        sha256="3d1f7e5b2ff2205940bf59de55f861f5f2cc1403fb980669933a7f9af1aa8211",
    ),
    COCO: Archive(
        "train2014.zip", size=13_510_573_713,
        sha256="ede4087e640bddba550e090eae701092534b554b42b05ac33f0300b984b31775",
        pattern=r"COCO_train2014_\d{12}\.jpg",
        urls=(
            "http://images.cocodataset.org/zips/train2014.zip",
            # the storage behind that name, whose certificate does not cover the name
            "https://s3.amazonaws.com/images.cocodataset.org/zips/train2014.zip",
            "https://huggingface.co/datasets/GAIA-URJC/COCO_2014/resolve/main/train2014.zip",
            "https://data.pjreddie.com/files/train2014.zip",
            "http://msvocds.blob.core.windows.net/coco2014/train2014.zip",
        ),
    ),
}  # fmt: skip


class Job(NamedTuple):
    """A data set to pack; ``header`` is that of its finished store, None without one."""

    source: Source
    header: Header | None


def find_or_fetch(
    root: Path,
    names: Sequence[str],
    *,
    images: Path | None = None,
    downloads: bool = False,
    force: bool = False,
    shows_progress: bool = False,
) -> list[Job]:
    """Find the files of data sets, print a table of them, and download missing ones if asked.

    Args:
        images: the folder of images or one that holds it; then none are downloaded.
        downloads: whether missing files are downloaded.
        force: whether the data sets will be packed again, whatever is packed.

    Raises:
        ValueError: files are missing or cannot be downloaded, or the disk is too full.
    """

    def find() -> list[Job]:
        sources = [refer_source(root, name, images=images) for name in names]
        return [Job(source, None if force else packed_header(root, source)) for source in sources]

    jobs = find()
    if not jobs:
        return []
    missing = missing_files(root, jobs, force=force)
    print(describe(root, jobs, images=images), flush=True)
    if missing:
        sizes = [bytes_to_fetch(root, folder) for folder in missing]
        archives = ", ".join(ARCHIVES[folder].name for folder in missing)
        option = "to fetch" if downloads else "with --download"
        print(f"{option}: {sum(sizes):,} bytes ({archives})", flush=True)
    if images is not None and COCO in missing:
        raise ValueError(
            f"{images} has no JPEG images, and neither has a known folder in it; "
            "name COCO's train2014, or omit --images"
        )
    if not downloads and missing:
        first, *others = [str(path) for paths in missing.values() for path in paths]
        more = f"; missing too: {', '.join(others)}" if others else ""
        raise ValueError(
            f"{first} is missing; put it there (datasets/README.md says where it comes from), "
            f"or add --download{more}"
        )
    if not downloads:
        return jobs
    for folder in missing:
        if folder != COCO:
            obtain(root, folder, root / folder, shows_progress=shows_progress)
    jobs = find()
    # the annotations say which images are needed
    if images is None and (target := _folder_that_lacks_images(root, jobs)):
        obtain(root, COCO, target, shows_progress=shows_progress)
        jobs = find()
    return jobs


def missing_files(root: Path, jobs: Sequence[Job], *, force: bool) -> dict[str, list[Path]]:
    """List the missing files by the folder that an archive of ``ARCHIVES`` fills; images last.

    Images may be missing where some are packed already; whether they are all is seen later.
    """
    missing: dict[str, list[Path]] = {}
    for source, header in jobs:
        if header is not None:
            continue
        facts = dataset_facts(source.dataset)
        if absent := [path for path in source.files if not path.is_file()]:
            missing.setdefault(facts.folder, []).extend(absent)
        is_packed = store_path(root, source.image_store).exists() and not force
        if not has_images(source.images) and not is_packed:
            missing.setdefault(facts.images, [source.images])
    folders = sorted(missing, key=lambda folder: folder == COCO)
    return {folder: list(dict.fromkeys(missing[folder])) for folder in folders}


def _folder_that_lacks_images(root: Path, jobs: Sequence[Job]) -> Path | None:
    """Return the image folder of a data set to pack if it lacks an image that is not packed."""
    for source, header in jobs:
        if header is not None or count_images(source.images) >= NUM_COCO_IMAGES:
            continue
        names = {entry.record["file_name"] for entry in source.read()}
        command = packing_command(root, source.dataset)
        names -= (packed_marks(store_path(root, source.image_store), command) or {}).keys()
        if names - set(os.listdir(source.images) if source.images.is_dir() else ()):
            return source.images
    return None


def count_images(folder: Path) -> int:
    """Count the JPEG files in a folder, which may be missing."""
    if not folder.is_dir():
        return 0
    with os.scandir(folder) as entries:
        return sum(entry.name.endswith(".jpg") for entry in entries)


def describe(root: Path, jobs: Sequence[Job], *, images: Path | None = None) -> str:
    """Tabulate annotation files, images and packed stores, and the free space."""
    rows = []
    for source, header in jobs:
        name, path = source.dataset, store_path(root, source.dataset)
        rows += [(name, what, found) for what, found in _file_rows(root, source)]
        if path.exists():
            fate = "is packed again" if header is None else "stays as it is"
            rows.append((name, "packed", f"{_with_size(path)}, {fate}"))
    source = jobs[0].source
    rows.append(("images", "files", _describe_images(root, source, images)))
    if (store := store_path(root, source.image_store)).exists():
        rows.append(("images", "packed", _with_size(store)))
    table = tabulate(rows, tablefmt="plain", disable_numparse=True)
    return f"{table}\n{free_space(root):,} bytes are free in {root}"


def _file_rows(root: Path, source: Source) -> list[tuple[str, str]]:
    if not source.published:
        return [("annotations", _with_size(path)) for path in source.files]
    looked = annotation_places(root, dataset_facts(source.dataset))
    return [
        (what, _with_size(path) if path.is_file() else _not_found(root, places))
        for what, path, places in zip(
            ("references", "annotations"), source.files, looked, strict=True
        )
    ]


def _describe_images(root: Path, source: Source, images: Path | None) -> str:
    if not source.published:
        return str(source.images)
    number = count_images(source.images)
    if not number:
        places = image_places(root, dataset_facts(source.dataset), images)
        return _not_found(images or root, places)
    return f"{source.images}, {number:,} images (all of COCO's train2014 are {NUM_COCO_IMAGES:,})"


def _with_size(path: Path) -> str:
    return f"{path}, {path.stat().st_size:,} bytes"


def _not_found(folder: Path, places: Sequence[Path]) -> str:
    names = ", ".join(str(place.relative_to(folder)) for place in places)
    return f"missing; looked in {folder} for {names}"


def archive_path(root: Path, folder: str) -> Path:
    """Return where the archive of a folder is before it is unpacked."""
    return root / "downloads" / ARCHIVES[folder].name


def bytes_to_fetch(root: Path, folder: str) -> int:
    """Count the bytes of a folder's archive that are not downloaded yet."""
    path = archive_path(root, folder)
    if path.exists():
        return 0
    part = path.with_name(f"{path.name}.part")
    return max(ARCHIVES[folder].size - (part.stat().st_size if part.exists() else 0), 0)


def obtain(root: Path, folder: str, target: Path, *, shows_progress: bool = False) -> None:
    """Download the archive of a folder, unpack what is needed of it into ``target``, delete it.

    An archive that is in its place already is not downloaded, and files in ``target`` stay as
    they are. The log says what was done.

    Raises:
        ValueError: no address gives the archive, it is damaged, the disk is too full, or another
            command downloads into ``root``.
    """
    from loguru import logger

    archive, path = ARCHIVES[folder], archive_path(root, folder)
    with lock_folder(path.parent):
        if path.exists():
            logger.info(f"{path} is here already and will be unpacked")
        else:
            # the files in an archive take at least as much space as the archive
            needed = bytes_to_fetch(root, folder) + archive.size
            check_space(root, needed, f"{archive.name} and what it holds")
            logger.info(f"fetching {archive.name}, {archive.size:,} bytes")
            download_from_any(archive.urls, path, sha256=archive.sha256, size=archive.size)
        written, kept = unpack(path, target, archive.pattern, shows_progress=shows_progress)
        path.unlink()
    if not any(path.parent.iterdir()):
        path.parent.rmdir()
    stays = f", {kept:,} existing files stay as they are" if kept else ""
    logger.info(f"{target}: {written:,} files unpacked{stays}; {path} is deleted")


def summarise(root: Path, headers: Sequence[Header]) -> str:
    """Tabulate packed data sets, one row per split, with notes and the sizes of the stores."""
    columns = {
        "references": "refs",
        "expressions": "sentences",
        "images": "images",
        "bytes": "bytes",
        f">{SHORT} tokens": "over_17",
        f">{LONG} tokens": "over_22",
    }
    rows = []
    for header in headers:
        for split, count in header["splits"].items():
            numbers = [f"{count[key]:,}" for key in columns.values()]
            rows.append([header["dataset"], split, *numbers, f"{count['seconds']:.1f}"])
    titles, align = ["data set", "split", *columns, "seconds"], ["left"] * 2 + ["right"] * 7
    table = tabulate(rows, titles, tablefmt="plain", disable_numparse=True, colalign=align)
    notes = [f"{header['dataset']}: {note}" for header in headers for note in _notes(header)]
    stores = [name for header in headers for name in (header["dataset"], header["images"])]
    sizes = [_with_size(store_path(root, name)) for name in dict.fromkeys(stores)]
    return "\n".join(["", table, *notes, *sizes])


def _notes(header: Header) -> list[str]:
    """Write a sentence for each thing that a user should know about a packed data set."""
    notes, names = [], header["skipped"]["images"]
    if header["differences"]:
        notes.append(f"accepted, not as published: {'; '.join(header['differences'])}")
    elif header["dataset"] in REFCOCO:
        notes.append("every split has as many references and expressions as published")
    if names:
        others = f" and {len(names) - MAX_LISTED:,} more" if len(names) > MAX_LISTED else ""
        skipped = f"{len(names):,} images were skipped with {header['skipped']['refs']:,}"
        notes.append(f"{skipped} references: {', '.join(names[:MAX_LISTED])}{others}")
    for split, count in header["splits"].items():
        if count["empty_masks"]:
            fate = ", excluded from training" if split == "train" else ""
            notes.append(f"{count['empty_masks']:,} masks of {split} are empty{fate}")
        if count["empty_sentences"]:
            notes.append(f"{count['empty_sentences']:,} expressions of {split} have no words")
    for pair, number in header["shared_images"].items():
        notes.append(f"{' and '.join(pair.split())} share {number:,} images")
    if not header["shared_images"] and len(header["splits"]) > 1:
        notes.append("no image is in two splits")
    return notes
