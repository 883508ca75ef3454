"""Vector and product quantization."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from nqformat.dtypes import DType
from nqformat.tensor import GroupedCodebook, GroupedTensor, RawTensor, Tensor, round_codebook

from .channels import channel_axis
from .lossless import index_dtype
from .pools import Member, in_range, sort_out
from .settings import QuantizerSettings
from .vectors import cluster_vectors, nearest_vectors

__all__ = ["quantize_vq"]

_HARM = 0.01
_JUDGED_UNITS = 1 << 17
_AT_ONCE = 1 << 16


def quantize_vq(
    weights: Mapping[str, np.ndarray],
    sensitivities: Mapping[str, np.ndarray] | None = None,
    settings: QuantizerSettings | None = None,
) -> dict[str, Tensor]:
    """Quantize units of `width` consecutive elements to the entries of a codebook (method ``vq``).

    - Each tensor has `clusters` entries, found by k-means of its units. With `product`, each place of a unit
      in a row has as many (product quantization), where rows (of a channel each) are cut evenly.
    - With sensitivities, squared errors are weighted. Zeros of a pruned tensor stay zero only where a whole
      unit is.
    - Entries are rounded to the codebook dtype, or kept as float32 where that adds more than 1 % to the
      error.
    - Tensors of at most `clusters` distinct values, and always those of two or three, are kept exactly.

    Raises
    ------
    ConversionError
        If a weight or sensitivity is not allowed; names the tensor.

    Source : Gong, Liu, Yang, Bourdev 2014, "Compressing deep convolutional networks using vector
    quantization", section 3 (k-means and product quantization)

    Examples
    --------
    >>> values = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    >>> tensor = quantize_vq({"w": values}, None, QuantizerSettings(clusters=16, width=2))["w"]
    >>> tensor.codebook.values.shape, tensor.indices.size
    ((1, 16, 2), 2048)
    """
    settings = settings or QuantizerSettings()
    result, members = sort_out(weights, sensitivities, settings)
    for member in members:
        made = _quantized(member, settings) if in_range(member.values) else None
        result[member.name] = RawTensor.from_array(weights[member.name]) if made is None else made
    return {name: result[name] for name in weights}


def _quantized(member: Member, settings: QuantizerSettings) -> Tensor | None:
    """Return the tensor, or None if an entry would be infinite."""
    width = min(settings.width, member.values.size)
    units = _units(member.values, width)
    mass = None if member.sensitivity is None else _units(member.sensitivity, width)
    mass = mass if mass is not None and mass.any() else None
    groups = _places(member.values.shape, width) if settings.product else 1
    rng = np.random.default_rng(settings.seed)
    chosen = []
    for group in range(groups):
        own = slice(group, None, groups)
        chosen.append(
            cluster_vectors(units[own], None if mass is None else mass[own], settings.clusters, rng)
        )
    for stored_as in _codebook_dtypes(member.dtype, settings.codebook_dtype):
        entries = [_rounded(centres, stored_as) for centres in chosen]
        if not all(np.isfinite(one).all() for one in entries):
            continue
        if stored_as in (member.dtype, DType.FLOAT32) or not _harms(units, mass, chosen, entries):
            return _tensor(member, entries, _assigned(units, mass, entries), stored_as)
    return None


def _units(values: np.ndarray, width: int) -> np.ndarray:
    """Cut elements in C order into rows of `width`, the last filled with its own last element."""
    flat = values.reshape(-1)
    missing = -flat.size % width
    return (np.pad(flat, (0, missing), "edge") if missing else flat).reshape(-1, width)


def _places(shape: tuple[int, ...], width: int) -> int:
    """Units in a row, if rows are cut evenly; else 1."""
    n_columns = int(np.prod(shape[channel_axis(shape) + 1 :], dtype=np.int64))
    return n_columns // width if n_columns % width == 0 and n_columns else 1


def _codebook_dtypes(dtype: DType, wanted: DType) -> tuple[DType, ...]:
    if dtype in (DType.FLOAT16, DType.BFLOAT16):
        return (dtype,)
    return tuple(dict.fromkeys((wanted, DType.FLOAT32)))


def _rounded(centres: np.ndarray, stored_as: DType) -> np.ndarray:
    """Return float32 entries that `stored_as` holds, distinct and in order."""
    with np.errstate(over="ignore"):
        return np.unique(round_codebook(centres.astype(np.float32), stored_as) + np.float32(0), axis=0)


def _assigned(units: np.ndarray, mass: np.ndarray | None, entries: list[np.ndarray]) -> np.ndarray:
    """Return the nearest entry of each unit in its group."""
    indices = np.empty(units.shape[0], dtype=index_dtype(max(one.shape[0] for one in entries)))
    for group, own_entries in enumerate(entries):
        centres = own_entries.astype(np.float64)
        for start in range(group, units.shape[0], _AT_ONCE * len(entries)):
            part = slice(start, start + _AT_ONCE * len(entries), len(entries))
            indices[part] = nearest_vectors(units[part], None if mass is None else mass[part], centres)[0]
    return indices


def _harms(
    units: np.ndarray, mass: np.ndarray | None, chosen: list[np.ndarray], entries: list[np.ndarray]
) -> bool:
    """Whether rounded entries add more than 1 % to the squared error, judged on a sample of the units."""
    stride = len(chosen) * max(1, units.shape[0] // _JUDGED_UNITS)

    def error(centres: list[np.ndarray]) -> float:
        total = 0.0
        for group, own in enumerate(centres):
            part = slice(group, None, stride)
            weights = None if mass is None else mass[part]
            total += float(nearest_vectors(units[part], weights, own.astype(np.float64))[1].sum())
        return total

    return error(entries) > (1 + _HARM) * error(chosen)


def _tensor(member: Member, entries: list[np.ndarray], indices: np.ndarray, stored_as: DType) -> Tensor:
    n_entries = max(one.shape[0] for one in entries)
    values = np.stack([np.pad(one, ((0, n_entries - one.shape[0]), (0, 0)), "edge") for one in entries])
    return GroupedTensor(
        indices=indices,
        shape=member.values.shape,
        codebook=GroupedCodebook(values=values, stored_as=stored_as),
        dtype=member.dtype,
    )
