"""Groups with an escape: frequent small numbers share a symbol, rare large ones leave it (spec 4.6)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .grouping import MAX_GROUP, GroupMapping

MAX_ESCAPE_BITS = 24


@dataclass(frozen=True)
class EscapeMapping:
    """`group` numbers in one symbol; a number of `window` or more is `window` there, and the rest extra bits.

    Attributes
    ----------
    group : int
        1 to 8.
    window : int
        At least 1, ``(window + 1)**group <= 256``.
    escape_bits : int
        1 to 24: numbers are below ``window + 2**escape_bits``.
    """

    group: int
    window: int
    escape_bits: int

    def __post_init__(self) -> None:
        if (
            not 1 <= self.group <= MAX_GROUP
            or self.window < 1
            or (self.window + 1) ** self.group > 256
            or not 1 <= self.escape_bits <= MAX_ESCAPE_BITS
        ):
            raise ValueError(
                f"escape mapping ({self.group}, {self.window}, {self.escape_bits}) is not allowed"
            )

    @property
    def digits(self) -> GroupMapping:
        """Mapping of the numbers once they are cut to the window."""
        return GroupMapping(self.group, self.window + 1)

    @property
    def max_value(self) -> int:
        """Largest number that can be coded."""
        return self.window + (1 << self.escape_bits) - 1

    def n_symbols(self, n_values: int) -> int:
        """Symbols that `n_values` numbers take."""
        return -(-n_values // self.group)

    def symbols(self, values: np.ndarray) -> np.ndarray:
        """Symbols of one chunk part: uint8."""
        digits = np.empty(values.size, dtype=np.uint8)
        return self.digits.join(np.minimum(values, self.window, out=digits, casting="unsafe"))

    def extra(self, values: np.ndarray) -> np.ndarray:
        """Return what escaped numbers exceed the window by, in order: uint64, below ``2**escape_bits``."""
        return (values[values >= self.window] - self.window).astype(np.uint64)
