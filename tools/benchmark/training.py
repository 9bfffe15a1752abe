"""A training step on a batch of 4: its time in parts, and its memory."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.update import Update
from tools.benchmark.machine import Clock, PeakMeter
from tools.benchmark.project import alone, build, build_update, configure, ellipse, token_ids
from tools.benchmark.task import Repeat, Task
from utils.config import Config

BATCH_SIZE = 4
SENTENCE = "the tall man in the blue shirt"


@contextmanager
def training_step(task: Task) -> Iterator[Repeat]:
    """Seconds of an update, and of its parts."""
    (update, batch), clock = _prepare(task), Clock(task)
    yield lambda: timed_parts(lambda: update(batch), clock)


@contextmanager
def memory_of_step(task: Task) -> Iterator[Repeat]:
    """The most bytes that a process holds over two updates: in the second Adam has its moments."""
    update, batch = _prepare(task)

    def repeat() -> dict[str, float]:
        meter = PeakMeter(update.device)
        for _ in range(2):
            update(batch)
        peak = meter.peak()
        return {"bytes": peak, "added_bytes": peak - meter.before}

    yield repeat


def _prepare(task: Task) -> tuple[Update, dict[str, Tensor]]:
    config, processes = configure(task, f"train.batch_size={BATCH_SIZE}"), alone(task)
    segmenter = build(config, processes.device)
    update = build_update(config, segmenter, processes, range(BATCH_SIZE))
    return update, make_batch(config)


def make_batch(config: Config) -> dict[str, Tensor]:
    """Noise with a mask and a sentence, as a loader gives them."""
    size = config.data.image_size
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (BATCH_SIZE, 3, size, size), dtype=np.uint8)
    mask = np.broadcast_to(ellipse(size, size), (BATCH_SIZE, size, size)).astype(np.uint8)
    return {
        "image": torch.from_numpy(image),
        "ids": token_ids([SENTENCE] * BATCH_SIZE, config),
        "mask": torch.from_numpy(mask),
        "index": torch.arange(BATCH_SIZE),
    }


def timed_parts(step: Callable[[], Any], clock: Clock) -> dict[str, float]:
    """Seconds of a step: before, in and after ``backward``, as it is seen from outside.

    ``forward`` holds the transfer of the batch and the loss, ``optimizer`` the gradient's norm.
    """
    marks: list[float] = []
    backward = torch.autograd.backward

    def timed_backward(*arguments: Any, **options: Any) -> None:
        marks.append(clock())
        backward(*arguments, **options)
        marks.append(clock())

    setattr(torch.autograd, "backward", timed_backward)  # noqa: B010 - mypy lets no one assign it
    try:
        began = clock()
        step()
        ended = clock()
    finally:
        setattr(torch.autograd, "backward", backward)  # noqa: B010
    return {
        "seconds": ended - began,
        "forward": marks[0] - began,
        "backward": marks[-1] - marks[0],
        "optimizer": ended - marks[-1],
    }
