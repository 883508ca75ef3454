"""Numba kernel of the penalised partition; imported on first use only."""

from __future__ import annotations

import numba
import numpy as np
from numba import types

_SUMS = types.Array(types.float64, 1, "C", readonly=True)
_OUT_F8 = types.Array(types.float64, 1, "C")
_OUT_I8 = types.Array(types.int64, 1, "C")


@numba.njit(inline="always")
def _cost(mass, first, second, start, stop):  # type: ignore[no-untyped-def]
    """Squared error of the segment ``start:stop`` about its mean; 0 if its weight is lost in rounding."""
    weight = mass[stop] - mass[start]
    if weight <= 0.0:
        return 0.0
    moment = first[stop] - first[start]
    return max(second[stop] - second[start] - moment * moment / weight, 0.0)


@numba.njit(
    types.int32(_SUMS, _SUMS, _SUMS, types.float64, _OUT_F8, _OUT_I8, _OUT_I8, _OUT_I8),
    cache=True,
    nogil=True,
)
def fill_penalised_path(  # type: ignore[no-untyped-def]
    mass, first, second, penalty, totals, origins, queue, entered
):
    """Find for every stop the last bound of the cheapest partition of ``0:stop``, `penalty` paid per part.

    Segment costs obey the concave quadrangle inequality, so the best start never moves left as the stop
    moves right: a queue holds the candidate starts and the first stop each of them is best for. O(n log
    n).

    Parameters
    ----------
    mass, first, second : ndarray of float64, shape (n + 1,)
        Running sums of weight, weight x value and weight x value squared; mass strictly ascending.
    penalty : float
    totals : ndarray of float64, shape (n + 1,)
        Filled with the cost of the cheapest partition of ``0:stop``.
    origins : ndarray of int64, shape (n + 1,)
        Filled with the start of its last segment; 0 at index 0.
    queue, entered : ndarray of int64, shape (n + 1,)
        Work space.

    Returns
    -------
    int32 : 0, or 1 if the arrays differ in length or are empty
    """
    n_values = mass.size - 1
    if (
        n_values < 1
        or first.size != n_values + 1
        or second.size != n_values + 1
        or totals.size != n_values + 1
    ):
        return np.int32(1)
    if origins.size != n_values + 1 or queue.size != n_values + 1 or entered.size != n_values + 1:
        return np.int32(1)
    totals[0] = 0.0
    origins[0] = 0
    queue[0] = 0
    entered[0] = 1
    head = 0
    tail = 1
    for stop in range(1, n_values + 1):
        while head + 1 < tail and entered[head + 1] <= stop:
            head += 1
        start = queue[head]
        totals[stop] = totals[start] + _cost(mass, first, second, start, stop) + penalty
        origins[stop] = start
        if stop == n_values:
            break
        while tail > head:
            rival = queue[tail - 1]
            when = max(entered[tail - 1], stop + 1)
            mine = totals[stop] + _cost(mass, first, second, stop, when)
            if mine >= totals[rival] + _cost(mass, first, second, rival, when):
                break
            tail -= 1
        if tail == head:
            queue[tail] = stop
            entered[tail] = stop + 1
            tail += 1
            continue
        low = max(entered[tail - 1], stop + 1)
        high = n_values + 1
        while high - low > 1:
            middle = (low + high) // 2
            mine = totals[stop] + _cost(mass, first, second, stop, middle)
            if mine < totals[rival] + _cost(mass, first, second, rival, middle):
                high = middle
            else:
                low = middle
        if high <= n_values:
            queue[tail] = stop
            entered[tail] = high
            tail += 1
    return np.int32(0)
