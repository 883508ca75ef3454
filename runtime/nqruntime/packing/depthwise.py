"""Depthwise convolutions for the kernels of `nqruntime.kernels.depthwise`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .areas import address, aligned_copy, float_bits
from .copy_steps import ChannelsCall
from .plane_layout import PlaneLayout
from .plane_steps import PlanesCall
from .planes import Taps


@dataclass(frozen=True, slots=True, kw_only=True)
class DepthwisePlanes:
    """Weights of a convolution whose outputs read one input channel each.

    Attributes
    ----------
    weights : ndarray of float32, shape (n_outputs, kernel elements)
    offsets : ndarray of int32, shape (kernel elements,)
        Bytes from an output's position, or from the first element that its stride leads to, to each tap.
    repeats : int
        Outputs that read the same channel.
    """

    weights: np.ndarray
    offsets: np.ndarray
    repeats: int

    @property
    def weight_bytes(self) -> int:
        """Bytes of all arrays."""
        return self.weights.nbytes + self.offsets.nbytes

    def planes_block(self, call: PlanesCall) -> np.ndarray:
        """Return the block of DEPTHWISE_PLANES, for stride 1; layouts as for sparse planes."""
        return call.block(
            address(self.weights),
            address(self.offsets),
            self.offsets.size,
            self.repeats,
            call.source.channel_bytes,
        )

    def rows_block(
        self,
        call: ChannelsCall,
        *,
        source_pitch: int,
        layout: PlaneLayout,
        strides: tuple[int, int],
        bias: np.ndarray,
        low: float = -np.inf,
        high: float = np.inf,
    ) -> np.ndarray:
        """Return the block of DEPTHWISE_ROWS, for any strides and any pitch of the output.

        Parameters
        ----------
        call : ChannelsCall
            Output channels; the source's pad is as wide as the taps reach.
        source_pitch : int
            Floats from row to row of the source.
        layout : PlaneLayout
            Of the output.
        strides : tuple of int
        bias : ndarray of float32, shape (n_outputs,)
        low, high : float
        """
        places = call.places(
            layout.height, layout.width, layout.pitch, 4 * strides[0] * source_pitch, 4 * layout.pitch
        )
        margin = layout.size - layout.origin - layout.n_positions
        further = [
            *(strides[1], 4 * layout.origin, 4 * margin),
            *(address(self.weights), address(self.offsets), self.offsets.size, self.repeats),
            *(address(bias), float_bits(low), float_bits(high)),
        ]
        return np.array([*places, *further], dtype=np.int64)


def pack_depthwise_planes(matrix: np.ndarray, taps: Taps) -> DepthwisePlanes:
    """Pack the weights of a depthwise convolution.

    Parameters
    ----------
    matrix : ndarray of float32, shape (n_outputs, kernel elements)
    taps : Taps
        Of the input channels, which divide the outputs.
    """
    return DepthwisePlanes(
        weights=aligned_copy(matrix.astype(np.float32, copy=False)).reshape(matrix.shape),
        offsets=taps.table(1),
        repeats=matrix.shape[0] // taps.n_channels,
    )
