"""Hashed tensors: elements that share values by a hash of their position (spec 7.7)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .dtypes import DType

MAX_BUCKETS = (1 << 32) - 1
_AT_ONCE = 1 << 18


@dataclass(frozen=True, slots=True, kw_only=True)
class HashedTensor:
    """Element p is element ``bucket(p)`` of another tensor, with the sign that the hash gives.

    Attributes
    ----------
    source : str
        Name of a stored tensor of the same dtype, of any shape, with 1 to 2**32 - 1 elements.
    shape : tuple of int
    seed : int
        32 bits.
    signs : bool
        Whether half of the elements are negated; only for floating-point elements.

    Source : Chen, Wilson, Tyree, Weinberger, Chen 2015, "Compressing neural networks with the hashing trick"
    """

    source: str
    shape: tuple[int, ...]
    seed: int = 0
    signs: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 1 << 32:
            raise ValueError(f"the seed of a hashed tensor has 32 bits, {self.seed} has more")

    def assemble(self, source: np.ndarray) -> np.ndarray:
        """Build the tensor from the decoded elements of its source (bfloat16 as uint16 bits)."""
        return hashed_elements(source, self.seed, 0, math.prod(self.shape), signs=self.signs).reshape(
            self.shape
        )


def mix(words: np.ndarray) -> np.ndarray:
    """Mix 32-bit words so that every bit depends on all others: uint32 in, uint32 out (spec 7.7).

    Examples
    --------
    >>> mix(np.arange(3, dtype=np.uint32)).tolist()
    [0, 1364076727, 821347078]
    """
    x = words.astype(np.uint32)
    x ^= x >> np.uint32(16)
    x *= np.uint32(0x85EBCA6B)
    x ^= x >> np.uint32(13)
    x *= np.uint32(0xC2B2AE35)
    x ^= x >> np.uint32(16)
    return x


def hash_positions(positions: np.ndarray, seed: int) -> np.ndarray:
    """Hash C-order positions: uint32."""
    wide = positions.astype(np.uint64)
    high = mix((wide >> np.uint64(32)).astype(np.uint32) ^ np.uint32(seed))
    return mix(wide.astype(np.uint32) ^ high)


def buckets_of(hashes: np.ndarray, n_buckets: int) -> np.ndarray:
    """Place of each hash among `n_buckets` values: int64."""
    return (hashes.astype(np.uint64) * np.uint64(n_buckets) >> np.uint64(32)).astype(np.int64)


def hashed_elements(source: np.ndarray, seed: int, start: int, stop: int, *, signs: bool) -> np.ndarray:
    """Return elements ``start:stop`` of a hashed tensor, in the source's storage dtype."""
    flat = np.ascontiguousarray(source).reshape(-1)
    bits = flat.view(f"<u{flat.itemsize}")
    sign = bits.dtype.type(1 << (8 * bits.itemsize - 1))
    out = np.empty(stop - start, dtype=bits.dtype)
    for first in range(start, stop, _AT_ONCE):
        hashes = hash_positions(np.arange(first, min(first + _AT_ONCE, stop)), seed)
        part = bits[buckets_of(hashes, bits.size)]
        if signs:
            part ^= np.where(hashes & np.uint32(1), sign, bits.dtype.type(0))
        out[first - start : first - start + part.size] = part
    return out.view(flat.dtype)


def check_signs(signs: bool, dtype: DType) -> None:
    """Raise ValueError if integers are to be negated."""
    if signs and not dtype.is_float:
        raise ValueError(f"hashed {dtype.label} elements have no signs")
