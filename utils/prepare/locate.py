"""Finding the files of a data set where other projects put them."""

import os
from pathlib import Path
from typing import NamedTuple

from utils.data.datasets import DatasetFacts, dataset_facts

# Below the root, or below the folder that the user names: of CRIS and ETRIS, of LAVT and refer
# (whose root is refer/data), and of plain copies of COCO.
IMAGE_FOLDERS = (
    "images/train2014",
    "images/mscoco/images/train2014",
    "images/mscoco/train2014",
    "mscoco/images/train2014",
    "mscoco/train2014",
    "train2014",
    "coco/train2014",
    "coco/images/train2014",
    "coco2014/train2014",
    "COCO/train2014",
)


class Located(NamedTuple):
    """Where the files of a data set are; None for those that are missing."""

    refs: Path | None
    instances: Path | None
    images: Path | None


def locate(root: Path, dataset: str, images: Path | None = None) -> Located:
    """Find references, annotations and images of a data set.

    Args:
        images: the folder of images or one that holds it; then they are searched there alone.

    Raises:
        ValueError: the data set is unknown.
    """
    facts = dataset_facts(dataset)
    refs, instances = annotation_places(root, facts)
    folders = image_places(root, facts, images)
    return Located(
        next((path for path in refs if path.is_file()), None),
        next((path for path in instances if path.is_file()), None),
        next((folder for folder in folders if has_images(folder)), None),
    )


def annotation_places(root: Path, facts: DatasetFacts) -> tuple[list[Path], list[Path]]:
    """Where references and annotations are looked for, the proper place first."""
    # an archive that was unpacked in a folder of its name has the name twice
    folders = [root / facts.folder, root / facts.folder / facts.folder]
    refs = [
        folder / name
        for folder in folders
        for name in (facts.refs, str(Path(facts.refs).with_suffix(".json")))
    ]
    return refs, [folder / "instances.json" for folder in folders]


def image_places(root: Path, facts: DatasetFacts, images: Path | None = None) -> list[Path]:
    """Where images are looked for, the proper place first."""
    if images is not None:
        return [images, *(images / folder for folder in IMAGE_FOLDERS)]
    return [root / folder for folder in dict.fromkeys((facts.images, *IMAGE_FOLDERS))]


def has_images(folder: Path) -> bool:
    """Whether a folder holds a JPEG file."""
    if not folder.is_dir():
        return False
    with os.scandir(folder) as entries:
        return any(entry.name.endswith(".jpg") for entry in entries)
