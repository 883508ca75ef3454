"""Weights of bytes for convolutions of quantized planes (`nqruntime.kernels.int8_planes`)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from nqruntime.kernels.blocks import LANES, OUTPUTS_TOGETHER

from .areas import address, aligned, aligned_copy, round_up
from .dense_planes import DensePlanes, pack_dense_planes
from .int8_weights import Int8Weights
from .plane_layout import Area
from .plane_steps import PlanesCall
from .planes import Taps

GROUP = 4
"""Input channels whose bytes make a word."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8Planes:
    """Weights of bytes, and what it takes to quantize the source.

    Attributes
    ----------
    words : DensePlanes
        Weights of four input channels as the bits of a float, with groups of channels for channels.
    factors : ndarray of float32, shape (round_up(n_outputs, OUTPUTS_TOGETHER),)
    sums : ndarray of int32, shape of the factors
        Of each output's levels.
    taps : Taps
        On the source.
    """

    words: DensePlanes
    factors: np.ndarray
    sums: np.ndarray
    taps: Taps

    @property
    def weight_bytes(self) -> int:
        """Bytes of all arrays."""
        return self.words.weight_bytes + self.factors.nbytes + self.sums.nbytes

    @property
    def n_groups(self) -> int:
        """Groups of four input channels."""
        return -(-self.taps.n_channels // GROUP)

    @property
    def image_floats(self) -> int:
        """Words of a quantized image."""
        return self.n_groups * self.taps.channel_floats

    @property
    def _origin_bytes(self) -> int:
        """Bytes from the begin of a channel to position 0."""
        return 4 * (self.taps.reach - int(self.taps.offsets.max()) + self.taps.channel_floats)

    def range_block(self, source: Area, n_images: int, ranges: int) -> np.ndarray:
        """Return the block of RANGE_PLANES; `ranges` is the address of four floats a channel and image."""
        places = [0, self.taps.n_channels, *self._source(source, n_images, ranges)]
        return np.array(places, dtype=np.int64)

    def quantize_block(
        self, source: Area, n_images: int, *, ranges: int, out: int, table: int, own: int
    ) -> np.ndarray:
        """Return the block of QUANTIZE_PLANES.

        Parameters
        ----------
        source : Area
        n_images : int
        ranges : int
            Address of what RANGE_PLANES found.
        out : int
            Address of `n_images * image_floats` words.
        table, own : int
            Addresses of four floats an image, the second for each thread.
        """
        places = [0, self.n_groups, *self._source(source, n_images, ranges)]
        places += [out, 4 * self.taps.channel_floats, 4 * self.image_floats, table, own]
        return np.array(places, dtype=np.int64)

    def _source(self, source: Area, n_images: int, ranges: int) -> list[int]:
        start, vectors = source.address - self._origin_bytes, self.taps.channel_floats // LANES
        return [
            n_images,
            start,
            source.image_bytes,
            source.channel_bytes,
            vectors,
            ranges,
            self.taps.n_channels,
        ]

    def block(self, call: PlanesCall, *, quantized: int, table: int, spare: int) -> np.ndarray:
        """Return the block of INT8_PLANES.

        Parameters
        ----------
        call : PlanesCall
            Its source is not read; its bias has room for whole groups of OUTPUTS_TOGETHER outputs.
        quantized, table : int
            Addresses of what QUANTIZE_PLANES made.
        spare : int
            Address of three vectors that are written.
        """
        words = self.words
        size = 4 * self.taps.channel_floats
        area = Area(
            address=quantized + self._origin_bytes, channel_bytes=size, image_bytes=4 * self.image_floats
        )
        return replace(call, source=area).block(
            address(words.weights),
            address(words.offsets),
            address(self.sums),
            table,
            spare,
            words.n_blocks,
            words.block_bytes,
            words.n_outputs,
            words.block_taps,
            words.last_taps,
            address(self.factors),
            words.piece_bytes,
        )


def pack_int8_planes(weights: Int8Weights, taps: Taps) -> Int8Planes:
    """Pack the levels of a convolution as a matrix of outputs by (channel, kernel row, kernel column)."""
    n_outputs, n_taps = weights.levels.shape[0], taps.offsets.size
    n_groups = -(-taps.n_channels // GROUP)
    padded = np.zeros((n_outputs, n_groups * GROUP, n_taps), dtype=np.int8)
    padded[:, : taps.n_channels] = weights.levels.reshape(n_outputs, taps.n_channels, n_taps)
    words = np.ascontiguousarray(padded.reshape(n_outputs, n_groups, GROUP, n_taps).swapaxes(2, 3))
    matrix = words.view("<f4").reshape(n_outputs, n_groups * n_taps)
    size = round_up(n_outputs, OUTPUTS_TOGETHER)
    factors, sums = aligned(size, np.float32), aligned(size, np.int32)
    factors[:n_outputs], sums[:n_outputs] = weights.factors, weights.sums
    return Int8Planes(
        words=pack_dense_planes(matrix, None, replace(taps, n_channels=n_groups)),
        factors=aligned_copy(factors),
        sums=aligned_copy(sums),
        taps=taps,
    )
