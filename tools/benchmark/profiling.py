"""Where the time of a repetition goes, by kind of operation, and the least that it could take."""

import re
from collections import Counter

from torch.profiler import ProfilerActivity, profile

from tools.benchmark.machine import Clock, count_flops
from tools.benchmark.task import Repeat

# By the name of an operation of torch; the first that fits counts.
GROUPS = {
    "products": r"(mm|addmm|bmm|baddbmm|mv|addmv|dot)_?",
    "convolutions": r".*convolution.*",
    "attention": r".*(softmax|attention).*",
    "norms": r".*norm.*",
    "copies": r"(.*copy|cat|fill|zero|index).*",
    "random_numbers": r"random.*|bernoulli.*",
    "resizing": r"upsample.*",
    "optimizer": r".*adam.*",
    "elementwise": r".*",
}


class Profiled:
    """``repeat``, with the share of its seconds in each of :data:`GROUPS` as ``in_GROUP``.

    What lies between all operations, ``in_python``, is Python, the profiler itself and, on a GPU,
    idleness.

    Attributes:
        flops: floating point operations of its matrix products and convolutions.
    """

    def __init__(self, repeat: Repeat, clock: Clock) -> None:
        self.repeat, self.is_gpu = repeat, clock.device.type == "cuda"
        self.flops = count_flops(repeat)
        self()  # the memory that the profiler takes upsets the first repetition

    def __call__(self) -> dict[str, float]:
        activities = [ProfilerActivity.CPU]
        if self.is_gpu:
            activities.append(ProfilerActivity.CUDA)
        with profile(activities=activities) as recorded:
            figures = self.repeat()
        time = "self_device_time_total" if self.is_gpu else "self_cpu_time_total"
        micros: Counter[str] = Counter()
        for event in recorded.key_averages():
            group = group_of(event.key)
            if group is not None:
                micros[group] += getattr(event, time)
        shares = {f"in_{name}": micros[name] / 1e6 / figures["seconds"] for name in GROUPS}
        return figures | shares | {"in_python": max(0.0, 1 - sum(shares.values()))}


def group_of(operation: str) -> str | None:
    """The group of an operation such as ``aten::addmm``; None for what is none."""
    library, _, name = operation.partition("::")
    if library != "aten":
        return None
    return next(group for group, pattern in GROUPS.items() if re.fullmatch(pattern, name))
