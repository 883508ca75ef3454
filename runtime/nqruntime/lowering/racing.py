"""Timing of several ways to do the same, such that what else the machine does has little effect."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median

_SECONDS = 0.002
_FEWEST, _MOST = 4, 25
_ATTEMPTS = 4
_NEAR = 1.1
_DISTURBED = 1.3
_PAUSE_SECONDS = 0.002
_ENOUGH_SECONDS = 0.3

Clock = Callable[[], float]


def thread_clock() -> Clock:
    """Return the clock for work of one thread: its own CPU time where that is known exactly."""
    exact = hasattr(time, "thread_time") and time.get_clock_info("thread_time").resolution < 1e-6
    return time.thread_time if exact else time.perf_counter


def best_of_each(
    runs: Sequence[Callable[[], object]], *, clock: Clock = time.perf_counter, seconds: float = _SECONDS
) -> list[float]:
    """Return the shortest time of each of several runs, which take turns.

    There are two series of rounds with a pause between them, and up to two more while the fastest took very
    different times or another is nearly as fast; none follows once a third of a second is spent.

    Parameters
    ----------
    runs : sequence of callable
    clock : callable
    seconds : float
        What a series spends on each run, but four rounds at least.
    """
    taken: list[list[float]] = [[] for _ in runs]
    for run in runs:
        run()
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(_PAUSE_SECONDS)
        series = _series(runs, clock, seconds)
        for mine, more in zip(taken, series, strict=True):
            mine += more
        if len(runs) == 1 or sum(map(sum, taken)) > _ENOUGH_SECONDS:
            break
        if attempt and _is_settled(taken, series):
            break
    return [min(mine) for mine in taken]


def _series(runs: Sequence[Callable[[], object]], clock: Clock, seconds: float) -> list[list[float]]:
    taken: list[list[float]] = [[] for _ in runs]
    spent = 0.0
    while len(taken[0]) < _FEWEST or (spent < seconds * len(runs) and len(taken[0]) < _MOST):
        for mine, run in zip(taken, runs, strict=True):
            started = clock()
            run()
            mine.append(clock() - started)
            spent += mine[-1]
    return taken


def _is_settled(taken: Sequence[Sequence[float]], series: Sequence[Sequence[float]]) -> bool:
    """Whether the fastest is clear, and those near it ran undisturbed in the last series."""
    best = [min(mine) for mine in taken]
    first = min(best)
    near = [k for k, mine in enumerate(best) if mine <= _NEAR * first]
    return len(near) == 1 and median(series[near[0]]) <= _DISTURBED * first
