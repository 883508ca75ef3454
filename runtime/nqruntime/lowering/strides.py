"""Values of which another value is a part, or the same elements in another order: nothing is copied."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .layouts import Rows, packed_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Strides:
    """An array whose elements lie at fixed distances along each axis.

    Attributes
    ----------
    shape : tuple of int
    steps : tuple of int
        Floats from one element to the next along each axis, not negative.
    """

    shape: tuple[int, ...]
    steps: tuple[int, ...]

    @staticmethod
    def of(layout: Rows) -> Strides:
        """Return the same vectors with a distance for each axis."""
        steps, distance = [1], layout.pitch
        for size in layout.shape[-2::-1]:
            steps.append(distance)
            distance *= size
        return Strides(shape=layout.shape, steps=tuple(reversed(steps)))

    @property
    def step(self) -> int:
        """Floats from one element of the last axis to the next."""
        return self.steps[-1] if self.shape[-1] > 1 else 1

    def transposed(self, order: Sequence[int]) -> Strides:
        """Return the array with its axes permuted."""
        return Strides(
            shape=tuple(self.shape[axis] for axis in order), steps=tuple(self.steps[axis] for axis in order)
        )

    def sliced(self, axis: int, part: range) -> tuple[int, Strides]:
        """Return the floats before the first element of a part of an axis, and that part."""
        shape, steps = list(self.shape), list(self.steps)
        shape[axis], steps[axis] = len(part), self.steps[axis] * part.step
        return self.steps[axis] * part.start, Strides(shape=tuple(shape), steps=tuple(steps))

    def expanded(self, shape: Sequence[int]) -> Strides:
        """Return the array repeated along axes of size 1, and along new ones before the first."""
        added = len(shape) - len(self.shape)
        old = (*(1,) * added, *self.shape)
        steps = (*(0,) * added, *self.steps)
        return Strides(
            shape=tuple(shape),
            steps=tuple(0 if o != n else s for o, n, s in zip(old, shape, steps, strict=True)),
        )

    def reshaped(self, shape: Sequence[int]) -> Strides | None:
        """Return the elements in C order as an array of another shape; None if they would have to move."""
        groups = _together(self.shape, self.steps)
        steps: list[int] = []
        for size in reversed(shape):
            if size == 1:
                steps.append(0)
                continue
            while groups and groups[-1][0] == 1:
                groups.pop()
            if not groups or groups[-1][0] % size:
                return None
            left, step = groups.pop()
            steps.append(step)
            groups.append((left // size, step * size))
        return Strides(shape=tuple(shape), steps=tuple(reversed(steps)))

    def rows(self) -> Rows | None:
        """Return the layout as vectors along the last axis; None if they lie at several distances."""
        if self.step != 1:
            return None
        groups = [group for group in _together(self.shape[:-1], self.steps[:-1]) if group[0] > 1]
        if len(groups) > 1:
            return None
        return Rows(shape=self.shape, pitch=groups[0][1]) if groups else packed_rows(self.shape)


def _together(shape: Sequence[int], steps: Sequence[int]) -> list[tuple[int, int]]:
    """Return sizes and steps of axes, neighbours that are one in memory as one."""
    groups: list[tuple[int, int]] = []
    for size, step in zip(shape, steps, strict=True):
        if size == 1:
            continue
        if groups and groups[-1][1] == size * step:
            groups[-1] = (groups[-1][0] * size, step)
        else:
            groups.append((size, step))
    return groups


def joined_axes(
    shape: Sequence[int], *steps: Sequence[int], n_axes: int
) -> tuple[list[int], list[list[int]]] | None:
    """Join axes that are one in all of several arrays.

    Parameters
    ----------
    shape : sequence of int
    *steps : sequence of int
        Of each array.
    n_axes : int
        How many axes to return; those added have size 1.

    Returns
    -------
    shape, steps : list of int, list of list of int
        None if more axes are left.
    """
    sizes: list[int] = []
    found: list[list[int]] = [[] for _ in steps]
    for axis, size in enumerate(shape):
        own = [each[axis] for each in steps]
        if size == 1:
            continue
        if sizes and all(each[-1] == size * step for each, step in zip(found, own, strict=True)):
            sizes[-1] *= size
            for each, step in zip(found, own, strict=True):
                each[-1] = step
        else:
            sizes.append(size)
            for each, step in zip(found, own, strict=True):
                each.append(step)
    if len(sizes) > n_axes:
        return None
    missing = n_axes - len(sizes)
    return [1] * missing + sizes, [[0] * missing + each for each in found]


def packed_strides(shape: Sequence[int]) -> Strides:
    """Return the layout of an array in C order."""
    steps = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    return Strides(shape=tuple(shape), steps=tuple(steps))
