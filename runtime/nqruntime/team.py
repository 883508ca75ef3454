"""Threads of the process that run shares of one program at a time."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor


def available_processors() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def yield_address() -> int:
    """Address of the C function that lets other threads run; 0 where there is none."""
    if sys.platform == "win32":
        return 0
    found = getattr(ctypes.CDLL(None), "sched_yield", None)
    return ctypes.cast(found, ctypes.c_void_p).value or 0 if found is not None else 0


class Team:
    """A pool of threads for programs whose threads wait for one another.

    Such a program must have all its threads at once, so the team serves one caller at a time; others run on
    their own thread meanwhile.
    """

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._size = 0
        self._process = os.getpid()
        self._busy = threading.Lock()

    def run(self, parts: Sequence[Callable[[], int]], stop: Callable[[], None]) -> list[int] | None:
        """Call all parts at the same time, the first on this thread.

        Parameters
        ----------
        parts : sequence of callable
        stop : callable
            Ends the waiting of parts that have begun, if others cannot.

        Returns
        -------
        list of int, or None
            What the parts return; None if the team is busy or has no threads, and nothing was called.
        """
        if not self._busy.acquire(blocking=False):
            return None
        try:
            pool = self._threads(len(parts) - 1)
            futures = []
            try:
                futures = [pool.submit(part) for part in parts[1:]]
            except RuntimeError:  # the interpreter is shutting down
                stop()
                return None
            first = parts[0]()
            return [first, *(future.result() for future in futures)]
        finally:
            self._busy.release()

    def _threads(self, n_threads: int) -> ThreadPoolExecutor:
        if self._pool is None or self._size < n_threads or self._process != os.getpid():
            if self._pool is not None and self._process == os.getpid():
                self._pool.shutdown(wait=False)
            from concurrent.futures import ThreadPoolExecutor  # with logging: not needed by most

            self._pool = ThreadPoolExecutor(n_threads, thread_name_prefix="nqruntime")
            self._size, self._process = n_threads, os.getpid()
        return self._pool


TEAM = Team()
"""The threads of this process."""
