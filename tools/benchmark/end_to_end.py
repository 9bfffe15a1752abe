"""Training from the real loader, then evaluation: what a GPU makes of both."""

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from engine.data import open_split, open_training
from engine.evaluator import evaluate
from engine.sampler import train_loader
from engine.update import Update
from tools.benchmark.machine import Clock, calibrate, count_flops
from tools.benchmark.project import THRESHOLD, alone, build, build_update, configure
from tools.benchmark.samples import NAME, write_samples
from tools.benchmark.task import Repeat, Task

IMAGES_A_SAMPLE = 16  # of a batch: enough updates that starting the workers does not count


@contextmanager
def end_to_end(task: Task) -> Iterator[Repeat]:
    """Seconds of a step that waits for its data, the share of waiting, the matrix rate, scoring."""
    with tempfile.TemporaryDirectory(prefix="bench-") as root:
        write_samples(Path(root), max(task.num_images, IMAGES_A_SAMPLE * task.batch_size))
        data = [f"data.root={root}", f"data.dataset={NAME}"]
        config = configure(task, *data, f"train.batch_size={task.batch_size}")
        processes, epochs, clock = alone(task), count(), Clock(task)
        train_set, val_set = open_training(config), open_split(config, NAME, "val")
        segmenter = build(config, processes.device)
        update = build_update(config, segmenter, processes, train_set)
        flops = None

        def repeat() -> dict[str, float]:
            nonlocal flops
            batches = train_loader(train_set, config, processes, epoch=next(epochs), start=0)
            stream = iter(batches)
            first = next(stream)  # the workers have started when it is here
            flops = flops or count_flops(lambda: update(first))
            rate = calibrate(clock)["bf16"]
            num_steps, fed = _seconds_of_steps(update, stream, clock)
            _, resident = _seconds_of_steps(update, [first] * num_steps, clock)
            began = clock()
            result = evaluate(
                segmenter,
                val_set,
                threshold=THRESHOLD,
                batch_size=config.eval.batch_size,
                precision=update.precision,
                processes=processes,
                workers=config.data.workers,
            )
            scoring = clock() - began
            return {
                "seconds": fed / num_steps,
                "share_of_bf16_rate": flops * num_steps / fed / 1e9 / rate,
                "share_waiting": max(0.0, 1 - resident / fed),
                "training_images_per_second": task.batch_size * num_steps / fed,
                "evaluation_sentences_per_second": len(result.records) / scoring,
            }

        yield repeat


def _seconds_of_steps(
    update: Update, batches: Iterable[dict[str, Any]], clock: Clock
) -> tuple[int, float]:
    """How many batches there are, and the seconds to train on all, without a wait in between."""
    began, number = clock(), 0
    for batch in batches:
        update(batch)
        number += 1
    return number, clock() - began
