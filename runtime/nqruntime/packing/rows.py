"""Matrices for products with 16 rows in the lanes of a vector (`nqruntime.kernels.rows`)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from nqruntime.kernels.blocks import (
    BYTE_ROWS,
    FLOAT_ROWS,
    GAP_ROWS,
    GAPS_TOGETHER,
    LANES,
    NIBBLE_ROWS,
    PIECE_INPUTS,
    ROW_VECTORS,
    SLICE_ROWS,
)

from .areas import address, aligned, aligned_copy, float_bits, round_up

_BLOCK_ROWS = LANES * ROW_VECTORS
_MOST_COLUMNS = 1 << 16
_WORD_SYMBOLS = 8
_MOST_GAP = 255

_FREE = aligned_copy(np.array([-np.inf, np.inf, *[1] * _BLOCK_ROWS, *[0] * _BLOCK_ROWS], dtype=np.float32))


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedRows:
    """A matrix in the order of one kernel.

    Attributes
    ----------
    kernel : int
    label : str
    n_rows, n_columns : int
    n_blocks : int
        Work items: blocks of rows, or slices.
    out_size : int
        Floats that the kernel may write for each output vector, and read of the bias.
    weights, codebook : ndarray
    factors : ndarray of float32, shape (out_size,)
        What the sums of each row are multiplied with.
    further : tuple of ndarray
        Row numbers, columns and symbols of slices; gaps and symbols of gaps.
    """

    is_int8: ClassVar[bool] = False

    kernel: int
    label: str
    n_rows: int
    n_columns: int
    n_blocks: int
    out_size: int
    weights: np.ndarray
    codebook: np.ndarray
    factors: np.ndarray
    further: tuple[np.ndarray, ...] = ()

    @property
    def weight_bytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in (self.weights, self.codebook, self.factors, *self.further))

    @property
    def has_factors(self) -> bool:
        """Whether any factor is not 1."""
        return bool((self.factors != 1).any())

    def bias(self, values: np.ndarray | None) -> np.ndarray:
        """Return the bias as the kernel reads it: float32, shape (out_size,)."""
        out = aligned(self.out_size, np.float32)
        if values is not None:
            out[: self.n_rows] = values
        return out

    def block(
        self,
        *,
        source: int,
        source_pitch: int,
        n_sources: int,
        out: int,
        out_pitch: int,
        bias: int,
        low: float,
        high: float,
        buffer: int,
        first: int = 0,
        last: int | None = None,
    ) -> np.ndarray:
        """Return the parameters of a product.

        Parameters
        ----------
        source, out, bias : int
            Addresses.
        source_pitch, out_pitch : int
            Floats from one vector to the next.
        low, high : float
            Outputs are clamped to this range.
        buffer : int
            Address of `BUFFER_FLOATS` floats that nothing else uses meanwhile.
        first, last : int
            Range of work items; by default all.
        """
        places = [first, self.n_blocks if last is None else last, source, 4 * source_pitch, n_sources]
        places += [out, 4 * out_pitch, self.n_columns, address(self.weights), address(self.codebook)]
        places += [bias, float_bits(low), float_bits(high), address(self.factors)]
        if self.kernel == GAP_ROWS:
            places += [address(array) for array in self.further]
        elif self.kernel == SLICE_ROWS:
            places += [address(array) for array in self.further] + [int(self.codebook.size <= LANES)]
        else:
            places += [buffer, address(_FREE)]
        return np.array(places, dtype=np.int64)


BUFFER_FLOATS = PIECE_INPUTS * _BLOCK_ROWS
"""Size of the buffer that a product needs."""


def _by_block(matrix: np.ndarray, n_columns: int) -> np.ndarray:
    """Return a matrix padded to whole blocks of rows: shape (blocks, rows of a block, n_columns)."""
    padded = np.zeros((round_up(matrix.shape[0], _BLOCK_ROWS), n_columns), dtype=matrix.dtype)
    padded[: matrix.shape[0], : matrix.shape[1]] = matrix
    return padded.reshape(-1, _BLOCK_ROWS, n_columns)


def _dense(
    kernel: int, what: str, weights: np.ndarray, codebook: np.ndarray, shape: tuple[int, ...]
) -> PackedRows:
    n_blocks = round_up(shape[0], _BLOCK_ROWS) // _BLOCK_ROWS
    return PackedRows(
        kernel=kernel,
        label=f"{what} of {shape[0]}x{shape[1]}",
        n_rows=shape[0],
        n_columns=shape[1],
        n_blocks=n_blocks,
        out_size=n_blocks * _BLOCK_ROWS,
        weights=weights,
        codebook=codebook,
        factors=_factors(None, n_blocks * _BLOCK_ROWS),
    )


def _factors(values: np.ndarray | None, size: int) -> np.ndarray:
    out = aligned(size, np.float32)
    out[:] = 1
    if values is not None:
        out[: values.size] = values
    return out


def scaled(packed: PackedRows, factors: np.ndarray) -> PackedRows:
    """Return the matrix with its rows multiplied by factors, float32 of shape (n_rows,)."""
    return replace(packed, factors=_factors(factors, packed.out_size), label=f"{packed.label}, scaled rows")


def _entries(codebook: np.ndarray) -> np.ndarray:
    """Return a codebook as kernels read it: at least 16 floats."""
    out = aligned(max(LANES, codebook.size), np.float32)
    out[: codebook.size] = codebook
    return out


def pack_floats(matrix: np.ndarray) -> PackedRows:
    """Pack a matrix of float32, shape (n_rows, n_columns)."""
    blocks = _by_block(matrix.astype(np.float32, copy=False), matrix.shape[1])
    return _dense(
        FLOAT_ROWS, "floats", aligned_copy(blocks.transpose(0, 2, 1)), _entries(np.zeros(0)), matrix.shape
    )


def pack_nibbles(symbols: np.ndarray, codebook: np.ndarray) -> PackedRows:
    """Pack a symbol below 16 for each element, half a byte each.

    Parameters
    ----------
    symbols : ndarray of uint8, shape (n_rows, n_columns)
    codebook : ndarray of float32, at most 16 entries
    """
    blocks = _by_block(symbols, round_up(symbols.shape[1], _WORD_SYMBOLS))
    words = np.zeros((len(blocks), blocks.shape[2] // _WORD_SYMBOLS, _BLOCK_ROWS), dtype=np.uint32)
    for k in range(_WORD_SYMBOLS):
        words |= blocks[:, :, k::_WORD_SYMBOLS].transpose(0, 2, 1).astype(np.uint32) << np.uint32(4 * k)
    packed = aligned(words.size + 1, np.uint32)  # the kernel reads up to three bytes beyond
    packed[:-1] = words.reshape(-1)
    return _dense(NIBBLE_ROWS, f"palette of {codebook.size}", packed, _entries(codebook), symbols.shape)


def pack_bytes(symbols: np.ndarray, codebook: np.ndarray) -> PackedRows:
    """Pack a byte for each element.

    Parameters
    ----------
    symbols : ndarray of uint8, shape (n_rows, n_columns)
    codebook : ndarray of float32, at most 256 entries
    """
    blocks = _by_block(symbols, symbols.shape[1])
    packed = aligned_copy(blocks.transpose(0, 2, 1))
    return _dense(BYTE_ROWS, f"palette of {codebook.size}", packed, _entries(codebook), symbols.shape)


def pack_slices(
    rows: np.ndarray, columns: np.ndarray, symbols: np.ndarray, codebook: np.ndarray, shape: tuple[int, int]
) -> PackedRows | None:
    """Pack the nonzeros of a matrix into slices of 16 rows; three bytes each, and a little filling.

    Parameters
    ----------
    rows, columns : ndarray of integers, shape (n,)
    symbols : ndarray of uint8, shape (n,)
    codebook : ndarray of float32
    shape : (int, int)

    Returns
    -------
    PackedRows or None
        None if a column or a symbol does not fit its field.
    """
    zeros = np.flatnonzero(codebook == 0)
    filling = int(zeros[0]) if zeros.size else codebook.size
    codebook = codebook if zeros.size else np.append(codebook, np.float32(0))
    n_rows, n_columns = shape
    if n_columns > _MOST_COLUMNS or codebook.size > 1 << 8:
        return None
    counts = np.bincount(rows, minlength=n_rows)
    n_slices = -(-n_rows // LANES)
    order = np.full(n_slices * LANES, n_rows, dtype=np.int32)
    order[:n_rows] = np.argsort(-counts, kind="stable")
    in_order = np.append(counts, 0)[order].reshape(n_slices, LANES)
    starts = np.concatenate([[0], np.cumsum(in_order.max(axis=1))]).astype(np.int32)
    places = np.empty(n_rows + 1, dtype=np.int64)
    places[order] = np.arange(order.size)
    by_row = np.lexsort((columns, rows))
    rank = np.arange(rows.size) - np.repeat(np.cumsum(counts) - counts, counts)
    place = places[rows[by_row]]
    target = (starts[place // LANES] + rank) * LANES + place % LANES
    packed_columns = aligned(int(starts[-1]) * LANES, np.uint16)
    packed_symbols = aligned(int(starts[-1]) * LANES, np.uint8)
    packed_symbols[:] = filling
    packed_columns[target] = columns[by_row]
    packed_symbols[target] = symbols[by_row]
    density = rows.size / max(1, n_rows * n_columns)
    return PackedRows(
        kernel=SLICE_ROWS,
        label=f"sparse slices, {density:.1%} of {n_rows}x{n_columns}, palette of {codebook.size}",
        n_rows=n_rows,
        n_columns=n_columns,
        n_blocks=n_slices,
        out_size=n_rows + 1,
        weights=starts,
        codebook=_entries(codebook),
        factors=_factors(None, n_rows + 1),
        further=(aligned_copy(order), packed_columns, packed_symbols),
    )


def nonzeros_of_slices(packed: PackedRows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return rows, columns and symbols of the nonzeros of slices, in the order of the slices."""
    order, columns, symbols = packed.further
    rounds = np.diff(packed.weights)
    slices = np.repeat(np.arange(rounds.size), rounds * LANES)
    rows = order[slices * LANES + np.arange(slices.size) % LANES]
    kept = np.flatnonzero((packed.codebook[symbols] != 0) & (rows < packed.n_rows))
    return rows[kept], columns[kept], symbols[kept]


