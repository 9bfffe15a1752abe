"""Measure the machine: time, matrix rate, load by other processes, memory, operations."""

import ctypes
import os
import platform
import resource
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from utils.memory import peak_size, present_size

PROC = Path("/proc")
SIDE = 2048
NUM_PRODUCTS = {"cpu": 3, "cuda": 300}
MAX_SECONDS = 10.0


class Clock:
    """``clock()``: seconds, read when the device has finished its work.

    ``kind`` is ``wall`` or ``processor``, the time of this process and its ended children.
    """

    def __init__(self, device: str, kind: str) -> None:
        self.device, self.kind = torch.device(device), kind

    def __call__(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        if self.kind == "wall":
            return time.perf_counter()
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return time.process_time() + children.ru_utime + children.ru_stime

    def time(self, work: Callable[[], Any]) -> float:
        """Return the seconds that ``work`` takes."""
        began = self()
        work()
        return self() - began


def measure_rates(clock: Clock) -> dict[str, float]:
    """Measure products of two matrices in float32 and bf16, in GFLOP/s.

    The matrices are 2048 x 2048, or 256 x 256 where those would take over :data:`MAX_SECONDS`, as
    in bf16 on a processor without instructions for it.
    """
    number = NUM_PRODUCTS[clock.device.type]
    rates = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        rate = max(_measure_rate(SIDE // 8, 1, dtype, clock) for _ in range(3))
        if number * 2 * SIDE**3 / rate / 1e9 <= MAX_SECONDS:
            rate = _measure_rate(SIDE, number, dtype, clock)
        rates[name] = rate
    return rates


def _measure_rate(side: int, number: int, dtype: torch.dtype, clock: Clock) -> float:
    left, right = (torch.randn(side, side, device=clock.device).to(dtype) for _ in range(2))
    product = left @ right
    began = clock()
    for _ in range(number):
        torch.matmul(left, right, out=product)
    return number * 2 * side**3 / (clock() - began) / 1e9


def count_flops(work: Callable[[], Any]) -> int:
    """Count the floating point operations of the matrix products and convolutions of ``work``."""
    # its import of triton takes 70 MB, which would count as memory of a training step
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def seconds_of_others() -> float | None:
    """Return the processor time that other processes have used so far; None if it is unknown.

    Linux counts in hundredths of seconds. Our own time includes child processes that have ended.
    """
    try:
        # user, nice, system, idle, waiting for a disk, interrupts (two), stolen; guests are in user
        times = [int(word) for word in (PROC / "stat").read_text().split()[1:9]]
    except (OSError, ValueError):
        return None
    busy = (sum(times) - times[3] - times[4]) / os.sysconf("SC_CLK_TCK")
    return busy - sum(os.times()[:4])


def measure_peak(device: torch.device, work: Callable[[], Any]) -> dict[str, float]:
    """Measure the most bytes that the process uses during ``work``; on a GPU, its tensors."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        peak = torch.cuda.max_memory_allocated(device)
    else:
        if platform.libc_ver()[0] == "glibc":
            # freed memory from building the model would serve a step without being counted
            ctypes.CDLL(None).malloc_trim(0)
        with suppress(OSError):  # then the peak of building counts too, which is smaller
            (PROC / "self/clear_refs").write_text("5")
        before = present_size(os.getpid())
        work()
        peak = max(peak_size(os.getpid()), before)
    return {"bytes": peak, "added_bytes": peak - before}


def profile(work: Callable[[], Any], device: torch.device) -> str:
    """Run ``work``; return the table of the operations that took most time."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    is_gpu = device.type == "cuda"
    with record(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * is_gpu]) as recorded:
        work()
    order = "self_device_time_total" if is_gpu else "self_cpu_time_total"
    return recorded.key_averages().table(sort_by=order, row_limit=20, max_name_column_width=40)
