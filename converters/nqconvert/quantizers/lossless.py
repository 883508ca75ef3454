"""Lossless representation: finds the codebooks, grids and zeros that a tensor already has."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from nqformat.dtypes import DType, dtype_of
from nqformat.tensor import (
    MAX_AFFINE_K,
    AffineTensor,
    Codebook,
    CodebookTensor,
    RawTensor,
    Tensor,
    cast_values,
    round_codebook,
)

from .distinct import bits_to_values, distinct_bits, sorted_distinct, unsigned_bits
from .grids import Grid, find_grid
from .rate import estimate_bits
from .settings import QuantizerSettings

__all__ = ["estimate_bits", "exact_codebook_tensor", "index_dtype", "lossless_tensor", "quantize_lossless"]

MAX_EXACT_ENTRIES = 1 << 16
_MIN_INTEGERS = 64
_GRID_SAMPLE = 1 << 14


def quantize_lossless(
    weights: Mapping[str, np.ndarray],
    sensitivities: Mapping[str, np.ndarray] | None = None,
    settings: QuantizerSettings | None = None,
) -> dict[str, Tensor]:
    """Represent every tensor bit for bit (method ``none``); sensitivities and settings are not used.

    Examples
    --------
    >>> import numpy as np
    >>> ternary = np.tile(np.float32([-0.7, 0.0, 0.3, 0.3]), 100)
    >>> tensor = quantize_lossless({"w": ternary})["w"]
    >>> type(tensor).__name__, bool((tensor.decode() == ternary).all())
    ('CodebookTensor', True)
    """
    return {name: lossless_tensor(array) for name, array in weights.items()}


def lossless_tensor(array: np.ndarray) -> Tensor:
    """Return the representation of `array` that is estimated smallest and decodes to the same bits.

    -0.0 is told from 0.0. Tensors with NaN or infinite elements stay raw, as do booleans and tensors of
    one value, which the file stores as a constant. Integers below 2**24 in magnitude may become affine
    with step 1.

    Raises
    ------
    TypeError
        If the array's dtype cannot be stored.
    """
    raw = RawTensor.from_array(array)
    bits = unsigned_bits(array)
    if bits.size < 2 or raw.dtype is DType.BOOL or (bits == bits.flat[0]).all():
        return raw
    candidates: list[Tensor | None] = []
    if raw.dtype.is_float:
        candidates += _float_candidates(bits, raw.dtype)
    elif bits.size >= _MIN_INTEGERS:
        candidates.append(_integer_tensor(raw))
    candidates.append(raw)
    return min((tensor for tensor in candidates if tensor is not None), key=estimate_bits)


def exact_codebook_tensor(array: np.ndarray, most: int = MAX_EXACT_ENTRIES) -> CodebookTensor | None:
    """Return a float `array` as indices into its own distinct values.

    None if there are more than `most` of them, or if one of them is not exactly a finite float32 number.
    """
    dtype = dtype_of(array)
    bits = unsigned_bits(array)
    distinct = distinct_bits(bits, most)
    return None if distinct is None or distinct.size == 0 else _codebook_tensor(bits, distinct, dtype)


def index_dtype(n_entries: int) -> np.dtype[np.unsignedinteger]:
    """Return the smallest unsigned dtype for indices below `n_entries`."""
    return np.dtype(np.min_scalar_type(max(n_entries - 1, 0)))


def _float_candidates(bits: np.ndarray, dtype: DType) -> list[Tensor | None]:
    distinct = distinct_bits(bits, MAX_EXACT_ENTRIES)
    if distinct is None:
        return [_affine_of_many(bits, dtype)]
    if _float32_values(distinct, dtype) is None:
        return []
    return [_codebook_tensor(bits, distinct, dtype), _affine_of_few(bits, distinct, dtype)]


def _float32_values(bits: np.ndarray, dtype: DType) -> np.ndarray | None:
    """Return what float bits mean as float32; None if one is not finite or not exactly float32."""
    values = bits_to_values(bits, dtype)
    if not np.isfinite(values).all():
        return None
    with np.errstate(over="ignore"):
        narrow = values.astype(np.float32)
    return narrow if (narrow.astype(values.dtype) == values).all() else None


def _smallest_exact_dtype(values: np.ndarray, dtype: DType) -> DType:
    candidates = [dtype] if dtype in (DType.FLOAT16, DType.BFLOAT16) else [DType.FLOAT16, DType.BFLOAT16]
    for stored_as in candidates:
        if np.array_equal(round_codebook(values, stored_as).view(np.uint32), values.view(np.uint32)):
            return stored_as
    return DType.FLOAT32


def _codebook_tensor(bits: np.ndarray, distinct: np.ndarray, dtype: DType) -> CodebookTensor | None:
    """Build the tensor from its distinct bits (ascending); entries stand in the order of their values."""
    values = _float32_values(distinct, dtype)
    if values is None or not np.array_equal(cast_values(values, dtype).view(distinct.dtype), distinct):
        return None
    order = np.argsort(values, kind="stable")
    rank = np.empty(order.size, dtype=index_dtype(order.size))
    rank[order] = np.arange(order.size)
    values = values[order]
    codebook = Codebook(values=values, stored_as=_smallest_exact_dtype(values, dtype))
    return CodebookTensor(indices=_look_up(bits, distinct, rank), codebook=codebook, dtype=dtype)


def _look_up(bits: np.ndarray, distinct: np.ndarray, result: np.ndarray) -> np.ndarray:
    """Map each element of `bits` to the `result` at its place in `distinct`."""
    if bits.dtype.itemsize <= 2:
        table = np.zeros(1 << (8 * bits.dtype.itemsize), dtype=result.dtype)
        table[distinct] = result
        by_bits: np.ndarray = table[bits]
        return by_bits
    found: np.ndarray = result[np.searchsorted(distinct, bits.reshape(-1))].reshape(bits.shape)
    return found


def _grid_k(grid: Grid, bits: np.ndarray, dtype: DType) -> np.ndarray | None:
    """Return the int32 k of each element, or None if the grid does not give back the same bits."""
    values = _float32_values(bits, dtype)
    return None if values is None else grid.k_of(values)


def _affine_of_few(bits: np.ndarray, distinct: np.ndarray, dtype: DType) -> AffineTensor | None:
    values = _float32_values(distinct, dtype)
    assert values is not None
    grid = find_grid(sorted_distinct(values.reshape(-1)))
    if grid is None:
        return None
    k = _grid_k(grid, distinct, dtype)
    if k is None:
        return None
    return AffineTensor(k=_look_up(bits, distinct, k), step=grid.step, offset=grid.offset, dtype=dtype)


def _affine_of_many(bits: np.ndarray, dtype: DType) -> AffineTensor | None:
    """Look for a grid in a sample and try it on all elements; nearly free where there is none."""
    flat = bits.reshape(-1)
    sample = _float32_values(flat[:: max(1, flat.size // _GRID_SAMPLE)], dtype)
    grid = None if sample is None else find_grid(sorted_distinct(sample.reshape(-1)))
    k = None if grid is None else _grid_k(grid, flat, dtype)
    if grid is None or k is None:
        return None
    return AffineTensor(k=k.reshape(bits.shape), step=grid.step, offset=grid.offset, dtype=dtype)


def _integer_tensor(raw: RawTensor) -> AffineTensor | None:
    if int(raw.bits.max()) >= MAX_AFFINE_K or int(raw.bits.min()) <= -MAX_AFFINE_K:
        return None
    return AffineTensor(k=raw.bits.astype(np.int32), step=1.0, dtype=raw.dtype)
