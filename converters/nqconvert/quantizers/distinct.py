"""Distinct elements of a tensor, told apart by their bits."""

from __future__ import annotations

import numpy as np

from nqformat.counting import count_numbers
from nqformat.dtypes import DType, bfloat16_to_float32, dtype_of, storage_bits

__all__ = ["bits_to_values", "distinct_bits", "unsigned_bits", "without_negative_zeros"]

_SAMPLE = 1 << 18


def unsigned_bits(array: np.ndarray) -> np.ndarray:
    """Return the elements' bits as unsigned integers of their own width, in the tensor's shape."""
    stored = storage_bits(array)
    return stored.reshape(-1).view(f"<u{stored.dtype.itemsize}").reshape(stored.shape)


def bits_to_values(bits: np.ndarray, dtype: DType) -> np.ndarray:
    """Return what float bits mean, exactly: float64 for FLOAT64, else float32."""
    if dtype is DType.BFLOAT16:
        return bfloat16_to_float32(bits)
    stored = np.ascontiguousarray(bits).view(dtype.storage_dtype)
    return stored if dtype is DType.FLOAT64 else stored.astype(np.float32, copy=False)


def without_negative_zeros(array: np.ndarray) -> np.ndarray:
    """Return float `array` with -0.0 turned into 0.0; the array itself if it has none."""
    bits = unsigned_bits(array)
    sign = bits.dtype.type(1 << (8 * bits.dtype.itemsize - 1))
    negative_zeros = bits == sign
    if not negative_zeros.any():
        return array
    cleaned = np.where(negative_zeros, bits.dtype.type(0), bits)
    dtype = array.dtype if dtype_of(array) is DType.BFLOAT16 else dtype_of(array).storage_dtype
    return cleaned.view(dtype)


def distinct_bits(bits: np.ndarray, most: int) -> np.ndarray | None:
    """Return the distinct elements of `bits` ascending, or None if there are more than `most`.

    Large tensors with many distinct elements are recognised by a sample, without sorting all of them.
    """
    flat = bits.reshape(-1)
    if flat.dtype.itemsize <= 2:
        found = np.flatnonzero(count_numbers(flat, 1)).astype(flat.dtype)
    else:
        for n_sampled in (most + 1 + most // 4, _SAMPLE):
            step = flat.size // n_sampled
            if step > 1 and sorted_distinct(flat[::step]).size > most:
                return None
        found = sorted_distinct(flat)
    return found if found.size <= most else None


def sorted_distinct(flat: np.ndarray) -> np.ndarray:
    """Distinct elements ascending; sorting takes a fraction of the time of NumPy's hashing."""
    ordered = np.sort(flat)
    first = np.ones(ordered.size, dtype=bool)
    np.not_equal(ordered[1:], ordered[:-1], out=first[1:])
    return ordered[first]
