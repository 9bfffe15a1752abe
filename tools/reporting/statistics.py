"""How sure scores are, and how they depend on the sentence and the object."""

import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from engine.metrics import Record, metrics_from_records

RESAMPLES = 2000
SEED = 0
BATCH = 100  # resamples at a time: 100 x 10,000 references are 8 MB
METRICS = ("oIoU", "mIoU")
# A sentence that has one of these says where its object is; "on" and "in" mostly do not.
PLACE_WORD = re.compile(
    r"\b((left|right|top|bottom|front|back|upper|lower)(most)?|above|below|under(neath)?|over|behind"
    r"|middle|cent(er|re)|corner|edge|side|between|beside|next|near(er|est)?|clos(e|er|est)"
    r"|far(ther|thest)?|further|furthest|foreground|background|inside|outside|opposite)\b",
    re.IGNORECASE,
)
LENGTHS = (1, 2, 3, 4, 6, 9)  # words, where a group begins
SHARES = (0.0, 0.01, 0.03, 0.1, 0.3)  # of the picture, where a group begins


class Estimate(NamedTuple):
    """A score in percent and the ends of its 95 % interval."""

    value: float
    low: float
    high: float


class Group(NamedTuple):
    """The sentences that have something in common."""

    name: str
    num_sentences: int
    scores: dict[str, Estimate]
    precision: float  # Pr@0.5


def bootstrap(records: Sequence[Record]) -> dict[str, Estimate]:
    """oIoU and mIoU with percentile intervals over resampled references (Efron, 1979).

    Not sentences are drawn but references, each with all of its sentences: these speak of one mask
    in one picture and fail together, so that drawing them alone would make intervals too narrow.
    Pictures are not drawn: the rows of a test name references, and need no data to be read again.
    """
    resampled = _resample(_sums([records]))[:, 0]  # (R, 2)
    return _estimates(_values(records), resampled)


def bootstrap_difference(first: Sequence[Record], second: Sequence[Record]) -> dict[str, Estimate]:
    """``second - first`` of two models on the same sentences, both drawn together (paired)."""
    resampled = _resample(_sums([first, second]))  # (R, 2 models, 2 scores)
    values = [b - a for a, b in zip(_values(first), _values(second), strict=True)]
    return _estimates(values, resampled[:, 1] - resampled[:, 0])


def group_by(
    records: Iterable[Record], key: Callable[[Record], int], names: Sequence[str]
) -> list[Group]:
    """The scores of the records of each ``key``, which counts in ``names``; none are left out."""
    members: list[list[Record]] = [[] for _ in names]
    for record in records:
        members[key(record)].append(record)
    return [
        Group(name, len(some), bootstrap(some), metrics_from_records(some).to_dict()["Pr@0.5"])
        for name, some in zip(names, members, strict=True)
        if some
    ]


def by_length(records: Iterable[Record]) -> list[Group]:
    """By the number of words between blanks."""
    ends = [start - 1 for start in LENGTHS[1:]]
    names = [
        f"{start} word{'s' if end > 1 else ''}" if start == end else f"{start} to {end} words"
        for start, end in zip(LENGTHS, ends, strict=False)
    ]
    names.append(f"{LENGTHS[-1]} words and more")

    def key(record: Record) -> int:
        return max(0, _position(LENGTHS, len(record.sentence.split())))

    return group_by(records, key, names)


def by_place(records: Iterable[Record]) -> list[Group]:
    """By whether the sentence has a ``PLACE_WORD``."""
    names = ("without place words", "with place words")
    return group_by(records, lambda record: int(has_place_word(record.sentence)), names)


def by_size(records: Iterable[Record], shares: dict[int, float]) -> list[Group]:
    """By the share of the picture that the object covers, ``shares`` by index of the sentence."""
    names = [
        f"{100 * start:g} to {100 * end:g} % of the picture" for start, end in pairwise(SHARES)
    ]
    names.append(f"{100 * SHARES[-1]:g} % and more")
    return group_by(records, lambda record: _position(SHARES, shares[record.index]), names)


def has_place_word(sentence: str) -> bool:
    """Whether ``sentence`` says where its object is."""
    return PLACE_WORD.search(sentence) is not None


def histogram(records: Iterable[Record], num_bins: int = 20) -> list[int]:
    """How many sentences have an IoU in each of ``num_bins`` equal parts of 0 to 1."""
    bins = [0] * num_bins
    for record in records:
        bins[min(num_bins - 1, int(record.iou * num_bins))] += 1
    return bins


def _position(starts: Sequence[float], value: float) -> int:
    return int(np.searchsorted(starts, value, side="right")) - 1


def _values(records: Sequence[Record]) -> list[float]:
    scores = metrics_from_records(records).to_dict()
    return [scores[metric] for metric in METRICS]


def _sums(models: Sequence[Sequence[Record]]) -> np.ndarray:
    """Intersection, union, IoU and number of sentences of each reference: ``(N, models, 4)``."""
    references: dict[Hashable, int] = {}
    for record in models[0]:
        references.setdefault(record.ref_id, len(references))
    sums = np.zeros((len(references), len(models), 4))
    for model, records in enumerate(models):
        for one in records:
            sums[references[one.ref_id], model] += (one.intersection, one.union, one.iou, 1)
    return sums


def _resample(sums: np.ndarray) -> np.ndarray:
    """oIoU and mIoU of ``RESAMPLES`` draws of references, in percent: ``(R, models, 2)``."""
    generator = np.random.default_rng(SEED)
    number = len(sums)
    drawn = []
    for _ in range(0, RESAMPLES, BATCH):
        weights = generator.multinomial(number, np.full(number, 1 / number), size=BATCH)
        total = np.tensordot(weights, sums, axes=1)  # (BATCH, models, 4)
        overall = total[..., 0] / np.maximum(total[..., 1], 1)
        drawn.append(100 * np.stack([overall, total[..., 2] / total[..., 3]], axis=-1))
    return np.concatenate(drawn)


def _estimates(values: Sequence[float], resampled: np.ndarray) -> dict[str, Estimate]:
    ends = np.percentile(resampled, (2.5, 97.5), axis=0)  # (2, 2)
    return {
        metric: Estimate(value, float(low), float(high))
        for metric, value, low, high in zip(METRICS, values, *ends, strict=True)
    }
