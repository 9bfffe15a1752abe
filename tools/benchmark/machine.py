"""The machine that is measured on: its matrix rate, what others take of it, memory, exact time."""

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

from tools.benchmark.task import Task
from utils.memory import family, peak_size, present_size

PROC = Path("/proc")
SIDE = 2048
NUM_PRODUCTS = {"cpu": 3, "cuda": 300}
LONGEST = 10.0
IDLE = (3, 4)  # of the columns of /proc/stat: idle, and waiting for a disk
NUM_TIMES = 8  # user to steal; what guests take is counted in user
TIMES = slice(11, 15)  # of /proc/PID/stat after the name: own and children's, user and system


class Clock:
    """``clock()``: seconds, read when the device has done all it was given.

    They are those of the wall, or processor time of this process and its ended children.
    """

    def __init__(self, task: Task) -> None:
        self.device, self.counts_processor = torch.device(task.device), task.clock == "processor"

    def __call__(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        if not self.counts_processor:
            return time.perf_counter()
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return time.process_time() + children.ru_utime + children.ru_stime


def calibrate(clock: Clock) -> dict[str, float]:
    """GFLOP/s of products of two matrices of 2048 x 2048, in float32 and bf16.

    Where these would take over :data:`LONGEST` seconds, as bf16 does on a processor that has no
    instructions for it, those of 256 x 256.
    """
    return {"fp32": _rate(torch.float32, clock), "bf16": _rate(torch.bfloat16, clock)}


def _rate(dtype: torch.dtype, clock: Clock) -> float:
    number = NUM_PRODUCTS[clock.device.type]
    tried = max(_measure(SIDE // 8, 1, dtype, clock) for _ in range(3))
    is_slow = number * 2 * SIDE**3 / tried / 1e9 > LONGEST
    return tried if is_slow else _measure(SIDE, number, dtype, clock)


def _measure(side: int, number: int, dtype: torch.dtype, clock: Clock) -> float:
    left, right = (torch.randn(side, side, device=clock.device).to(dtype) for _ in range(2))
    product = left @ right
    began = clock()
    for _ in range(number):
        torch.matmul(left, right, out=product)
    return number * 2 * side**3 / (clock() - began) / 1e9


def count_flops(work: Callable[[], Any]) -> int:
    """Floating point operations of the matrix products and convolutions of ``work``."""
    # its import of triton takes 70 MB, which would count as memory of a training step
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


class OtherLoad:
    """The share of all processors that other processes take, from its making on."""

    def __init__(self) -> None:
        self._began, self._others = time.perf_counter(), _others_seconds()

    def share(self) -> float | None:
        """From 0 to 1; None where the system does not tell. It counts in hundredths of seconds."""
        others = _others_seconds()
        if others is None or self._others is None:
            return None
        whole = (time.perf_counter() - self._began) * (os.cpu_count() or 1)
        return min(1.0, max(0.0, (others - self._others) / whole))


def _others_seconds() -> float | None:
    """Processor time that all processes but this and its children have used since the start."""
    try:
        times = [int(word) for word in (PROC / "stat").read_text().split()[1 : 1 + NUM_TIMES]]
    except (OSError, ValueError):
        return None
    busy = sum(times) - sum(times[column] for column in IDLE)
    own = sum(_ticks(PROC / f"{process}/stat") for process in family(os.getpid()))
    return (busy - own) / os.sysconf("SC_CLK_TCK")


def _ticks(path: Path) -> int:
    with suppress(OSError):  # it has ended since
        # a name may hold spaces, and brackets stand around it
        return sum(map(int, path.read_text().rpartition(")")[2].split()[TIMES]))
    return 0


class PeakMeter:
    """The most memory held from its making on: of the process, or on a GPU of tensors."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self.before = torch.cuda.memory_allocated(device)
            return
        _give_back()
        with suppress(OSError):  # then the peak of building counts too, which is smaller
            (PROC / "self/clear_refs").write_text("5")
        self.before = present_size(os.getpid())

    def peak(self) -> int:
        """Bytes, those held before included."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return max(peak_size(os.getpid()), self.before)


def _give_back() -> None:
    """Let the system have what is free: building leaves room that a step would take uncounted."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
