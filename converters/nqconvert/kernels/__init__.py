"""Numerical kernels of the converter: Numba where the work is worth its import, plain NumPy otherwise.

The choice depends on the amount of work only, never on what happens to be imported, so that the same
input gives the same result in every process. ``NQFORMAT_KERNELS=numpy`` forbids Numba, ``numba`` forces it.
"""

from __future__ import annotations

import importlib.util
import os

import numpy as np

from .feedback_reference import feed_back_reference, trace_removals_reference
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
    "feed_back",
    "nearest_entries",
    "numba_available",
    "partition_values",
    "trace_removals",
]

MAX_REFERENCE_VALUES = 2048
"""Most distinct values the reference is run on; its time and memory grow with the square."""

_REFERENCE_WORK = 5_000_000
_MANY_VALUES = 1 << 20
_MANY_STEPS = 1 << 16
_MANY_COSTS = 1 << 23
_CHUNK = 1 << 18


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
        parts = [values[i : i + _CHUNK] for i in range(0, values.size, _CHUNK)] or [values]
        return np.concatenate([nearest_entries_reference(part, entries) for part in parts])
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


def feed_back(
    values: np.ndarray,
    factor: np.ndarray,
    scales: np.ndarray,
    step: float,
    prices: np.ndarray,
    zeros: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, float]:
    """Quantize the first inputs of a layer in turn, each error spread over the inputs that follow.

    Of the nearest integer k, the next one towards zero and 0, each weight takes that of least
    ``scale (w - step k)^2 / (2 U_jj^2) + price of k``.

    Parameters
    ----------
    values : ndarray of float64, shape (n_values, n_outputs), C-contiguous
        Weights; changed: rows that were not quantized end with the errors made up for.
    factor : ndarray of float64, shape (n_values, n_values), C-contiguous
        Upper Cholesky factor U of the inverse Hessian, ``H^-1 = U^T U``.
    scales : ndarray of float64, shape (n_outputs,)
        Curvature of each output.
    step : float
    prices : ndarray of float64, shape (2 reach + 1,)
        Cost of each integer from -reach to reach, in units of the loss.
    zeros : ndarray of bool, shape (n_inputs, n_outputs), n_inputs <= n_values
        Weights that must become zero.

    Returns
    -------
    (integers, errors / U_jj, loss)
        int32 and float64 of the shape of `zeros`; half the sum of scale x error^2 / U_jj^2.

    Source : Frantar et al. 2022, "GPTQ", eq. (2) and (3); Conzelmann, Bamler 2025, "Reducing Storage of
    Pretrained Neural Networks by Rate-Constrained Quantization and Entropy Coding"
    """
    if not numba_available():
        return feed_back_reference(values, factor, scales, step, prices, zeros)
    from .feedback import fill_integers

    chosen, errors = np.empty(zeros.shape, np.int32), np.empty(zeros.shape)
    loss = fill_integers(values, factor, scales, float(step), prices, zeros, chosen, errors)
    return chosen, errors, float(loss)


def trace_removals(
    values: np.ndarray, inverse: np.ndarray, n_removable: int
) -> tuple[np.ndarray, np.ndarray]:
    """Remove the weights of one output one by one, always that of least loss (optimal brain surgeon).

    Parameters
    ----------
    values : ndarray of float64, shape (n,)
    inverse : ndarray of float64, shape (n, n)
        Inverse Hessian.
    n_removable : int
        The weights after these stay, and only make up for others.

    Returns
    -------
    (order, losses) : ndarray of int32 and of float64, shape (n_removable,)
        Weights in the order of their removal, and what each removal adds to the loss,
        ``w^2 / (2 [H^-1]_jj)``.

    Source : Hassibi, Stork 1993, "Second order derivatives for network pruning: Optimal Brain Surgeon"
    """
    if not numba_available():
        return trace_removals_reference(values, inverse, n_removable)
    from .feedback import fill_removals

    order, losses = np.empty(n_removable, np.int32), np.empty(n_removable)
    status = fill_removals(values.copy(), inverse.copy(), order, losses)
    assert status == 0
    return order, losses
