"""Constants put together of ranges of others, as slices and joins of weights are; still quantized."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from nqformat import PackedTensor

from .constants import ArrayConstant, Constant


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """Elements of a constant in C order, from `start` to before `stop`."""

    source: Constant
    start: int
    stop: int


class PartsConstant:
    """Ranges of other constants, one after the other.

    Parameters
    ----------
    shape : tuple of int
    ranges : sequence of Range
        As many elements as the shape has.
    """

    def __init__(self, shape: tuple[int, ...], ranges: Sequence[Range]) -> None:
        self._shape = shape
        self._ranges = tuple(ranges)

    @staticmethod
    def of(constant: Constant) -> PartsConstant:
        """Return a constant as a range of itself."""
        if isinstance(constant, PartsConstant):
            return constant
        whole = Range(source=constant, start=0, stop=math.prod(constant.shape))
        return PartsConstant(constant.shape, [whole])

    @staticmethod
    def joined(shape: tuple[int, ...], constants: Sequence[Constant]) -> PartsConstant:
        """Return the elements of several constants, one constant after the other."""
        return PartsConstant(shape, [r for each in constants for r in PartsConstant.of(each)._ranges])

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the value."""
        return self._shape

    def part(self, start: int, stop: int, shape: tuple[int, ...]) -> PartsConstant:
        """Return the elements from `start` to before `stop` in another shape."""
        found, before = [], 0
        for each in self._ranges:
            size = each.stop - each.start
            first, last = max(start - before, 0), min(stop - before, size)
            if first < last:
                found.append(replace(each, start=each.start + first, stop=each.start + last))
            before += size
        return PartsConstant(shape, found)

    def array(self) -> np.ndarray:
        """Return the value; decodes all sources."""
        pieces = [each.source.array().reshape(-1)[each.start : each.stop] for each in self._ranges]
        return np.concatenate(pieces).reshape(self._shape)

    def packed(self) -> tuple[PackedTensor, tuple[int, ...]] | None:
        """Return the value still quantized; None if the ranges are not of one quantized tensor."""
        source = self._ranges[0].source if self._ranges else None
        if source is None or any(each.source is not source for each in self._ranges):
            return None
        found = source.packed()
        if found is None or found[0].scales is not None or found[1] != tuple(range(len(found[1]))):
            return None
        tensor = found[0]
        symbols, positions, before = [], [], 0
        flat = tensor.symbols.reshape(-1)
        for each in self._ranges:
            first, last = each.start, each.stop
            if tensor.positions is not None:
                first, last = (int(k) for k in np.searchsorted(tensor.positions, (first, last)))
                positions.append(tensor.positions[first:last] - each.start + before)
            symbols.append(flat[first:last])
            before += each.stop - each.start
        packed = replace(
            tensor,
            shape=self._shape,
            symbols=np.concatenate(symbols),
            positions=np.concatenate(positions) if tensor.positions is not None else None,
        )
        return packed, tuple(range(len(self._shape)))

    def transposed(self, permutation: tuple[int, ...]) -> Constant:
        """Return the value with its axes permuted; decoded, unless nothing moves."""
        moved = [axis for axis in permutation if self._shape[axis] != 1]
        if moved == sorted(moved):
            return PartsConstant(tuple(self._shape[axis] for axis in permutation), self._ranges)
        found = self.packed()
        if found is None:
            return ArrayConstant(np.ascontiguousarray(self.array().transpose(permutation)))
        return _PermutedParts(self, permutation)


class _PermutedParts:
    """Parts with their axes permuted."""

    def __init__(self, parts: PartsConstant, permutation: tuple[int, ...]) -> None:
        self._parts = parts
        self._permutation = permutation

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape after the permutation."""
        return tuple(self._parts.shape[axis] for axis in self._permutation)

    def array(self) -> np.ndarray:
        """Return the value."""
        return np.ascontiguousarray(self._parts.array().transpose(self._permutation))

    def packed(self) -> tuple[PackedTensor, tuple[int, ...]] | None:
        """Return the value still quantized, with the permutation."""
        found = self._parts.packed()
        return None if found is None else (found[0], self._permutation)

    def transposed(self, permutation: tuple[int, ...]) -> Constant:
        """Return the value with its axes permuted once more."""
        return self._parts.transposed(tuple(self._permutation[axis] for axis in permutation))
