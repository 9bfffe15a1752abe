"""Compute masks from logits, and scores from masks: sums of whole numbers, divided once."""

import math
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

TENTHS = (5, 6, 7, 8, 9)
RULE = (
    "per sentence IoU = intersection / union in pixels, 0 where the union is empty; mIoU is its "
    "mean, oIoU the sum of intersections over the sum of unions, Pr@X the share of sentences with "
    "IoU > X; all in percent"
)
INFINITY_BITS = 0x7F800000  # of float32; the bits of positive numbers are in the numbers' order


@dataclass(frozen=True)
class Record:
    """What one sentence scored: pixels in both the truth and the prediction, and in either."""

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


@dataclass(frozen=True)
class Metrics:
    """Sums over sentences, from which all scores follow."""

    intersection: int
    union: int
    iou_sum: float
    hits: tuple[int, ...]  # sentences with IoU > 0.5, ..., 0.9
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
        """Return all scores in percent, then the sums they come from."""
        count = max(self.count, 1)
        precision = {
            f"Pr@0.{tenths}": 100 * n / count for tenths, n in zip(TENTHS, self.hits, strict=True)
        }
        sums = {"intersection": self.intersection, "union": self.union, "count": self.count}
        return {"oIoU": self.oIoU, "mIoU": self.mIoU, **precision, **sums}


def metrics_from_records(records: Iterable[Record]) -> Metrics:
    """Add up ``records``; their order changes no bit of the result.

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


def threshold_mask(logits: Tensor, threshold: float) -> Tensor:
    """Return where ``sigmoid(logits) > threshold``, for logits in float32; NaN is outside."""
    return logits > threshold_logit(threshold, logits.device)


@lru_cache
def threshold_logit(threshold: float, device: torch.device) -> float:
    """Find the largest float32 logit for which ``sigmoid(logit) > threshold`` is false.

    ``log(threshold / (1 - threshold))`` is near it but not it: a sigmoid in float32 has one value
    for a range of logits, and each device rounds differently. The sigmoid never falls, so the first
    logit inside is found by bisection over all float32 in their order.
    """

    def number(place: int) -> Tensor:
        magnitude = torch.tensor(abs(place), dtype=torch.int32).view(torch.float32)
        return magnitude if place >= 0 else -magnitude

    def is_inside(place: int) -> bool:
        return bool(number(place).to(device).sigmoid() > threshold)

    places = range(-INFINITY_BITS, INFINITY_BITS + 1)
    first_inside = places[0] + bisect_left(places, True, key=is_inside)
    return float(number(first_inside - 1))
