"""Work in chunks on several processor cores, in order, with little of it in memory."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Any, TypeVar

SMALL = 2000  # items that are done before processes have started
MOST_WORKERS = 16  # more wait for the disk

Item = TypeVar("Item")
Chunk = TypeVar("Chunk")
Result = TypeVar("Result")


class Workers:
    """Processes that work through chunks while the block runs.

    Args:
        num: how many; None for one a core, or none for little work. One is this process itself.
        num_items: how much work there is.
    """

    def __init__(self, num: int | None, num_items: int) -> None:
        if num is not None and num < 1:
            raise ValueError(f"{num} workers cannot do anything; 1 or more can")
        cores = min(os.cpu_count() or 1, MOST_WORKERS)
        self.num = num or (cores if num_items >= SMALL else 1)
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "Workers":
        if self.num > 1:
            # spawn: a fork would take over open LMDB files, and the memory of the annotations
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self.num, mp_context=context, initializer=_begin)
        return self

    def __exit__(self, *_: Any) -> None:
        if self._pool:
            self._pool.shutdown(cancel_futures=True)

    def map(self, function: Callable[[Chunk], Result], chunks: Iterable[Chunk]) -> Iterator[Result]:
        """``function(chunk)`` of every chunk, in order; a few are taken ahead.

        Raises:
            ValueError: a process ended, most often since the memory was full.
        """
        if self._pool is None:
            yield from map(function, chunks)
            return
        ahead: deque[Future[Result]] = deque()
        try:
            for chunk in chunks:
                ahead.append(self._pool.submit(function, chunk))
                if len(ahead) > 2 * self.num:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        except BrokenProcessPool as error:
            raise ValueError(
                "a worker process ended before its work was done, most often since the memory was "
                "full; give the same command again with --workers 1, it goes on from here"
            ) from error


def in_chunks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """The items in lists of ``size``, the last one perhaps shorter."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def _begin() -> None:
    """What a worker does first: leave Ctrl-C to its parent, and end when that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # a killed parent tells nobody, and its workers would wait for it forever
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
