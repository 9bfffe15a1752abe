"""The learning rate as a pure function of where a run is, so that nothing of it needs saving."""

import math
from collections.abc import Sequence


def rate_factor(
    step: int,
    *,
    schedule: str,
    total_steps: int,
    steps_per_epoch: int,
    milestones: Sequence[int] = (),
    gamma: float = 0.1,
    warmup_steps: int = 0,
    time_share: float = 0.0,
) -> float:
    """What every group's rate is multiplied by for update ``step``, counted from 0.

    ``step``: ``gamma`` to the number of ``milestones`` (epochs) passed. ``cosine``:
    ``(1 + cos(pi p)) / 2`` with ``p`` the share of ``total_steps`` done or ``time_share``, the
    share of the time limit used, whichever is larger: a run that ends by the clock cools down
    too. Both rise linearly over the first ``warmup_steps``.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "cosine":
        progress = max(step / total_steps, time_share)
        return (1 + math.cos(math.pi * min(progress, 1.0))) / 2
    epoch = step // steps_per_epoch
    return gamma ** sum(epoch >= milestone for milestone in milestones)
