"""Memory for kernels: aligned arrays and their addresses."""

from __future__ import annotations

import numpy as np

from nqformat.kernels import address

__all__ = ["LINE", "address", "aligned", "aligned_copy", "float_bits", "round_up"]

LINE = 64


def aligned(n_elements: int, dtype: type[np.generic]) -> np.ndarray:
    """Return zeros that begin at a multiple of a cache line.

    Returns
    -------
    ndarray, shape (n_elements,)
    """
    n_bytes = n_elements * np.dtype(dtype).itemsize
    raw = np.zeros(n_bytes + LINE, dtype=np.uint8)
    start = -address(raw) % LINE
    return raw[start : start + n_bytes].view(dtype)


def aligned_copy(array: np.ndarray) -> np.ndarray:
    """Return the elements in C order, at a multiple of a cache line."""
    out = aligned(array.size, array.dtype.type)
    out.reshape(array.shape)[...] = array
    return out


def float_bits(value: float) -> int:
    """Bits of a float32, as kernels take them in a block."""
    return int(np.float32(value).view(np.uint32))


def round_up(number: int, multiple: int) -> int:
    """Return the first multiple that is not below `number`."""
    return -(-number // multiple) * multiple
