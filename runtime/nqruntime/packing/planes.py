"""Weights of convolutions for the kernels of planes (`nqruntime.machine_code.planes`)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .areas import aligned_copy
from .plane_layout import LANES, PlaneLayout

MOST_TAPS = 256
"""Weights of an output in a block of input channels: a tap number is a byte."""

_MOST_SYMBOLS = 256
_TILE_VECTORS = 12
_FILLED = 4
_FILLED_VECTORS = 1
_CACHED_FLOATS = 12288


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """The kernel of a convolution of stride 1.

    Attributes
    ----------
    kernel, dilation : tuple of int, (rows, columns)
    before : tuple of int
        Rows and columns of zeros that the kernel reads above and on the left of the image.
    """

    kernel: tuple[int, int]
    dilation: tuple[int, int] = (1, 1)
    before: tuple[int, int] = (0, 0)

    @property
    def n_taps(self) -> int:
        """Elements of the kernel."""
        return math.prod(self.kernel)

    def offsets(self, pitch: int) -> np.ndarray:
        """Return the distance of each tap from the position of the output.

        Parameters
        ----------
        pitch : int
            Floats from row to row of source and output.

        Returns
        -------
        ndarray of int64, shape (n_taps,)
            In floats, in C order of the kernel.
        """
        rows, columns = (
            np.arange(n) * step - first
            for n, step, first in zip(self.kernel, self.dilation, self.before, strict=True)
        )
        found: np.ndarray = (rows[:, None] * pitch + columns).reshape(-1)
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Taps:
    """Where each weight of an output finds its inputs.

    Attributes
    ----------
    n_channels : int
    offsets : ndarray of int64, shape (n_taps,)
        Floats from an output's position to the tap's, in the first channel of the weight's channel.
    channel_floats : int
        From an input channel of the weights to the next.
    span : int
        Floats of a channel that a tile reads.
    reach : int
        Floats from the end of a channel to the last tap of position 0; negative.
    n_vectors : int
        Vectors of positions of the source.
    """

    n_channels: int
    offsets: np.ndarray
    channel_floats: int
    span: int
    reach: int
    n_vectors: int

    def slack(self, out: PlaneLayout) -> int:
        """Return how many floats after the last channel a kernel may read, whatever these hold."""
        return max(0, self.reach + LANES * out.n_vectors)

    def table(self, n_channels: int) -> np.ndarray:
        """Return the distances of the taps of the first channels.

        Returns
        -------
        ndarray of int32, shape (n_channels * taps,)
            In bytes.

        Raises
        ------
        ValueError
            If a distance is 2 GiB or more.
        """
        distances = 4 * (np.arange(n_channels)[:, None] * self.channel_floats + self.offsets)
        if np.abs(distances).max(initial=0) >= 1 << 31:
            raise ValueError(f"{n_channels} channels of {self.channel_floats} floats are too far apart")
        return aligned_copy(distances.reshape(-1).astype(np.int32))

    @classmethod
    def of(cls, window: Window, source: PlaneLayout, n_channels: int) -> Taps:
        """Return the taps of a window of stride 1 on planes of a layout."""
        offsets = window.offsets(source.pitch)
        return cls(
            n_channels=n_channels,
            offsets=offsets,
            channel_floats=source.size,
            span=min(source.size, int(np.ptp(offsets)) + _TILE_VECTORS * LANES),
            reach=source.origin + int(offsets.max()) - source.size,
            n_vectors=source.n_vectors,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SparsePlanes:
    """Nonzero weights by block of input channels and output, two bytes each.

    Attributes
    ----------
    n_outputs, n_blocks : int
    starts : ndarray of uint32, shape (n_blocks * n_outputs + 1,)
        Where an output's nonzeros of a block begin and end.
    nonzeros : ndarray of uint16, shape (n_nonzeros,)
        Number of the tap in its block, plus 256 times the symbol.
    offsets : ndarray of int32
        Bytes from an output's position to that of each tap of a block.
    codebook : ndarray of float32
    block_bytes, block_offset_bytes : int
        From one block's source and offsets to the next one's; one of the two is 0.
    """

    n_outputs: int
    n_blocks: int
    starts: np.ndarray
    nonzeros: np.ndarray
    offsets: np.ndarray
    codebook: np.ndarray
    block_bytes: int
    block_offset_bytes: int

    @property
    def weight_bytes(self) -> int:
        """Bytes of all arrays."""
        return sum(a.nbytes for a in (self.starts, self.nonzeros, self.offsets, self.codebook))


def pack_sparse_planes(
    *,
    rows: np.ndarray,
    columns: np.ndarray,
    symbols: np.ndarray,
    codebook: np.ndarray,
    n_rows: int,
    taps: Taps,
) -> SparsePlanes:
    """Pack the nonzeros of the weights, as a matrix of outputs by (channel, kernel row, kernel column).

    Parameters
    ----------
    rows, columns : ndarray of int, shape (n_nonzeros,)
    symbols : ndarray of uint8 or uint16, shape (n_nonzeros,)
    codebook : ndarray of float32, at most 256 entries
    n_rows : int
        Outputs.
    taps : Taps

    Raises
    ------
    ValueError
        If the codebook has more than 256 entries.
    """
    if codebook.size > _MOST_SYMBOLS:
        raise ValueError(f"{codebook.size} codebook entries, sparse planes take {_MOST_SYMBOLS}")
    block, tap, offsets, block_bytes, n_blocks = _blocks_of_taps(columns, taps)
    place = block * n_rows + rows
    counts = np.bincount(place, minlength=n_blocks * n_rows)
    order = np.lexsort((tap, place))
    nonzeros = (tap + (symbols.astype(np.int64) << 8))[order].astype(np.uint16)
    zeros = np.flatnonzero(codebook == 0)
    if taps.n_vectors <= _FILLED_VECTORS and zeros.size:
        nonzeros, counts = _filled(nonzeros, counts, np.uint16(int(zeros[0]) << 8))
    return SparsePlanes(
        n_outputs=n_rows,
        n_blocks=n_blocks,
        starts=aligned_copy(np.concatenate([[0], np.cumsum(counts)]).astype(np.uint32)),
        nonzeros=aligned_copy(nonzeros),
        offsets=offsets,
        codebook=aligned_copy(codebook.astype(np.float32)),
        block_bytes=block_bytes,
        block_offset_bytes=0 if block_bytes else 4 * MOST_TAPS,
    )


def _filled(nonzeros: np.ndarray, counts: np.ndarray, filling: np.uint16) -> tuple[np.ndarray, np.ndarray]:
    """Fill the nonzeros of each output and block to multiples of FILLED; returns them and the new counts."""
    filled = -(-counts // _FILLED) * _FILLED
    out = np.full(int(filled.sum()), filling, dtype=np.uint16)
    moved = np.cumsum(filled - counts) - (filled - counts)
    out[np.arange(nonzeros.size) + np.repeat(moved, counts)] = nonzeros
    return out, filled


def _blocks_of_taps(columns: np.ndarray, taps: Taps) -> tuple[np.ndarray, np.ndarray, np.ndarray, int, int]:
    """Return block and tap of each nonzero, table of offsets, bytes between blocks, blocks.

    Blocks of whole channels share one table of offsets; parts of a large kernel have one each.
    """
    n_taps = taps.offsets.size
    if n_taps > MOST_TAPS:
        return _blocks_of_large_kernel(columns, taps)
    most = max(1, min(MOST_TAPS // n_taps, _CACHED_FLOATS // taps.span))
    n_blocks = max(1, -(-taps.n_channels // most))
    together = -(-taps.n_channels // n_blocks)
    block, tap = np.divmod(columns.astype(np.int64), together * n_taps)
    return (
        block,
        tap,
        taps.table(together),
        4 * together * taps.channel_floats,
        -(-taps.n_channels // together),
    )


def _blocks_of_large_kernel(
    columns: np.ndarray, taps: Taps
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int, int]:
    channel, place = np.divmod(columns.astype(np.int64), taps.offsets.size)
    parts = -(-taps.offsets.size // MOST_TAPS)
    table = np.zeros((taps.n_channels, parts * MOST_TAPS), dtype=np.int32)
    table[:, : taps.offsets.size] = taps.table(taps.n_channels).reshape(taps.n_channels, -1)
    part, tap = np.divmod(place, MOST_TAPS)
    return channel * parts + part, tap, aligned_copy(table), 0, taps.n_channels * parts
