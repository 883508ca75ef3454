"""Other shapes of the same numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .layouts import packed_rows
from .operation import Shape
from .plan import PlanBuilder, UnplannableError
from .plane_choice import PlaneChoice


@dataclass(slots=True, kw_only=True)
class View:
    """What Flatten and Reshape give: the same numbers in C order.

    Attributes
    ----------
    axis : int or None
        Of Flatten: the first axis of the second dimension.
    target : tuple of int or None
        Of Reshape: sizes, 0 for that of the input, -1 for what is left.
    """

    inputs: list[str]
    output: str
    nodes: list[int]
    axis: int | None = None
    target: tuple[int, ...] | None = None

    @property
    def label(self) -> str:
        """Nothing is computed."""
        return "no work"

    @property
    def weight_bytes(self) -> int:
        """None."""
        return 0

    def shape(self, shapes: dict[str, Shape]) -> Shape:
        """Return the new shape."""
        given = shapes[self.inputs[0]]
        total = math.prod(given)
        if self.axis is not None:
            if not -len(given) <= self.axis <= len(given):
                raise UnplannableError
            first = math.prod(given[: self.axis if self.axis >= 0 else self.axis + len(given)])
            return (first, total // first) if first else (0, 0)
        assert self.target is not None
        if any(size == 0 and i >= len(given) for i, size in enumerate(self.target)):
            raise UnplannableError
        sizes = [given[i] if size == 0 else size for i, size in enumerate(self.target)]
        if -1 in sizes:
            known = -math.prod(sizes)
            if known <= 0 or total % known:
                raise UnplannableError
            sizes[sizes.index(-1)] = total // known
        if math.prod(sizes) != total or min(sizes, default=0) < 0 or not sizes:
            raise UnplannableError
        return tuple(sizes)

    def constrain(self, choice: PlaneChoice, shapes: dict[str, Shape]) -> None:
        """Need no planes."""

    def lower(self, plan: PlanBuilder, shapes: dict[str, Shape]) -> None:
        """Let the output lie where the input does."""
        plan.alias(self.output, plan.packed(self.inputs[0]).address, packed_rows(shapes[self.output]))
