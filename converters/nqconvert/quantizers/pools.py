"""Pools of tensors that share a codebook: what all codebook quantizers have in common."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nqconvert.kernels import nearest_entries
from nqformat.counting import count_numbers, looked_up
from nqformat.dtypes import DType, dtype_of
from nqformat.errors import ConversionError
from nqformat.tensor import Codebook, CodebookTensor, RawTensor, Tensor, round_codebook

from .distinct import bits_to_values, sorted_distinct, unsigned_bits, without_negative_zeros
from .lossless import exact_codebook_tensor, index_dtype, lossless_tensor
from .rate import estimate_bits
from .settings import QuantizerSettings

__all__ = [
    "PRUNED_SHARE",
    "Fit",
    "Member",
    "Pool",
    "common_units",
    "in_range",
    "mean_square",
    "quantize_pools",
    "sort_out",
    "with_used_entries",
]

PRUNED_SHARE = 0.1
"""Share of exact zeros from which a tensor counts as pruned."""

_TERNARY = 3
_MIN_TERNARY = 64
_LEAST_USES = 4
_HARM = 0.01
_JUDGED_VALUES = 1 << 18
_CHUNK = 1 << 18


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """Values that get one codebook.

    Attributes
    ----------
    values : ndarray of float32 or float64, one-dimensional
    weights : ndarray or None
        Sensitivities, as many as values, at least one above zero.
    dtype : DType
        Of the tensors.
    has_zero : bool
        Whether the values are pruned: zero is an entry of its own and stays exactly zero.
    energy : float
        Mean of weight x value^2. Over all pools if there are weights, so that one step or rate penalty means
        the same trade everywhere; else over this pool.
    """

    values: np.ndarray
    weights: np.ndarray | None
    dtype: DType
    has_zero: bool
    energy: float

    def clusters(self, settings: QuantizerSettings) -> int:
        """Most entries besides the zero; of 16 or 256 one is given up for it, to stay at 4 or 8 bits."""
        return (
            settings.clusters - 1 if self.has_zero and settings.clusters in (16, 256) else settings.clusters
        )

    def fitted(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Return values and weights that decide the entries: the nonzero ones if the pool is pruned."""
        if not self.has_zero:
            return self.values, self.weights
        kept = self.values != 0
        weights = None if self.weights is None else self.weights[kept]
        return self.values[kept], weights if weights is not None and weights.any() else None

    @property
    def unit_step(self) -> float:
        """The step that `step` of the settings counts in: the root of energy over mean weight."""
        mean_weight = 1.0 if self.weights is None else float(self.weights.mean(dtype=np.float64))
        return math.sqrt(self.energy / mean_weight)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A quantizer's answer for one pool.

    Attributes
    ----------
    centres : ndarray of float64
        Distinct, ascending; with zero among them if the pool has one.
    indices : ndarray of unsigned integers or None
        Centre of each value; None: the nearest one.
    """

    centres: np.ndarray
    indices: np.ndarray | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One tensor on its way to a codebook: its values as float32 or float64, and their weights if any."""

    name: str
    values: np.ndarray
    sensitivity: np.ndarray | None
    dtype: DType


def quantize_pools(
    weights: Mapping[str, np.ndarray],
    sensitivities: Mapping[str, np.ndarray] | None,
    settings: QuantizerSettings,
    fit: Callable[[Pool, QuantizerSettings], Fit],
) -> dict[str, Tensor]:
    """Quantize float tensors, those of a pool with one codebook, and keep what needs no quantizer.

    - Tensors of at most `clusters` distinct values, and always those of two or three (binary and ternary
      networks), are kept exactly (-0.0 becomes 0.0); so are integers and booleans. With one pool for all,
      tensors whose distinct values are used less than four times each join it instead.
    - Entries are rounded to the codebook dtype; equal and unused ones are dropped. Where float16 (or
      bfloat16) overflows or adds more than 1 % to the squared error, the codebook is float32. float16 and
      bfloat16 tensors have codebooks of their own dtype.
    - Tensors without sensitivities get the mean of the others'.

    Raises
    ------
    ConversionError
        If a weight is NaN or infinite, or sensitivities have another shape, are negative or not finite.
    """
    result, everything = sort_out(weights, sensitivities, settings)
    pools: dict[str | DType, list[Member]] = {}
    for member in everything:
        pools.setdefault(member.dtype if settings.scope == "global" else member.name, []).append(member)
    filling, energy = common_units(everything)
    for members in pools.values():
        pool = _pool_of(members, filling, energy, keep_zeros=settings.keep_zeros)
        made = with_used_entries(pool, fit(pool, settings), settings) if in_range(pool.values) else None
        for name in (member.name for member in members):
            result[name] = RawTensor.from_array(weights[name])
        if made is not None:
            result.update(_split(members, *made))
    return {name: result[name] for name in weights}


