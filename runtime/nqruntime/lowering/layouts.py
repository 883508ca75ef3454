"""How values lie in the memory of a segment."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nqruntime.packing.areas import LINE, round_up

_LINE_FLOATS = LINE // 4


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
    def size(self) -> int:
        """Floats of the area."""
        return max(1, self.n_vectors) * self.pitch


def rows(shape: tuple[int, ...], room: int = 0) -> Rows:
    """Return the layout of a value, with room for vectors of at least `room` floats."""
    return Rows(shape=shape, pitch=round_up(max(room, shape[-1], 1), _LINE_FLOATS))


def packed_rows(shape: tuple[int, ...]) -> Rows:
    """Return the layout of an array in C order."""
    return Rows(shape=shape, pitch=shape[-1])
