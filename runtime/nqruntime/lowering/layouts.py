"""How values lie in the memory of a segment."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nqruntime.packing.areas import LINE, round_up
from nqruntime.packing.plane_layout import Area, PlaneLayout

_LINE_FLOATS = LINE // 4
ROW_FLOATS = 64
"""What kernels of products write of a vector is a multiple of this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Vectors along the last axis, one after the other, each with room to spare.

    Attributes
    ----------
    shape : tuple of int
    pitch : int
        Floats from one vector to the next.
    """

    shape: tuple[int, ...]
    pitch: int

    @property
    def n_features(self) -> int:
        """Length of a vector."""
        return self.shape[-1]

    @property
    def n_vectors(self) -> int:
        """Number of vectors."""
        return math.prod(self.shape[:-1])

    @property
    def is_packed(self) -> bool:
        """Whether the value is an array in C order."""
        return self.pitch == self.n_features or self.n_vectors == 1

    @property
    def size(self) -> int:
        """Floats of the area, and a vector that kernels may read beyond."""
        return max(1, self.n_vectors) * self.pitch + _LINE_FLOATS


def rows(shape: tuple[int, ...]) -> Rows:
    """Return the layout of what a product gives: with room for what its kernel writes beyond."""
    return Rows(shape=shape, pitch=round_up(shape[-1] + 1, ROW_FLOATS))


def packed_rows(shape: tuple[int, ...]) -> Rows:
    """Return the layout of an array in C order."""
    return Rows(shape=shape, pitch=shape[-1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Planes:
    """Images whose channels lie as `PlaneLayout` says.

    Attributes
    ----------
    shape : tuple of int
        (images, channels, width) or (images, channels, height, width).
    plane : PlaneLayout
    """

    shape: tuple[int, ...]
    plane: PlaneLayout

    @property
    def n_images(self) -> int:
        """Number of images."""
        return self.shape[0]

    @property
    def n_channels(self) -> int:
        """Channels of an image."""
        return self.shape[1]

    @property
    def size(self) -> int:
        """Floats of the area, and a vector that kernels may read beyond."""
        return self.n_images * self.n_channels * self.plane.size + _LINE_FLOATS

    def area(self, address: int, first_channel: int = 0) -> Area:
        """Return the planes as kernels take them."""
        return Area.of(address, self.plane, self.n_channels, first_channel)


Layout = Rows | Planes


def image_size(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return height and width of images; those with one spatial axis have one row."""
    return (1, shape[2]) if len(shape) == 3 else (shape[2], shape[3])
