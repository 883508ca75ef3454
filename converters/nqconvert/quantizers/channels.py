"""One codebook for each channel: every index of the first axis of several is a pool of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from nqformat.dtypes import DType
from nqformat.tensor import Codebook, GroupedCodebook, GroupedTensor, RawTensor, Tensor

from .lossless import index_dtype
from .pools import (
    PRUNED_SHARE,
    Fit,
    Member,
    Pool,
    common_units,
    in_range,
    mean_square,
    quantize_pools,
    sort_out,
    with_used_entries,
)
from .settings import QuantizerSettings

__all__ = ["Rows", "channel_axis", "quantize_scoped"]

FitPool = Callable[[Pool, QuantizerSettings], Fit]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """A tensor as one pool for each channel.

    Attributes
    ----------
    shape : tuple of int
    dtype : DType
    pools : tuple of Pool
    """

    shape: tuple[int, ...]
    dtype: DType
    pools: tuple[Pool, ...]


FitRows = Callable[[Rows, QuantizerSettings], Tensor | None]


def quantize_scoped(
    weights: Mapping[str, np.ndarray],
    sensitivities: Mapping[str, np.ndarray] | None,
    settings: QuantizerSettings,
    fit: FitPool,
    fit_rows: FitRows | None = None,
) -> dict[str, Tensor]:
    """Quantize float tensors in pools of the scope that the settings name.

    Parameters
    ----------
    fit : function
        Entries for a pool.
    fit_rows : function or None
        Makes a tensor of scope ``channel``, or None where that cannot be; by default with the entries that
        `fit` finds for each row.

    Raises
    ------
    ConversionError
        As :func:`~nqconvert.quantizers.pools.quantize_pools`.
    """
    if settings.scope != "channel":
        return quantize_pools(weights, sensitivities, settings, fit)
    result, members = sort_out(weights, sensitivities, settings)
    filling, energy = common_units(members)
    make = fit_rows or partial(_row_codebooks, fit)
    for member in members:
        made = None
        if member.values.ndim and in_range(member.values):
            made = make(_rows_of(member, filling, energy, keep_zeros=settings.keep_zeros), settings)
        result[member.name] = RawTensor.from_array(weights[member.name]) if made is None else made
    return {name: result[name] for name in weights}


def channel_axis(shape: tuple[int, ...]) -> int:
    """Return the axis of the channels: the first of several indices, as exporters put axes of one in front.

    Examples
    --------
    >>> channel_axis((64, 3, 3, 3)), channel_axis((1, 64, 12))
    (0, 1)
    """
    return next((axis for axis, size in enumerate(shape) if size != 1), 0)


def _rows_of(member: Member, filling: float | None, energy: float | None, *, keep_zeros: bool) -> Rows:
    values = member.values.reshape(member.values.shape[channel_axis(member.values.shape)], -1)
    weights = None
    if filling is not None:
        full = np.full(values.shape, filling, dtype=np.float32)
        weights = full if member.sensitivity is None else member.sensitivity.reshape(values.shape)
    has_zero = keep_zeros and bool(np.count_nonzero(values) <= (1 - PRUNED_SHARE) * values.size)
    pools = tuple(
        Pool(
            values=row,
            weights=None if weights is None or not weights[i].any() else weights[i],
            dtype=member.dtype,
            has_zero=has_zero,
            energy=mean_square(row) if energy is None else energy,
        )
        for i, row in enumerate(values)
    )
    return Rows(shape=member.values.shape, dtype=member.dtype, pools=pools)


def _row_codebooks(fit: FitPool, rows: Rows, settings: QuantizerSettings) -> Tensor | None:
    """Return a tensor with a codebook for each row; None if an entry would be infinite."""
    made = [with_used_entries(pool, _fit_row(fit, pool, settings), settings) for pool in rows.pools]
    found = [one for one in made if one is not None]
    if len(found) < len(made):
        return None
    books: list[Codebook] = [codebook for codebook, _ in found]
    n_entries = max(book.values.size for book in books)
    values = np.stack([np.pad(book.values, (0, n_entries - book.values.size), "edge") for book in books])
    stored_as = books[0].stored_as if len({book.stored_as for book in books}) == 1 else DType.FLOAT32
    indices = np.stack([own for _, own in found]).astype(index_dtype(n_entries))
    return GroupedTensor(
        indices=indices.reshape(-1),
        shape=rows.shape,
        codebook=GroupedCodebook(values=values[:, :, None], stored_as=stored_as),
        span=indices.shape[1],
        dtype=rows.dtype,
    )


def _fit_row(fit: FitPool, pool: Pool, settings: QuantizerSettings) -> Fit:
    """Fit a row, or take its values as they are if they are few."""
    distinct = np.unique(pool.values).astype(np.float64)
    if np.count_nonzero(distinct) <= min(pool.clusters(settings), _FEW):
        return Fit(centres=np.union1d(distinct, [0.0]) if pool.has_zero else distinct)
    return fit(pool, settings)


_FEW = 2
"""Distinct values of a row, besides zero, that are entries without being fitted."""
