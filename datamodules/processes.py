"""Work on many items in processes of their own: results as they come, orderly stops, and items that kill their process named."""

from __future__ import annotations

import multiprocessing
import multiprocessing.process
import os
import signal
import threading
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def core_count() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def worth_starting(workers: int | None, items: int) -> int:
    """How many processes ``items`` are worth: one starts in half a second. 0 means none beside this one."""
    return min(core_count() if workers is None else workers, -(-items // 16))


def in_processes(
    work: Callable[[T], R], todo: Mapping[str, T], workers: int, queued: int = 4
) -> Generator[tuple[str, R | None], None, None]:
    """``work(item)`` of every item as soon as it is known, by key; ``None`` for an item that killed its process.

    Close the generator to stop: processes end, what they were doing is lost. They end with this process too, however it ends.

    Args:
        work: A function of a module, which new processes import.
        workers: Processes; 0 works in this one.
        queued: Items per process that are handed out at a time.
    """
    if not todo:
        return
    if workers < 1:
        yield from ((key, work(item)) for key, item in todo.items())
        return
    waiting = iter(todo.items())
    under_way: dict[str, T] = {}
    try:
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_follow_parent) as pool:
            keys: dict[Future[R], str] = {}
            try:
                while True:
                    for key, item in islice(waiting, queued * workers - len(keys)):
                        under_way[key] = item  # before submit(), which raises if the pool has broken meanwhile
                        keys[pool.submit(work, item)] = key
                    if not keys:
                        return
                    for future in wait(keys, return_when=FIRST_COMPLETED).done:
                        result, key = future.result(), keys.pop(future)
                        del under_way[key]
                        yield key, result
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
    except BrokenProcessPool:
        if len(under_way) == 1:
            yield from ((key, None) for key in under_way)
        else:  # one of these did it
            yield from in_processes(work, under_way, workers=1, queued=1)
        yield from in_processes(work, dict(waiting), workers, queued)


def _follow_parent() -> None:
    """Leaves interrupts to the parent, ends with it however it ends, and keeps what decoders say of bad files off the progress bar."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if (parent := multiprocessing.parent_process()) is not None:
        threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()


def _leave_with(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    os._exit(1)