def sort_out(
    weights: Mapping[str, np.ndarray],
    sensitivities: Mapping[str, np.ndarray] | None,
    settings: QuantizerSettings,
) -> tuple[dict[str, Tensor], list[Member]]:
    """Return the tensors that need no quantizer, and the others with their values checked.

    Raises
    ------
    ConversionError
        As :func:`quantize_pools`.
    """
    _check_sensitivities(weights, sensitivities or {})
    result: dict[str, Tensor] = {}
    members: list[Member] = []
    for name, array in weights.items():
        dtype = dtype_of(array)
        if not dtype.is_float:
            result[name] = lossless_tensor(array)
            continue
        values = _finite_values(name, array, dtype)
        kept = _kept_exactly(array, max(settings.clusters, _TERNARY))
        if kept is not None and not (settings.scope == "global" and _gains_by_joining(kept, values)):
            result[name] = kept
            continue
        sensitivity = None if sensitivities is None else sensitivities.get(name)
        members.append(Member(name=name, values=values, sensitivity=sensitivity, dtype=dtype))
    return result, members


def common_units(members: Sequence[Member]) -> tuple[float | None, float | None]:
    """Return the means of sensitivity and of sensitivity x value^2; None where no sensitivity is known."""
    filling = _mean_sensitivity(members)
    return filling, None if filling is None else _mean_energy(members, filling)


def _check_sensitivities(weights: Mapping[str, np.ndarray], given: Mapping[str, np.ndarray]) -> None:
    for name, array in weights.items():
        if name not in given:
            continue
        if given[name].shape != array.shape:
            raise ConversionError(
                f"tensor {name!r} has shape {array.shape}, its sensitivities {given[name].shape}"
            )
        if given[name].size and not (np.isfinite(given[name]).all() and given[name].min() >= 0):
            raise ConversionError(f"sensitivities of tensor {name!r} must be finite and not negative")


def _finite_values(name: str, array: np.ndarray, dtype: DType) -> np.ndarray:
    values = bits_to_values(unsigned_bits(array), dtype)
    n_bad = int(values.size - np.count_nonzero(np.isfinite(values)))
    if n_bad:
        raise ConversionError(f"tensor {name!r}: {n_bad} of {values.size} weights are NaN or infinite")
    return values


def _kept_exactly(array: np.ndarray, most: int) -> Tensor | None:
    """Return an exact tensor if there are at most `most` distinct values, else None."""
    cleaned = without_negative_zeros(array)
    raw = RawTensor.from_array(cleaned)
    if cleaned.size < 2:
        return raw
    found = exact_codebook_tensor(cleaned, most)
    if found is None:
        return None
    n_entries = found.codebook.values.size
    if 1 < n_entries <= _TERNARY and cleaned.size >= _MIN_TERNARY:
        return found  # engines compute from codebooks, and raw planes could save a few bytes at best
    return found if n_entries > 1 and estimate_bits(found) < estimate_bits(raw) else raw


def _gains_by_joining(kept: Tensor, values: np.ndarray) -> bool:
    """Whether a tensor of few distinct values should share a codebook: its own would serve few weights."""
    n_distinct = sorted_distinct(values.reshape(-1)).size
    if n_distinct <= _TERNARY:
        return False
    return isinstance(kept, RawTensor) or int(np.count_nonzero(values)) < _LEAST_USES * n_distinct


def _mean_sensitivity(members: Sequence[Member]) -> float | None:
    """Return the mean of all sensitivities, or None if none is above zero."""
    given = [member.sensitivity for member in members if member.sensitivity is not None]
    total = sum(float(array.sum(dtype=np.float64)) for array in given)
    return total / sum(array.size for array in given) if total > 0 else None


def _mean_energy(members: Sequence[Member], filling: float) -> float:
    """Return the mean of sensitivity x value^2 over all members."""
    total = 0.0
    for member in members:
        flat = member.values.reshape(-1)
        weights = None if member.sensitivity is None else member.sensitivity.reshape(-1)
        total += _energy(flat, weights) * (filling if weights is None else 1.0)
    return total / sum(member.values.size for member in members)


def _energy(flat: np.ndarray, weights: np.ndarray | None) -> float:
    """Return the sum of weight x value^2."""
    total = 0.0
    for part in _chunks(flat.size):
        wide = flat[part].astype(np.float64)
        with np.errstate(over="ignore"):
            total += float(np.dot(wide if weights is None else wide * weights[part], wide))
    return total


