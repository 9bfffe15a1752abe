"""The data set that training and evaluation read: images, tokens and masks of references."""

from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

from utils.data.refer import dataset_facts, decode_mask
from utils.data.store import ReferStore
from utils.data.tokenizer import tokenize
from utils.data.transforms import Letterbox, letterbox_image, letterbox_mask

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
        ids: int64 (L,), the tokens of the sentence, padded with 0;
        mask: uint8 (S, S) of 0 and 1, letterboxed like the image;
        index: ``i``.

    Args:
        max_words: tokens kept of a sentence; None for the data set's own.
        all_sentences: an item for every sentence, in the order of the annotations; otherwise one
            for every reference, its sentence chosen by (seed, epoch, index) and nothing else.

    Raises:
        ValueError: the data set or split is unknown or not packed; for an item, its image cannot
            be read.
    """

    def __init__(
        self,
        root: str | Path,
        dataset: str,
        split: str,
        *,
        image_size: int,
        max_words: int | None = None,
        seed: int = 0,
        all_sentences: bool = False,
    ) -> None:
        self.store = ReferStore(root, dataset)
        self.image_size, self.seed, self.all_sentences = image_size, seed, all_sentences
        self.max_words = dataset_facts(dataset).max_words if max_words is None else max_words
        self.fingerprint: str = self.store.header["fingerprint"]
        self.records = self.store.references(split)
        if not self.records:
            raise ValueError(f"{self.store.path}: split {split!r} is empty")
        self._pairs = [
            (row, position)
            for row, record in enumerate(self.records)
            for position in range(len(record["sentences"]))
        ]
        counts = [len(record["sentences"]) for record in self.records]
        self._first = np.cumsum([0, *counts])  # the first pair of every record
        texts = [self.records[row]["sentences"][position][1] for row, position in self._pairs]
        self._ids, self._num_tokens = tokenize(texts, self.max_words)
        # shared memory: workers that live longer than an epoch see the change
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return len(self._pairs) if self.all_sentences else len(self.records)

    @property
    def num_truncated(self) -> int:
        """Sentences of the split that are longer than ``max_words`` and were cut."""
        return sum(length > self.max_words for length in self._num_tokens)

    def set_epoch(self, epoch: int) -> None:
        """Choose the sentences of an epoch, in all worker processes."""
        self._epoch.fill_(epoch)

    def _pair(self, index: int) -> int:
        """Where in the list of all sentences item ``index`` is."""
        if not 0 <= index < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        if self.all_sentences:
            return index
        first, last = self._first[index], self._first[index + 1]
        rng = np.random.default_rng((self.seed, int(self._epoch), index))
        return int(rng.integers(first, last))

    def _record(self, index: int) -> dict[str, Any]:
        return self.records[self._pairs[self._pair(index)][0]]

    def info(self, index: int) -> Sample:
        """What an item is about."""
        pair = self._pair(index)
        row, position = self._pairs[pair]
        record = self.records[row]
        sentence_id, sentence = record["sentences"][position]
        return Sample(
            ref_id=record["ref_id"],
            sentence_id=sentence_id,
            sentence=sentence,
            num_tokens=self._num_tokens[pair],
            **{
                key: record[key]
                for key in ("image_id", "file_name", "height", "width", "category_id")
            },
        )

    def letterbox(self, index: int) -> Letterbox:
        """Where the item's image lies in the square."""
        record = self._record(index)
        return Letterbox.fit(record["height"], record["width"], self.image_size)

    def original(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image uint8 (H, W, 3), RGB, and mask bool (H, W) at their own size."""
        record = self._record(index)
        return self._read_image(record), decode_mask(record)

    def truth(self, index: int) -> np.ndarray:
        """The mask of ``original`` alone, without reading the image: bool (H, W)."""
        return decode_mask(self._record(index))

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, mask = self.original(index)
        square, box = letterbox_image(image, self.image_size)
        return {
            "image": torch.from_numpy(square).permute(2, 0, 1).contiguous(),
            "ids": self._ids[self._pair(index)],
            "mask": torch.from_numpy(letterbox_mask(mask, box)),
            "index": index,
        }

    def _read_image(self, record: dict[str, Any]) -> np.ndarray:
        data = np.frombuffer(self.store.image(record["file_name"]), np.uint8)
        image = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
        expected = (record["height"], record["width"])
        if image is None or image.shape[:2] != expected:
            found = "no image that can be decoded" if image is None else f"{image.shape[:2]} pixels"
            raise ValueError(
                f"{self.store.images_path}: {record['file_name']} is {found}, "
                f"its annotation says {expected}; fetch it and pack it again"
            )
        return image
