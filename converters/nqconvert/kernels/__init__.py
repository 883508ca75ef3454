"""Numerical kernels of the converter: Numba where the work is worth its import, plain NumPy otherwise.

The choice depends on the amount of work only, never on what happens to be imported, so that the same
input gives the same result in every process. ``NQFORMAT_KERNELS=numpy`` forbids Numba, ``numba`` forces it.
"""

from __future__ import annotations

import importlib.util
import os

import numpy as np

from .reference import partition_values_reference

__all__ = ["MAX_REFERENCE_VALUES", "numba_available", "partition_values"]

MAX_REFERENCE_VALUES = 2048
"""Most distinct values the reference is run on; its time and memory grow with the square."""

_REFERENCE_WORK = 5_000_000


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
