"""Rates as a function of the step."""

from itertools import pairwise

import pytest

from engine.update import rate_factor
from utils.config import TrainConfig


def factors(num: int, **options: object) -> list[float]:
    config = TrainConfig(**options)
    return [rate_factor(step, config, total_steps=num, steps_per_epoch=2) for step in range(num)]


def test_step_falls_at_each_milestone() -> None:
    expected = [1, 1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01]
    assert factors(8, milestones=[1, 3], gamma=0.1) == pytest.approx(expected)


def test_warmup_rises_linearly_and_reaches_the_rate() -> None:
    assert factors(6, warmup_steps=4) == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])


def test_cosine_ends_near_zero_by_steps_or_by_time() -> None:
    values = factors(100, schedule="cosine")
    assert values[0] == 1 and values[50] == pytest.approx(0.5) and values[-1] < 1e-3
    assert all(a > b for a, b in pairwise(values))
    cosine, of_run = TrainConfig(schedule="cosine"), {"total_steps": 100, "steps_per_epoch": 2}
    halfway = rate_factor(1, cosine, **of_run, time_share=0.5)
    assert halfway == pytest.approx(0.5)
    over = rate_factor(1, cosine, **of_run, time_share=1.2)
    assert over == pytest.approx(0)
