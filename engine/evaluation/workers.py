"""CLEval in worker processes: pages are scored while the next ones are detected (`eval.workers`).

    with worker_pool(config.eval.workers) as pool:
        for tag, result in score_in_order(pool, jobs):
            ...

A page takes 1 ms (official) to 5 ms (contest) of a core, and the process that detects has one thread for all its work.
The workers import numpy and shapely but no torch. They are started with `spawn`: a fork would copy a process that holds
CUDA and threads. A run keeps them from its start to its end, idle while it trains, since a start takes 0.4 s of a core.
"""

import contextlib
import multiprocessing
import os
import sys
import threading
import time
import types
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from engine.evaluation.cleval import PageResult, evaluate_page
from pipelines.errors import UserError
from pipelines.worker_signals import leave_to_parent

# Waiting or being scored: several batches (16 pages at most in the presets), so that handing one over does not wait for
# scores; with 500 regions a page they are about 2 MB.
MAX_WAITING = 64
PARENT_CHECK_S = 1.0


@contextlib.contextmanager
def worker_pool(workers: int) -> Iterator[ProcessPoolExecutor | None]:
    """Processes that score pages, for `score_in_order`; None for 0. They start at once and are gone afterwards.

    Raises:
        UserError: a process died inside the `with`.
    """
    if not workers:
        yield None
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(os.getpid(),))
    try:
        for _ in range(workers):  # each starts a process
            _submit(pool, int)
        yield pool
    except BrokenProcessPool:
        raise UserError(
            "eval.workers: a process that scores pages was killed (out of memory?); use fewer, or eval.workers=0"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def score_in_order(
    pool: ProcessPoolExecutor | None, jobs: Iterable[tuple[Any, tuple]]
) -> Iterator[tuple[Any, PageResult]]:
    """Yields (tag, result) of every job, in their order.

    Args:
        pool: from `worker_pool`; None scores here, each page as it comes.
        jobs: (tag, arguments of `engine.evaluation.cleval.evaluate_page`). With a pool at most MAX_WAITING of
            them are ahead of their results.

    Raises:
        BrokenProcessPool: a worker died; `worker_pool` puts it in words. Else as `evaluate_page`.
    """
    if pool is None:
        for tag, arguments in jobs:
            yield tag, evaluate_page(*arguments)
        return
    waiting: deque[tuple[Any, Future]] = deque()
    for tag, arguments in jobs:
        waiting.append((tag, _submit(pool, evaluate_page, *arguments)))
        while waiting and (len(waiting) > MAX_WAITING or waiting[0][1].done()):
            tag, future = waiting.popleft()
            yield tag, future.result()
    for tag, future in waiting:
        yield tag, future.result()


def _submit(pool: ProcessPoolExecutor, work: Any, *arguments: Any) -> Future:
    """Hands over a call, and starts a process for it while the pool has fewer than it may.

    A process made by `spawn` imports the parent's main module first: here engine.train and with it torch, timm and
    DALI, 400 MB and seconds for nothing. It does not where the main module is one without a name or a file.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        return pool.submit(work, *arguments)
    finally:
        sys.modules["__main__"] = main


def _start_worker(parent: int) -> None:
    """Runs in the worker: signals are the parent's to answer, and a parent that is killed takes its workers along."""
    leave_to_parent()
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()


def _leave_with(parent: int) -> None:
    """Ends this process when its parent is gone. A worker would never know: it holds both ends of its queue itself."""
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_S)
    os._exit(1)
