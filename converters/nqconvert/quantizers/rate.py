"""Estimated size of a stored tensor, without coding it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from nqformat.counting import order0_entropy
from nqformat.dtypes import DType
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
        k = tensor.k.astype(np.int64)
        parameters = _STEP_AND_OFFSET_BITS if tensor.dtype.is_float else 0.0
        return _RECORD_BITS + parameters + _number_bits(np.where(k < 0, -2 * k - 1, 2 * k))
    assert isinstance(tensor, ViewTensor | HashedTensor)
    return _RECORD_BITS


def _symbol_bits(symbols: np.ndarray) -> float:
    """Order-0 entropy of small non-negative numbers in bits, and their code table."""
    counts = np.bincount(symbols.reshape(-1), minlength=1)
    counts = counts[counts > 0]
    if counts.size < 2:
        return 0.0
    return order0_entropy(counts) + _TABLE_BITS_PER_SYMBOL * counts.size


def _number_bits(numbers: np.ndarray) -> float:
    """Bits of non-negative numbers as hybrid integers."""
    flat = numbers.reshape(-1).astype(np.int64)
    exponent = np.frexp(flat.astype(np.float64))[1] - 1
    large = exponent >= _SPLIT_LOG2
    symbols = np.where(large, (1 << _SPLIT_LOG2) + exponent - _SPLIT_LOG2, flat)
    return _symbol_bits(symbols) + float(exponent[large].sum())


def _plane_bits(plane: np.ndarray) -> float:
    """Bits of one byte plane: none if constant, else one an element or more, as bytes are not grouped."""
    coded = _symbol_bits(plane)
    return 0.0 if coded == 0 else min(8.0 * plane.size, max(float(plane.size), coded))


def _raw_bits(tensor: RawTensor) -> float:
    stored = np.ascontiguousarray(tensor.bits)
    itemsize = stored.dtype.itemsize
    if stored.size == 0:
        return 0.0
    octets = stored.reshape(-1).view(np.uint8).reshape(-1, itemsize)
    if (octets == octets[0]).all():
        return 8.0 * itemsize
    if tensor.dtype in (DType.FLOAT32, DType.BFLOAT16):
        top, below = octets[:, -1], octets[:, -2]
        exponent = (top << 1) | (below >> 7)
        sign = (top & 0x80) | (below & 0x7F)
        planes = [*octets.T[:-2], sign, exponent]
    else:
        planes = list(octets.T)
    return sum(_plane_bits(plane) for plane in planes)
