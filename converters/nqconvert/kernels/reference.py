"""Plain NumPy counterparts of the kernels: oracle in tests, fallback without Numba."""

from __future__ import annotations

import numpy as np

__all__ = [
    "binned_sums_reference",
    "cheapest_entries_reference",
    "nearest_entries_reference",
    "partition_values_reference",
]


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


def nearest_entries_reference(values: np.ndarray, entries: np.ndarray) -> np.ndarray:
    """Return the index of the nearest of ascending `entries`; of two equally near, the lower.

    Returns
    -------
    ndarray of uint16, shape (n,)
    """
    wide = entries.astype(np.float64)
    return np.searchsorted((wide[:-1] + wide[1:]) / 2, values, side="left").astype(np.uint16)


def binned_sums_reference(
    values: np.ndarray,
    weights: np.ndarray | None,
    scale: tuple[float, float],
    bins: tuple[float, float],
    n_bins: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the sums of weight and of weight x (value - centre) in bins even in an arcsinh.

    Parameters
    ----------
    values : ndarray, shape (n,)
    weights : ndarray, shape (n,), or None
    scale : (centre, spread)
    bins : (start, width)
    n_bins : int
    """
    centred = values.astype(np.float64) - scale[0]
    place = (np.arcsinh(centred / scale[1]) - bins[0]) / bins[1]
    index = np.clip(place, 0, n_bins - 1).astype(np.int64)
    mass = None if weights is None else weights.astype(np.float64)
    return (
        np.bincount(index, weights=mass, minlength=n_bins).astype(np.float64),
        np.bincount(index, weights=centred if mass is None else centred * mass, minlength=n_bins),
    )


def cheapest_entries_reference(
    points: np.ndarray, masses: np.ndarray, counts: np.ndarray, centres: np.ndarray, prices: np.ndarray
) -> np.ndarray:
    """Return for each point the first centre of least ``mass x (point - centre)^2 + count x price``.

    Returns
    -------
    ndarray of uint16, shape (n,)
    """
    costs = masses[:, None] * np.square(points[:, None] - centres) + counts[:, None] * prices
    cheapest: np.ndarray = np.argmin(costs, axis=1).astype(np.uint16)
    return cheapest
