"""Uniform grids in the values of a tensor: value = float32(step x k + offset) for integers k."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nqformat.tensor import MAX_AFFINE_K, affine_values

from .distinct import sorted_distinct

__all__ = ["Grid", "find_grid"]

_MAX_DOUBLINGS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """A uniform grid; both numbers are float32."""

    step: float
    offset: float

    def k_of(self, values: np.ndarray) -> np.ndarray | None:
        """Return the int32 k of each value; None if a k is too large or a value not exactly on the grid.

        Values are compared as float32 bits, so -0.0 is never on a grid.
        """
        wide = values.astype(np.float64)
        k = np.rint((wide - self.offset) / self.step)
        if k.size and float(np.abs(k).max()) >= MAX_AFFINE_K:
            return None
        k = k.astype(np.int32)
        exact = values.astype(np.float32).view(np.uint32) == affine_values(k, self.step, self.offset).view(
            np.uint32
        )
        return k if exact.all() else None


def find_grid(values: np.ndarray) -> Grid | None:
    """Find a grid that holds all of `values` exactly.

    Tried are grids through zero and grids that start at the smallest value, as quantizers with and
    without a zero point make them. The step is taken from the smallest gap and sharpened on ever larger
    distances.

    Parameters
    ----------
    values : ndarray of float32, one-dimensional, finite, ascending, distinct

    Returns
    -------
    Grid or None

    Examples
    --------
    >>> import numpy as np
    >>> bool(find_grid(np.float32(0.1) * np.arange(-3, 9, dtype=np.float32)).step == np.float32(0.1))
    True
    """
    if values.size < 2:
        return None
    for offset in (0.0, float(values[0])):
        estimate = _estimate_step(values.astype(np.float64) - offset)
        for step in _float32_near(estimate):
            grid = Grid(step=step, offset=offset)
            if grid.k_of(values) is not None:
                return grid
    return None


def _estimate_step(distances: np.ndarray) -> float:
    """Estimate the step of a grid through 0 from rounded multiples of it."""
    magnitudes = sorted_distinct(np.abs(distances))
    magnitudes = magnitudes[magnitudes > 0]
    step = float(np.diff(magnitudes, prepend=0.0).min())
    reach = step
    for _ in range(_MAX_DOUBLINGS):
        if reach >= magnitudes[-1]:
            break
        reach *= 2
        place = min(int(np.searchsorted(magnitudes, reach)), magnitudes.size - 1)
        multiple = float(np.rint(magnitudes[place] / step))
        if multiple >= MAX_AFFINE_K:
            break
        step = float(magnitudes[place]) / max(multiple, 1.0)
    return step


def _float32_near(number: float) -> list[float]:
    """Return the positive finite float32 numbers nearest to `number`, closest first."""
    with np.errstate(over="ignore"):
        middle = np.float32(number)
    around = [middle, np.nextafter(middle, np.float32(0)), np.nextafter(middle, np.float32(np.inf))]
    return [float(candidate) for candidate in around if np.isfinite(candidate) and candidate > 0]
