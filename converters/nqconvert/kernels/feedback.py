"""Numba kernels of quantization with error feedback and of optimal brain surgery; imported on first use."""

from __future__ import annotations

import numba
import numpy as np
from numba import types

_MATRIX = types.Array(types.float64, 2, "C")
_MATRIX_IN = types.Array(types.float64, 2, "C", readonly=True)
_ROW = types.Array(types.float64, 1, "C")
_ROW_IN = types.Array(types.float64, 1, "C", readonly=True)
_MASK_IN = types.Array(types.boolean, 2, "C", readonly=True)
_K_MATRIX = types.Array(types.int32, 2, "C")
_K_ROW = types.Array(types.int32, 1, "C")


@numba.njit(inline="always")
def _cheapest(value, step, curvature, prices):  # type: ignore[no-untyped-def]
    """Of the nearest integer, the next inner one and 0: the cheapest."""
    reach = prices.size // 2
    nearest = int(np.rint(min(max(value / step, -float(reach)), float(reach))))
    error = value - step * nearest
    least = curvature * error * error + prices[nearest + reach]
    best = nearest
    if nearest != 0:
        inner = nearest - 1 if nearest > 0 else nearest + 1
        error = value - step * inner
        cost = curvature * error * error + prices[inner + reach]
        if cost < least:
            least = cost
            best = inner
        if curvature * value * value + prices[reach] < least:
            best = 0
    return best


@numba.njit(
    types.float64(_MATRIX, _MATRIX_IN, _ROW_IN, types.float64, _ROW_IN, _MASK_IN, _K_MATRIX, _MATRIX),
    cache=True,
    nogil=True,
)
def fill_integers(values, factor, scales, step, prices, zeros, chosen, errors):  # type: ignore[no-untyped-def]
    """Kernel of :func:`nqconvert.kernels.feed_back`; its arguments, allocated results behind them."""
    n_values, n_outputs = values.shape
    loss = 0.0
    for j in range(chosen.shape[0]):
        pivot = factor[j, j]
        curvature = 0.5 / (pivot * pivot)
        for r in range(n_outputs):
            value = values[j, r]
            k = 0 if zeros[j, r] else _cheapest(value, step, curvature * scales[r], prices)
            chosen[j, r] = k
            error = value - step * k
            loss += curvature * scales[r] * error * error
            errors[j, r] = error / pivot
        for i in range(j + 1, n_values):
            share = factor[j, i]
            for r in range(n_outputs):
                values[i, r] -= share * errors[j, r]
    return loss


@numba.njit(types.int32(_ROW, _MATRIX, _K_ROW, _ROW), cache=True, nogil=True)
def fill_removals(values, inverse, order, losses):  # type: ignore[no-untyped-def]
    """Kernel of :func:`nqconvert.kernels.trace_removals`; `values` and `inverse` change."""
    n, n_removable = values.size, order.size
    alive = np.ones(n, dtype=np.bool_)
    for place in range(n_removable):
        best = -1
        least = np.inf
        for j in range(n_removable):
            if alive[j]:
                loss = values[j] * values[j] / inverse[j, j]
                if best < 0 or loss < least:
                    least = loss
                    best = j
        order[place] = best
        losses[place] = 0.5 * least
        alive[best] = False
        share = values[best] / inverse[best, best]
        scale = 1.0 / inverse[best, best]
        for i in range(n):
            if alive[i]:
                values[i] -= share * inverse[best, i]
                weight = inverse[best, i] * scale
                for j in range(n):
                    if alive[j]:
                        inverse[i, j] -= weight * inverse[best, j]
        values[best] = 0.0
    return 0
