"""Windows of pooling for the kernels of `nqruntime.kernels.pooling`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nqruntime.kernels.blocks import LANES

from .areas import address, aligned, aligned_copy, round_up
from .copy_steps import ChannelsCall
from .plane_layout import PlaneLayout


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolWindow:
    """Windows of a pooling; tuples are (rows, columns).

    Attributes
    ----------
    kernel, strides, dilation, before, after : tuple of int
        `before` and `after` are the padding.
    counts_padding : bool
        Whether an average divides by the elements of the padding too.
    """

    kernel: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    before: tuple[int, int] = (0, 0)
    after: tuple[int, int] = (0, 0)
    counts_padding: bool = False

    def places(self, axis: int, n_out: int) -> np.ndarray:
        """Return what each output reads along an axis: shape (n_out, kernel)."""
        starts = np.arange(n_out)[:, None] * self.strides[axis] - self.before[axis]
        found: np.ndarray = starts + np.arange(self.kernel[axis]) * self.dilation[axis]
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedPool:
    """Tables of a pooling from one layout to another.

    Attributes
    ----------
    window : PoolWindow
    source, out : PlaneLayout
    rows : ndarray of int64, shape (out.height, 3)
        Bytes to the first row that exists, number of rows, count of elements of a column (float bits).
    counts : ndarray of float32, shape (out.pitch, rounded up to 16)
        Elements of a row of each window.
    """

    window: PoolWindow
    source: PlaneLayout
    out: PlaneLayout
    rows: np.ndarray
    counts: np.ndarray

    @property
    def right_vectors(self) -> int:
        """Vectors of the buffer after the source's columns that outputs read."""
        last = int(self.window.places(1, self.out.width).max())
        return max(0, round_up(last + 1 - self.source.width, LANES) // LANES)

    @property
    def buffer_floats(self) -> int:
        """Floats that the kernel needs for itself, up to the last that lanes without an output read."""
        outputs = round_up(self.out.pitch, LANES)
        kernel_columns = (self.window.kernel[1] - 1) * self.window.dilation[1]
        read = outputs * self.window.strides[1] + kernel_columns + 2 * LANES
        columns = round_up(self.source.width, LANES) + LANES * self.right_vectors
        return max(read, round_up(self.window.before[1], LANES) + columns + LANES)

    def block(self, call: ChannelsCall, buffer: int) -> np.ndarray:
        """Return the block of POOL_LARGEST or POOL_AVERAGE.

        Parameters
        ----------
        call : ChannelsCall
        buffer : int
            Address of `buffer_floats` floats that nothing else uses meanwhile.
        """
        out, window = self.out, self.window
        rows = call.places(out.height, out.width, out.pitch, self.source.width, 4 * out.pitch)
        further = [
            *(window.strides[1], window.kernel[1], window.dilation[1]),
            4 * window.dilation[0] * self.source.pitch,
            *(window.before[1], self.right_vectors),
            *(address(self.rows), buffer, address(self.counts)),
            *(4 * out.origin, 4 * (out.size - out.origin - out.n_positions)),
            int(window.before[1] == 0 and self.right_vectors == 0),
        ]
        return np.array([*rows, *further], dtype=np.int64)


def pack_pool(window: PoolWindow, source: PlaneLayout, out: PlaneLayout) -> PackedPool:
    """Return the tables of a pooling; layouts may have any pads."""
    places = window.places(0, out.height)
    inside = (places >= 0) & (places < source.height)
    n_rows = inside.sum(axis=1)
    first = np.take_along_axis(places, inside.argmax(axis=1)[:, None], axis=1)[:, 0]
    column_counts = _counts(window, 0, out.height, source.height).astype(np.float32)
    counts = aligned(round_up(out.pitch, LANES), np.float32)
    counts[:] = 1
    counts[: out.width] = _counts(window, 1, out.width, source.width)
    starts = np.where(n_rows > 0, 4 * first * source.pitch, 0)
    rows = np.stack([starts, n_rows, column_counts.view(np.uint32).astype(np.int64)], axis=1)
    return PackedPool(
        window=window,
        source=source,
        out=out,
        rows=aligned_copy(rows.astype(np.int64)).reshape(rows.shape),
        counts=counts,
    )


def _counts(window: PoolWindow, axis: int, n_out: int, extent: int) -> np.ndarray:
    """Return the elements of each window along an axis that an average divides by."""
    places = window.places(axis, n_out)
    padded = window.counts_padding
    low, high = (-window.before[axis], extent + window.after[axis]) if padded else (0, extent)
    counts: np.ndarray = ((places >= low) & (places < high)).sum(axis=1)
    return counts
