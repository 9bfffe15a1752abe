"""Run work in chunks in several processes, with results in order."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any, TypeVar

FEW_ITEMS = 2000  # done before processes have started
MOST_WORKERS = 16  # more wait for the disk

Item = TypeVar("Item")
Map = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]


@contextmanager
def start_workers(num: int | None, num_items: int) -> Iterator[Map]:
    """Yield a ``map`` that runs in ``num`` processes and takes only a few chunks ahead.

    ``num`` is 1 for this process alone; None for one process a core, or 1 if there are few items.

    Raises:
        ValueError: a process ended, most often since the memory was full.
    """
    num = num or (min(os.cpu_count() or 1, MOST_WORKERS) if num_items >= FEW_ITEMS else 1)
    if num == 1:
        yield map
        return
    # spawn: a fork would take over open LMDB files, and the memory of the annotations
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(num, mp_context=context, initializer=_prepare_worker)
    try:
        yield partial(_map_ahead, pool, 2 * num)
    except BrokenProcessPool as error:
        raise ValueError(
            "a worker process ended before its work was done, most often since the memory was "
            "full; run the same command again with --workers 1: it continues from here"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def split_chunks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield the items in lists of ``size``; the last list may be shorter."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def _map_ahead(
    pool: ProcessPoolExecutor,
    num_ahead: int,
    function: Callable[[Any], Any],
    chunks: Iterable[Any],
) -> Iterator[Any]:
    # the executor's own map would take all chunks at once, and keep all results
    pending: deque[Future[Any]] = deque()
    for chunk in chunks:
        pending.append(pool.submit(function, chunk))
        if len(pending) > num_ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _prepare_worker() -> None:
    """Leave Ctrl-C to the parent, and end when the parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # workers of a killed parent would wait for it forever
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
