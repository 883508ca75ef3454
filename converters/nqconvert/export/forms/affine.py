"""Weights on an evenly spaced grid, as ``(k - zero) * scale`` in float32, checked bit for bit."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from nqconvert.export.building import INT4, INT8, INT16, UINT4, UINT8, UINT16, PackedType
from nqconvert.quantizers.grids import find_grid
from nqformat.dtypes import DType
from nqformat.tensor import Layout, PackedTensor

from .form import Subject

_RAW = (Layout.RAW, Layout.RAW_SPARSE)
_MOST_STEPS = 255
_KINDS = (INT4, UINT4, INT8, UINT8, INT16, UINT16)


@dataclass(frozen=True, slots=True, kw_only=True)
class AffineWeights:
    """A float32 tensor as ``(k - zero) * scale``, exactly.

    Attributes
    ----------
    k : ndarray of int64, shape of the tensor
    zero : int
    scale : ndarray of float32, shape () or (shape[axis],)
    axis : int or None
        Axis of the scales.
    """

    k: np.ndarray
    zero: int
    scale: np.ndarray
    axis: int | None = None

    def values(self) -> np.ndarray:
        """Return the tensor as DequantizeLinear computes it."""
        scale = self.scale
        if self.axis is not None:
            scale = scale.reshape([-1 if a == self.axis else 1 for a in range(self.k.ndim)])
        product: np.ndarray = (self.k - self.zero).astype(np.float32) * scale
        return product

    def transposed(self) -> AffineWeights:
        """Return the transpose of a matrix."""
        axis = None if self.axis is None else 1 - self.axis
        return replace(self, k=np.ascontiguousarray(self.k.T), axis=axis)

    def stored(self, most_bits: int = 16, *, whole_bytes: bool = False) -> tuple[PackedType, int] | None:
        """Return the narrowest integer type, and what to add to `k` and `zero` for it; None if none fits."""
        low, high = min(int(self.k.min()), self.zero), max(int(self.k.max()), self.zero)
        for kind in _KINDS:
            if kind.bits > most_bits or (whole_bytes and kind.bits < 8):
                continue
            if kind.lowest < 0 and self.zero == 0 and kind.lowest <= low and high <= kind.highest:
                return kind, 0
            if kind.lowest == 0 and high - low <= kind.highest:
                return kind, -low
        return None


def read_affine(subject: Subject) -> AffineWeights | str:
    """Return a tensor as integers on a grid, or the reason why it is not on one."""
    info = subject.info
    if info.dtype is not DType.FLOAT32:
        return "not float32"
    if info.layout in _RAW:
        return "stored raw in the file"
    if info.n_elements == 0:
        return "empty"
    if info.codebook_groups > 1 or info.codebook_width > 1:
        return "codebooks of groups or vectors are no grid"
    packed = subject.file.get_packed(info.name)
    if not isinstance(packed, PackedTensor):
        return "holds no indices of its own"
    found = _on_grid(packed)
    if isinstance(found, str):
        return found
    if not np.array_equal(found.values().view("<u4"), subject.bits().view("<u4")):
        return "rounding of step, offset or scale differs from DequantizeLinear's"
    return found


def _on_grid(packed: PackedTensor) -> AffineWeights | str:
    """Return the integers, zero point and scale that a packed tensor should have."""
    step, offset, k = packed.step, packed.offset, packed.symbols.reshape(-1).astype(np.int64)
    if packed.codebook is not None:
        grid = find_grid(np.unique(np.append(packed.codebook, np.float32(0))))
        places = None if grid is None else grid.k_of(packed.codebook)
        if grid is None or places is None or int(places.max()) - int(places.min()) > _MOST_STEPS:
            return "its codebook is not evenly spaced"
        step, offset, k = grid.step, grid.offset, places.astype(np.int64)[k]
    if step == 0:
        return "all its values are equal"
    zero = round(-offset / step)
    if packed.positions is not None:
        dense = np.full(math.prod(packed.shape), zero, dtype=np.int64)
        dense[packed.positions] = k
        k = dense
    weights = AffineWeights(k=k.reshape(packed.shape), zero=zero, scale=np.array(step, dtype=np.float32))
    if packed.scales is None:
        return weights
    scales, rows = packed.scales, packed.shape[0] if packed.shape else 0
    if scales.values.size == 1:
        return replace(weights, scale=weights.scale * scales.values.reshape(()))
    if scales.values.size != rows or scales.span * rows != k.size:
        return "scales that are not one for each index of axis 0"
    return replace(weights, scale=weights.scale * scales.values, axis=0)
