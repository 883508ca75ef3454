"""Values that follow from shapes alone: computed when a plan is made, not in each run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nqformat.errors import FormatError

from .operation import Operation, Shape
from .plan import PlanBuilder, UnplannableError

MOST_ELEMENTS = 1 << 16
OF_SHAPES = frozenset({"Shape", "Size"})
OF_KNOWN = frozenset(
    {"Add", "Cast", "Concat", "ConstantOfShape", "Div", "Equal", "Expand", "Gather", "Mul", "Range"}
    | {"Reshape", "Slice", "Squeeze", "Sub", "Transpose", "Unsqueeze", "Where"}
)
"""Operators whose result is known if all their inputs are."""

_ERRORS = (ValueError, TypeError, IndexError, ArithmeticError)


class Shapes(dict[str, Shape]):
    """Shapes of values, and what else is known of them before the run."""

    def __init__(self, shapes: dict[str, Shape]) -> None:
        super().__init__(shapes)
        self.known: dict[str, np.ndarray] = {}


def known_value(shapes: dict[str, Shape], name: str) -> np.ndarray | None:
    """Return a value that is known before the run; None for any other."""
    return shapes.known.get(name) if isinstance(shapes, Shapes) else None


@dataclass(slots=True, kw_only=True)
class Known(Operation):
    """What a node gives, computed by NumPy when all shapes are known.

    Attributes
    ----------
    inputs : list of str
        Without constants.
    run : callable
        The operator.
    operands : list of (str or ndarray or None)
        Names of known values, or of values of which only the shape is read, and constants.
    reads_shape : bool
    """

    run: Callable[..., Any]
    operands: list[str | np.ndarray | None] = field(default_factory=list)
    reads_shape: bool = False

    @property
    def label(self) -> str:
        """When it is computed."""
        return "known from shapes"

    def shape(self, shapes: dict[str, Shape]) -> Shape:
        """Compute the value; return its shape."""
        assert isinstance(shapes, Shapes)
        given = [self._operand(operand, shapes) for operand in self.operands]
        try:
            with np.errstate(all="ignore"):
                found = np.asarray(self.run(*given))
        except (FormatError, *_ERRORS):
            raise UnplannableError from None
        if found.size > MOST_ELEMENTS:
            raise UnplannableError
        shapes.known[self.output] = found
        return found.shape

    def _operand(self, operand: str | np.ndarray | None, shapes: Shapes) -> np.ndarray | None:
        if not isinstance(operand, str):
            return operand
        if self.reads_shape:
            return np.broadcast_to(np.float32(0), shapes[operand])
        known = shapes.known[operand]
        if math.prod(known.shape) > MOST_ELEMENTS:
            raise UnplannableError
        return known

    def lower(self, plan: PlanBuilder, shapes: dict[str, Shape]) -> None:
        """Append nothing: others read what is known."""
