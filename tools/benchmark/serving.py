"""The worker's side of a measurement: prepare a case, repeat it when asked."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch

from engine.provenance import provenance
from tools.benchmark.cases import KINDS
from tools.benchmark.end_to_end import end_to_end
from tools.benchmark.inference import eight_pictures, one_picture, one_sentence, post_processing
from tools.benchmark.loading import loader_samples
from tools.benchmark.machine import Clock, OtherLoad, calibrate
from tools.benchmark.profiling import Profiled
from tools.benchmark.startup import process_start
from tools.benchmark.task import Repeat, Task
from tools.benchmark.training import memory_of_step, training_step

# Each makes what the case needs and yields a function that runs it once and returns its figures.
PREPARE: dict[str, Callable[[Task], AbstractContextManager[Repeat]]] = {
    "train": training_step,
    "memory": memory_of_step,
    "predict-1": one_sentence,
    "predict-8": eight_pictures,
    "sentences-8": one_picture,
    "loader": loader_samples,
    "loader-pixels": loader_samples,
    "postprocess": post_processing,
    "startup": process_start,
    "end-to-end": end_to_end,
}
WARM_UPS = {"cpu": 1, "cuda": 3}


def serve(task: Task, requests: Iterable[str], answer: Callable[[dict[str, Any]], None]) -> None:
    """Prepare ``task``, tell whose code it is, then answer each request with a repetition."""
    torch.set_num_threads(task.threads)
    torch.manual_seed(0)
    for row in _rows(task, Clock(task), requests):
        answer(row)


def _rows(task: Task, clock: Clock, requests: Iterable[str]) -> Iterator[dict[str, Any]]:
    is_fresh = KINDS[task.kind].fresh
    with PREPARE[task.kind](task) as repeat:
        if not is_fresh:
            calibrate(clock)
            for _ in range(WARM_UPS[clock.device.type]):
                repeat()
        profiled = Profiled(repeat, clock) if task.profiles else None
        yield {"provenance": provenance(clock.device)}
        for _ in requests:
            load = OtherLoad()
            # its buffers would count as memory of the step
            calibration = {} if is_fresh else calibrate(clock)
            figures = profiled() if profiled else repeat()
            if profiled:
                figures["floor"] = profiled.flops / calibration[task.precision] / 1e9
            yield {"figures": figures, "calibration": calibration, "others": load.share()}
