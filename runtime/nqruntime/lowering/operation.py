"""What the nodes of a segment compute, before anything is known about shapes."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from .plan import PlanBuilder
from .plane_choice import PlaneChoice

Shape = tuple[int, ...]


@dataclass(slots=True, kw_only=True)
class Clamp:
    """A range to which results are clamped."""

    low: float = -math.inf
    high: float = math.inf

    @property
    def is_open(self) -> bool:
        """Whether nothing is clamped."""
        return self.low == -math.inf and self.high == math.inf


@dataclass(slots=True, kw_only=True)
class Operation(ABC):
    """One node, or several in one.

    Attributes
    ----------
    inputs : list of str
        Values, without constants.
    output : str
    nodes : list of int
        Their places in the graph, the first being what the kernel is named after.
    """

    inputs: list[str]
    output: str
    nodes: list[int]

    @property
    @abstractmethod
    def label(self) -> str:
        """What computes it, as far as that is decided."""

    @property
    def weight_bytes(self) -> int:
        """Bytes held for weights."""
        return 0

    @abstractmethod
    def shape(self, shapes: dict[str, Shape]) -> Shape:
        """Return the shape of the output; UnplannableError if the inputs' shapes do not fit."""

    def constrain(self, choice: PlaneChoice, shapes: dict[str, Shape]) -> None:  # noqa: B027
        """Say what planes the operation needs, when all shapes are known; by default none."""

    @abstractmethod
    def lower(self, plan: PlanBuilder, shapes: dict[str, Shape]) -> None:
        """Append the steps and define the output."""
