"""Sparse matrices by columns, for vectors with many zeros (`nqruntime.kernels.skipping`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from nqruntime.kernels.blocks import LANES

from .areas import address, aligned, aligned_copy, float_bits, round_up

SKIPS_PLACE = 18
"""Place of the number of steps that a product makes needless."""

_MOST_ROWS = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class SkippedColumns:
    """Nonzeros of a matrix column by column, three bytes each.

    Attributes
    ----------
    shape : (int, int)
    starts : ndarray of int32, shape (n_columns + 1,)
    rows : ndarray of uint16
    symbols : ndarray of uint8
    codebook : ndarray of float32
    factors : ndarray of float32
        Of the rows, to a multiple of 16.
    """

    is_int8: ClassVar[bool] = False

    shape: tuple[int, int]
    starts: np.ndarray
    rows: np.ndarray
    symbols: np.ndarray
    codebook: np.ndarray
    factors: np.ndarray

    @property
    def label(self) -> str:
        """Name of the form."""
        return "zero inputs skipped"

    @property
    def weight_bytes(self) -> int:
        """Bytes of all arrays."""
        arrays = (self.starts, self.rows, self.symbols, self.codebook, self.factors)
        return sum(array.nbytes for array in arrays)

    def bias(self, values: np.ndarray | None) -> np.ndarray:
        """Return the bias as the kernel reads it: float32, to a multiple of 16."""
        out = aligned(self.factors.size, np.float32)
        if values is not None:
            out[: self.shape[0]] = values
        return out

    def block(
        self, *, source: int, out: int, bias: int, low: float, high: float, most_nonzeros: int
    ) -> np.ndarray:
        """Return the block of SKIP_COLUMNS for one vector, which makes the step after it needless.

        Parameters
        ----------
        source, out, bias : int
            Addresses; the output takes its length rounded up to 16 floats.
        low, high : float
        most_nonzeros : int
            Nonzeros of the vector up to which the product is computed.
        """
        n_rows, n_columns = self.shape
        places = [0, 1, source, 0, 1, out, 0, n_columns, address(self.starts), address(self.codebook)]
        places += [bias, float_bits(low), float_bits(high), address(self.factors)]
        places += [address(self.rows), address(self.symbols), round_up(n_rows, LANES) // LANES]
        return np.array([*places, most_nonzeros, 1], dtype=np.int64)


def pack_skipped(
    nonzeros: tuple[np.ndarray, np.ndarray, np.ndarray],
    codebook: np.ndarray,
    factors: np.ndarray,
    shape: tuple[int, int],
) -> SkippedColumns | None:
    """Pack the nonzeros of a matrix by columns; None if there are too many rows.

    Parameters
    ----------
    nonzeros : tuple of ndarray
        Rows, columns and symbols, of at most 256 kinds.
    codebook, factors : ndarray of float32
    shape : (int, int)
    """
    rows, columns, symbols = nonzeros
    if shape[0] > _MOST_ROWS or codebook.size > 1 << 8:
        return None
    order = np.lexsort((rows, columns))
    padded = aligned(round_up(shape[0], LANES), np.float32)
    padded[: shape[0]] = factors[: shape[0]]
    counts = np.bincount(columns, minlength=shape[1])
    return SkippedColumns(
        shape=shape,
        starts=aligned_copy(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)),
        rows=aligned_copy(rows[order].astype(np.uint16)),
        symbols=aligned_copy(symbols[order].astype(np.uint8)),
        codebook=aligned_copy(codebook),
        factors=padded,
    )
