"""Weights of convolutions for the kernels of planes (`nqruntime.kernels.planes`)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from nqruntime.kernels.blocks import LANES, TILE_VECTORS

from .areas import aligned_copy
from .plane_layout import PlaneLayout

MOST_TAPS = 256
"""Weights of an output in a block of input channels: a tap number is a byte."""

_MOST_SYMBOLS = 256
_WINDOW_TILE = 8
_WINDOW_FLOATS = 10240
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
            span=min(source.size, int(np.ptp(offsets)) + TILE_VECTORS * LANES),
            reach=source.origin + int(offsets.max()) - source.size,
            n_vectors=source.n_vectors,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Windows:
    """What a tile reads of each channel of a block, copied so that all its vectors are whole lines.

    Taps whose distances agree modulo the lanes of a vector read the same copy.

    Attributes
    ----------
    copies : ndarray of int32, shape (n_copies, 3)
        Bytes from a tile's first position to the source, vectors besides those of the tile, bytes from the
        start of the channel's window.
    places : ndarray of int64, shape (taps,)
        Floats from the start of the channel's window to what a tap reads.
    tile_vectors : int
        Most vectors of a tile.
    channel_floats : int
        Size of a window.
    source_floats : int
        From a channel of the source to the next.
    n_channels, last_channels : int
        Of a block, and of the last one.
    """

    copies: np.ndarray
    places: np.ndarray
    tile_vectors: int
    channel_floats: int
    source_floats: int
    n_channels: int
    last_channels: int

    @classmethod
    def of(cls, taps: Taps) -> Windows:
        """Return windows for blocks of as many channels as the cache holds."""
        n_tiles = -(-taps.n_vectors // _WINDOW_TILE)
        tile = -(-taps.n_vectors // n_tiles)
        quotients, remainders = np.divmod(taps.offsets, LANES)
        places = np.zeros(taps.offsets.size, dtype=np.int64)
        copies, begin = [], 0
        order = np.lexsort((quotients, remainders))
        apart = (np.diff(remainders[order]) != 0) | (np.diff(quotients[order]) > tile)
        for mine in np.split(order, np.flatnonzero(apart) + 1):
            first, last = quotients[mine[0]], quotients[mine[-1]]
            places[mine] = begin + LANES * (quotients[mine] - first)
            copies.append((4 * (LANES * first + remainders[mine[0]]), last - first, 4 * begin))
            begin += LANES * (tile + last - first)
        most = max(1, min(MOST_TAPS // taps.offsets.size, _WINDOW_FLOATS // begin, taps.n_channels))
        n_blocks = -(-taps.n_channels // most)
        together = -(-taps.n_channels // n_blocks)
        return cls(
            copies=aligned_copy(np.array(copies, dtype=np.int32)).reshape(-1, 3),
            places=places,
            tile_vectors=tile,
            channel_floats=int(begin),
            source_floats=taps.channel_floats,
            n_channels=together,
            last_channels=taps.n_channels - (-(-taps.n_channels // together) - 1) * together,
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
    windows : Windows or None
        Copies of a block's inputs, from which the offsets count then.
    """

    n_outputs: int
    n_blocks: int
    starts: np.ndarray
    nonzeros: np.ndarray
    offsets: np.ndarray
    codebook: np.ndarray
    block_bytes: int
    block_offset_bytes: int
    windows: Windows | None = None

    @property
    def buffer_floats(self) -> int:
        """Floats that the kernel needs for itself, from a cache line on."""
        return 0 if self.windows is None else self.windows.n_channels * self.windows.channel_floats

    @property
    def weight_bytes(self) -> int:
        """Bytes of all arrays."""
        arrays = [self.starts, self.nonzeros, self.offsets, self.codebook]
        if self.windows is not None:
            arrays.append(self.windows.copies)
        return sum(a.nbytes for a in arrays)


def pack_sparse_planes(
    *,
    rows: np.ndarray,
    columns: np.ndarray,
    symbols: np.ndarray,
    codebook: np.ndarray,
    n_rows: int,
    taps: Taps,
    copied: bool = False,
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
    copied : bool
        Let the kernel copy the inputs of a tile so that vectors are whole lines: faster if several taps of
        several outputs read each, and not for kernels of one tap.

    Raises
    ------
    ValueError
        If the codebook has more than 256 entries, or to copy the inputs of a kernel of more taps.
    """
    if codebook.size > _MOST_SYMBOLS:
        raise ValueError(f"{codebook.size} codebook entries, sparse planes take {_MOST_SYMBOLS}")
    if copied and taps.offsets.size > MOST_TAPS:
        raise ValueError(f"windows of {taps.offsets.size} taps, sparse planes copy those of {MOST_TAPS}")
    windows = Windows.of(taps) if copied else None
    block, tap, offsets, block_bytes, n_blocks = _blocks_of_taps(columns, taps, windows)
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
        windows=windows,
    )


def _filled(nonzeros: np.ndarray, counts: np.ndarray, filling: np.uint16) -> tuple[np.ndarray, np.ndarray]:
    """Fill the nonzeros of each output and block to multiples of FILLED; returns them and the new counts."""
    filled = -(-counts // _FILLED) * _FILLED
    out = np.full(int(filled.sum()), filling, dtype=np.uint16)
    moved = np.cumsum(filled - counts) - (filled - counts)
    out[np.arange(nonzeros.size) + np.repeat(moved, counts)] = nonzeros
    return out, filled


def _blocks_of_taps(
    columns: np.ndarray, taps: Taps, windows: Windows | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int, int]:
    """Return block and tap of each nonzero, table of offsets, bytes between blocks, blocks.

    Blocks of whole channels share one table of offsets; parts of a large kernel have one each.
    """
    n_taps = taps.offsets.size
    if n_taps > MOST_TAPS:
        return _blocks_of_large_kernel(columns, taps)
    if windows is None:
        most = max(1, min(MOST_TAPS // n_taps, _CACHED_FLOATS // taps.span))
        together = -(-taps.n_channels // max(1, -(-taps.n_channels // most)))
        table = taps.table(together)
    else:
        together = windows.n_channels
        places = np.arange(together)[:, None] * windows.channel_floats + windows.places
        table = aligned_copy((4 * places).reshape(-1).astype(np.int32))
    block, tap = np.divmod(columns.astype(np.int64), together * n_taps)
    return block, tap, table, 4 * together * taps.channel_floats, -(-taps.n_channels // together)


def _blocks_of_large_kernel(
    columns: np.ndarray, taps: Taps
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int, int]:
    channel, place = np.divmod(columns.astype(np.int64), taps.offsets.size)
    parts = -(-taps.offsets.size // MOST_TAPS)
    table = np.zeros((taps.n_channels, parts * MOST_TAPS), dtype=np.int32)
    table[:, : taps.offsets.size] = taps.table(taps.n_channels).reshape(taps.n_channels, -1)
    part, tap = np.divmod(place, MOST_TAPS)
    return channel * parts + part, tap, aligned_copy(table), 0, taps.n_channels * parts
