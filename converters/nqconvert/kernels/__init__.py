"""Numerical kernels of the converter: Numba where the work is worth its import, plain NumPy otherwise.

The choice depends on the amount of work only, never on what happens to be imported, so that the same
input gives the same result in every process. ``NQFORMAT_KERNELS=numpy`` forbids Numba, ``numba`` forces it.
"""

from __future__ import annotations

import importlib.util
import os

import numpy as np

from .reference import (
    binned_sums_reference,
    cheapest_entries_reference,
    nearest_entries_reference,
    partition_values_reference,
)

__all__ = [
    "MAX_REFERENCE_VALUES",
    "binned_sums",
    "cheapest_entries",
    "nearest_entries",
    "numba_available",
    "partition_values",
]

MAX_REFERENCE_VALUES = 2048
"""Most distinct values the reference is run on; its time and memory grow with the square."""

_REFERENCE_WORK = 5_000_000
_MANY_VALUES = 1 << 20
_MANY_STEPS = 1 << 16
_MANY_COSTS = 1 << 23
_CHUNK = 1 << 20


def _forced_path() -> str:
    choice = os.environ.get("NQFORMAT_KERNELS", "auto")
    if choice not in ("auto", "numba", "numpy"):
        raise ValueError(f"NQFORMAT_KERNELS must be auto, numba or numpy, not {choice!r}")
    return choice


def numba_available() -> bool:
    """Whether Numba kernels may be used: installed and not forbidden by ``NQFORMAT_KERNELS=numpy``."""
    return _forced_path() != "numpy" and importlib.util.find_spec("numba") is not None


def _worth_numba(n_values: int, n_parts: int) -> bool:
    if not numba_available():
        return False
    if _forced_path() == "numba":
        return True
    return n_values > MAX_REFERENCE_VALUES or n_values * n_values * n_parts > _REFERENCE_WORK


def partition_values(values: np.ndarray, weights: np.ndarray, n_parts: int) -> np.ndarray:
    """Split sorted values into the contiguous parts of least weighted squared error.

    Parameters
    ----------
    values : ndarray of float64, shape (n,), strictly ascending, magnitudes of about one
    weights : ndarray of float64, shape (n,), positive
    n_parts : int, 1 <= n_parts <= n

    Returns
    -------
    ndarray of int64, shape (n_parts + 1,)
        Ascending bounds from 0 to n.
    """
    if not 1 <= n_parts <= values.size:
        raise ValueError(f"cannot split {values.size} values into {n_parts} parts")
    if n_parts == values.size:
        return np.arange(n_parts + 1, dtype=np.int64)
    if not _worth_numba(values.size, n_parts):
        return partition_values_reference(values, weights, n_parts)
    from .parametric import partition_values_parametric

    return partition_values_parametric(values, weights, n_parts)


def _worth_a_pass(n_steps: int, many: int = _MANY_VALUES) -> bool:
    if not numba_available():
        return False
    return _forced_path() == "numba" or n_steps > many


def nearest_entries(values: np.ndarray, entries: np.ndarray) -> np.ndarray:
    """Return the index of the nearest of ascending `entries`; of two equally near, the lower.

    Parameters
    ----------
    values : ndarray of float32 or float64, shape (n,)
    entries : ndarray, shape (k,), 1 <= k <= 65,536

    Returns
    -------
    ndarray of uint16, shape (n,)

    Examples
    --------
    >>> nearest_entries(np.array([0.0, 0.6, 3.0]), np.array([0.0, 1.0])).tolist()
    [0, 1, 1]
    """
    if not _worth_a_pass(values.size):
        return nearest_entries_reference(values, entries)
    from .binning import fill_nearest

    wide = entries.astype(np.float64)
    indices = np.empty(values.size, dtype=np.uint16)
    status = fill_nearest(np.ascontiguousarray(values), (wide[:-1] + wide[1:]) / 2, indices)
    assert status == 0
    return indices


def binned_sums(
    values: np.ndarray,
    weights: np.ndarray | None,
    scale: tuple[float, float],
    bins: tuple[float, float],
    n_bins: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Return sums in bins as :func:`~nqconvert.kernels.reference.binned_sums_reference`; O(n_bins) memory."""
    total, moment = np.zeros(n_bins), np.zeros(n_bins)
    if _worth_a_pass(values.size):
        from .binning import fill_bins

        mass = np.empty(0, dtype=np.float32) if weights is None else np.ascontiguousarray(weights)
        status = fill_bins(np.ascontiguousarray(values), mass, *scale, *bins, total, moment)
        assert status == 0
        return total, moment
    for start in range(0, values.size, _CHUNK):
        share = None if weights is None else weights[start : start + _CHUNK]
        sums = binned_sums_reference(values[start : start + _CHUNK], share, scale, bins, n_bins)
        total, moment = total + sums[0], moment + sums[1]
    return total, moment


def cheapest_entries(
    points: np.ndarray, masses: np.ndarray, counts: np.ndarray, centres: np.ndarray, prices: np.ndarray
) -> np.ndarray:
    """Return for each point the centre of least ``mass x (point - centre)^2 + count x price``.

    Parameters
    ----------
    points, masses, counts : ndarray of float64, shape (n,)
    centres : ndarray of float64, shape (k,), ascending, k <= 65,536
    prices : ndarray of float64, shape (k,), not negative

    Returns
    -------
    ndarray of uint16, shape (n,)
    """
    indices = np.empty(points.size, dtype=np.uint16)
    if _worth_a_pass(points.size * centres.size, _MANY_STEPS):  # called a hundred times with the same sizes
        from .entropy_cells import fill_cheapest

        status = fill_cheapest(points, masses, counts, centres, prices, float(prices.min()), indices)
        assert status == 0
        return indices
    rows = max(1, _MANY_COSTS // centres.size)
    for start in range(0, points.size, rows):
        part = slice(start, start + rows)
        indices[part] = cheapest_entries_reference(points[part], masses[part], counts[part], centres, prices)
    return indices
