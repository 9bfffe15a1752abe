"""Compute how certain scores are, and how they depend on the sentence and the object."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from engine.metrics import Record, metrics_from_records

RESAMPLES = 2000
SEED = 0
BATCH = 100  # resamples at a time: 100 x 10,000 references are 8 MB
METRICS = ("oIoU", "mIoU")
MARGIN = 0.01  # of IoU; smaller changes do not count
NUM_BINS = 20  # of IoU
# A sentence with one of these says where its object is; "on" and "in" mostly do not.
PLACE_WORD = re.compile(
    r"\b((left|right|top|bottom|front|back|upper|lower)(most)?|above|below|under(neath)?|over|behind"
    r"|middle|cent(er|re)|corner|edge|side|between|beside|next|near(er|est)?|clos(e|er|est)"
    r"|far(ther|thest)?|further|furthest|foreground|background|inside|outside|opposite)\b",
    re.IGNORECASE,
)
# Names of groups by the value where each begins.
LENGTHS = {
    1.0: "1 word",
    2.0: "2 words",
    3.0: "3 words",
    4.0: "4 to 5 words",
    6.0: "6 to 8 words",
    9.0: "9 words and more",
}
PLACES = {0.0: "without place words", 1.0: "with place words"}
SHARES = {
    0.0: "0 to 1 % of the picture",
    0.01: "1 to 3 % of the picture",
    0.03: "3 to 10 % of the picture",
    0.1: "10 to 30 % of the picture",
    0.3: "30 % and more",
}

Pair = tuple[Record, Record]  # of the same sentence in two runs


class Estimate(NamedTuple):
    """A score in percent and the ends of its 95 % interval."""

    value: float
    low: float
    high: float


class Group(NamedTuple):
    """Sentences that have something in common."""

    name: str
    num_sentences: int
    scores: dict[str, Estimate]
    precision: float  # Pr@0.5


class Comparison(NamedTuple):
    """How the sentences of a split changed from the first run to the second, most changed first."""

    difference: dict[str, Estimate]
    better: list[Pair]
    worse: list[Pair]
    num_same: int


def bootstrap(*models: Sequence[Record]) -> dict[str, Estimate]:
    """Estimate oIoU and mIoU of one model, or ``second - first`` of two on the same sentences.

    The intervals are percentiles over resampled references (Efron, 1979), for two models the same
    draws. A reference is drawn with all of its sentences: these describe one mask in one picture
    and fail together, so that drawing them alone would make intervals too narrow. Pictures are not
    drawn: the rows of a test name references, so that no data have to be read.
    """
    references: dict[int, int] = {}
    for record in models[0]:
        references.setdefault(record.ref_id, len(references))
    number = len(references)
    sums = np.zeros((number, len(models), 4))  # intersection, union, IoU, sentences
    for model, records in enumerate(models):
        for one in records:
            sums[references[one.ref_id], model] += (one.intersection, one.union, one.iou, 1)
    generator = np.random.default_rng(SEED)
    draws = []
    for _ in range(0, RESAMPLES, BATCH):
        weights = generator.multinomial(number, np.full(number, 1 / number), size=BATCH)
        total = np.tensordot(weights, sums, axes=1)  # (BATCH, models, 4)
        overall = total[..., 0] / np.maximum(total[..., 1], 1)
        draws.append(100 * np.stack([overall, total[..., 2] / total[..., 3]], axis=-1))
    drawn = np.concatenate(draws)  # (R, models, 2)
    scores = [metrics_from_records(records).to_dict() for records in models]
    values = np.array([[one[metric] for metric in METRICS] for one in scores])  # (models, 2)
    if len(models) == 2:
        drawn, values = np.diff(drawn, axis=1), np.diff(values, axis=0)
    low, high = np.percentile(drawn[:, 0], (2.5, 97.5), axis=0)  # (2,) each
    return dict(zip(METRICS, map(Estimate, values[0], low, high), strict=True))


def compare(pairs: Sequence[Pair]) -> Comparison:
    """Compare two runs on the same sentences."""
    ranked = sorted(pairs, key=lambda pair: (pair[0].iou - pair[1].iou, pair[0].index))
    better = [pair for pair in ranked if pair[1].iou - pair[0].iou > MARGIN]
    worse = [pair for pair in ranked[::-1] if pair[1].iou - pair[0].iou < -MARGIN]
    first, second = zip(*pairs, strict=True)
    num_same = len(pairs) - len(better) - len(worse)
    return Comparison(bootstrap(first, second), better, worse, num_same)


def group_records(
    records: Iterable[Record], shares: Mapping[int, float] | None = None
) -> dict[str, list[Group]]:
    """Group by words in the sentence, by place words and by the size of the object.

    ``shares`` are the parts of the picture that objects cover, by index of the sentence.
    """
    ways: dict[str, tuple[Mapping[float, str], Callable[[Record], float]]] = {
        "length of the sentence": (LENGTHS, lambda one: max(1, len(one.sentence.split()))),
        "place": (PLACES, lambda one: PLACE_WORD.search(one.sentence) is not None),
    }
    if shares is not None:
        ways["size of the object"] = (SHARES, lambda one: shares[one.index])
    groups = {}
    for way, (starts, value) in ways.items():
        members: dict[str, list[Record]] = {name: [] for name in starts.values()}
        for one in records:
            members[starts[max(start for start in starts if start <= value(one))]].append(one)
        groups[way] = [
            Group(name, len(some), bootstrap(some), metrics_from_records(some).to_dict()["Pr@0.5"])
            for name, some in members.items()
            if some
        ]
    return groups


def histogram(records: Sequence[Record]) -> list[float]:
    """Return the percentage of sentences with an IoU in each of ``NUM_BINS`` parts of 0 to 1."""
    bins = [min(NUM_BINS - 1, int(record.iou * NUM_BINS)) for record in records]
    return [100 * bins.count(number) / len(bins) for number in range(NUM_BINS)]
