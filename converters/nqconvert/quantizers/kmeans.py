"""K-means codebooks, exact in one dimension, for each tensor or for all together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nqformat.dtypes import DType, dtype_of
from nqformat.errors import ConversionError
from nqformat.tensor import Codebook, CodebookTensor, RawTensor, Tensor, round_codebook

from .clustering import cluster_1d
from .distinct import bits_to_values, unsigned_bits, without_negative_zeros
from .lossless import exact_codebook_tensor, index_dtype, lossless_tensor
from .rate import estimate_bits
from .settings import QuantizerSettings

__all__ = ["cluster_1d", "quantize_hessian_kmeans", "quantize_kmeans"]

PRUNED_SHARE = 0.1
"""Share of exact zeros from which a tensor counts as pruned."""

_HARM = 0.01
_JUDGED_VALUES = 1 << 20


def quantize_kmeans(
    weights: Mapping[str, np.ndarray],
    sensitivities: Mapping[str, np.ndarray] | None = None,
    settings: QuantizerSettings | None = None,
) -> dict[str, Tensor]:
    """Quantize float tensors to the k-means optimum of their values (method ``kmeans``).

    - Pruned tensors (at least 10 % zeros, `keep_zeros`) have their centres fitted to the nonzeros and
      zero as an entry besides; of 16 or 256 clusters one is given up for it, so that an index stays at
      four or eight bits.
    - Centres are rounded to the codebook dtype before each value goes to the nearest (the lower one of
      two); entries that become equal or stay unused are dropped. Where float16 (or bfloat16) overflows
      or adds more than 1 % to the squared error, the codebook is float32. float16 and bfloat16 tensors
      have codebooks of their own dtype.
    - Tensors of at most `clusters` distinct values are kept exactly (-0.0 becomes 0.0), as a codebook or
      raw, whichever is smaller; so are float64 tensors beyond the range of float32, integers and
      booleans.

    Parameters
    ----------
    weights : mapping of name to ndarray
    sensitivities : mapping or None
        Not used; see :func:`quantize_hessian_kmeans`.
    settings : QuantizerSettings or None

    Raises
    ------
    ConversionError
        If a weight is NaN or infinite; names the tensor.

    Source : Han, Mao, Dally 2016, section 3 (with the global optimum in place of Lloyd's iteration)

    Examples
    --------
    >>> import numpy as np
    >>> values = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    >>> tensor = quantize_kmeans({"w": values}, None, QuantizerSettings(clusters=16))["w"]
    >>> tensor.indices.dtype.name, tensor.codebook.values.size
    ('uint8', 16)
    """
    return _quantize(weights, None, settings or QuantizerSettings())


def quantize_hessian_kmeans(
    weights: Mapping[str, np.ndarray],
    sensitivities: Mapping[str, np.ndarray] | None = None,
    settings: QuantizerSettings | None = None,
) -> dict[str, Tensor]:
    """Quantize with squared errors weighted by `sensitivities` (method ``hessian-kmeans``).

    All else is as in :func:`quantize_kmeans`.

    Tensors without sensitivities, or with none above zero, are clustered unweighted.

    Raises
    ------
    ConversionError
        If a weight is NaN or infinite, or sensitivities have another shape, are negative or not finite.

    Source : Choi, El-Khamy, Lee 2017, eq. (9)
    """
    given = sensitivities or {}
    for name, array in weights.items():
        if name in given:
            _check_sensitivities(name, array, given[name])
    return _quantize(weights, given, settings or QuantizerSettings())


def _check_sensitivities(name: str, array: np.ndarray, sensitivity: np.ndarray) -> None:
    if sensitivity.shape != array.shape:
        raise ConversionError(
            f"tensor {name!r} has shape {array.shape}, its sensitivities {sensitivity.shape}"
        )
    if not np.isfinite(sensitivity).all() or (sensitivity < 0).any():
        raise ConversionError(f"sensitivities of tensor {name!r} must be finite and not negative")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Member:
    """One tensor on its way to a codebook: its values as float32 or float64, and their weights if any."""

    name: str
    values: np.ndarray
    sensitivity: np.ndarray | None
    dtype: DType


def _quantize(
    weights: Mapping[str, np.ndarray],
    sensitivities: Mapping[str, np.ndarray] | None,
    settings: QuantizerSettings,
) -> dict[str, Tensor]:
    result: dict[str, Tensor] = {}
    pools: dict[str | DType, list[_Member]] = {}
    for name, array in weights.items():
        dtype = dtype_of(array)
        if not dtype.is_float:
            result[name] = lossless_tensor(array)
            continue
        values = _finite_values(name, array, dtype)
        kept = _kept_exactly(array, settings.clusters)
        if kept is not None:
            result[name] = kept
            continue
        sensitivity = None if sensitivities is None else sensitivities.get(name)
        member = _Member(name=name, values=values, sensitivity=sensitivity, dtype=dtype)
        pools.setdefault(dtype if settings.scope == "global" else name, []).append(member)
    for members in pools.values():
        result.update(_quantize_pool(members, settings, weights))
    return {name: result[name] for name in weights}


def _finite_values(name: str, array: np.ndarray, dtype: DType) -> np.ndarray:
    values = bits_to_values(unsigned_bits(array), dtype)
    n_bad = int(values.size - np.count_nonzero(np.isfinite(values)))
    if n_bad:
        raise ConversionError(f"tensor {name!r}: {n_bad} of {values.size} weights are NaN or infinite")
    return values


def _kept_exactly(array: np.ndarray, clusters: int) -> Tensor | None:
    """Return an exact tensor if there are at most `clusters` distinct values, else None."""
    cleaned = without_negative_zeros(array)
    raw = RawTensor.from_array(cleaned)
    if cleaned.size < 2:
        return raw
    found = exact_codebook_tensor(cleaned, clusters)
    if found is None:
        return None
    return found if found.codebook.values.size > 1 and estimate_bits(found) < estimate_bits(raw) else raw


def _quantize_pool(
    members: Sequence[_Member], settings: QuantizerSettings, weights: Mapping[str, np.ndarray]
) -> dict[str, Tensor]:
    """Quantize tensors that share one codebook."""
    values = np.concatenate([member.values.reshape(-1) for member in members])
    zero_share = 1.0 - np.count_nonzero(values) / values.size
    has_zero = settings.keep_zeros and bool(zero_share >= PRUNED_SHARE)
    codebook = _fit_codebook(values, _pooled_weights(members), members[0].dtype, settings, has_zero)
    if codebook is None:
        return {member.name: RawTensor.from_array(weights[member.name]) for member in members}
    indices = _nearest(values, codebook.values)
    used = np.flatnonzero(np.bincount(indices, minlength=codebook.values.size))
    codebook = Codebook(values=codebook.values[used], stored_as=codebook.stored_as)
    rank = np.zeros(int(used[-1]) + 1, dtype=index_dtype(used.size))
    rank[used] = np.arange(used.size)
    result: dict[str, Tensor] = {}
    start = 0
    for member in members:
        part = rank[indices[start : start + member.values.size]].reshape(member.values.shape)
        result[member.name] = CodebookTensor(indices=part, codebook=codebook, dtype=member.dtype)
        start += member.values.size
    return result


def _pooled_weights(members: Sequence[_Member]) -> np.ndarray | None:
    """Return the members' sensitivities in one array, or None if no weight would be above zero."""
    if all(member.sensitivity is None for member in members):
        return None
    parts = [np.ones(m.values.size) if m.sensitivity is None else m.sensitivity.reshape(-1) for m in members]
    pooled: np.ndarray = np.concatenate(parts).astype(np.float64)
    return pooled if pooled.any() else None


def _fit_codebook(
    values: np.ndarray, weights: np.ndarray | None, dtype: DType, settings: QuantizerSettings, has_zero: bool
) -> Codebook | None:
    """Cluster flat values; round the centres to the first codebook dtype that does no harm, if one does."""
    fitted = values != 0 if has_zero else slice(None)
    clusters = settings.clusters - 1 if has_zero and settings.clusters in (16, 256) else settings.clusters
    mass = None if weights is None else weights[fitted]
    if mass is not None and not mass.any():
        mass = None
    centres = cluster_1d(values[fitted], mass, k=clusters)
    if has_zero:
        centres = np.union1d(centres, [0.0])
    for stored_as in _codebook_dtypes(dtype, settings.codebook_dtype):
        rounded = np.unique(round_codebook(_as_float32(centres), stored_as) + np.float32(0))
        if not np.isfinite(rounded).all():
            continue
        if stored_as is dtype or not _harms(values, weights, centres, rounded):
            return Codebook(values=rounded, stored_as=stored_as)
    return None


def _as_float32(centres: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return centres.astype(np.float32)


def _codebook_dtypes(dtype: DType, wanted: DType) -> list[DType]:
    """Return codebook dtypes in the order of trial; 16-bit tensors can use no other than their own."""
    if dtype in (DType.FLOAT16, DType.BFLOAT16):
        return [dtype]
    return [wanted] if wanted is DType.FLOAT32 else [wanted, DType.FLOAT32]


def _nearest(values: np.ndarray, entries: np.ndarray) -> np.ndarray:
    """Return the index of the nearest of ascending `entries`; of two equally near, the lower."""
    wide = entries.astype(np.float64)
    return np.searchsorted((wide[:-1] + wide[1:]) / 2, values, side="left")


def _harms(values: np.ndarray, weights: np.ndarray | None, centres: np.ndarray, rounded: np.ndarray) -> bool:
    """Whether rounded centres add more than 1 % to the squared error, judged on at most a million values."""
    step = max(1, values.size // _JUDGED_VALUES)
    sample = values[::step].astype(np.float64)
    mass = None if weights is None else weights[::step]
    unit = float(np.abs(sample).max()) or 1.0
    before, after = (
        np.average(np.square((sample - entries[_nearest(sample, entries)]) / unit), weights=mass)
        for entries in (np.sort(centres), rounded.astype(np.float64))
    )
    return bool(after > before * (1.0 + _HARM))
