"""Where the channels of images lie for the kernels of planes (`nqruntime.kernels.planes`)."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from nqruntime.kernels.blocks import LANES

from .areas import aligned, round_up

_ALIASED_FLOATS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaneLayout:
    """A channel as rows that follow one another, with zeros between, before and after them.

    The zeros on the right of a row are also those on the left of the next one, so a tap of a kernel reads the
    positions of all rows at one distance. Position 0 is the first element of the first row; kernels compute
    `n_vectors` times 16 positions.

    Attributes
    ----------
    height, width : int
        Rows and columns of an image; a vector of features by batch has height 1 and the batch as its width.
    pad : int
        Columns and rows of zeros that a kernel may read on every side.
    pitch : int
        Floats from row to row, at least width + pad.
    origin : int
        Floats of a channel before position 0: a multiple of 16, so that vectors of positions are whole lines.
    size : int
        Floats of a channel: a multiple of 16, and not of 1024, as the lines of all channels would share few
        places of the cache.
    """

    height: int
    width: int
    pad: int = 0
    pitch: int = 0
    origin: int = field(init=False)
    size: int = field(init=False)

    def __post_init__(self) -> None:
        """Derive the sizes; a pitch of 0 is the smallest one."""
        pitch = self.pitch or self.width + self.pad
        if min(self.height, self.width) < 1 or self.pad < 0 or pitch < self.width + self.pad:
            raise ValueError(
                f"planes of {self.height}x{self.width} with pad {self.pad} and pitch {self.pitch}"
            )
        origin = round_up(self.pad * pitch + self.pad, LANES)
        computed = origin + round_up(self.height * pitch, LANES)
        size = round_up(max(computed, origin + (self.height + self.pad) * pitch + self.pad), LANES)
        object.__setattr__(self, "pitch", pitch)
        object.__setattr__(self, "origin", origin)
        object.__setattr__(self, "size", size if size % _ALIASED_FLOATS else size + LANES)

    @property
    def n_positions(self) -> int:
        """Positions of all rows, zeros between them included."""
        return self.height * self.pitch

    @property
    def is_packed(self) -> bool:
        """Whether channels are arrays in C order with nothing between, in whole vectors."""
        return self.size == self.height * self.width

    @property
    def n_vectors(self) -> int:
        """Vectors of 16 positions that kernels compute."""
        return -(-self.n_positions // LANES)

    @property
    def after(self) -> int:
        """Floats of a channel after the computed positions."""
        return self.size - self.origin - LANES * self.n_vectors

    def mask(self) -> np.ndarray:
        """Return the mask of the elements.

        Returns
        -------
        ndarray of int32, shape (16 * n_vectors,)
            -1 for an element of the image, 0 elsewhere.
        """
        mask = aligned(LANES * self.n_vectors, np.int32)
        mask[: self.n_positions].reshape(self.height, self.pitch)[:, : self.width] = -1
        return mask

    def elements(self, channels: np.ndarray) -> np.ndarray:
        """Return a view of the elements.

        Parameters
        ----------
        channels : ndarray, shape (..., size), contiguous in the last axis

        Returns
        -------
        ndarray, shape (..., height, width)
        """
        rows = channels[..., self.origin : self.origin + self.n_positions]
        return rows.reshape(*channels.shape[:-1], self.height, self.pitch)[..., : self.width]


@dataclass(frozen=True, slots=True, kw_only=True)
class Area:
    """Planes in memory, as a kernel takes them.

    Attributes
    ----------
    address : int
        Of position 0 of the first channel of the first image.
    channel_bytes, image_bytes : int
        From one to the next.
    """

    address: int
    channel_bytes: int
    image_bytes: int

    @classmethod
    def of(cls, address: int, layout: PlaneLayout, n_channels: int, first_channel: int = 0) -> Area:
        """Describe planes from `first_channel` on, the first of `n_channels` beginning at `address`."""
        channel_bytes = 4 * layout.size
        return cls(
            address=address + first_channel * channel_bytes + 4 * layout.origin,
            channel_bytes=channel_bytes,
            image_bytes=n_channels * channel_bytes,
        )
