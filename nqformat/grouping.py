"""Groups of small values in one symbol: pairs and quads go below the order-0 entropy (spec 4.2)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

MAX_GROUP = 8


@dataclass(frozen=True)
class GroupMapping:
    """`group` values below `width` in one symbol, the first value in the lowest place.

    Attributes
    ----------
    group : int
        1 to 8.
    width : int
        Alphabet of one value, 1 to 256, with ``width**group <= 256``.
    """

    group: int = 1
    width: int = 256

    def __post_init__(self) -> None:
        if not 1 <= self.group <= MAX_GROUP or not 1 <= self.width <= 256 or self.width**self.group > 256:
            raise ValueError(f"{self.group} values of width {self.width} do not fit a symbol")

    def n_symbols(self, n_values: int) -> int:
        """Symbols that `n_values` values take."""
        return -(-n_values // self.group)

    def join(self, values: np.ndarray) -> np.ndarray:
        """Pack values into symbols, the last group filled with zeros; uint8 in, uint8 out."""
        if self.group == 1:
            return values.astype(np.uint8, copy=False)
        symbols = np.zeros(self.n_symbols(values.size), dtype=np.uint8)
        for place in range(self.group):
            digits = values[place :: self.group].astype(np.uint8, copy=False)
            symbols[: digits.size] += digits * np.uint8(self.width**place % 256)
        return symbols

    @cached_property
    def _values_of_symbol(self) -> np.ndarray:
        symbols = np.arange(256)
        places = [(symbols // self.width**i) % self.width for i in range(self.group)]
        return np.stack(places, axis=1).astype(np.uint8)

    def split(self, symbols: np.ndarray, n_values: int) -> np.ndarray | None:
        """Undo :meth:`join`; None if a symbol is out of range or the filling is not zero."""
        if symbols.size and int(symbols.max()) >= self.width**self.group:
            return None
        if self.group == 1:
            return symbols
        values: np.ndarray = self._values_of_symbol[symbols].reshape(-1)
        if values[n_values:].any():
            return None
        return values[:n_values]
