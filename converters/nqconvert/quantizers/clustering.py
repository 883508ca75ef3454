"""Exact weighted k-means of numbers: sorted distinct values, then an optimal partition of them."""

from __future__ import annotations

import numpy as np

from nqconvert.kernels import MAX_REFERENCE_VALUES, binned_sums, numba_available, partition_values
from nqformat.errors import MissingDependencyError

__all__ = ["MAX_EXACT_VALUES", "N_BINS", "binned_values", "cluster_1d", "median_and_spread"]

MAX_EXACT_VALUES = 1 << 18
"""Most values that are clustered exactly; more of them are put into `N_BINS` bins first."""

N_BINS = 1 << 16
_SAMPLE = 1 << 18
_POLISH_ROUNDS = 50


def cluster_1d(values: np.ndarray, weights: np.ndarray | None = None, *, k: int) -> np.ndarray:
    """Find the `k` centres of least weighted squared distance to `values`.

    The result is the global optimum, not a local one as Lloyd's iteration finds, for up to 2**18 values.
    More values are first gathered in at most 2**16 bins, narrow around the median and wider in the
    tails, and the bins' means are clustered optimally; the loss is that of a 16-bit quantizer. O(n log
    n) time whatever k is, O(n) memory. Without Numba, more than 2,048 distinct values are clustered on
    as many bins and the centres improved by Lloyd's iteration.

    Parameters
    ----------
    values : ndarray
        Finite numbers, any shape and order.
    weights : ndarray or None
        Finite and not negative, as many as values; values of weight 0 are left out. None: all equal.
    k : int
        Number of centres.

    Returns
    -------
    ndarray of float64
        Ascending centres: `k` of them, or all distinct values if those are fewer.

    Raises
    ------
    ValueError
        If a value or weight is not finite, a weight is negative, no weight is positive, or k < 1.
    MissingDependencyError
        If k exceeds 1,024 and Numba is missing.

    Examples
    --------
    >>> import numpy as np
    >>> cluster_1d(np.array([1.0, 5.0, 1.2, 5.4, 5.2]), k=2).round(6).tolist()
    [1.1, 5.2]
    """
    flat, mass = _checked(values, weights, k)
    if flat.size > MAX_EXACT_VALUES:
        points, mass = binned_values(flat, mass, N_BINS)
    else:
        points, mass = _merged(flat, mass)
    if points.size <= k:
        return points
    centre = float(points[points.size // 2])
    scale = float(np.abs(points / 2 - centre / 2).max())
    unit = (points / 2 - centre / 2) / scale
    return 2 * (_unit_centres(unit, mass / mass.max(), k) * scale + centre / 2)


def _checked(values: np.ndarray, weights: np.ndarray | None, k: int) -> tuple[np.ndarray, np.ndarray | None]:
    flat = np.asarray(values).reshape(-1)
    flat = flat if flat.dtype == np.float32 else flat.astype(np.float64)
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    if flat.size == 0 or not np.isfinite(flat).all():
        raise ValueError("values must be finite and at least one")
    if weights is None:
        return flat, None
    mass = np.asarray(weights).reshape(-1)
    mass = mass if mass.dtype == np.float32 else mass.astype(np.float64)
    if mass.size != flat.size:
        raise ValueError(f"{flat.size} values but {mass.size} weights")
    if not np.isfinite(mass).all() or mass.min() < 0 or mass.max() == 0:
        raise ValueError("weights must be finite, not negative and not all zero")
    if mass.min() > 0:
        return flat, mass
    counted = mass > 0
    return flat[counted], mass[counted]


def _merged(flat: np.ndarray, mass: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct values ascending as float64 and the total weight of each."""
    if mass is None:
        points, counts = np.unique(flat, return_counts=True)
        return points.astype(np.float64), counts.astype(np.float64)
    points, inverse = np.unique(flat, return_inverse=True)
    return points.astype(np.float64), np.bincount(inverse.reshape(-1), weights=mass)


def binned_values(flat: np.ndarray, mass: np.ndarray | None, n_bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Return means and weights of up to `n_bins` bins, even in ``arcsinh((value - median) / spread)``."""
    median, spread = median_and_spread(flat)
    ends = np.arcsinh((np.array([flat.min(), flat.max()], dtype=np.float64) - median) / spread)
    width = max(float(ends[1] - ends[0]), 1e-300) / n_bins
    total, moment = binned_sums(flat, mass, (median, spread), (float(ends[0]), width), n_bins)
    filled = total > 0
    return _merged(moment[filled] / total[filled] + median, total[filled])


def median_and_spread(flat: np.ndarray) -> tuple[float, float]:
    """Return the median of a sample and the mean distance from it, or 1 where that is 0."""
    sample = flat[:: max(1, flat.size // _SAMPLE)].astype(np.float64)
    median = float(np.median(sample))
    return median, float(np.mean(np.abs(sample - median))) or 1.0


def _unit_centres(points: np.ndarray, mass: np.ndarray, k: int) -> np.ndarray:
    """Cluster sorted distinct points of magnitude about one."""
    if numba_available() or points.size <= MAX_REFERENCE_VALUES:
        return _means(points, mass, partition_values(points, mass, k))
    if k > MAX_REFERENCE_VALUES // 2:
        raise MissingDependencyError("numba", "convert")
    coarse, coarse_mass = binned_values(points, mass, MAX_REFERENCE_VALUES)
    if coarse.size <= k:
        return _polished(points, mass, coarse)
    return _polished(points, mass, _means(coarse, coarse_mass, partition_values(coarse, coarse_mass, k)))


def _means(points: np.ndarray, mass: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Return the weighted mean of each part, computed about a point of the part."""
    starts = bounds[:-1]
    anchors = points[starts]
    centred = points - np.repeat(anchors, np.diff(bounds))
    means: np.ndarray = anchors + np.add.reduceat(mass * centred, starts) / np.add.reduceat(mass, starts)
    return means


def _polished(points: np.ndarray, mass: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Improve centres by Lloyd's iteration until the partition stands still."""
    bounds = np.empty(0, dtype=np.int64)
    for _ in range(_POLISH_ROUNDS):
        inner = np.searchsorted(points, (centres[:-1] + centres[1:]) / 2, side="right")
        found = np.unique(np.concatenate([[0], inner, [points.size]]))
        if np.array_equal(found, bounds):
            break
        bounds = found
        centres = _means(points, mass, bounds)
    return centres
