"""Memory of processes, as Linux counts it."""

import threading
from pathlib import Path

PROC = Path("/proc")


class PeakMemory:
    """The peaks of a process and of all that it starts while the block runs, added up.

    That is no less than what they hold together at any time: their peaks need not coincide, and
    memory that they share, such as libraries, is counted for each of them. Linux keeps the peak of
    a process, which is read every ``interval`` seconds; what a process takes in its last interval
    may be missed.

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
        """Bytes."""
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
    """Whether this system tells."""
    return (PROC / "self/status").exists()


def family(process: int) -> list[int]:
    """A process and all its descendants; empty when it has ended."""
    try:
        tasks = list((PROC / f"{process}/task").iterdir())
        lists = [(task / "children").read_text() for task in tasks]
    except OSError:
        return []
    children = [int(child) for text in lists for child in text.split()]
    return [process, *(member for child in children for member in family(child))]


def peak_size(process: int) -> int:
    """The most bytes that a process has held so far; 0 when it has ended."""
    return _status(process, "VmHWM")


def present_size(process: int) -> int:
    """The bytes that a process holds, libraries and mapped files included; 0 when it has ended."""
    return _status(process, "VmRSS")


def own_size(process: int) -> int:
    """``present_size`` without what lies in files too, which others share and Linux takes back."""
    return _status(process, "RssAnon")


def _status(process: int, name: str) -> int:
    try:
        lines = (PROC / f"{process}/status").read_text().splitlines()
    except OSError:
        return 0
    values = (line.split()[1] for line in lines if line.startswith(f"{name}:"))
    return 1024 * int(next(values, 0))
