"""Hybrid integers: small values are symbols of their own, larger ones an exponent and raw bits (spec 4.3)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

MAX_EXPONENT = 47


@dataclass(frozen=True)
class HybridMapping:
    """Split of a number into a symbol and extra bits.

    Values below ``2**split_log2`` are their own symbol. For a larger one, the symbol names its highest set
    bit and the `mantissa_bits` bits below that; the remaining low bits go to the extra-bit string.

    Attributes
    ----------
    split_log2 : int
        0 to 7.
    mantissa_bits : int
        0 to min(3, split_log2).
    """

    split_log2: int
    mantissa_bits: int

    def __post_init__(self) -> None:
        if not 0 <= self.split_log2 <= 7 or not 0 <= self.mantissa_bits <= min(3, self.split_log2):
            raise ValueError(f"hybrid mapping ({self.split_log2}, {self.mantissa_bits}) is not allowed")

    @property
    def max_value(self) -> int:
        """Largest value that has a symbol."""
        n_exponents = (256 - (1 << self.split_log2)) >> self.mantissa_bits
        return (1 << min(self.split_log2 + n_exponents, MAX_EXPONENT + 1)) - 1

    @cached_property
    def symbol_widths(self) -> np.ndarray:
        """Extra bits of each symbol: uint8, shape (256,); 255 marks a symbol that no value has."""
        widths = np.full(256, 255, dtype=np.uint8)
        split = 1 << self.split_log2
        widths[:split] = 0
        for exponent in range(self.split_log2, MAX_EXPONENT + 1):
            first = split + ((exponent - self.split_log2) << self.mantissa_bits)
            widths[first : first + (1 << self.mantissa_bits)] = exponent - self.mantissa_bits
        return widths

    @cached_property
    def symbol_bases(self) -> np.ndarray:
        """Smallest value of each symbol: int64, shape (256,)."""
        bases = np.zeros(256, dtype=np.int64)
        split = 1 << self.split_log2
        bases[:split] = np.arange(split)
        for exponent in range(self.split_log2, MAX_EXPONENT + 1):
            first = split + ((exponent - self.split_log2) << self.mantissa_bits)
            for mantissa in range(1 << self.mantissa_bits):
                if first + mantissa < 256:
                    bases[first + mantissa] = (1 << exponent) + (mantissa << (exponent - self.mantissa_bits))
        return bases

    def split(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Split values into symbols and extra bits.

        Parameters
        ----------
        values : ndarray of int64, shape (n,), 0 <= value <= max_value

        Returns
        -------
        symbols : ndarray of uint8, extra : ndarray of uint64, widths : ndarray of uint8; each of shape (n,)
        """
        if values.size and int(values.max()) > self.max_value:
            raise ValueError(f"{int(values.max())} is too large for this hybrid mapping")
        exponent = np.frexp(values.astype(np.float64))[1].astype(np.int64) - 1
        large = values >= 1 << self.split_log2
        drop = np.where(large, exponent - self.mantissa_bits, 0)
        kept = (values >> drop) & ((1 << self.mantissa_bits) - 1)
        index = (1 << self.split_log2) + ((exponent - self.split_log2) << self.mantissa_bits) + kept
        symbols = np.where(large, index, values)
        extra = (values & ((np.int64(1) << drop) - 1)).astype(np.uint64)
        return symbols.astype(np.uint8), extra, drop.astype(np.uint8)

    def join(self, symbols: np.ndarray, extra: np.ndarray) -> np.ndarray:
        """Undo :meth:`split`; returns int64 values."""
        joined: np.ndarray = self.symbol_bases[symbols] + extra.astype(np.int64)
        return joined
