"""Plain NumPy counterparts of the kernels: oracle in tests, fallback without Numba."""

from __future__ import annotations

import numpy as np

__all__ = ["partition_values_reference"]


def _segment_costs(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the (n + 1, n + 1) costs of all segments ``start:stop``; infinite where stop <= start."""
    n_values = values.size
    costs = np.full((n_values + 1, n_values + 1), np.inf)
    for start in range(n_values):
        centred = values[start:] - values[start]
        mass = np.cumsum(weights[start:])
        first = np.cumsum(weights[start:] * centred)
        second = np.cumsum(weights[start:] * centred * centred)
        costs[start, start + 1 :] = np.maximum(second - first * first / mass, 0.0)
    return costs


def partition_values_reference(values: np.ndarray, weights: np.ndarray, n_parts: int) -> np.ndarray:
    """Split sorted values optimally by the textbook recursion over all segments.

    ``best[p][stop] = min over start of best[p - 1][start] + cost(start, stop)``: O(n_parts n^2) time and
    O(n^2) memory.

    Parameters
    ----------
    values : ndarray of float64, shape (n,), strictly ascending
    weights : ndarray of float64, shape (n,), positive
    n_parts : int, 1 <= n_parts <= n

    Returns
    -------
    ndarray of int64, shape (n_parts + 1,)
        Ascending bounds from 0 to n; of equally good splits the one with the earlier bound.
    """
    costs = _segment_costs(values, weights)
    best = costs[0].copy()
    choices = []
    for _ in range(n_parts - 1):
        totals = best[:, None] + costs
        choice = np.argmin(totals, axis=0)
        best = totals[choice, np.arange(choice.size)]
        choices.append(choice)
    bounds = [values.size]
    for choice in reversed(choices):
        bounds.append(int(choice[bounds[-1]]))
    bounds.append(0)
    return np.array(bounds[::-1], dtype=np.int64)
