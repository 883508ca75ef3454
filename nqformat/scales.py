"""Scales of the channels or blocks of a tensor (spec 6.4)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .dtypes import DType
from .values import CODEBOOK_DTYPES, cast_values, is_exact_in

_AT_ONCE = 1 << 18


@dataclass(frozen=True, slots=True, kw_only=True)
class Scales:
    """Factors of a tensor's elements (spec 6.4).

    The element at C-order position p is multiplied by ``values[(p // span) % n_scales]`` in float32.

    Attributes
    ----------
    values : ndarray of float32, shape (n_scales,)
        Finite, above zero, each exactly representable in `stored_as`.
    span : int
        Consecutive elements with one factor.
    stored_as : DType
        FLOAT32, FLOAT16 or BFLOAT16.
    """

    values: np.ndarray
    span: int
    stored_as: DType = DType.FLOAT32

    def __post_init__(self) -> None:
        if self.values.dtype != np.float32 or self.values.ndim != 1 or self.values.size == 0:
            raise ValueError("scales must be a non-empty one-dimensional float32 array")
        if not are_scales(self.values):
            raise ValueError("scales must be finite and above zero")
        if self.stored_as not in CODEBOOK_DTYPES or not is_exact_in(self.values, self.stored_as):
            raise ValueError(f"scales are not exactly representable in {self.stored_as.label}")
        if self.span < 1:
            raise ValueError(f"a scale must span at least one element, not {self.span}")

    @classmethod
    def along_axis(
        cls, values: np.ndarray, shape: tuple[int, ...], axis: int = 0, stored_as: DType = DType.FLOAT32
    ) -> Scales:
        """Return one scale for each index of an axis of `shape`.

        Examples
        --------
        >>> Scales.along_axis(np.float32([0.5, 2]), (2, 3, 4)).span
        12
        """
        if values.shape != (shape[axis],):
            raise ValueError(f"{values.shape} scales for axis {axis} of shape {shape}")
        return cls(values=values, span=max(1, math.prod(shape[axis:][1:])), stored_as=stored_as)

    def fits(self, n_elements: int) -> bool:
        """Whether a tensor of so many elements may have these scales (spec 6.4)."""
        return self.values.size <= max(1, n_elements) and self.span <= max(1, n_elements)

    def multiply(self, elements: np.ndarray, start: int = 0) -> None:
        """Multiply float32 elements, one-dimensional and from C-order position `start` on, in place."""
        n_scales, period = self.values.size, self.values.size * self.span
        if start % period == 0 and elements.size % period == 0:
            blocks = elements.reshape(-1, n_scales, self.span)
            with np.errstate(over="ignore"):
                np.multiply(blocks, self.values[None, :, None], out=blocks)
            return
        for first in range(0, elements.size, _AT_ONCE):
            part = elements[first : first + _AT_ONCE]
            places = np.arange(start + first, start + first + part.size)
            with np.errstate(over="ignore"):
                part *= self.at(places)

    def at(self, positions: np.ndarray) -> np.ndarray:
        """Return the factors of elements at C-order positions."""
        factors: np.ndarray = self.values[positions // self.span % self.values.size]
        return factors


def are_scales(values: np.ndarray) -> bool:
    """Whether all of some float32 numbers are finite and above zero."""
    return bool(np.isfinite(values).all() and (values > 0).all())


def finished_values(values: np.ndarray, scales: Scales | None, dtype: DType) -> np.ndarray:
    """Scale float32 values of all elements, any shape, and round them once to the tensor's dtype."""
    if scales is not None:
        values = np.array(values, dtype=np.float32, order="C")
        scales.multiply(values.reshape(-1))
    return cast_values(values, dtype)


def check_scales(scales: Scales | None, n_elements: int, dtype: DType) -> None:
    """Raise ValueError unless a tensor of that type and size may have the scales."""
    if scales is None:
        return
    if not dtype.is_float:
        raise ValueError("only floating-point tensors have scales")
    if not scales.fits(n_elements):
        raise ValueError(f"{scales.values.size} scales of {scales.span} elements for {n_elements} elements")
