"""The training references of several data sets as one, without the images they are scored on."""

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from utils.data.absent import packing_command
from utils.data.dataset import ReferDataset, Sample
from utils.data.images import packed_marks
from utils.data.store import ReferStore
from utils.data.transforms import Letterbox


class MixedDataset(Dataset):
    """The items of ``parts`` one after the other, with the public face of ``ReferDataset``.

    ``index`` counts over all parts. Which sentence an item takes stays that of its part: a function
    of seed, epoch and the index in the part. One part alone is that data set, with its fingerprint.

    Args:
        parts: with rows of ids of one length.
        allow_leakage: whether images that a part is scored on were left in; for the record.
    """

    def __init__(self, parts: Sequence[ReferDataset], *, allow_leakage: bool = False) -> None:
        assert parts and len({part.length for part in parts}) == 1
        self.parts, self.allow_leakage = tuple(parts), allow_leakage
        self.length: int = parts[0].length
        self._ends = list(accumulate(len(part) for part in parts))

    def __len__(self) -> int:
        return self._ends[-1]

    def locate(self, index: int) -> tuple[ReferDataset, int]:
        """The part that item ``index`` is of, and its index there."""
        if not 0 <= index < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        number = bisect_right(self._ends, index)
        return self.parts[number], index - (self._ends[number - 1] if number else 0)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over names and fingerprints of the parts and ``allow_leakage``."""
        if len(self.parts) == 1:
            return self.parts[0].fingerprint
        named = [(part.store.dataset, part.fingerprint) for part in self.parts]
        return hashlib.sha256(json.dumps([named, self.allow_leakage]).encode()).hexdigest()

    @property
    def num_truncated(self) -> int:
        """Sentences that are longer than what their data set keeps and were cut."""
        return sum(part.num_truncated for part in self.parts)

    @property
    def num_left_out(self) -> int:
        """References left out because a data set of the mixture is scored on their image."""
        return sum(part.num_left_out for part in self.parts)

    @property
    def num_empty(self) -> int:
        """References left out because their mask is empty."""
        return sum(part.num_empty for part in self.parts)

    def set_epoch(self, epoch: int) -> None:
        """Choose the sentences of an epoch, in all worker processes."""
        for part in self.parts:
            part.set_epoch(epoch)

    def info(self, index: int) -> Sample:
        """What an item is about."""
        part, row = self.locate(index)
        return part.info(row)

    def letterbox(self, index: int) -> Letterbox:
        """Where the item's image lies in the square."""
        part, row = self.locate(index)
        return part.letterbox(row)

    def original(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image uint8 (H, W, 3), RGB, and mask bool (H, W) at their own size."""
        part, row = self.locate(index)
        return part.original(row)

    def truth(self, index: int) -> np.ndarray:
        """The mask of ``original`` alone, without reading the image: bool (H, W)."""
        part, row = self.locate(index)
        return part.truth(row)

    def __getitem__(self, index: int) -> dict[str, Any]:
        part, row = self.locate(index)
        return part[row] | {"index": index}

    @property
    def scored_images(self) -> str:
        """What became of images that stand in another split than train: ``left out`` and so on."""
        if len(self.parts) == 1:
            return "as published"
        return "left in" if self.allow_leakage else "left out"

    def composition(self) -> dict[str, Any]:
        """What is trained on, for checkpoints: ``scored_images`` and, by name, ``datasets``."""
        return {
            "scored_images": self.scored_images,
            "datasets": {
                part.store.dataset: {
                    "references": len(part),
                    "left_out_scored_image": part.num_left_out,
                    "left_out_empty_mask": part.num_empty,
                    "fingerprint": part.fingerprint,
                }
                for part in self.parts
            },
        }

    def describe(self) -> list[str]:
        """The same for people, a line for each data set."""
        width = max(len(part.store.dataset) for part in self.parts)
        lines = []
        for part in self.parts:
            left_out = [f"{part.num_empty:,} with an empty mask"] if part.num_empty else []
            if self.scored_images == "left out":
                left_out.insert(0, f"{part.num_left_out:,} on images of val and test splits")
            line = f"{part.store.dataset:{width}}  {len(part):,} samples an epoch"
            lines.append(f"{line}; left out: {', '.join(left_out)}" if left_out else line)
        if self.scored_images == "left in":
            lines.append("images of val and test splits are trained on (data.allow_leakage)")
        return lines


def open_mixture(
    root: str | Path,
    datasets: Iterable[str],
    *,
    image_size: int,
    length: int,
    max_words: int | None = None,
    seed: int = 0,
    allow_leakage: bool = False,
    target: str = "majority",
) -> MixedDataset:
    """The train splits of ``datasets``, ready for training.

    Sentences are cut as their data set has it, or at ``max_words``, and padded to ``length``.

    Several data sets lose every image that stands in another split than train of any of them,
    unless ``allow_leakage``. One alone trains on its split as it was published.

    Raises:
        ValueError: a data set is unknown or not packed, or nothing of it is left.
    """
    stores = [ReferStore(root, dataset) for dataset in datasets]
    for store in stores:
        store.check_split("train")
    several = len(stores) > 1
    left_out = find_scored_images(root, stores) if several and not allow_leakage else {}
    if left_out:
        _check_some_left(stores, left_out)
    parts = [
        ReferDataset(
            root,
            store.dataset,
            "train",
            image_size=image_size,
            max_words=max_words,
            length=length,
            seed=seed,
            left_out=left_out.get(store.images_path, ()),
            target=target,
        )
        for store in stores
    ]
    return MixedDataset(parts, allow_leakage=several and allow_leakage)


def find_scored_images(root: str | Path, stores: Sequence[ReferStore]) -> dict[Path, set[str]]:
    """By image store, the names of images that stand in another split than train of any store.

    Images are compared by their bytes, as one's own data may repeat those of COCO in a store of
    their own.
    """
    checksums = {}
    for store in stores:
        if store.images_path not in checksums:
            marks = packed_marks(store.images_path, packing_command(root, store.dataset))
            assert marks is not None, "a store that opens has its images"
            checksums[store.images_path] = {name: mark.sha256 for name, mark in marks.items()}
    scored = {
        checksums[store.images_path][name]
        for store in stores
        for split in store.splits
        if split != "train"
        for name in store.file_names(split)
    }
    return {
        path: {name for name, checksum in names.items() if checksum in scored}
        for path, names in checksums.items()
    }


def _check_some_left(stores: Sequence[ReferStore], left_out: Mapping[Path, set[str]]) -> None:
    for store in stores:
        if store.file_names("train") <= left_out[store.images_path]:
            raise ValueError(
                f"nothing of {store.dataset} is left to train on: all its images stand in val and "
                f"test splits of {', '.join(one.dataset for one in stores)}; leave it out of "
                "data.dataset, or set data.allow_leakage: true, which is recorded"
            )
