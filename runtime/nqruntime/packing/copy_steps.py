"""Parameter blocks of the copies of planes; places as in `kernels.blocks`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nqruntime.kernels.blocks import LANES

from .areas import float_bits
from .plane_layout import Area, PlaneLayout


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelsCall:
    """Channels that are copied or pooled.

    Attributes
    ----------
    first, last : int
        Channels, `last` excluded.
    n_images : int
    source, out : Area
    """

    first: int
    last: int
    n_images: int
    source: Area
    out: Area

    def places(self, *further: int) -> list[int]:
        """Return the block up to place 13; `further` are the places from 8 on, at most 5."""
        return [
            *(self.first, self.last, self.n_images),
            *(self.source.address, self.source.image_bytes),
            *(self.out.address, self.out.channel_bytes, self.out.image_bytes),
            *(*further, *(0,) * (5 - len(further))),
            self.source.channel_bytes,
        ]


def copy_to_planes(call: ChannelsCall, *, source_pitch: int, layout: PlaneLayout) -> np.ndarray:
    """Return the block of COPY_ROWS that fills planes, zeros included, from rows at any pitch.

    Parameters
    ----------
    call : ChannelsCall
    source_pitch : int
        Floats from row to row of the source: the width, if the images are plain NCHW.
    layout : PlaneLayout
        Of the output.
    """
    margin = layout.size - layout.origin - layout.n_positions
    if source_pitch == layout.width == layout.pitch:
        n = layout.n_positions
        rows = call.places(1, n, n, 4 * n, 4 * n)
    else:
        rows = call.places(layout.height, layout.width, layout.pitch, 4 * source_pitch, 4 * layout.pitch)
    return np.array([*rows, 1, 4 * layout.origin, 4 * margin], dtype=np.int64)


def copy_from_planes(call: ChannelsCall, *, layout: PlaneLayout) -> np.ndarray:
    """Return the block of COPY_ROWS from planes of a layout to plain NCHW: nothing else is written."""
    height, width = layout.height, layout.width
    if layout.pitch == width:
        height, width = 1, height * width
    rows = call.places(height, width, width, 4 * layout.pitch, 4 * width)
    return np.array([*rows, 1, 0, 0], dtype=np.int64)


def copy_phase(
    call: ChannelsCall,
    *,
    source_pitch: int,
    first: tuple[int, int],
    step: tuple[int, int],
    extent: tuple[int, int],
    layout: PlaneLayout,
) -> np.ndarray:
    """Return the block of COPY_ROWS that fills planes with every n-th row and column.

    Parameters
    ----------
    call : ChannelsCall
    source_pitch : int
        Floats from row to row of the source.
    first, step, extent : tuple of int
        First row and column of the source, distances between those taken, and their numbers, which are at
        most the layout's height and width.
    layout : PlaneLayout
        Of the output; its elements beyond the extent become zero.
    """
    source = Area(
        address=call.source.address + 4 * (first[0] * source_pitch + first[1]),
        channel_bytes=call.source.channel_bytes,
        image_bytes=call.source.image_bytes,
    )
    moved = ChannelsCall(
        first=call.first, last=call.last, n_images=call.n_images, source=source, out=call.out
    )
    margin = layout.size - layout.origin - extent[0] * layout.pitch
    rows = moved.places(extent[0], extent[1], layout.pitch, 4 * step[0] * source_pitch, 4 * layout.pitch)
    return np.array([*rows, step[1], 4 * layout.origin, 4 * margin], dtype=np.int64)


def average_channels(call: ChannelsCall, layout: PlaneLayout, *, cleared_floats: int = 0) -> np.ndarray:
    """Return the block of AVERAGE_CHANNELS: one float a channel.

    Parameters
    ----------
    call : ChannelsCall
        A channel of the output is one float; an area of features has channels of 4 bytes.
    layout : PlaneLayout
        Of the source.
    cleared_floats : int
        Floats after the average that become zero.
    """
    count = float_bits(layout.height * layout.width)
    return np.array([*call.places(layout.n_vectors), count, 4 * cleared_floats], dtype=np.int64)


def transpose(
    *, source: int, source_pitch: int, shape: tuple[int, int], out: int, out_pitch: int, written: int
) -> np.ndarray:
    """Return the block of TRANSPOSE of a whole matrix; a share of its groups of 16 columns is places 0 and 1.

    Parameters
    ----------
    source, out : int
        Addresses.
    source_pitch, out_pitch : int
        Floats from row to row.
    shape : tuple of int
        Rows and columns of the source.
    written : int
        Floats written of an output row, at least the rows of the source: zeros follow these.
    """
    n_rows, n_columns = shape
    groups = -(-n_columns // LANES)
    pitches = 4 * source_pitch, 4 * out_pitch
    return np.array(
        [0, groups, source, pitches[0], out, pitches[1], n_rows, n_columns, written], dtype=np.int64
    )
