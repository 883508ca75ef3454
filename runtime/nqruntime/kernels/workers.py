"""Threads that share the columns of a product."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

_WORTH_THREADS = 4_000_000


def available_processors() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Workers:
    """A lazily started pool of threads; a single thread needs none.

    Tiles are the same for any number of threads, and no sum crosses a tile, so results are too.
    """

    def __init__(self, threads: int | None) -> None:
        self._threads = threads or available_processors()
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()

    def run_tiles(
        self, function: Callable[[int, int], None], n_columns: int, tile: int, *, work_a_column: int
    ) -> None:
        """Call ``function(begin, end)`` for consecutive tiles of ``range(n_columns)``."""
        bounds = [(begin, min(begin + tile, n_columns)) for begin in range(0, n_columns, tile)]
        if self._threads == 1 or len(bounds) == 1 or n_columns * work_a_column < _WORTH_THREADS:
            for begin, end in bounds:
                function(begin, end)
            return
        list(self._started_pool().map(lambda pair: function(*pair), bounds))

    def _started_pool(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="nqruntime")
            return self._pool

    def close(self) -> None:
        """Stop the threads."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=False)
