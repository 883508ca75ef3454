"""Byte planes of raw elements, exponents aligned in one plane (spec 7.2)."""

from __future__ import annotations

import numpy as np

from . import kernels
from .dtypes import DType


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
    unsigned = np.ascontiguousarray(bits).reshape(-1).view(f"<u{dtype.itemsize}")
    if dtype.is_float:
        top = unsigned.dtype.type(8 * dtype.itemsize - 1)
        one = unsigned.dtype.type(1)
        unsigned = ((unsigned << one) | (unsigned >> top)).astype(unsigned.dtype, copy=False)
    by_byte = unsigned.view(np.uint8).reshape(-1, dtype.itemsize)
    return [np.ascontiguousarray(by_byte[:, i]) for i in range(dtype.itemsize)]


def join_planes(planes: list[np.ndarray], dtype: DType) -> np.ndarray:
    """Undo :func:`split_planes`; returns shape (n_elements,) in the storage dtype."""
    if dtype.itemsize == 1:
        return planes[0].view(dtype.storage_dtype)
    out = np.empty(planes[0].size, dtype=f"<u{dtype.itemsize}")
    kernels.join_planes(planes, out, rotate=dtype.is_float)
    return out.view(dtype.storage_dtype)
