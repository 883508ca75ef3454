"""Values side by side along any axis, copied."""

from __future__ import annotations

from dataclasses import dataclass

from nqruntime.packing.sequences import Formula

from .layouts import packed_rows
from .operation import Operation, Shape
from .plan import PlacedStrides, PlanBuilder, UnplannableError
from .strides import packed_strides


@dataclass(slots=True, kw_only=True)
class Joined(Operation):
    """Values one after the other along an axis.

    Attributes
    ----------
    axis : int
    """

    axis: int

    @property
    def label(self) -> str:
        """What computes it."""
        return "copies of values"

    def shape(self, shapes: dict[str, Shape]) -> Shape:
        """Return the shape of the output."""
        given = [shapes[name] for name in self.inputs]
        first = given[0]
        if not -len(first) <= self.axis < len(first) or any(0 in shape for shape in given):
            raise UnplannableError
        axis = self.axis % len(first)
        rest = {(len(shape), *shape[:axis], *shape[axis + 1 :]) for shape in given}
        if len(rest) != 1:
            raise UnplannableError
        return (*first[:axis], sum(shape[axis] for shape in given), *first[axis + 1 :])

    def lower(self, plan: PlanBuilder, shapes: dict[str, Shape]) -> None:
        """Append a copy for each value."""
        shape = shapes[self.output]
        axis = self.axis % len(shape)
        sources = [plan.strides(name) for name in self.inputs]
        out = plan.define_rows(self.output, packed_rows(shape))
        before = 0
        for source in sources:
            size = source.layout.shape[axis]
            offset, layout = packed_strides(shape).sliced(axis, range(before, before + size))
            target = PlacedStrides(layout=layout, address=out.address + 4 * offset)
            plan.compute(layout.shape, source, None, target, formula=Formula(), label=self.label)
            before += size
