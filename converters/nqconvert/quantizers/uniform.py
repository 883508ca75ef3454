"""Uniform grids with the mean of each cell as its entry."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from nqformat.counting import count_numbers, looked_up
from nqformat.dtypes import DType
from nqformat.tensor import AffineTensor, Scales, Tensor, are_scales, round_codebook

from .channels import Rows, channel_axis, quantize_scoped
from .clustering import MAX_EXACT_VALUES, N_BINS, binned_values
from .distinct import sorted_distinct
from .pools import Fit, Pool
from .settings import MAX_CLUSTERS, QuantizerSettings

__all__ = ["cell_means", "grid_cells", "least_step", "quantize_uniform"]

_BISECTIONS = 40
_WIDER = 1.01


def quantize_uniform(
    weights: Mapping[str, np.ndarray],
    sensitivities: Mapping[str, np.ndarray] | None = None,
    settings: QuantizerSettings | None = None,
) -> dict[str, Tensor]:
    """Quantize to a uniform grid with a cell around zero (method ``uniform``).

    Cell j holds the values whose ``value / step`` rounds to j; its entry is their mean, weighted with the
    sensitivities if there are any. The cell around zero stays zero. `step` counts in the root mean square of
    the pool; with sensitivities in units that make one step cost all pools the same per bit (step^2 times the
    mean sensitivity is alike). Without `step`, the smallest step that fills at most `clusters` cells. With
    scope ``channel`` each row has a step of its own, rounded to bfloat16, and entries are multiples of it,
    not means.

    Raises
    ------
    ConversionError
        If a weight or sensitivity is not allowed; names the tensor.

    Source : Choi, El-Khamy, Lee 2017, section 5.3 and appendix A.1 (Gish, Pierce 1968)

    Examples
    --------
    >>> import numpy as np
    >>> values = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    >>> tensor = quantize_uniform({"w": values}, None, QuantizerSettings(step=0.5))["w"]
    >>> bool(abs(tensor.decode() - values).max() < 0.5)
    True
    """
    return quantize_scoped(weights, sensitivities, settings or QuantizerSettings(), _fit, _channel_steps)


def _step(pool: Pool, settings: QuantizerSettings) -> float:
    """Return the step of a pool that is not all zero."""
    values, _ = pool.fitted()
    limit = max(float(np.abs(values).max()) / (MAX_CLUSTERS / 2 - 1), 1e-300)
    if settings.step is None:
        return max(least_step(values, pool.clusters(settings), has_zero=pool.has_zero), limit)
    return max(settings.step * pool.unit_step, limit)


def _channel_steps(rows: Rows, settings: QuantizerSettings) -> Tensor | None:
    """Return integers with a bfloat16 step for each row; None if a step is beyond float32."""
    steps = np.array([_step(pool, settings) if pool.values.any() else 0.0 for pool in rows.pools])
    steps[steps == 0] = np.median(steps[steps > 0])
    with np.errstate(over="ignore"):
        stored = round_codebook(steps.astype(np.float32), DType.BFLOAT16)
    if not are_scales(stored):
        return None
    values = np.stack([pool.values for pool in rows.pools])
    k = np.rint(values / stored[:, None].astype(np.float64)).astype(np.int32).reshape(rows.shape)
    scales = Scales.along_axis(stored, rows.shape, channel_axis(rows.shape), DType.BFLOAT16)
    return AffineTensor(k=k, step=1.0, dtype=rows.dtype, scales=scales)


def _fit(pool: Pool, settings: QuantizerSettings) -> Fit:
    cells, lowest = grid_cells(pool.values, _step(pool, settings))
    return cell_means(pool.values, pool.weights, cells, zero_cell=-lowest)


def grid_cells(values: np.ndarray, step: float) -> tuple[np.ndarray, int]:
    """Return ``rint(value / step) - lowest`` as uint16 and `lowest`, the least of the rounded numbers."""
    low, high = (int(np.rint(float(end) / step)) for end in (values.min(), values.max()))
    cells = np.empty(values.size, dtype=np.uint16)
    for start in range(0, values.size, MAX_EXACT_VALUES):
        part = slice(start, start + MAX_EXACT_VALUES)
        cells[part] = np.rint(values[part].astype(np.float64) / step) - low
    assert high - low < 1 << 16
    return cells, low


def cell_means(values: np.ndarray, weights: np.ndarray | None, cells: np.ndarray, *, zero_cell: int) -> Fit:
    """Return the (weighted) means of the cells in use; the mean of `zero_cell` is zero.

    Parameters
    ----------
    cells : ndarray of uint16, shape (n,)
        Cells of ascending values.
    zero_cell : int
        May lie outside.
    """
    counts = count_numbers(cells)
    n_cells = counts.size
    total, moment, plain = np.zeros(n_cells), np.zeros(n_cells), np.zeros(n_cells)
    for start in range(0, values.size, MAX_EXACT_VALUES):
        part = slice(start, start + MAX_EXACT_VALUES)
        wide, cell = values[part].astype(np.float64), cells[part]
        plain += np.bincount(cell, weights=wide, minlength=n_cells)
        if weights is not None:
            mass = weights[part].astype(np.float64)
            total += np.bincount(cell, weights=mass, minlength=n_cells)
            moment += np.bincount(cell, weights=mass * wide, minlength=n_cells)
    used = np.flatnonzero(counts)
    means = plain[used] / counts[used]
    if weights is not None:
        heavy = total[used] > 0
        means[heavy] = moment[used][heavy] / total[used][heavy]
    means[used == zero_cell] = 0.0
    rank = np.zeros(n_cells, dtype=np.uint16)
    rank[used] = np.arange(used.size)
    return Fit(centres=means, indices=looked_up(rank, cells))


def least_step(values: np.ndarray, most: int, *, has_zero: bool) -> float:
    """Return about the smallest step with which at most `most` cells of a grid are in use.

    Parameters
    ----------
    values : ndarray, not all zero
    most : int
    has_zero : bool
        Leave the cell around zero out of the count.
    """
    points = (
        binned_values(values, None, N_BINS)[0] if values.size > MAX_EXACT_VALUES else sorted_distinct(values)
    )
    points = points.astype(np.float64)
    largest = float(np.abs(points).max())

    def n_used(step: float) -> int:
        cells = np.rint(points / step)
        starts = np.append(True, cells[1:] != cells[:-1])
        return int(np.count_nonzero(starts & (cells != 0) if has_zero else starts))

    low, high = largest / (MAX_CLUSTERS / 2 - 1), 4.0 * largest
    if n_used(low) <= most:
        return low
    for _ in range(_BISECTIONS):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if n_used(middle) <= most else (middle, high)
    if values.size <= MAX_EXACT_VALUES:
        return high
    while _n_cells(values, high, has_zero=has_zero) > most:
        high *= _WIDER  # bins do not show every value of the tails
    return high


def _n_cells(values: np.ndarray, step: float, *, has_zero: bool) -> int:
    """Count the cells in use, the one around zero only if zeros have no entry of their own."""
    cells, lowest = grid_cells(values, step)
    used = np.flatnonzero(count_numbers(cells))
    return int(np.count_nonzero(used != -lowest)) if has_zero else used.size
