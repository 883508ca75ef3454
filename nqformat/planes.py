"""Byte planes of raw elements, exponents aligned in one plane (spec 7.2)."""

from __future__ import annotations

import numpy as np

from . import kernels
from .dtypes import DType

_AT_ONCE = 1 << 18


def split_planes(bits: np.ndarray, dtype: DType) -> list[np.ndarray]:
    """Split elements into byte planes, lowest byte first.

    Floating-point elements are first rotated left by one bit, so that the sign comes last and the top byte
    is the exponent (float32, bfloat16) or the exponent and the first mantissa bits (float16), or most of it
    (float64).

    Parameters
    ----------
    bits : ndarray of ``dtype.storage_dtype``, any shape

    Returns
    -------
    list of ndarray of uint8, shape (n_elements,); one for each byte of an element
    """
    return [byte_plane(bits, dtype, number) for number in range(dtype.itemsize)]


def byte_plane(bits: np.ndarray, dtype: DType, number: int) -> np.ndarray:
    """Return one of the planes of :func:`split_planes`, made a quarter of a million elements at a time."""
    unsigned = np.ascontiguousarray(bits).reshape(-1).view(f"<u{dtype.itemsize}")
    top, one = unsigned.dtype.type(8 * dtype.itemsize - 1), unsigned.dtype.type(1)
    plane = np.empty(unsigned.size, dtype=np.uint8)
    for start in range(0, unsigned.size, _AT_ONCE):
        part = unsigned[start : start + _AT_ONCE]
        if dtype.is_float:
            part = ((part << one) | (part >> top)).astype(unsigned.dtype, copy=False)
        plane[start : start + part.size] = part.view(np.uint8).reshape(-1, dtype.itemsize)[:, number]
    return plane


def join_planes(planes: list[np.ndarray], dtype: DType) -> np.ndarray:
    """Undo :func:`split_planes`; returns shape (n_elements,) in the storage dtype."""
    if dtype.itemsize == 1:
        return planes[0].view(dtype.storage_dtype)
    out = np.empty(planes[0].size, dtype=f"<u{dtype.itemsize}")
    kernels.join_planes(planes, out, rotate=dtype.is_float)
    return out.view(dtype.storage_dtype)
