"""Other shapes of the same numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .known import known_value
from .layouts import packed_rows
from .operation import Operation, Shape
from .plan import PlanBuilder, UnplannableError


@dataclass(slots=True, kw_only=True)
class View(Operation):
    """What Flatten and Reshape give: the same numbers in C order.

    Attributes
    ----------
    axis : int or None
        Of Flatten: the first axis of the second dimension.
    target : tuple of int or None
        Of Reshape: sizes, 0 for that of the input, -1 for what is left.
    known : str or None
        Of Reshape: the value that says so, known before the run.
    """

    axis: int | None = None
    target: tuple[int, ...] | None = None
    known: str | None = None

    @property
    def label(self) -> str:
        """Nothing is computed."""
        return "no work"

    def shape(self, shapes: dict[str, Shape]) -> Shape:
        """Return the new shape."""
        given = shapes[self.inputs[0]]
        total = math.prod(given)
        if self.axis is not None:
            if not -len(given) <= self.axis <= len(given):
                raise UnplannableError
            first = math.prod(given[: self.axis if self.axis >= 0 else self.axis + len(given)])
            return (first, total // first) if first else (0, 0)
        target = self._target(shapes)
        if any(size == 0 and i >= len(given) for i, size in enumerate(target)):
            raise UnplannableError
        sizes = [given[i] if size == 0 else size for i, size in enumerate(target)]
        if -1 in sizes:
            known = -math.prod(sizes)
            if known <= 0 or total % known:
                raise UnplannableError
            sizes[sizes.index(-1)] = total // known
        if math.prod(sizes) != total or min(sizes, default=0) < 0 or not sizes:
            raise UnplannableError
        return tuple(sizes)

    def _target(self, shapes: dict[str, Shape]) -> tuple[int, ...]:
        if self.target is not None:
            return self.target
        found = known_value(shapes, self.known or "")
        if found is None:
            raise UnplannableError
        return tuple(int(size) for size in found.reshape(-1))

    def lower(self, plan: PlanBuilder, shapes: dict[str, Shape]) -> None:
        """Let the output lie where the input does, unless that has gaps in the wrong places."""
        placed = plan.strides(self.inputs[0])
        layout = placed.layout.reshaped(shapes[self.output])
        if layout is not None:
            plan.alias_strides(self.output, placed.address, layout)
        else:
            plan.alias(self.output, plan.packed(self.inputs[0]).address, packed_rows(shapes[self.output]))