def pack_gaps(
    rows: np.ndarray, columns: np.ndarray, symbols: np.ndarray, codebook: np.ndarray, shape: tuple[int, int]
) -> PackedRows | None:
    """Pack the nonzeros of a matrix in a byte and a half each; parameters as of `pack_slices`.

    Returns
    -------
    PackedRows or None
        None if the codebook has more than 16 entries with a zero.
    """
    zeros = np.flatnonzero(codebook == 0)
    filling = int(zeros[0]) if zeros.size else codebook.size
    codebook = codebook if zeros.size else np.append(codebook, np.float32(0))
    n_rows, n_columns = shape
    if codebook.size > LANES:
        return None
    order = np.lexsort((columns, rows))
    rows, columns, symbols = rows[order], columns[order].astype(np.int64), symbols[order]
    distances = np.diff(columns, prepend=0)
    begins = np.flatnonzero(np.diff(rows, prepend=-1))
    distances[begins] = columns[begins]
    hops = np.maximum(distances - 1, 0) // _MOST_GAP
    counts = np.bincount(rows, weights=hops + 1, minlength=n_rows).astype(np.int64)
    starts = np.concatenate([[0], np.cumsum(-(-counts // GAPS_TOGETHER) * GAPS_TOGETHER)])
    entry_of = np.cumsum(hops + 1) - 1
    before = (np.cumsum(counts) - counts)[rows]
    places = starts[rows] + entry_of - before
    gaps = aligned(int(starts[-1]), np.uint8)
    numbers = np.full(int(starts[-1]), filling, dtype=np.uint8)
    hop_places = (
        np.repeat(places - hops, hops) + np.arange(hops.sum()) - np.repeat(np.cumsum(hops) - hops, hops)
    )
    gaps[hop_places] = _MOST_GAP
    gaps[places] = distances - hops * _MOST_GAP
    numbers[places] = symbols
    density = rows.size / max(1, n_rows * n_columns)
    return PackedRows(
        kernel=GAP_ROWS,
        label=f"sparse gaps, {density:.1%} of {n_rows}x{n_columns}, palette of {codebook.size}",
        n_rows=n_rows,
        n_columns=n_columns,
        n_blocks=n_rows,
        out_size=n_rows,
        weights=aligned_copy(starts.astype(np.int32)),
        codebook=_entries(codebook),
        factors=_factors(None, n_rows),
        further=(gaps, aligned_copy(numbers[::2] | numbers[1::2] << np.uint8(4))),
    )
