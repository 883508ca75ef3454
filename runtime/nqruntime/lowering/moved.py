"""Parts of a value, and other orders of its axes: nothing is computed, readers look elsewhere."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field

from .operation import Operation, Shape
from .plan import PlanBuilder, UnplannableError
from .strides import Strides


@dataclass(slots=True, kw_only=True)
class Moved(Operation):
    """A value whose elements are among those of another one."""

    @property
    def label(self) -> str:
        """Nothing is computed."""
        return "no work"

    @abstractmethod
    def found(self, layout: Strides) -> tuple[int, Strides]:
        """Return the floats before the first element, and the distances; UnplannableError if that fails."""

    def shape(self, shapes: dict[str, Shape]) -> Shape:
        """Return the shape of the output."""
        given = shapes[self.inputs[0]]
        shape = self.found(Strides(shape=given, steps=(0,) * len(given)))[1].shape
        if 0 in shape or not shape:
            raise UnplannableError
        return shape

    def lower(self, plan: PlanBuilder, shapes: dict[str, Shape]) -> None:
        """Let the output lie within the input."""
        placed = plan.strides(self.inputs[0])
        offset, layout = self.found(placed.layout)
        plan.alias_strides(self.output, placed.address + 4 * offset, layout)


@dataclass(slots=True, kw_only=True)
class Transposed(Moved):
    """Axes in another order; reversed if `order` is None."""

    order: tuple[int, ...] | None

    def found(self, layout: Strides) -> tuple[int, Strides]:
        """Return the distances in another order."""
        rank = len(layout.shape)
        order = self.order if self.order is not None else tuple(range(rank))[::-1]
        if sorted(order) != list(range(rank)):
            raise UnplannableError
        return 0, layout.transposed(order)


@dataclass(slots=True, kw_only=True)
class Parts(Moved):
    """Ranges along axes, with positive steps.

    Attributes
    ----------
    ranges : dict of int to slice
        By axis, which may count from the end.
    dropped : tuple of int
        Axes with one element left that the output does not have.
    """

    ranges: dict[int, slice] = field(default_factory=dict)
    dropped: tuple[int, ...] = ()

    def found(self, layout: Strides) -> tuple[int, Strides]:
        """Return where the parts begin."""
        rank, offset = len(layout.shape), 0
        for axis, part in self.ranges.items():
            if not -rank <= axis < rank:
                raise UnplannableError
            places = range(*part.indices(layout.shape[axis]))
            if not places:
                raise UnplannableError
            moved, layout = layout.sliced(axis % rank, places)
            offset += moved
        kept = [a for a in range(rank) if a not in {axis % rank for axis in self.dropped}]
        return offset, layout.transposed(kept)


@dataclass(slots=True, kw_only=True)
class Share(Moved):
    """One output of a Split.

    Attributes
    ----------
    axis : int
    number, count : int
        Which of so many shares, where these are equal.
    sizes : list of int or None
        Of all shares.
    """

    axis: int
    number: int
    count: int
    sizes: list[int] | None

    def found(self, layout: Strides) -> tuple[int, Strides]:
        """Return where the share begins."""
        rank = len(layout.shape)
        if not -rank <= self.axis < rank:
            raise UnplannableError
        whole = layout.shape[self.axis]
        each = -(-whole // self.count)
        sizes = self.sizes or [min(each, whole - each * i) for i in range(self.count)]
        if sum(sizes) != whole or min(sizes) < 1 or len(sizes) != self.count:
            raise UnplannableError
        start = sum(sizes[: self.number])
        return layout.sliced(self.axis % rank, range(start, start + sizes[self.number]))


@dataclass(slots=True, kw_only=True)
class Axes(Moved):
    """Axes of size 1 added or left out.

    Attributes
    ----------
    axes : tuple of int or None
        None for all that have size 1.
    adds : bool
    """

    axes: tuple[int, ...] | None
    adds: bool

    def found(self, layout: Strides) -> tuple[int, Strides]:
        """Return the same elements."""
        shape = self._added(layout.shape) if self.adds else self._reduced(layout.shape)
        reshaped = layout.reshaped(shape)
        assert reshaped is not None
        return 0, reshaped

    def _added(self, shape: Shape) -> Shape:
        rank = len(shape) + len(self.axes or ())
        axes = {axis % rank for axis in self.axes or () if -rank <= axis < rank}
        if len(axes) != len(self.axes or ()):
            raise UnplannableError
        rest = iter(shape)
        return tuple(1 if axis in axes else next(rest) for axis in range(rank))

    def _reduced(self, shape: Shape) -> Shape:
        rank = len(shape)
        if self.axes is None:
            return tuple(size for size in shape if size != 1)
        if any(not -rank <= axis < rank or shape[axis] != 1 for axis in self.axes):
            raise UnplannableError
        axes = {axis % rank for axis in self.axes}
        return tuple(size for axis, size in enumerate(shape) if axis not in axes)
