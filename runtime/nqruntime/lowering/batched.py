"""Products of two values, as of attention."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nqruntime.kernels.blocks import BATCHED
from nqruntime.packing.sequences import Operand, batched, panel_floats

from .layouts import packed_rows
from .operation import Operation, Shape
from .plan import PlacedStrides, PlanBuilder, UnplannableError
from .strides import Strides, joined_axes, packed_strides


@dataclass(slots=True, kw_only=True)
class Batched(Operation):
    """The product of all pairs of matrices of two values, times a factor.

    Attributes
    ----------
    inputs : list of str
        Two values.
    scale : float
    order : tuple of int or None
        Axes of the output in the order in which they are stored; the last one stays the last.
    """

    scale: float = 1.0
    order: tuple[int, ...] | None = None

    @property
    def label(self) -> str:
        """What computes it."""
        return "product of values"

    def _product_shape(self, shapes: dict[str, Shape]) -> Shape:
        first, second = (shapes[name] for name in self.inputs)
        if len(first) < 2 or len(second) < 2 or first[-1] != second[-2]:
            raise UnplannableError
        try:
            pairs = np.broadcast_shapes(first[:-2], second[:-2])
        except ValueError:
            raise UnplannableError from None
        return (*pairs, first[-2], second[-1])

    def shape(self, shapes: dict[str, Shape]) -> Shape:
        """Return the shape of the output."""
        shape = self._product_shape(shapes)
        if 0 in shape or 0 in shapes[self.inputs[0]]:
            raise UnplannableError
        if self.order is None:
            return shape
        if len(self.order) != len(shape):
            raise UnplannableError
        return tuple(shape[axis] for axis in self.order)

    def lower(self, plan: PlanBuilder, shapes: dict[str, Shape]) -> None:
        """Append the product."""
        shape = self._product_shape(shapes)
        first, second = (plan.strides(name) for name in self.inputs)
        if first.layout.step != 1:
            first = _packed(plan, self.inputs[0])
        if 1 not in (second.layout.step, _step(second.layout, -2)):
            second = _packed(plan, self.inputs[1])
        out = plan.define_rows(self.output, packed_rows(shapes[self.output]))
        target = packed_strides(shapes[self.output])
        if self.order is not None:
            target = target.transposed(np.argsort(self.order).tolist())
        pairs, inputs = shape[:-2], shapes[self.inputs[0]][-1]
        layouts = [value.layout.expanded((*pairs, *value.layout.shape[-2:])) for value in (first, second)]
        layouts.append(target)
        found = joined_axes(pairs, *[layout.steps[:-2] for layout in layouts], n_axes=3)
        if found is None:
            raise UnplannableError
        ends = [(_step(layout, -2), layout.step) for layout in layouts]
        places = [value.address for value in (first, second, out)]
        operands = [
            Operand(address=place, steps=[*outer, *end])
            for place, outer, end in zip(places, found[1], ends, strict=True)
        ]
        panel = plan.private(panel_floats(inputs))
        block = batched(found[0], (shape[-2], inputs, shape[-1]), operands, panel, self.scale)
        plan.step(BATCHED, block, self.label)


def _step(layout: Strides, axis: int) -> int:
    """Return the distance along an axis, 1 where there is only one element."""
    return layout.steps[axis] if layout.shape[axis] > 1 else 1


def _packed(plan: PlanBuilder, name: str) -> PlacedStrides:
    placed = plan.packed(name)
    return PlacedStrides(layout=Strides.of(placed.layout), address=placed.address)
