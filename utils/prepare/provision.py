"""The files of published data sets: found or fetched, with a table of both before it starts."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from utils.prepare.download import check_space
from utils.prepare.mirrors import ARCHIVES, COCO, obtain
from utils.prepare.survey import (
    Item,
    bytes_to_write,
    count_images,
    describe,
    examine,
    missing_folders,
    num_lacking_images,
)


def find_or_fetch(
    root: Path,
    names: Sequence[str],
    *,
    images: Path | None = None,
    fetches: bool = False,
    force: bool = False,
    shows_progress: bool = False,
) -> list[Item]:
    """Find the files of data sets, print what is there, and fetch what is not if asked.

    Args:
        images: the folder of images or one that holds it; then none are fetched.
        fetches: whether files that are missing are fetched.
        force: whether the data sets are to be packed again, whatever is packed.

    Raises:
        ValueError: files are missing or cannot be fetched, or the disk is too full.
    """
    items = [examine(root, name, images=images, force=force) for name in names]
    if not items:
        return []
    missing = missing_folders(root, items, force=force)
    folders = list(missing) if fetches else []
    needed = bytes_to_write(root, items, folders, force=force)
    print(describe(root, items, list(missing), needed, images=images, fetches=fetches), flush=True)
    _refuse_missing(missing, images, fetches=fetches)
    if needed:
        check_space(root, needed, "what is to be written")
    if not fetches:
        return items
    for folder in folders:
        if folder != COCO:
            obtain(root, folder, root / folder, shows_progress=shows_progress)
    # which images are needed is known when the annotations are there
    if images is None and (target := _lacking_folder(root, items)):
        obtain(root, COCO, target, shows_progress=shows_progress)
    return [examine(root, name, images=images, force=force) for name in names]


def _refuse_missing(
    missing: Mapping[str, list[Path]], images: Path | None, *, fetches: bool
) -> None:
    if images is not None and COCO in missing:
        raise ValueError(
            f"{images} holds no JPEG images, nor does a folder in it where they are looked for; "
            "name COCO's train2014, or leave --images out"
        )
    paths = [str(path) for folder in missing.values() for path in folder]
    if paths and not fetches:
        others = f"; missing too: {', '.join(paths[1:])}" if len(paths) > 1 else ""
        raise ValueError(
            f"{paths[0]} is missing; put it there (datasets/README.md says where it comes from), "
            f"or add --download{others}"
        )


def _lacking_folder(root: Path, items: Sequence[Item]) -> Path | None:
    """The folder that lacks an image which a data set to be packed needs."""
    for source, header in items:
        number, _ = count_images(source.images)
        if header is not None or number >= ARCHIVES[COCO].num_images:
            continue
        found = examine(root, source.dataset, force=True).source
        if num_lacking_images(root, found):
            return found.images
    return None
