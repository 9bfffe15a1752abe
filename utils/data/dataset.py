"""Data sets for training and evaluation: images, tokens and masks of references."""

import hashlib
import json
from bisect import bisect_right
from collections.abc import Collection, Iterable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from utils.data.datasets import default_max_words
from utils.data.images import decode_image, find_pixels
from utils.data.store import ReferStore, decode_mask
from utils.data.tokenizer import pad_tokens
from utils.data.transforms import Letterbox, letterbox_mask, pad_to_planes, resize_image, warp_mask

# Loading is parallel by processes; OpenCV's own threads do not survive a fork.
cv2.setNumThreads(0)


class Sample(NamedTuple):
    """One sentence about one object, without its pixels; ``num_tokens`` before any cut."""

    ref_id: int
    sentence_id: int
    sentence: str
    image_id: int
    file_name: str
    height: int
    width: int
    category_id: int
    num_tokens: int


class ReferDataset(Dataset):
    """References of one split: a sentence each (training) or all of their sentences (evaluation).

    Item ``i`` is a dict that ``default_collate`` stacks:
        image: uint8 (3, S, S), RGB, letterboxed;
        ids: int64 (length,), the tokens of the sentence, padded with 0;
        mask: uint8 (S, S) of 0 and 1, letterboxed like the image; for the target ``nearest`` of 0
            to 255, as the released code warps it;
        index: ``i``.
    Records and images are read when an item is asked for, so that opening costs little. Images of
    which a resized copy is packed are not decoded.

    Args:
        max_tokens: longest sentence, longer ones are cut; None for the data set's own.
        length: tokens of a row of ids, that of the model; None for ``max_tokens``.
        all_sentences: an item for every sentence, in the order of the annotations; otherwise one
            for every reference whose mask is not empty, its sentence chosen by (seed, epoch,
            index) and nothing else.
        excluded_images: names of images that are not trained on.
        target: what the loss makes of the mask: ``majority`` or ``nearest``.

    Attributes:
        num_empty: references excluded from training because their mask is empty.
        num_excluded: others excluded because of their image.

    Raises:
        ValueError: the data set or split is unknown, not packed or has nothing to read; for an
            item, its image cannot be read.
    """

    def __init__(
        self,
        root: str | Path,
        dataset: str,
        split: str,
        *,
        image_size: int,
        max_tokens: int | None = None,
        length: int | None = None,
        seed: int = 0,
        all_sentences: bool = False,
        excluded_images: Collection[str] = (),
        target: str = "majority",
    ) -> None:
        assert not (all_sentences and excluded_images), "an evaluation excludes nothing"
        self.store = ReferStore(root, dataset)
        self.split, self.image_size, self.seed = split, image_size, seed
        self._pixels = find_pixels(root, self.store, image_size)
        self.all_sentences, self.target = all_sentences, target
        longest = default_max_words([dataset]) if max_tokens is None else max_tokens
        self.length = longest if length is None else length
        self.max_tokens = min(longest, self.length)
        self.fingerprint: str = self.store.header["fingerprint"]
        index = self.store.index(split)
        self.store.check_images(split, index)
        self._num_tokens, self._checksums = index.num_tokens, index.checksum
        self._ids = pad_tokens(index.tokens, index.num_tokens, self.max_tokens, self.length)
        self._first_sentence = _starts(index.num_sentences)  # of every row
        is_empty = (index.area == 0) & (not all_sentences)
        names = np.array([name.encode() for name in excluded_images], np.bytes_)
        is_excluded = np.isin(index.file_name, names) & ~is_empty
        self.num_empty, self.num_excluded = int(is_empty.sum()), int(is_excluded.sum())
        self._rows = np.flatnonzero(~(is_empty | is_excluded))  # those that are read
        if not len(self._rows):
            why = f" ({self.num_empty} empty masks, {self.num_excluded} on excluded images)"
            raise ValueError(
                f"{self.store.path}: split {split!r} is empty{why if len(index.area) else ''}"
            )
        # shared memory: workers that live longer than an epoch see the change
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return len(self._num_tokens) if self.all_sentences else len(self._rows)

    @property
    def num_truncated(self) -> int:
        """The number of sentences that are longer than ``max_tokens`` and are cut."""
        num_long = _starts(self._num_tokens > self.max_tokens)[self._first_sentence]
        return int(np.diff(num_long)[self._rows].sum())

    def set_epoch(self, epoch: int) -> None:
        """Choose the sentences of an epoch, in all worker processes."""
        self._epoch.fill_(epoch)

    def _find(self, index: int) -> tuple[int, int]:
        """Find row and sentence of an item, both counted from the beginning of the split."""
        if not 0 <= index < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        if self.all_sentences:
            return int(np.searchsorted(self._first_sentence, index, side="right")) - 1, index
        row = int(self._rows[index])
        first, last = self._first_sentence[row : row + 2]
        rng = np.random.default_rng((self.seed, int(self._epoch), index))
        return row, int(rng.integers(first, last))

    def _record(self, index: int) -> dict[str, Any]:
        return self.store.reference(self.split, self._find(index)[0], self._checksums)

    def info(self, index: int) -> Sample:
        """Describe an item: its sentence, its reference and its image."""
        row, sentence = self._find(index)
        record = self.store.reference(self.split, row, self._checksums)
        sentence_id, text = record["sentences"][sentence - int(self._first_sentence[row])]
        names = ("ref_id", "image_id", "file_name", "height", "width", "category_id")
        fields = {name: record[name] for name in names}
        num_tokens = int(self._num_tokens[sentence])
        return Sample(sentence_id=sentence_id, sentence=text, num_tokens=num_tokens, **fields)

    def ids(self, index: int) -> Tensor:
        """Return the tokens of an item's sentence without reading its image: int64 (length,)."""
        sentence = self._find(index)[1]
        return torch.from_numpy(self._ids[sentence].astype(np.int64))

    def image(self, index: int) -> Tensor:
        """Read an item's image alone: uint8 (3, S, S)."""
        record = self._record(index)
        return self._square(record, self._letterbox(record))

    def letterbox(self, index: int) -> Letterbox:
        """Return where an item's image lies in the square."""
        return self._letterbox(self._record(index))

    def original(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Read image uint8 (H, W, 3), RGB, and mask bool (H, W) at their own size."""
        record = self._record(index)
        return self._read_image(record), decode_mask(record)

    def truth(self, index: int) -> np.ndarray:
        """Read the mask of ``original`` without its image: bool (H, W)."""
        return decode_mask(self._record(index))

    def __getitem__(self, index: int) -> dict[str, Any]:
        row, sentence = self._find(index)
        record = self.store.reference(self.split, row, self._checksums)
        box = self._letterbox(record)
        return {
            "image": self._square(record, box),
            "ids": torch.from_numpy(self._ids[sentence].astype(np.int64)),
            "mask": torch.from_numpy(self._mask(record, box)),
            "index": index,
        }

    def _letterbox(self, record: dict[str, Any]) -> Letterbox:
        return Letterbox.fit(record["height"], record["width"], self.image_size)

    def _square(self, record: dict[str, Any], box: Letterbox) -> Tensor:
        resized = self._pixels.get(record["file_name"], box) if self._pixels else None
        if resized is None:
            resized = resize_image(self._read_image(record), box)
        return torch.from_numpy(pad_to_planes(resized, box))

    def _mask(self, record: dict[str, Any], box: Letterbox) -> np.ndarray:
        mask = decode_mask(record)
        if self.target == "nearest":
            return warp_mask(mask, self.image_size)
        return letterbox_mask(mask, box)

    def _read_image(self, record: dict[str, Any]) -> np.ndarray:
        image = decode_image(self.store.image(record["file_name"]))
        expected = (record["height"], record["width"])
        if image is None or image.shape[:2] != expected:
            found = "no image that can be decoded" if image is None else f"{image.shape[:2]} pixels"
            raise ValueError(
                f"{self.store.images_path}: {record['file_name']} is {found}, "
                f"its annotation says {expected}; fetch it and pack it again"
            )
        return image


def _starts(counts: np.ndarray) -> np.ndarray:
    """Return where each of the parts of these lengths begins, and the end: (N + 1,)."""
    return np.concatenate([[0], np.cumsum(counts)])


class MixedDataset(Dataset):
    """The items of ``parts``, one part after the other.

    ``index`` counts over all parts. The sentence of an item is chosen by its part: by seed, epoch
    and the index in the part. One part alone is that data set, with its fingerprint.

    Args:
        parts: data sets with rows of ids of one length.
        allow_leakage: whether images that a part is scored on are trained on; for the record.
    """

    def __init__(self, parts: Sequence[ReferDataset], *, allow_leakage: bool = False) -> None:
        assert parts and len({part.length for part in parts}) == 1
        self.parts, self.allow_leakage = tuple(parts), allow_leakage
        self.length: int = parts[0].length
        self._ends = list(accumulate(len(part) for part in parts))

    def __len__(self) -> int:
        return self._ends[-1]

    def locate(self, index: int) -> tuple[ReferDataset, int]:
        """Find the part of an item, and its index there."""
        if not 0 <= index < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        number = bisect_right(self._ends, index)
        return self.parts[number], index - (self._ends[number - 1] if number else 0)

    def __getitem__(self, index: int) -> dict[str, Any]:
        part, row = self.locate(index)
        return part[row] | {"index": index}

    def info(self, index: int) -> Sample:
        """Describe an item: its sentence, its reference and its image."""
        part, row = self.locate(index)
        return part.info(row)

    def set_epoch(self, epoch: int) -> None:
        """Choose the sentences of an epoch, in all worker processes."""
        for part in self.parts:
            part.set_epoch(epoch)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over names and fingerprints of the parts and ``allow_leakage``."""
        if len(self.parts) == 1:
            return self.parts[0].fingerprint
        named = [(part.store.dataset, part.fingerprint) for part in self.parts]
        return hashlib.sha256(json.dumps([named, self.allow_leakage]).encode()).hexdigest()

    def composition(self) -> dict[str, Any]:
        """Return what is trained on, for checkpoints."""
        scored = "left in" if self.allow_leakage else "left out"
        return {
            "scored_images": scored if len(self.parts) > 1 else "as published",
            "datasets": {
                part.store.dataset: {
                    "references": len(part),
                    "left_out_scored_image": part.num_excluded,
                    "left_out_empty_mask": part.num_empty,
                    "fingerprint": part.fingerprint,
                }
                for part in self.parts
            },
        }

    def describe(self) -> list[str]:
        """Return what is trained on, for people: a line for each data set."""
        width = max(len(part.store.dataset) for part in self.parts)
        is_mixed, lines = len(self.parts) > 1, []
        for part in self.parts:
            excluded = []
            if is_mixed and not self.allow_leakage:
                excluded.append(f"{part.num_excluded:,} on images of val and test splits")
            if part.num_empty:
                excluded.append(f"{part.num_empty:,} with an empty mask")
            line = f"{part.store.dataset:{width}}  {len(part):,} samples an epoch"
            lines.append(f"{line}; left out: {', '.join(excluded)}" if excluded else line)
        if is_mixed and self.allow_leakage:
            lines.append("images of val and test splits are trained on (data.allow_leakage)")
        return lines


def open_mixture(
    root: str | Path,
    datasets: Iterable[str],
    *,
    image_size: int,
    length: int,
    max_tokens: int | None = None,
    seed: int = 0,
    allow_leakage: bool = False,
    target: str = "majority",
) -> MixedDataset:
    """Open the train splits of ``datasets`` as one.

    Sentences are cut as their data set has it, or at ``max_tokens``, and padded to ``length``.
    Several data sets lose every image that is in another split than train of any of them, unless
    ``allow_leakage``. One alone trains on its split as it was published.

    Raises:
        ValueError: a data set is unknown or not packed, or nothing of it is left.
    """
    stores = [ReferStore(root, dataset) for dataset in datasets]
    for store in stores:
        store.check_split("train")
    is_mixed = len(stores) > 1
    excluded = find_scored_images(stores) if is_mixed and not allow_leakage else {}
    for store in stores:
        if excluded and store.file_names("train") <= excluded[store.images_path]:
            names = ", ".join(one.dataset for one in stores)
            raise ValueError(
                f"{store.dataset} has no reference to train on: all its images are in val and "
                f"test splits of {names}; remove it from data.dataset, or set "
                "data.allow_leakage: true, which is recorded"
            )
    parts = [
        ReferDataset(
            root,
            store.dataset,
            "train",
            image_size=image_size,
            max_tokens=max_tokens,
            length=length,
            seed=seed,
            excluded_images=excluded.get(store.images_path, ()),
            target=target,
        )
        for store in stores
    ]
    return MixedDataset(parts, allow_leakage=is_mixed and allow_leakage)


def find_scored_images(stores: Sequence[ReferStore]) -> dict[Path, set[str]]:
    """Find the images that are in another split than train of any store: image store -> names.

    Images are compared by their bytes: one's own data may repeat those of COCO in another store.
    """
    checksums = {
        store.images_path: {name: mark.sha256 for name, mark in store.image_marks().items()}
        for store in {store.images_path: store for store in stores}.values()
    }
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
