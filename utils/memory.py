"""Measure the memory of processes as Linux counts it, and keep freed memory in this process."""

import ctypes
import platform
from pathlib import Path

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


def peak_size(process: int) -> int:
    """Return the most bytes that a process has held so far; 0 if ended, or without /proc."""
    return _read_status(process, "VmHWM")


def present_size(process: int) -> int:
    """Return the bytes that a process holds, with libraries and mapped files; 0 when it ended."""
    return _read_status(process, "VmRSS")


def own_size(process: int) -> int:
    """Return ``present_size`` without memory of files, which is shared and can be reclaimed."""
    return _read_status(process, "RssAnon")


def _read_status(process: int, name: str) -> int:
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    values = (line.split()[1] for line in lines if line.startswith(f"{name}:"))
    return 1024 * int(next(values, 0))
