"""The data that a run was tested on, and the same sentences in two runs."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from engine.data import open_split, open_validation
from engine.metrics import Record
from utils.data.dataset import ReferDataset

from .runs import Run
from .statistics import Estimate, bootstrap_difference

MARGIN = 0.01  # of IoU; what changes by less has not changed
MOST_LISTED = 10

Pair = tuple[Record, Record]


class Comparison(NamedTuple):
    """How the sentences of a split changed from the first run to the second."""

    difference: dict[str, Estimate]
    num_better: int
    num_worse: int
    num_same: int
    better: list[Pair]  # those that changed most
    worse: list[Pair]


def check_comparable(runs: Sequence[Run]) -> None:
    """``ValueError`` if two runs are of different data: their sentences are not the same."""
    first, *others = runs
    for other in others:
        names = [run.config.data.datasets for run in (first, other)]
        prints = [run.results["data"]["fingerprint"] for run in (first, other) if run.results]
        if names[0] != names[1] or (len(prints) == 2 and prints[0] != prints[1]):
            listed = [", ".join(one) for one in names]
            raise ValueError(
                f"{first.name} ({listed[0]}) and {other.name} ({listed[1]}) are of different data; "
                "make a report of each"
            )


def open_sets(run: Run, labels: Sequence[str]) -> dict[str, ReferDataset]:
    """The splits ``labels``, or those of the validation if there are none.

    Raises:
        ValueError: the data is not packed, or is not that of the results.
    """
    if not labels:
        return open_validation(run.config)
    sets = {}
    for label in labels:
        dataset, _, split = label.rpartition("/")
        sets[label] = opened = open_split(run.config, dataset or run.config.data.datasets[0], split)
        if opened.fingerprint not in _fingerprints(run):
            raise ValueError(
                f"{opened.store.path} is not the data that {run.name} was tested on (its "
                "fingerprint differs); name the folder of that with --root"
            )
    return sets


def object_shares(dataset: ReferDataset) -> dict[int, float]:
    """The share of its picture that the object of each sentence covers, by the packed masks."""
    areas = dataset.store.index(dataset.split).area.tolist()
    records = dataset.store.references(dataset.split)
    shares = [
        area / (record["height"] * record["width"])
        for area, record in zip(areas, records, strict=True)
        for _ in record["sentences"]
    ]
    return dict(enumerate(shares))


def pair_up(first: Run, second: Run) -> dict[str, list[Pair]]:
    """The sentences of each split that both runs were tested on."""
    labels = [label for label in first.records if label in second.records]
    return {
        label: list(zip(first.records[label], second.records[label], strict=True))
        for label in labels
    }


def changes(pairs: Sequence[Pair]) -> dict[int, float]:
    """By how much the IoU of each sentence rose, by its index."""
    return {one.index: other.iou - one.iou for one, other in pairs}


def compare(pairs: Sequence[Pair]) -> Comparison:
    """Which sentences improved, and which got worse, by more than ``MARGIN``."""
    rise = changes(pairs)
    ranked = sorted(pairs, key=lambda pair: (-rise[pair[0].index], pair[0].index))
    better = [pair for pair in ranked if rise[pair[0].index] > MARGIN]
    worse = [pair for pair in ranked[::-1] if rise[pair[0].index] < -MARGIN]
    return Comparison(
        difference=bootstrap_difference([one for one, _ in pairs], [other for _, other in pairs]),
        num_better=len(better),
        num_worse=len(worse),
        num_same=len(pairs) - len(better) - len(worse),
        better=better[:MOST_LISTED],
        worse=worse[:MOST_LISTED],
    )


def _fingerprints(run: Run) -> set[str]:
    assert run.results is not None, "labels come from results"
    value = run.results["data"]["fingerprint"]
    return set(value.values()) if isinstance(value, Mapping) else {value}
