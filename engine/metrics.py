"""Scores of masks, as sums of whole numbers that are divided once at the end."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

TENTHS = (5, 6, 7, 8, 9)
RULE = (
    "per sentence IoU = intersection / union in pixels, 0 where the union is empty; mIoU is its "
    "mean, oIoU the sum of intersections over the sum of unions, Pr@X the share of sentences with "
    "IoU > X; all in percent"
)


@dataclass(frozen=True)
class Record:
    """What one sentence scored: pixels in truth and prediction, and pixels in either."""

    index: int
    ref_id: int
    sentence_id: int
    sentence: str
    intersection: int
    union: int

    @property
    def iou(self) -> float:
        """``intersection / union``; 0 where both masks are empty: a reference has an object."""
        return self.intersection / self.union if self.union else 0.0

    def to_dict(self) -> dict[str, Any]:
        """The row of the per-sample file."""
        return asdict(self)


@dataclass(frozen=True)
class Metrics:
    """Sums over sentences, from which all scores follow."""

    intersection: int
    union: int
    iou_sum: float
    hits: tuple[int, ...]
    count: int

    @property
    def oIoU(self) -> float:  # noqa: N802 - the name of the measure
        """Overall IoU in percent: ``100 * sum(intersection) / sum(union)``."""
        return 100 * self.intersection / self.union if self.union else 0.0

    @property
    def mIoU(self) -> float:  # noqa: N802 - the name of the measure
        """Mean IoU in percent: ``100 * sum(iou) / count``."""
        return 100 * self.iou_sum / self.count if self.count else 0.0

    def to_dict(self) -> dict[str, float | int]:
        """All scores in percent, then the sums they come from."""
        count = max(self.count, 1)
        precision = {
            f"Pr@0.{tenths}": 100 * n / count for tenths, n in zip(TENTHS, self.hits, strict=True)
        }
        sums = {"intersection": self.intersection, "union": self.union, "count": self.count}
        return {"oIoU": self.oIoU, "mIoU": self.mIoU, **precision, **sums}


def metrics_from_records(records: Iterable[Record]) -> Metrics:
    """Sum up ``records``; their order changes no bit of the result.

    IoUs are compared with 0.5 to 0.9 as whole numbers (``10 * intersection > 5 * union``) and
    summed exactly, so that no rounding decides.
    """
    records = list(records)
    return Metrics(
        intersection=sum(r.intersection for r in records),
        union=sum(r.union for r in records),
        iou_sum=math.fsum(r.iou for r in records),
        hits=tuple(sum(10 * r.intersection > t * r.union for r in records) for t in TENTHS),
        count=len(records),
    )
