"""What a split of a packed data set contains: objects, masks, sentences, words."""

import re
from collections import Counter
from typing import Any, NamedTuple

import numpy as np

from utils.data.store import ReferStore

# left out of the list of frequent words, where they would fill half of it
STOP_WORDS = {
    "a", "an", "and", "at", "by", "for", "from", "in", "is", "it", "of", "on", "or", "that", "the",
    "to", "with",
}  # fmt: skip


class Statistics(NamedTuple):
    """Numbers of the references of a split that have at least one of the chosen sentences.

    Attributes:
        rows: where in the split the N references are: int (N,).
        shares: area of each mask over that of its image, 0 to 1: float (N,).
        num_objects: references on each image that has any: int (images,).
        num_words: of each chosen sentence: int (M,).
        num_tokens: the same in tokens of CLIP, start and end included: int (M,).
        words: how often each word is said, without ``STOP_WORDS``.
        num_categories: different categories of the references.
    """

    rows: np.ndarray
    shares: np.ndarray
    num_objects: np.ndarray
    num_words: np.ndarray
    num_tokens: np.ndarray
    words: Counter[str]
    num_categories: int


def words_of(sentence: str) -> list[str]:
    """The words of a sentence in lower case; "man's" and "t-shirt" are one each."""
    return re.findall(r"\w+(?:['’-]\w+)*", sentence.lower())


def says(sentence: str, phrase: str) -> bool:
    """Whether all words of ``phrase`` are words of the sentence, in whatever order."""
    return set(words_of(phrase)) <= set(words_of(sentence))


def split_statistics(store: ReferStore, split: str, phrase: str = "") -> Statistics:
    """Count over a split, over sentences alone that ``says`` lets through.

    Raises:
        ValueError: the split is none of the data set's, or no sentence is left.
    """
    index, records = store.index(split), store.references(split)
    chosen = [[says(text, phrase) for _, text in record["sentences"]] for record in records]
    rows = np.flatnonzero([any(flags) for flags in chosen])
    if not len(rows):
        reason = f"has no sentence with the words of {phrase!r}" if records else "is empty"
        raise ValueError(f"{store.path}: split {split!r} {reason}")
    spoken = [
        words_of(text)
        for record, flags in zip(records, chosen, strict=True)
        for (_, text), flag in zip(record["sentences"], flags, strict=True)
        if flag
    ]
    kept = [records[row] for row in rows]
    _, num_objects = np.unique(index.file_name[rows], return_counts=True)
    return Statistics(
        rows=rows,
        shares=index.area[rows] / _num_pixels(kept),
        num_objects=num_objects,
        num_words=np.array([len(words) for words in spoken]),
        num_tokens=index.num_tokens[np.array([flag for flags in chosen for flag in flags])],
        words=Counter(word for words in spoken for word in words if word not in STOP_WORDS),
        num_categories=len({record["category_id"] for record in kept}),
    )


def _num_pixels(records: list[dict[str, Any]]) -> np.ndarray:
    return np.array([record["height"] * record["width"] for record in records])
