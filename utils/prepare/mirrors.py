"""Where the files of the data sets are published, and how they come from there."""

from pathlib import Path
from typing import NamedTuple

from utils.prepare.download import check_space, fetch
from utils.prepare.unpacking import part_folder, unpack
from utils.prepare.writer import lock_folder

COCO = "images/train2014"


class Archive(NamedTuple):
    """A published zip archive.

    Attributes:
        name: of the archive.
        size: its bytes.
        unpacked: bytes of the files in it that are needed, about.
        num_images: images that it holds, or that its references name.
        sha256: its checksum.
        pattern: regular expression of the names of the files that are needed.
        urls: addresses, the official one first.
    """

    name: str
    size: int
    unpacked: int
    num_images: int
    sha256: str
    pattern: str
    urls: tuple[str, ...]


def _annotations(
    name: str, *, size: int, unpacked: int, num_images: int, sha256: str, captured: str
) -> Archive:
    """An archive of REFER; ``captured`` is when the Internet Archive copied it."""
    official = f"https://bvisionweb1.cs.unc.edu/licheng/referit/data/{name}"
    copies = "https://web.archive.org/web"
    # "id_" asks for the bytes as they were; the plain address is the one that people pass around
    urls = (official, f"{copies}/{captured}id_/{official}", f"{copies}/{captured}/{official}")
    pattern = r"refs\(\w+\)\.p|instances\.json"
    return Archive(name, size, unpacked, num_images, sha256, pattern, urls)


# Folder below the root -> the archive that fills it. Each SHA-256 stands in at least two public
# projects of different people, who fetched the archive and took it: that of train2014.zip in
# tensorflow/datasets (url_checksums/coco.txt, with the size) and pytorch/vision (prototype,
# coco.py), those of the annotations in TarunTomar122/attention-is-all-you-need-for-vlms
# (docs/datasets.md, with the sizes) and mohsin651/clip-sam-research (scripts, notes). The archived
# copies are those of lichengunc/refer, issue 14; UNC's server is out of reach since September 2022.
ARCHIVES = {
    "refcoco": _annotations(
        "refcoco.zip", size=53_993_993, unpacked=184_000_000, num_images=19_994,
        sha256="7f924bb7ed8dc4568058e4ff626281918d56e5206f4c868c5a80f088f38c8bf0",
        captured="20220413011718",
    ),
    "refcoco+": _annotations(
        "refcoco+.zip", size=45_613_210, unpacked=155_000_000, num_images=19_992,
        sha256="5f1238112d63199e68da54a28f201471909b21ded7ed79a57d51b4c1443c6b45",
        captured="20220413011656",
    ),
    "refcocog": _annotations(
        "refcocog.zip", size=56_712_951, unpacked=192_124_033, num_images=25_799,
        sha256="3d1f7e5b2ff2205940bf59de55f861f5f2cc1403fb980669933a7f9af1aa8211",
        captured="20220413012904",
    ),
    COCO: Archive(
        "train2014.zip", size=13_510_573_713, unpacked=13_660_000_000, num_images=82_783,
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


def archive_path(root: Path, folder: str) -> Path:
    """Where the archive of a folder lies before it is unpacked."""
    return root / "downloads" / ARCHIVES[folder].name


def bytes_to_fetch(root: Path, folder: str) -> int:
    """Bytes of a folder's archive that are not here yet."""
    path = archive_path(root, folder)
    if path.exists():
        return 0
    part = path.with_name(f"{path.name}.part")
    return max(ARCHIVES[folder].size - (part.stat().st_size if part.exists() else 0), 0)


def bytes_to_unpack(root: Path, folder: str) -> int:
    """About how many bytes of a folder's archive are not unpacked yet."""
    aside = part_folder(root / folder)
    done = sum(path.stat().st_size for path in aside.iterdir()) if aside.is_dir() else 0
    return max(ARCHIVES[folder].unpacked - done, 0)


def obtain(root: Path, folder: str, target: Path, *, shows_progress: bool = False) -> None:
    """Fetch the archive of a folder, unpack what is needed of it into ``target``, delete it.

    An archive that lies in its place already is not fetched, and files that lie in ``target``
    stay as they are. Says in the log what became of each.

    Raises:
        ValueError: no address gives the archive, it is damaged, or the disk is too full,
            or another command fetches into ``root``.
    """
    from loguru import logger

    archive, path = ARCHIVES[folder], archive_path(root, folder)
    with lock_folder(path.parent):
        if path.exists():
            logger.info(f"{path} is here already and is unpacked")
        else:
            needed = bytes_to_fetch(root, folder) + bytes_to_unpack(root, folder)
            check_space(root, needed, f"{archive.name} and what it holds")
            logger.info(f"fetching {archive.name}, {archive.size:,} bytes")
            fetch(archive.urls, path, sha256=archive.sha256, size=archive.size)
        written, kept = unpack(path, target, archive.pattern, shows_progress=shows_progress)
        path.unlink()
    if not any(path.parent.iterdir()):
        path.parent.rmdir()
    stays = f", {kept:,} that were there stay as they are" if kept else ""
    logger.info(f"{target}: {written:,} files unpacked{stays}; {path} is deleted")
