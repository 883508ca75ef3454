"""Neutral elements of maximum and minimum."""

from __future__ import annotations

import numpy as np


def lowest(dtype: np.dtype[np.generic]) -> float | int:
    """Return a number that no element of the type is below."""
    if dtype.kind == "f":
        return -np.inf
    return 0 if dtype.kind == "b" else int(np.iinfo(dtype.name).min)


def highest(dtype: np.dtype[np.generic]) -> float | int:
    """Return a number that no element of the type is above."""
    if dtype.kind == "f":
        return np.inf
    return 1 if dtype.kind == "b" else int(np.iinfo(dtype.name).max)
