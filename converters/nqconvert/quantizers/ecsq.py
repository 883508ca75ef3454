"""Entropy-constrained scalar quantization by alternating assignment, centres and code lengths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from nqconvert.kernels import cheapest_entries
from nqformat.tensor import Tensor

from .channels import quantize_scoped
from .clustering import MAX_EXACT_VALUES, cluster_1d, median_and_spread
from .pools import Fit, Pool
from .settings import MAX_CLUSTERS, QuantizerSettings
from .uniform import cell_means, grid_cells, least_step

__all__ = ["DEFAULT_RATE_PENALTY", "Cells", "Iteration", "iterate_ecsq", "quantize_ecsq"]

DEFAULT_RATE_PENALTY = 1e-3
_MAX_ITERATIONS = 200
_TOLERANCE = 1e-6
_VALUE_BINS = 1 << 12
_PLAIN_VALUE_BINS = 1 << 14
_WEIGHT_LEVELS = 1 << 4
_MAX_CELLS = 1 << 16


def quantize_ecsq(
    weights: Mapping[str, np.ndarray],
    sensitivities: Mapping[str, np.ndarray] | None = None,
    settings: QuantizerSettings | None = None,
) -> dict[str, Tensor]:
    """Minimise squared error plus code length (method ``ecsq``).

    ``J = mean h_i (w_i - c(i))^2 + rate_penalty E mean length(c(i))`` with ``length = -log2(share)`` and E
    the mean of ``h w^2``: the penalty is a share of the signal for one bit, the same trade in every pool.
    Starts from `clusters` cells of a uniform grid and from as many centres of weighted k-means, and takes
    what ends lower; entries that no weight wants any more go, the one that starts around zero stays zero.
    Zeros of a pruned pool stay zero and count for the code lengths, so that every other entry pays for its
    position too, and small weights may join them. Pools of more than 2**16 values are iterated on cells of
    like value and sensitivity, and every single weight gets its cheapest entry at the end.

    Raises
    ------
    ConversionError
        If a weight or sensitivity is not allowed; names the tensor.

    Source : Choi, El-Khamy, Lee 2017, section 5.4 and appendix A.2; Chou, Lookabaugh, Gray 1989,
    "Entropy-constrained vector quantization"

    Examples
    --------
    >>> import numpy as np
    >>> values = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    >>> sizes = [
    ...     quantize_ecsq({"w": values}, None, QuantizerSettings(rate_penalty=p))["w"].codebook.values.size
    ...     for p in (1e-4, 1e-2)
    ... ]
    >>> sizes[0] > sizes[1]
    True
    """
    return quantize_scoped(weights, sensitivities, settings or QuantizerSettings(), _fit)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cells:
    """Groups of values that are assigned together.

    Attributes
    ----------
    points : ndarray of float64, shape (n,)
        Weighted means.
    masses : ndarray of float64, shape (n,)
        Sums of sensitivities.
    counts : ndarray of float64, shape (n,)
        Numbers of values, at least one.
    """

    points: np.ndarray
    masses: np.ndarray
    counts: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class Iteration:
    """Where the iteration ended.

    Attributes
    ----------
    centres : ndarray of float64, ascending
    prices : ndarray of float64
        Penalty times code length of each centre.
    objectives : tuple of float
        After each round; never rising.
    """

    centres: np.ndarray
    prices: np.ndarray
    objectives: tuple[float, ...]


def _fit(pool: Pool, settings: QuantizerSettings) -> Fit:
    values, weights = pool.fitted()
    if not values.any():
        return Fit(centres=np.zeros(1))
    penalty = DEFAULT_RATE_PENALTY if settings.rate_penalty is None else settings.rate_penalty
    cells, n_zeros = _cells_of(values, weights), pool.values.size - values.size
    runs = [
        iterate_ecsq(cells, start, penalty * pool.energy, n_zeros=n_zeros)
        for start in _starts(values, weights, pool.clusters(settings), has_zero=pool.has_zero)
    ]
    found = min(runs, key=lambda run: run.objectives[-1])
    indices = np.empty(values.size, dtype=np.uint16)
    for begin in range(0, values.size, MAX_EXACT_VALUES):
        part = slice(begin, begin + MAX_EXACT_VALUES)
        wide = values[part].astype(np.float64)
        mass = np.ones(wide.size) if weights is None else weights[part].astype(np.float64)
        indices[part] = cheapest_entries(wide, mass, np.ones(wide.size), found.centres, found.prices)
    zero = np.flatnonzero(found.centres == 0)
    fit = cell_means(values, weights, indices, zero_cell=int(zero[0]) if zero.size else -1)
    return _with_zero(pool, fit) if pool.has_zero else fit


def _starts(
    values: np.ndarray, weights: np.ndarray | None, k: int, *, has_zero: bool
) -> Iterator[np.ndarray]:
    """Yield the means of `k` cells of a uniform grid, and `k` centres of k-means; zero is among either.

    A grid wide enough for the largest value has few cells, or one, for the layers of small values in a pool;
    k-means has few centres where values are far apart.
    """
    limit = float(np.abs(values).max()) / (MAX_CLUSTERS / 2 - 1)
    cells, lowest = grid_cells(values, max(least_step(values, k, has_zero=has_zero), limit))
    grid = cell_means(values, weights, cells, zero_cell=-lowest).centres
    yield np.union1d(grid, [0.0]) if has_zero else grid
    del cells
    centres = cluster_1d(values, weights, k=k)
    if has_zero:
        yield np.union1d(centres, [0.0])
        return
    if centres[0] < 0 < centres[-1]:
        centres[np.argmin(np.abs(centres))] = 0.0
    yield centres


def _with_zero(pool: Pool, fit: Fit) -> Fit:
    """Add the zero of a pruned pool to a fit of its nonzero values."""
    assert fit.indices is not None
    centres = np.union1d(fit.centres, [0.0])
    indices = np.full(pool.values.size, np.searchsorted(centres, 0.0), dtype=np.uint16)
    indices[pool.values != 0] = np.searchsorted(centres, fit.centres).astype(np.uint16)[fit.indices]
    return Fit(centres=centres, indices=indices)


def _cells_of(values: np.ndarray, weights: np.ndarray | None) -> Cells:
    """Group values: each its own cell if they are few, else by value and order of magnitude of the weight.

    Cells are narrow about the median and wider in the tails, as those of ``cluster_1d``.
    """
    if values.size <= _MAX_CELLS:
        points = values.astype(np.float64)
        masses = np.ones(points.size) if weights is None else weights.astype(np.float64)
        return Cells(points=points, masses=masses, counts=np.ones(points.size))
    n_levels = 1 if weights is None else _WEIGHT_LEVELS
    n_bins = _PLAIN_VALUE_BINS if weights is None else _VALUE_BINS
    scale = median_and_spread(values)
    low, high = np.arcsinh((np.array([values.min(), values.max()], dtype=np.float64) - scale[0]) / scale[1])
    edges = None if weights is None else _weight_edges(weights, n_levels)
    counts, masses, moments, sums = (np.zeros(n_bins * n_levels) for _ in range(4))
    for begin in range(0, values.size, MAX_EXACT_VALUES):
        part = slice(begin, begin + MAX_EXACT_VALUES)
        wide = values[part].astype(np.float64)
        place = (np.arcsinh((wide - scale[0]) / scale[1]) - low) * (n_bins / max(high - low, 1e-300))
        place = np.clip(place, 0, n_bins - 1).astype(np.int64)
        mass = np.ones(wide.size)
        if weights is not None and edges is not None:
            mass = weights[part].astype(np.float64)
            place += n_bins * np.searchsorted(edges, weights[part])
        counts += np.bincount(place, minlength=counts.size)
        masses += np.bincount(place, weights=mass, minlength=counts.size)
        moments += np.bincount(place, weights=mass * wide, minlength=counts.size)
        sums += np.bincount(place, weights=wide, minlength=counts.size)
    used = counts > 0
    counts, masses, moments, sums = counts[used], masses[used], moments[used], sums[used]
    points = np.where(masses > 0, moments / np.where(masses > 0, masses, 1.0), sums / counts)
    order = np.argsort(points, kind="stable")
    return Cells(points=points[order], masses=masses[order], counts=counts[order])


def _weight_edges(weights: np.ndarray, n_levels: int) -> np.ndarray:
    """Return inner edges between levels of weight, each with a like number of weights."""
    sample = weights[:: max(1, weights.size // MAX_EXACT_VALUES)]
    edges: np.ndarray = np.quantile(sample, np.linspace(0, 1, n_levels + 1)[1:-1])
    return edges.astype(weights.dtype)


def iterate_ecsq(cells: Cells, centres: np.ndarray, penalty: float, *, n_zeros: int = 0) -> Iteration:
    """Alternate between assignment, means and code lengths until the objective stands still.

    Parameters
    ----------
    cells : Cells
    centres : ndarray of float64, ascending, distinct
        To start from; fewer may be left. One that is exactly zero stays so.
    penalty : float
        Of one bit, in units of mass x distance^2.
    n_zeros : int
        Further values that belong to the zero among the centres and stay there.

    Returns
    -------
    Iteration
    """
    total = float(cells.counts.sum()) + n_zeros
    prices = np.zeros(centres.size)
    objectives: list[float] = []
    for _ in range(_MAX_ITERATIONS):
        indices = cheapest_entries(cells.points, cells.masses, cells.counts, centres, prices)
        counts = np.bincount(indices, weights=cells.counts, minlength=centres.size)
        masses = np.bincount(indices, weights=cells.masses, minlength=centres.size)
        moments = np.bincount(indices, weights=cells.masses * cells.points, minlength=centres.size)
        moved = np.where(masses > 0, moments / np.where(masses > 0, masses, 1.0), centres)
        moved[centres == 0] = 0.0
        counts[centres == 0] += n_zeros
        errors = cells.masses * np.square(cells.points - moved[indices])
        used = counts > 0
        shares = counts[used] / total
        lengths = -np.log2(shares)
        objective = (float(errors.sum()) + penalty * float((counts[used] * lengths).sum())) / total
        centres, prices = _ascending(moved[used], penalty * lengths)
        done = bool(objectives) and objectives[-1] - objective <= _TOLERANCE * objective
        objectives.append(objective)
        if done:
            break
    return Iteration(centres=centres, prices=prices, objectives=tuple(objectives))


def _ascending(centres: np.ndarray, prices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(centres, kind="stable")
    return centres[order], prices[order]
