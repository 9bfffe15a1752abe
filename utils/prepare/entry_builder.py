"""Entries of one's own data, whose files know neither identifiers nor the sizes of images."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from utils.prepare.annotations import Entry
from utils.prepare.fields import number_sentences
from utils.prepare.masks import check_segmentation

MOST_LISTED = 10
NO_CATEGORY = 0


class EntryBuilder:
    """Entries as they come, and what is wrong with those that cannot be taken.

    Images are numbered from 1 in the order of their first entry; their sizes are those of their
    files, None for a file that cannot be read.
    """

    def __init__(self, images: Path) -> None:
        self.images = images
        self.entries: list[Entry] = []
        self.errors: list[str] = []
        self._image_ids: dict[str, int] = {}
        self._sizes: dict[str, tuple[int | None, int | None]] = {}

    @contextlib.contextmanager
    def collecting(self, place: str) -> Iterator[None]:
        """Keep a ``ValueError`` of the block as an error of ``place``, and go on."""
        try:
            yield
        except ValueError as error:
            self.errors.append(f"{place}: {error}")

    def add(self, place: str, number: int, fields: dict[str, Any], segmentation: Any) -> None:
        """Add reference ``number`` with ``file_name``, ``split`` and ``sentences`` of ``fields``.

        ``segmentation`` may also be the counts of an RLE alone.

        Raises:
            ValueError: the segmentation cannot be used.
        """
        name = fields["file_name"]
        image_id = self._image_ids.setdefault(name, len(self._image_ids) + 1)
        if name not in self._sizes:
            self._sizes[name] = _image_size(self.images / name)
        height, width = self._sizes[name]
        if isinstance(segmentation, str):
            segmentation = {"size": [height, width], "counts": segmentation}
        check_segmentation(segmentation, height, width)
        numbers = {"ref_id": number, "ann_id": number, "image_id": image_id}
        size = {"height": height, "width": width}
        record = {**numbers, "category_id": NO_CATEGORY, **fields, **size}
        self.entries.append(Entry(record, segmentation, place))

    def finish(self, what: Path) -> list[Entry]:
        """All entries, with their sentences numbered; ValueError lists the errors, a line each."""
        if self.errors:
            num_more = len(self.errors) - MOST_LISTED
            more = [f"{what}: {num_more:,} more errors after these"] if num_more > 0 else []
            raise ValueError("\n".join([*self.errors[:MOST_LISTED], *more]))
        if not self.entries:
            raise ValueError(f"{what} describes no object; docs/own-data.md shows what to write")
        number_sentences(self.entries)
        return self.entries


def _image_size(path: Path) -> tuple[int | None, int | None]:
    """Height and width as the file's header says, without turning by its EXIF orientation."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.height, image.width
    except (OSError, Image.DecompressionBombError):
        return None, None
