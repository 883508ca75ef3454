"""Threads that decode, and the memory that each of them works in."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

_PARALLEL_FROM_NUMBERS = 1 << 18


class Workers:
    """Runs tasks in threads, the caller's among them; others start with the first work that is large enough.

    Parameters
    ----------
    threads : int or None
        Threads to use; None for one on each processor that this process may use.
    """

    def __init__(self, threads: int | None) -> None:
        if threads is not None and threads < 1:
            raise ValueError(f"threads must be at least 1, not {threads}")
        self.threads = threads if threads is not None else _n_processors()
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()
        self._kept = threading.local()

    def run(self, tasks: Sequence[Callable[[], None]], n_numbers: int) -> None:
        """Run all tasks; the first error in their order is raised once all have ended."""
        if self.threads == 1 or len(tasks) < 2 or n_numbers < _PARALLEL_FROM_NUMBERS:
            for task in tasks:
                task()
            return
        errors: dict[int, BaseException] = {}
        waiting = deque(range(len(tasks)))

        def work() -> None:
            while True:
                try:
                    number = waiting.popleft()
                except IndexError:
                    return
                try:
                    tasks[number]()
                except BaseException as error:
                    errors[number] = error

        with self._lock:
            if self._pool is None:
                from concurrent.futures import ThreadPoolExecutor  # with logging: not needed by most

                self._pool = ThreadPoolExecutor(self.threads - 1, thread_name_prefix="nqformat")
            helpers = [self._pool.submit(work) for _ in range(min(self.threads, len(tasks)) - 1)]
        work()
        for helper in helpers:
            if not helper.cancel():
                helper.result()
        if errors:
            raise errors[min(errors)]

    def scratch(self, n_bytes: int) -> np.ndarray:
        """Return memory of this thread, uint8, of at least `n_bytes`; the next call returns the same.

        Fresh memory of some hundred kilobytes costs as much as decoding into it.
        """
        kept: np.ndarray | None = getattr(self._kept, "area", None)
        if kept is None or kept.size < n_bytes:
            kept = self._kept.area = np.empty(n_bytes, dtype=np.uint8)
        return kept

    def close(self) -> None:
        """End the threads and give up their memory."""
        with self._lock:
            if self._pool is not None:
                self._pool.shutdown(wait=True)
                self._pool = None
            self._kept = threading.local()


def _n_processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
