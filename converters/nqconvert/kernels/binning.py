"""Numba kernels over all values of a pool: binning, nearest entries; imported on first use only."""

from __future__ import annotations

import math

import numba
import numpy as np
from numba import types

_F4 = types.Array(types.float32, 1, "C", readonly=True)
_F8 = types.Array(types.float64, 1, "C", readonly=True)
_OUT_F8 = types.Array(types.float64, 1, "C")
_OUT_U2 = types.Array(types.uint16, 1, "C")


@numba.njit(
    [
        types.int32(values, weights, *([types.float64] * 4), _OUT_F8, _OUT_F8)
        for values in (_F4, _F8)
        for weights in (_F4, _F8)
    ],
    cache=True,
    nogil=True,
)
def fill_bins(values, weights, centre, spread, start, width, total, moment):  # type: ignore[no-untyped-def]
    """Add weights and weight x (value - centre) to bins even in ``arcsinh((value - centre) / spread)``.

    Parameters
    ----------
    values : ndarray of float32 or float64, shape (n,), finite
    weights : ndarray of float32 or float64, shape (n,), or shape (0,) for ones
    centre, spread, start, width : float
        Bin of a value: ``floor((arcsinh((value - centre) / spread) - start) / width)``, kept inside.
    total, moment : ndarray of float64, shape (n_bins,)
        Added to.

    Returns
    -------
    int32 : 0, or 1 if lengths differ
    """
    n_bins = total.size
    if moment.size != n_bins or n_bins < 1 or (weights.size not in (0, values.size)):
        return np.int32(1)
    weighted = weights.size != 0
    for i in range(values.size):
        distance = values[i] - centre
        ratio = abs(distance) / spread
        root = ratio if ratio > 1e8 else math.sqrt(ratio * ratio + 1.0)
        stretched = math.log(ratio + root)
        if distance < 0.0:
            stretched = -stretched
        place = int((stretched - start) / width)
        place = min(max(place, 0), n_bins - 1)
        mass = np.float64(weights[i]) if weighted else 1.0
        total[place] += mass
        moment[place] += mass * distance
    return np.int32(0)


@numba.njit(
    [types.int32(values, _F8, _OUT_U2) for values in (_F4, _F8)],
    cache=True,
    nogil=True,
)
def fill_nearest(values, thresholds, indices):  # type: ignore[no-untyped-def]
    """Count for each value the thresholds below it.

    Parameters
    ----------
    values : ndarray of float32 or float64, shape (n,)
    thresholds : ndarray of float64, ascending, fewer than 65,536
    indices : ndarray of uint16, shape (n,)
        Filled.

    Returns
    -------
    int32 : 0, or 1 if sizes do not fit
    """
    n_thresholds = thresholds.size
    if indices.size != values.size or n_thresholds >= 65536:
        return np.int32(1)
    for i in range(values.size):
        value = np.float64(values[i])
        base = 0
        length = n_thresholds
        while length > 1:
            half = length // 2
            base += half * (thresholds[base + half - 1] < value)
            length -= half
        if length == 1 and thresholds[base] < value:
            base += 1
        indices[i] = base
    return np.int32(0)
