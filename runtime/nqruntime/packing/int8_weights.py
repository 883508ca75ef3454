"""Weights as bytes: a level between -127 and 127 for each element, and a factor for each row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nqruntime.symbols import MatrixWeights

MOST_INPUTS = (1 << 31) // (255 * 127)
"""Weights of an output whose products with bytes fit a sum of 32 bits, whatever these are."""

_MOST_LEVEL = 127
_WORST_ROUNDING = 4e-7
_TRIED_STEPS = 64
_PALETTE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8Weights:
    """A matrix of levels, whose rows have factors.

    Attributes
    ----------
    levels : ndarray of int8, shape (n_rows, n_columns)
    factors : ndarray of float32, shape (n_rows,)
    is_exact : bool
        Whether nothing but the rounding of float32 products is lost.
    palette : tuple of ndarray, or None
        Symbols (uint8, shape of the levels) and levels (int8) of at most 16 different ones.
    """

    levels: np.ndarray
    factors: np.ndarray
    is_exact: bool
    palette: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def sums(self) -> np.ndarray:
        """Sums of the rows: int32, shape (n_rows,)."""
        found: np.ndarray = self.levels.sum(axis=1, dtype=np.int32)
        return found


def exact_step(values: np.ndarray) -> np.float32 | None:
    """Return the largest number of which all values are multiples from -127 to 127, if there is one.

    Parameters
    ----------
    values : ndarray of float32, finite
        Multiples that are rounded to float32 count as such.
    """
    sizes = np.unique(np.abs(values[values != 0])).astype(np.float64)
    if not sizes.size:
        return np.float32(1)
    for n in range(1, _MOST_LEVEL + 1):
        step = sizes[-1] / n
        multiples = sizes / step
        if (np.abs(multiples - np.rint(multiples)) < _WORST_ROUNDING * multiples).all() and np.float32(
            step
        ) > 0:
            return np.float32(step)
    return None


def _best_step(values: np.ndarray, counts: np.ndarray) -> np.float32:
    """Return the step of levels that is nearest to a codebook in the mean of the squares."""
    largest = float(np.abs(values).max(initial=0)) or 1.0
    steps = largest / np.linspace(_MOST_LEVEL, _MOST_LEVEL / 2, _TRIED_STEPS)
    wrong = values[:, None] - steps * np.rint(values[:, None] / steps)
    return np.float32(steps[int(np.argmin(counts @ wrong**2))])


def _levels(values: np.ndarray, step: np.ndarray | np.float32) -> np.ndarray:
    return np.clip(np.rint(values / step), -_MOST_LEVEL, _MOST_LEVEL).astype(np.int8)


def int8_weights(weights: MatrixWeights) -> list[Int8Weights]:
    """Return a matrix as levels in every way that suits it; none if it is too wide or not finite.

    Levels of a palette of 16 share one step, so that they are as few; those of a larger codebook or of floats
    have one for each row, unless all are exact multiples of one step.
    """
    every = weights.every_symbol()
    if weights.shape[1] > MOST_INPUTS:
        return []
    factors = np.ones(weights.shape[0], np.float32) if weights.factors is None else weights.factors
    found = []
    if every is not None:
        symbols, codebook = every
        if not (np.isfinite(codebook).all() and np.isfinite(factors).all()):
            return []
        step = exact_step(codebook) if codebook.size <= 2 * _MOST_LEVEL + 1 else None
        if step is not None or codebook.size <= _PALETTE:
            counts = np.bincount(symbols.reshape(-1), minlength=codebook.size)
            one_step = _best_step(codebook.astype(np.float64), counts) if step is None else step
            levels = _levels(codebook, one_step)
            found.append(
                Int8Weights(
                    levels=levels[symbols],
                    factors=factors * one_step,
                    is_exact=step is not None,
                    palette=(symbols.astype(np.uint8), levels) if codebook.size <= _PALETTE else None,
                )
            )
        if step is not None:
            return found
    matrix = weights.without_factors().decoded()
    if np.isfinite(matrix).all():
        largest = np.abs(matrix).max(axis=1)
        steps = np.where(largest > 0, largest, np.float32(1)) / np.float32(_MOST_LEVEL)
        found.append(
            Int8Weights(levels=_levels(matrix, steps[:, None]), factors=factors * steps, is_exact=False)
        )
    return found
