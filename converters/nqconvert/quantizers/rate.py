"""Estimated size of a stored tensor, without coding it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from nqformat.counting import count_numbers, distinct_counts, order0_entropy
from nqformat.planes import byte_plane
from nqformat.tensor import (
    AffineTensor,
    CodebookTensor,
    GroupedTensor,
    HashedTensor,
    RawTensor,
    Tensor,
    ViewTensor,
    cast_values,
)

__all__ = ["estimate_bits"]

_RECORD_BITS = 96.0
_TABLE_BITS_PER_SYMBOL = 3.0
_FREQUENCY_ORDERED_ENTRIES = 32
_SORTED_ENTRY_SHARE = 0.75
_STEP_AND_OFFSET_BITS = 64.0
_SPLIT_LOG2 = 7


def estimate_bits(tensor: Tensor) -> float:
    """Estimate the bits `tensor` takes in a file: payload at order-0 entropy, code table, codebook, record.

    Indices of up to 256 entries count as symbols. Larger ones, and affine k folded to unsigned numbers,
    count as the file's hybrid integers: numbers below 128 are symbols, others an exponent symbol and raw
    low bits. Elements kept raw count by byte planes, the exponent of a float as one of them. A codebook
    shared by several tensors counts in full.

    Examples
    --------
    >>> import numpy as np
    >>> from nqformat.tensor import RawTensor
    >>> noise = np.random.default_rng(0).integers(0, 256, 10_000, dtype=np.uint8)
    >>> estimate_bits(RawTensor.from_array(noise)) / noise.size > 7.9
    True
    """
    if isinstance(tensor, RawTensor):
        return _RECORD_BITS + _raw_bits(tensor)
    if not isinstance(tensor, ViewTensor | HashedTensor) and tensor.scales is not None:
        scales = cast_values(tensor.scales.values, tensor.scales.stored_as)
        own = _raw_bits(RawTensor(bits=scales, dtype=tensor.scales.stored_as))
        return own + estimate_bits(replace(tensor, scales=None))
    if isinstance(tensor, GroupedTensor):
        entries = tensor.codebook.entries
        payload = _symbol_bits(tensor.indices) if entries <= 256 else _number_bits(tensor.indices)
        return _RECORD_BITS + payload + 8.0 * tensor.codebook.values.size * tensor.codebook.stored_as.itemsize
    if isinstance(tensor, CodebookTensor):
        entries = tensor.codebook.values.size
        payload = _symbol_bits(tensor.indices) if entries <= 256 else _number_bits(tensor.indices)
        share = 1.0 if entries <= _FREQUENCY_ORDERED_ENTRIES else _SORTED_ENTRY_SHARE
        return _RECORD_BITS + payload + share * 8.0 * entries * tensor.codebook.stored_as.itemsize
    if isinstance(tensor, AffineTensor):
        k = tensor.k
        parameters = _STEP_AND_OFFSET_BITS if tensor.dtype.is_float else 0.0
        return _RECORD_BITS + parameters + _number_bits(np.where(k < 0, -2 * k - 1, 2 * k))
    assert isinstance(tensor, ViewTensor | HashedTensor)
    return _RECORD_BITS


def _symbol_bits(symbols: np.ndarray) -> float:
    """Order-0 entropy of small non-negative numbers in bits, and their code table."""
    return _coded_bits(count_numbers(symbols, 1))


def _coded_bits(counts: np.ndarray) -> float:
    counts = counts[counts > 0]
    if counts.size < 2:
        return 0.0
    return order0_entropy(counts) + _TABLE_BITS_PER_SYMBOL * counts.size


def _number_bits(numbers: np.ndarray) -> float:
    """Bits of non-negative numbers as hybrid integers."""
    distinct, repeats = distinct_counts(numbers.reshape(-1))
    exponent = np.frexp(distinct.astype(np.float64))[1].astype(np.int64) - 1
    large = exponent >= _SPLIT_LOG2
    symbols = np.where(large, (1 << _SPLIT_LOG2) + exponent - _SPLIT_LOG2, distinct.astype(np.int64))
    counts = np.bincount(symbols, weights=repeats, minlength=1)
    return _coded_bits(counts) + float((exponent * repeats)[large].sum())


def _plane_bits(plane: np.ndarray) -> float:
    """Bits of one byte plane: none if constant, else one an element or more, as bytes are not grouped."""
    coded = _symbol_bits(plane)
    return 0.0 if coded == 0 else min(8.0 * plane.size, max(float(plane.size), coded))


def _raw_bits(tensor: RawTensor) -> float:
    stored = np.ascontiguousarray(tensor.bits)
    itemsize = stored.dtype.itemsize
    if stored.size == 0:
        return 0.0
    unsigned = stored.reshape(-1).view(f"<u{itemsize}")
    if (unsigned == unsigned[0]).all():
        return 8.0 * itemsize
    return sum(_plane_bits(byte_plane(stored, tensor.dtype, number)) for number in range(itemsize))
