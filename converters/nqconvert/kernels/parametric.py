"""Optimal partition into a given number of parts through a penalty per part; needs Numba."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .segments import fill_penalised_path

__all__ = ["partition_values_parametric"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Partition:
    """A partition that is optimal for its own number of parts."""

    bounds: np.ndarray
    cost: float

    @property
    def n_parts(self) -> int:
        return self.bounds.size - 1


class _Solver:
    """Running sums of one data set and the work space of the kernel."""

    def __init__(self, values: np.ndarray, weights: np.ndarray) -> None:
        middle = int(np.searchsorted(np.cumsum(weights), 0.5 * float(weights.sum())))
        centred = values - values[min(middle, values.size - 1)]
        self._mass = _sums_from(weights, middle)
        self._first = _sums_from(weights * centred, middle)
        self._second = _sums_from(weights * centred * centred, middle)
        self._totals = np.empty(values.size + 1)
        self._work = np.empty((3, values.size + 1), dtype=np.int64)

    def cost(self, bounds: np.ndarray) -> float:
        """Return the weighted squared error of a partition."""
        mass, first, second = (np.diff(sums[bounds]) for sums in (self._mass, self._first, self._second))
        explained = np.divide(first * first, mass, out=second.copy(), where=mass > 0.0)
        return float(np.maximum(second - explained, 0.0).sum())

    def partition(self, bounds: np.ndarray) -> _Partition:
        return _Partition(bounds=bounds, cost=self.cost(bounds))

    def solve(self, penalty: float) -> _Partition:
        """Return a partition that minimises cost + penalty x parts."""
        origins, queue, entered = self._work
        status = fill_penalised_path(
            self._mass, self._first, self._second, penalty, self._totals, origins, queue, entered
        )
        assert status == 0
        bounds = [origins.size - 1]
        while bounds[-1] > 0:
            bounds.append(int(origins[bounds[-1]]))
        return self.partition(np.array(bounds[::-1], dtype=np.int64))


def _sums_from(terms: np.ndarray, middle: int) -> np.ndarray:
    """Return running sums that are zero at `middle`: a segment's sum loses nothing to far-away terms."""
    left = -np.cumsum(terms[:middle][::-1])[::-1]
    return np.concatenate([left, [0.0], np.cumsum(terms[middle:])])


def _guess_penalty(cost: float, n_parts: int) -> float:
    """Penalty at which cost falls as 1 / parts^2, the high-resolution law of quantization."""
    return 2.0 * cost / n_parts


def _join_paths(few: np.ndarray, many: np.ndarray, n_parts: int) -> np.ndarray:
    """Combine two partitions that are optimal for one penalty into an optimal one of `n_parts` parts.

    Some segment of `many` lies inside the segment of `few` that is ``n_parts - len(few)`` places
    earlier. By the quadrangle inequality, going along `many` up to it and along `few` from there is
    again optimal (Aggarwal, Schieber, Tokuyama 1994, "Finding a minimum-weight k-link path in graphs
    with the concave Monge property", lemma on path swapping).
    """
    shift = n_parts - (few.size - 1)
    inside = (many[shift : shift + few.size - 1] >= few[:-1]) & (
        many[shift + 1 : shift + few.size] <= few[1:]
    )
    place = int(np.argmax(inside))
    assert inside[place]
    return np.concatenate([many[: place + shift + 1], few[place + 1 :]])


def partition_values_parametric(values: np.ndarray, weights: np.ndarray, n_parts: int) -> np.ndarray:
    """Split sorted values into `n_parts` parts of least weighted squared error.

    The least cost is convex in the number of parts. A penalty per part picks one corner of that curve in
    O(n log n); guesses by the high-resolution law and chords between known corners close in on
    `n_parts`, and where it lies between two corners, two solutions are joined. O(n) memory; about ten
    solutions whatever `n_parts` is.

    Parameters
    ----------
    values : ndarray of float64, shape (n,), strictly ascending
    weights : ndarray of float64, shape (n,), positive
    n_parts : int, 1 <= n_parts <= n

    Returns
    -------
    ndarray of int64, shape (n_parts + 1,)
    """
    solver = _Solver(values, weights)
    few = solver.partition(np.array([0, values.size], dtype=np.int64))
    many = solver.partition(np.arange(values.size + 1, dtype=np.int64))
    high, low = np.inf, 0.0
    even = np.linspace(0, values.size, n_parts + 1).astype(np.int64)
    penalty = _guess_penalty(solver.cost(even), n_parts)
    by_chord = False
    while few.n_parts < n_parts < many.n_parts:
        chord = max(few.cost - many.cost, 0.0) / (many.n_parts - few.n_parts)
        if by_chord or not low < penalty < high:
            by_chord, penalty = True, chord
        found = solver.solve(penalty)
        if found.n_parts == n_parts:
            return found.bounds
        if by_chord and not few.n_parts < found.n_parts < many.n_parts:
            return _join_paths(few.bounds, many.bounds, n_parts)
        if found.n_parts < n_parts:
            few, high = (found if found.n_parts > few.n_parts else few), min(high, penalty)
        else:
            many, low = (found if found.n_parts < many.n_parts else many), max(low, penalty)
        by_chord = not by_chord
        penalty *= (found.n_parts / n_parts) ** 3
    return (few if few.n_parts == n_parts else many).bounds
