"""What every reader of annotations hands to the packer, whatever its files look like."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from utils.data.datasets import SplitFacts


class Entry(NamedTuple):
    """One reference as its files give it.

    Attributes:
        record: all of a record (``store.py``) but its mask in ``rle``. ``height`` and ``width``
            are None where only the image can tell and it cannot be read.
        segmentation: COCO polygons, a COCO RLE, or the path of a mask image.
        place: file and reference or line, which begins every error message.
    """

    record: dict[str, Any]
    segmentation: Any
    place: str


class Source(NamedTuple):
    """Where a data set is read from.

    Attributes:
        dataset: its name.
        files: the annotation files, whose checksums are stored.
        images: the folder of its images.
        image_store: name of the packed images.
        splits: those it may have, in order.
        read: all references in the order of the files; ValueError for what cannot be read.
        published: split -> published counts; empty for one's own data.
        shares_images: whether an image may be in several splits.
    """

    dataset: str
    files: tuple[Path, ...]
    images: Path
    image_store: str
    splits: tuple[str, ...]
    read: Callable[[], list[Entry]]
    published: dict[str, SplitFacts]
    shares_images: bool

    @property
    def file_list(self) -> str:
        """The annotation files, for messages."""
        return ", ".join(map(str, self.files))
