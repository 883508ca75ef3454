"""Dense and depthwise weights of convolutions for the kernels of `nqruntime.kernels.dense_planes`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nqruntime.kernels.blocks import BYTE_WEIGHTS, FLOAT_WEIGHTS, LANES, NIBBLE_WEIGHTS, OUTPUTS_TOGETHER

from .areas import aligned, aligned_copy, round_up
from .planes import Taps

_NIBBLE_SYMBOLS = 16
_BYTE_SYMBOLS = 256
_BLOCK_TAPS = 288
_CACHED_FLOATS = 8192
_SPARE_FLOATS = 3 * LANES


@dataclass(frozen=True, slots=True, kw_only=True)
class DensePlanes:
    """Weights in pieces of OUTPUTS_TOGETHER outputs by the taps of a block of input channels.

    Attributes
    ----------
    form : int
        FLOAT_WEIGHTS, NIBBLE_WEIGHTS or BYTE_WEIGHTS.
    n_outputs, n_blocks : int
    weights : ndarray of float32 or uint8, shape (n_blocks, pieces of a block, elements of a piece)
    offsets : ndarray of int32, shape (block_taps,)
        Bytes from an output's position to that of each tap of a block.
    codebook : ndarray of float32
        16 entries, or 256 for weights in bytes.
    block_bytes : int
        From one block's source to the next one's.
    block_taps, last_taps : int
        Taps of a block and of the last block.
    """

    form: int
    n_outputs: int
    n_blocks: int
    weights: np.ndarray
    offsets: np.ndarray
    codebook: np.ndarray
    block_bytes: int
    block_taps: int
    last_taps: int

    @property
    def piece_bytes(self) -> int:
        """Bytes of a piece of weights."""
        return int(self.weights[0, 0].nbytes)

    @property
    def buffer_floats(self) -> int:
        """Floats that the kernel needs for itself: those of a piece, and of outputs that do not exist."""
        return OUTPUTS_TOGETHER * round_up(self.block_taps, 4) + _SPARE_FLOATS

    @property
    def weight_bytes(self) -> int:
        """Bytes of all arrays."""
        return sum(a.nbytes for a in (self.weights, self.offsets, self.codebook))


def pack_dense_planes(matrix: np.ndarray, codebook: np.ndarray | None, taps: Taps) -> DensePlanes:
    """Pack the weights of a convolution as a matrix of outputs by (channel, kernel row, kernel column).

    Parameters
    ----------
    matrix : ndarray, shape (n_outputs, channels * kernel elements)
        float32, or symbols of a codebook: half a byte each for at most 16 entries, else a byte.
    codebook : ndarray of float32 or None
        None if the matrix holds the weights.
    taps : Taps

    Raises
    ------
    ValueError
        If the codebook has more than 256 entries.
    """
    n_taps = taps.offsets.size
    if codebook is not None and codebook.size > _BYTE_SYMBOLS:
        raise ValueError(f"{codebook.size} codebook entries, dense planes take {_BYTE_SYMBOLS}")
    most = max(1, min(_BLOCK_TAPS // n_taps, _CACHED_FLOATS // taps.span))
    together = -(-taps.n_channels // -(-taps.n_channels // most))
    n_blocks = -(-taps.n_channels // together)
    form, weights = _pack_pieces(_pieces(matrix, n_blocks, together * n_taps), codebook)
    return DensePlanes(
        form=form,
        n_outputs=matrix.shape[0],
        n_blocks=n_blocks,
        weights=weights,
        offsets=taps.table(together),
        codebook=_entries(np.zeros(0) if codebook is None else codebook),
        block_bytes=4 * together * taps.channel_floats,
        block_taps=together * n_taps,
        last_taps=(taps.n_channels - (n_blocks - 1) * together) * n_taps,
    )


def _pieces(matrix: np.ndarray, n_blocks: int, block_taps: int) -> np.ndarray:
    """Return weights, zeros added: shape (blocks, pieces, taps of a block and up to 3 more, outputs)."""
    n_pieces = -(-matrix.shape[0] // OUTPUTS_TOGETHER)
    padded = np.zeros((n_pieces * OUTPUTS_TOGETHER, n_blocks * block_taps), dtype=matrix.dtype)
    padded[: matrix.shape[0], : matrix.shape[1]] = matrix
    by_piece = padded.reshape(n_pieces, OUTPUTS_TOGETHER, n_blocks, block_taps).transpose(2, 0, 3, 1)
    pieces = np.zeros((n_blocks, n_pieces, round_up(block_taps, 4), OUTPUTS_TOGETHER), dtype=matrix.dtype)
    pieces[:, :, :block_taps] = by_piece
    return pieces


def _pack_pieces(pieces: np.ndarray, codebook: np.ndarray | None) -> tuple[int, np.ndarray]:
    shape = pieces.shape[:2]
    if codebook is None:
        return FLOAT_WEIGHTS, aligned_copy(pieces.astype(np.float32, copy=False).reshape(*shape, -1)).reshape(
            *shape, -1
        )
    symbols = pieces.astype(np.uint8, copy=False)
    if codebook.size > _NIBBLE_SYMBOLS:
        return BYTE_WEIGHTS, aligned_copy(symbols).reshape(*shape, -1)
    halves = symbols.reshape(*shape, -1, 2, LANES)
    return NIBBLE_WEIGHTS, aligned_copy(halves[..., 0, :] | halves[..., 1, :] << np.uint8(4)).reshape(
        *shape, -1
    )


def _entries(codebook: np.ndarray) -> np.ndarray:
    """Return a codebook as kernels read it: 16 floats, or 256."""
    out = aligned(_NIBBLE_SYMBOLS if codebook.size <= _NIBBLE_SYMBOLS else _BYTE_SYMBOLS, np.float32)
    out[: codebook.size] = codebook
    return out
