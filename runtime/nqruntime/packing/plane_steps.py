"""Parameter blocks of the kernels of planes, from areas and weights; places as in `kernels.blocks`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nqruntime.kernels.blocks import LANES, TILE_VECTORS

from .areas import address, float_bits
from .dense_planes import DensePlanes
from .plane_layout import Area, PlaneLayout
from .planes import SparsePlanes


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanesCall:
    """What every kernel of planes takes; all areas and arrays must stay alive while the block is used.

    Attributes
    ----------
    first, last : int
        Output channels to compute, `last` excluded.
    n_images : int
    source, out : Area
    layout : PlaneLayout
        Of the output.
    mask : ndarray of int32
        The layout's mask.
    bias : ndarray of float32, shape (outputs,)
    low, high : float
        Limits of the output; -inf and inf for none.
    residual : Area or None
        Added before the limits; may be the output.
    """

    first: int
    last: int
    n_images: int
    source: Area
    out: Area
    layout: PlaneLayout
    mask: np.ndarray
    bias: np.ndarray
    low: float = -np.inf
    high: float = np.inf
    residual: Area | None = None

    def block(self, *further: int) -> np.ndarray:
        """Return the block with the places from 18 on.

        Returns
        -------
        ndarray of int64, shape (18 + len(further),)
        """
        residual = self.residual or Area(address=0, channel_bytes=0, image_bytes=0)
        places = [
            *(self.first, self.last, self.n_images),
            *(self.source.address, self.source.image_bytes),
            *(self.out.address, self.out.channel_bytes, self.out.image_bytes),
            *(self.layout.n_vectors, address(self.mask), address(self.bias)),
            *(float_bits(self.low), float_bits(self.high)),
            *(residual.address, residual.channel_bytes, residual.image_bytes),
            *(4 * self.layout.origin, 4 * self.layout.after),
        ]
        return np.array([*places, *further], dtype=np.int64)


def sparse_planes(call: PlanesCall, weights: SparsePlanes, buffer: int = 0) -> np.ndarray:
    """Return the block of SPARSE_PLANES.

    Source and output have the same pitch, and the source's pad is as wide as the taps reach.

    Parameters
    ----------
    call : PlanesCall
    weights : SparsePlanes
    buffer : int
        Address of `weights.buffer_floats` floats, a multiple of 64, that nothing else uses meanwhile.
    """
    windows = weights.windows
    places = [
        *(address(weights.starts), address(weights.nonzeros), address(weights.offsets)),
        *(address(weights.codebook), weights.n_blocks),
        *(weights.block_bytes, weights.block_offset_bytes, weights.n_outputs),
    ]
    if windows is None:
        return call.block(*places, TILE_VECTORS, *(0,) * 7)
    return call.block(
        *places,
        *(windows.tile_vectors, len(windows.copies), address(windows.copies), buffer),
        *(4 * windows.source_floats, 4 * windows.channel_floats),
        *(windows.n_channels, windows.last_channels),
    )


def dense_planes(call: PlanesCall, weights: DensePlanes, buffer: int) -> np.ndarray:
    """Return the block of DENSE_PLANES; layouts as for `sparse_planes`.

    Parameters
    ----------
    call : PlanesCall
        Its first output is a multiple of OUTPUTS_TOGETHER.
    weights : DensePlanes
    buffer : int
        Address of `weights.buffer_floats` floats that nothing else uses meanwhile.
    """
    return call.block(
        address(weights.weights),
        address(weights.offsets),
        address(weights.codebook),
        buffer + 4 * 3 * LANES,
        buffer,
        weights.n_blocks,
        weights.block_bytes,
        weights.n_outputs,
        weights.block_taps,
        weights.last_taps,
        weights.form,
        weights.piece_bytes,
    )


def scale_planes(call: PlanesCall, factors: int, factor_image_bytes: int = 0) -> np.ndarray:
    """Return the block of SCALE_PLANES: source * factor + bias + residual, within the limits.

    Source and output have the same pitch; one may be the other.

    Parameters
    ----------
    call : PlanesCall
    factors : int
        Address of a float for each channel.
    factor_image_bytes : int
        From one image's factors to the next one's; 0 if all images have the same.
    """
    return call.block(call.source.channel_bytes, factors, factor_image_bytes)
