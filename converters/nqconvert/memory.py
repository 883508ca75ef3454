"""Seconds and peak memory of a stretch of work."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

__all__ = ["PeakMemory", "StageClock", "return_freed_memory"]

_STATUS = Path("/proc/self/status")
_STATM = Path("/proc/self/statm")
_PERIOD_SECONDS = 0.002


class PeakMemory:
    """Measures how much resident memory grows while the block runs.

    Where the block takes the process to a new high, the system's own high-water mark counts, which misses
    nothing; else the largest of samples 2 ms apart. Nothing is known without Linux's ``/proc``.

    Attributes
    ----------
    peak_bytes : int or None
        Largest resident memory above that at the start, in bytes; None if the system does not tell.

    Examples
    --------
    >>> with PeakMemory() as memory:
    ...     made = bytearray(1 << 24)
    >>> memory.peak_bytes is None or memory.peak_bytes > 0
    True
    """

    def __init__(self) -> None:
        self.peak_bytes: int | None = None
        self._stop = threading.Event()
        self._largest = 0
        self._start = 0
        self._mark = 0
        self._sampler: threading.Thread | None = None

    def __enter__(self) -> PeakMemory:
        self._mark = _high_water_mark()
        self._start = self._largest = _resident()
        if self._start:
            self._sampler = threading.Thread(target=self._sample, daemon=True)
            self._sampler.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._sampler is None:
            return
        self._stop.set()
        self._sampler.join()
        mark = _high_water_mark()
        largest = max(self._largest, _resident(), mark if mark > self._mark else 0)
        self.peak_bytes = largest - self._start

    def _sample(self) -> None:
        while not self._stop.wait(_PERIOD_SECONDS):
            self._largest = max(self._largest, _resident())


class StageClock:
    """Adds up the wall-clock seconds of named stages.

    Attributes
    ----------
    seconds : dict of str to float
        In the order in which stages first began.

    Examples
    --------
    >>> clock = StageClock()
    >>> with clock.stage("load"):
    ...     pass
    >>> list(clock.seconds)
    ['load']
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the block's time to a stage."""
        started = time.perf_counter()
        self.seconds.setdefault(name, 0.0)
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - started


def return_freed_memory() -> None:
    """Give freed memory back to the system, where the C library has glibc's ``malloc_trim``.

    glibc keeps freed blocks of up to 32 MiB for later: several times a large tensor, after each of them.
    """
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    try:
        found: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):
        return None
    return found


def _resident() -> int:
    """Return the resident memory in bytes, 0 if unknown."""
    try:
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return 0


def _high_water_mark() -> int:
    """Return the largest resident memory so far in bytes, 0 if unknown."""
    try:
        lines = _STATUS.read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration, IndexError, ValueError):
        return 0
