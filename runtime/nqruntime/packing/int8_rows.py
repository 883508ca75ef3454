"""Matrices of bytes for products of quantized vectors (`nqruntime.kernels.int8_rows`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from nqruntime.kernels.blocks import INT8_NIBBLE_ROWS, INT8_ROWS, LANES, ROW_VECTORS

from .areas import address, aligned, aligned_copy, float_bits, round_up
from .int8_weights import Int8Weights

TABLE_FLOATS = 4
"""Size of a source vector's, or image's, entry in a table of scales."""

_BLOCK_ROWS = LANES * ROW_VECTORS
_GROUP = 4
_STEP_INPUTS = 2 * _GROUP


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8Rows:
    """A matrix of bytes, or of symbols of a palette of 16 bytes.

    Attributes
    ----------
    kernel : int
    label : str
    n_rows, n_columns, n_blocks, out_size : int
        As of `PackedRows`.
    n_steps : int
        Steps of eight inputs.
    weights, codebook : ndarray
    factors : ndarray of float32, shape (out_size,)
    sums : ndarray of int32, shape (out_size,)
        Sums of the levels of each row. Those beyond the matrix count: the inputs there are the zero point.
    """

    is_int8: ClassVar[bool] = True

    kernel: int
    label: str
    n_rows: int
    n_columns: int
    n_blocks: int
    n_steps: int
    weights: np.ndarray
    codebook: np.ndarray
    factors: np.ndarray
    sums: np.ndarray

    @property
    def out_size(self) -> int:
        """Floats that the kernel writes for each output vector, and reads of the bias."""
        return self.n_blocks * _BLOCK_ROWS

    @property
    def weight_bytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in (self.weights, self.codebook, self.factors, self.sums))

    @property
    def source_pitch(self) -> int:
        """Bytes from one quantized vector to the next."""
        return round_up(self.n_columns, LANES)

    def bias(self, values: np.ndarray | None) -> np.ndarray:
        """Return the bias as the kernel reads it: float32, shape (out_size,)."""
        return _padded(np.zeros(0) if values is None else values, self.out_size, np.float32)

    def quantize_block(
        self, *, source: int, source_pitch: int, n_sources: int, out: int, table: int
    ) -> np.ndarray:
        """Return the block of QUANTIZE_ROWS.

        Parameters
        ----------
        source, out, table : int
            Addresses: of the floats, of `n_sources * source_pitch` bytes, of TABLE_FLOATS floats a vector.
        source_pitch : int
            Floats from one vector to the next.
        n_sources : int
        """
        places = [0, n_sources, source, 4 * source_pitch, self.n_columns, out, self.source_pitch, table]
        return np.array(places, dtype=np.int64)

    def block(
        self,
        *,
        source: int,
        n_sources: int,
        table: int,
        out: int,
        out_pitch: int,
        bias: int,
        low: float,
        high: float,
    ) -> np.ndarray:
        """Return the parameters of a product of quantized vectors; as of `PackedRows.block`."""
        places = [0, self.n_blocks, source, self.source_pitch, n_sources, out, 4 * out_pitch, self.n_steps]
        places += [address(self.weights), address(self.codebook), bias, float_bits(low), float_bits(high)]
        places += [address(self.factors), address(self.sums), table]
        return np.array(places, dtype=np.int64)


def pack_int8_rows(weights: Int8Weights) -> Int8Rows:
    """Pack a matrix for products; symbols of half a byte if it has a palette."""
    n_rows, n_columns = weights.levels.shape
    n_steps = round_up(n_columns, _STEP_INPUTS) // _STEP_INPUTS
    n_blocks = round_up(n_rows, _BLOCK_ROWS) // _BLOCK_ROWS
    matrix, codebook, kernel = weights.levels, aligned(4 * LANES, np.int8), INT8_ROWS
    if weights.palette is not None:
        matrix, entries = weights.palette
        codebook[:] = np.tile(_padded(entries, LANES, np.int8), 4)
        kernel = INT8_NIBBLE_ROWS
    padded = np.zeros((n_blocks * _BLOCK_ROWS, n_steps * _STEP_INPUTS), dtype=matrix.dtype)
    padded[:n_rows, :n_columns] = matrix
    levels = padded if weights.palette is None else codebook[padded]
    words = padded.reshape(n_blocks, _BLOCK_ROWS, n_steps, 2, _GROUP).transpose(0, 2, 3, 1, 4)
    if weights.palette is not None:
        words = words[:, :, 0] | words[:, :, 1] << np.uint8(4)
    what = "palette of int8" if weights.palette is not None else "int8"
    return Int8Rows(
        kernel=kernel,
        label=f"{what} of {n_rows}x{n_columns}{'' if weights.is_exact else ', rounded weights'}",
        n_rows=n_rows,
        n_columns=n_columns,
        n_blocks=n_blocks,
        n_steps=n_steps,
        weights=aligned_copy(np.ascontiguousarray(words)),
        codebook=codebook,
        factors=_padded(weights.factors, n_blocks * _BLOCK_ROWS, np.float32),
        sums=aligned_copy(levels.sum(axis=1, dtype=np.int32)),
    )


def _padded(values: np.ndarray, size: int, dtype: type[np.generic]) -> np.ndarray:
    out = aligned(size, dtype)
    out[: values.size] = values
    return out
