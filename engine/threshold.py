"""From logits to masks: ``sigmoid(logit) > threshold`` as one comparison of the logit itself."""

from functools import lru_cache

import torch
from torch import Tensor

INFINITY_BITS = 0x7F800000  # of float32; all positive numbers lie below, in their order


def found(logits: Tensor, threshold: float) -> Tensor:
    """The mask: where ``sigmoid(logits) > threshold``, for logits in float32."""
    return logits > largest_outside(threshold, logits.device)


@lru_cache
def largest_outside(threshold: float, device: torch.device) -> float:
    """The largest float32 ``x`` for which ``sigmoid(x) > threshold`` is false on ``device``.

    ``log(threshold / (1 - threshold))`` is not it: a sigmoid in float32 takes each of its values
    for a range of logits.  It never falls, so that halving the numbers between the infinities finds
    it.  NaN is outside as well, for either comparison.
    """
    outside, inside = -INFINITY_BITS, INFINITY_BITS  # places among all float32 in their order
    if not _is_inside(inside, threshold, device):
        return float("inf")
    while inside - outside > 1:
        middle = (outside + inside) // 2
        if _is_inside(middle, threshold, device):
            inside = middle
        else:
            outside = middle
    return float(_number(outside))


def _is_inside(place: int, threshold: float, device: torch.device) -> bool:
    return bool(_number(place).to(device).sigmoid() > threshold)


def _number(place: int) -> Tensor:
    """The float32 that is ``place`` numbers above zero, or below for a negative one."""
    magnitude = torch.tensor(abs(place), dtype=torch.int32).view(torch.float32)
    return magnitude if place >= 0 else -magnitude
