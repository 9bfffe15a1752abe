"""Measure the memory of processes as Linux counts it, and keep freed memory in this process."""

import ctypes
import platform
import threading
from pathlib import Path

PROC = Path("/proc")
TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4  # of glibc's malloc.h


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next allocation; elsewhere do nothing.

    By default it asks the kernel for every large tensor and returns it at once, and the kernel
    clears each page again: a third of a training step on a CPU.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(MMAP_MAX, 0)
    libc.mallopt(TRIM_THRESHOLD, -1)  # never
    libc.mallopt(TOP_PAD, 64 * 2**20)


class PeakMemory:
    """Add up the peaks of a process and of all its descendants while the block runs.

    The sum is an upper bound of what they hold at one time: their peaks may be at different times,
    and shared memory, such as libraries, is counted in each. Linux keeps the peak of a process; it
    is read every ``interval`` seconds, so that the growth of the last interval may be missed.

    Attributes:
        peaks: process -> bytes.
    """

    def __init__(self, process: int, *, interval: float = 0.05) -> None:
        self.process, self.interval = process, interval
        self.peaks: dict[int, int] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    @property
    def total(self) -> int:
        """Return the sum in bytes."""
        return sum(self.peaks.values())

    def __enter__(self) -> "PeakMemory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(self.interval):
            for process in family(self.process):
                # the latest, not the largest: before a new process starts its program, it looks
                # as large as its parent, whose memory it shares
                self.peaks[process] = peak_size(process) or self.peaks.get(process, 0)


def is_known() -> bool:
    """Return whether this system reports the memory of processes."""
    return (PROC / "self/status").exists()


def family(process: int) -> list[int]:
    """List a process and all its descendants; empty when it has ended."""
    try:
        tasks = list((PROC / f"{process}/task").iterdir())
        lists = [(task / "children").read_text() for task in tasks]
    except OSError:
        return []
    children = [int(child) for text in lists for child in text.split()]
    return [process, *(member for child in children for member in family(child))]


def peak_size(process: int) -> int:
    """Return the most bytes that a process has held so far; 0 when it has ended."""
    return _read_status(process, "VmHWM")


def present_size(process: int) -> int:
    """Return the bytes that a process holds, with libraries and mapped files; 0 when it ended."""
    return _read_status(process, "VmRSS")


def own_size(process: int) -> int:
    """Return ``present_size`` without memory of files, which is shared and can be reclaimed."""
    return _read_status(process, "RssAnon")


def _read_status(process: int, name: str) -> int:
    try:
        lines = (PROC / f"{process}/status").read_text().splitlines()
    except OSError:
        return 0
    values = (line.split()[1] for line in lines if line.startswith(f"{name}:"))
    return 1024 * int(next(values, 0))
