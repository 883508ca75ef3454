"""Numba kernel of entropy-constrained assignment; imported on first use only."""

from __future__ import annotations

import numba
import numpy as np
from numba import types

_F8 = types.Array(types.float64, 1, "C", readonly=True)
_OUT_U2 = types.Array(types.uint16, 1, "C")


@numba.njit(types.int32(_F8, _F8, _F8, _F8, _F8, types.float64, _OUT_U2), cache=True, nogil=True)
def fill_cheapest(points, masses, counts, centres, prices, least_price, indices):  # type: ignore[no-untyped-def]
    """Give each point the first centre of least ``mass x (point - centre)^2 + count x price``.

    From the nearest centre outwards, until distance alone costs too much: near O(1) a point.

    Parameters
    ----------
    points, masses, counts : ndarray of float64, shape (n,)
        Masses and counts not negative.
    centres : ndarray of float64, shape (k,), ascending, 1 <= k <= 65,536
    prices : ndarray of float64, shape (k,), not negative
    least_price : float
        The least of `prices`.
    indices : ndarray of uint16, shape (n,)
        Filled.

    Returns
    -------
    int32 : 0, or 1 if sizes do not fit
    """
    n_points = points.size
    n_centres = centres.size
    if masses.size != n_points or counts.size != n_points or indices.size != n_points:
        return np.int32(1)
    if n_centres < 1 or n_centres > 65536 or prices.size != n_centres:
        return np.int32(1)
    for i in range(n_points):
        point = points[i]
        mass = masses[i]
        count = counts[i]
        low = 0
        high = n_centres
        while low < high:
            middle = (low + high) // 2
            if centres[middle] < point:
                low = middle + 1
            else:
                high = middle
        best = 0
        least = np.inf
        floor = count * least_price
        for j in range(low, n_centres):
            distance = point - centres[j]
            error = mass * distance * distance
            if error + floor > least:
                break
            cost = error + count * prices[j]
            if cost < least:
                least = cost
                best = j
        for j in range(low - 1, -1, -1):
            distance = point - centres[j]
            error = mass * distance * distance
            if error + floor > least:
                break
            cost = error + count * prices[j]
            if cost <= least:
                least = cost
                best = j
        indices[i] = best
    return np.int32(0)
