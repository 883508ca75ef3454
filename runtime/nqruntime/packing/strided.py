"""Convolutions with strides as convolutions of stride 1 on phases of the source."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from nqruntime.kernels.blocks import LANES, TILE_VECTORS

from .copy_steps import ChannelsCall, copy_phase
from .plane_layout import Area, PlaneLayout
from .planes import Taps, Window

_TILE_FLOATS = TILE_VECTORS * LANES


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """Every n-th row and column of an image from `first` on, of which `extent` exist."""

    first: tuple[int, int]
    extent: tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class StridedPlan:
    """Phases of a source, a plane each behind one another for each channel, and the taps on them.

    Attributes
    ----------
    strides : tuple of int
    layout : PlaneLayout
        Of a phase. The output of the convolution has its pitch.
    phases : tuple of Phase
        Those that a tap reads.
    taps : Taps
    """

    strides: tuple[int, int]
    layout: PlaneLayout
    phases: tuple[Phase, ...]
    taps: Taps

    @property
    def channel_size(self) -> int:
        """Floats of the phases of a channel."""
        return len(self.phases) * self.layout.size

    def area(self, address: int, first_channel: int = 0) -> Area:
        """Return the source of the convolution, of phases that begin at `address`."""
        channel_bytes = 4 * self.channel_size
        return Area(
            address=address + first_channel * channel_bytes + 4 * self.layout.origin,
            channel_bytes=channel_bytes,
            image_bytes=self.taps.n_channels * channel_bytes,
        )

    def copies(
        self, source: Area, source_pitch: int, address: int, n_images: int, n_channels: int
    ) -> Iterator[np.ndarray]:
        """Yield a block of COPY_ROWS for each phase.

        Parameters
        ----------
        source : Area
        source_pitch : int
            Floats from row to row of the source.
        address : int
            Where the phases begin: images * channels * channel_size floats.
        n_images, n_channels : int
            Channels of the source, of all groups.
        """
        channel_bytes = 4 * self.channel_size
        for number, phase in enumerate(self.phases):
            place = address + 4 * (number * self.layout.size + self.layout.origin)
            out = Area(address=place, channel_bytes=channel_bytes, image_bytes=n_channels * channel_bytes)
            call = ChannelsCall(first=0, last=n_channels, n_images=n_images, source=source, out=out)
            yield copy_phase(
                call,
                source_pitch=source_pitch,
                first=phase.first,
                step=self.strides,
                extent=phase.extent,
                layout=self.layout,
            )


def plan_strided(
    window: Window,
    *,
    strides: tuple[int, int],
    source: tuple[int, int],
    out: tuple[int, int],
    n_channels: int,
    pad: int = 0,
) -> StridedPlan:
    """Plan a convolution with strides.

    Row y of the output reads row ``y * stride + tap * dilation - before`` of the source: that is row
    ``y + quotient`` of the phase of the remainder, both of the division of the rest by the stride.

    Parameters
    ----------
    window : Window
    strides : tuple of int
    source, out : tuple of int
        Rows and columns of the source and of the output.
    n_channels : int
        Input channels of the weights (of a group).
    pad : int
        Least columns between the rows of a phase, and so of the output.
    """
    rows, columns = (
        _axis(window.kernel[i], window.dilation[i], window.before[i], strides[i]) for i in range(2)
    )
    numbers = {phase: k for k, phase in enumerate(sorted({(r, c) for r, _ in rows for c, _ in columns}))}
    reach = [max(q for _, q in axis) for axis in (rows, columns)]
    phases = tuple(
        Phase(
            first=phase,
            extent=_extent(phase, source, strides, (out[0] + reach[0], out[1] + reach[1])),
        )
        for phase in numbers
    )
    height, width = (max(out[i], *(phase.extent[i] for phase in phases)) for i in range(2))
    needed = [-min(q for _, q in axis) for axis in (rows, columns)]
    needed += [reach[0] + out[0] - height, reach[1] + out[1] - width]
    layout = PlaneLayout(height=height, width=width, pad=max(pad, 0, *needed))
    offsets = [numbers[r, c] * layout.size + y * layout.pitch + x for r, y in rows for c, x in columns]
    return StridedPlan(
        strides=strides,
        layout=layout,
        phases=phases,
        taps=Taps(
            n_channels=n_channels,
            offsets=np.array(offsets, dtype=np.int64),
            channel_floats=len(phases) * layout.size,
            span=len(phases) * min(layout.size, layout.pitch * len(rows) + _TILE_FLOATS),
            reach=layout.origin + max(offsets) - len(phases) * layout.size,
            n_vectors=layout.n_vectors,
        ),
    )


def _axis(kernel: int, dilation: int, before: int, stride: int) -> list[tuple[int, int]]:
    """Return remainder and quotient of each tap of an axis."""
    places = (k * dilation - before for k in range(kernel))
    return [(place % stride, place // stride) for place in places]


def _extent(
    first: tuple[int, int], source: tuple[int, int], strides: tuple[int, int], most: tuple[int, int]
) -> tuple[int, int]:
    """Return how many rows and columns of a phase exist, of those that are read."""
    rows, columns = (max(0, min(most[i], -(-(source[i] - first[i]) // strides[i]))) for i in range(2))
    return rows, columns