def mean_square(values: np.ndarray) -> float:
    """Return the mean of the squared values."""
    return _energy(values, None) / values.size


def _chunks(size: int) -> Iterator[slice]:
    for start in range(0, size, _CHUNK):
        yield slice(start, start + _CHUNK)


def in_range(values: np.ndarray) -> bool:
    """Whether float32 can hold entries for the values."""
    return values.dtype == np.float32 or bool(np.abs(values).max() <= np.finfo(np.float32).max)


def _pool_of(
    members: Sequence[Member], filling: float | None, energy: float | None, *, keep_zeros: bool
) -> Pool:
    values = _joined([member.values.reshape(-1) for member in members])
    zero_share = 1.0 - np.count_nonzero(values) / values.size
    return Pool(
        values=values,
        weights=None if filling is None else _pooled_weights(members, filling),
        dtype=members[0].dtype,
        has_zero=keep_zeros and bool(zero_share >= PRUNED_SHARE),
        energy=mean_square(values) if energy is None else energy,
    )


def _split(
    members: Sequence[Member], codebook: Codebook, indices: np.ndarray
) -> Iterator[tuple[str, Tensor]]:
    """Yield each member's share of the indices."""
    start = 0
    for member in members:
        part = indices[start : start + member.values.size].reshape(member.values.shape)
        yield member.name, CodebookTensor(indices=part, codebook=codebook, dtype=member.dtype)
        start += member.values.size


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _pooled_weights(members: Sequence[Member], filling: float) -> np.ndarray | None:
    """Return the members' sensitivities in one array, or None if no weight would be above zero."""
    parts = [
        np.full(m.values.size, filling, dtype=np.float32)
        if m.sensitivity is None
        else m.sensitivity.reshape(-1)
        for m in members
    ]
    pooled = _joined(parts)
    return pooled if pooled.any() else None


def with_used_entries(
    pool: Pool, found: Fit, settings: QuantizerSettings
) -> tuple[Codebook, np.ndarray] | None:
    """Return a codebook of the rounded entries in use and the indices into it, or None."""
    rounding = _rounded_centres(pool, found, settings.codebook_dtype)
    if rounding is None:
        return None
    rounded, stored_as = rounding
    entries, place = np.unique(rounded, return_inverse=True)
    if found.indices is None:
        indices, place = nearest_entries(pool.values, entries), np.arange(entries.size)
    else:
        indices = found.indices
    counts = np.bincount(place, weights=count_numbers(indices, place.size), minlength=entries.size)
    used = np.flatnonzero(counts)
    rank = np.zeros(entries.size, dtype=index_dtype(used.size))
    rank[used] = np.arange(used.size)
    return Codebook(values=entries[used], stored_as=stored_as), looked_up(rank[place], indices)


def _rounded_centres(pool: Pool, found: Fit, wanted: DType) -> tuple[np.ndarray, DType] | None:
    """Round the centres to the first codebook dtype that does no harm; None if none is finite."""
    for stored_as in _codebook_dtypes(pool.dtype, wanted):
        rounded = round_codebook(_as_float32(found.centres), stored_as) + np.float32(0)
        if not np.isfinite(rounded).all():
            continue
        if stored_as is pool.dtype or not _harms(pool, found, rounded):
            return rounded, stored_as
    return None


def _as_float32(centres: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return centres.astype(np.float32)


def _codebook_dtypes(dtype: DType, wanted: DType) -> list[DType]:
    """Return codebook dtypes in the order of trial; 16-bit tensors can use no other than their own."""
    if dtype in (DType.FLOAT16, DType.BFLOAT16):
        return [dtype]
    return [wanted] if wanted is DType.FLOAT32 else [wanted, DType.FLOAT32]


def _harms(pool: Pool, found: Fit, rounded: np.ndarray) -> bool:
    """Whether rounded centres add more than 1 % to the squared error, judged on at most a million values."""
    step = max(1, pool.values.size // _JUDGED_VALUES)
    sample = pool.values[::step].astype(np.float64)
    mass = None if pool.weights is None else pool.weights[::step]
    if mass is not None and not mass.any():
        mass = None
    indices = None if found.indices is None else found.indices[::step]
    unit = float(np.abs(sample).max()) or 1.0

    def error(entries: np.ndarray) -> float:
        nearest = nearest_entries(sample, np.unique(entries)) if indices is None else indices
        chosen = np.unique(entries)[nearest] if indices is None else entries[nearest]
        return float(np.average(np.square((sample - chosen) / unit), weights=mass))

    return error(rounded.astype(np.float64)) > error(found.centres) * (1.0 + _HARM)
