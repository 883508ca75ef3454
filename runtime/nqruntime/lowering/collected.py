"""The operations of a segment while it grows, and what readers of nodes ask of them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping

from nqruntime.graph import Node
from nqruntime.operators import NodeContext

from .batched import Batched
from .convolution import Convolution
from .known import Known
from .measuring import Chooser
from .operation import Clamp, Operation
from .pointwise import Pointwise
from .pooling import Pool
from .product import Product
from .rearrangement import Concatenation, Crop
from .recurrent import Recurrent

__all__ = ["Collected", "Read"]


class Collected:
    """The operations that nodes of a graph have become, one after the other.

    Parameters
    ----------
    chooser : Chooser
    uses : mapping of str to int
        How often a value of the graph is read.
    floats : collection of str
        Values from outside that are known to be float32.
    """

    def __init__(self, chooser: Chooser, uses: Mapping[str, int], floats: Collection[str] = ()) -> None:
        self.chooser = chooser
        self._uses = uses
        self._floats = floats
        self.operations: list[Operation] = []
        self.nodes: dict[int, Node] = {}
        self.weight_shapes: dict[str, tuple[int, ...]] = {}

    def outside_inputs(self) -> list[str]:
        """Return the values that operations read and none computes."""
        computed = {operation.output for operation in self.operations}
        read = [name for operation in self.operations for name in operation.inputs]
        return [name for name in dict.fromkeys(read) if name not in computed]

    def outside_outputs(self) -> list[str]:
        """Return the values that something outside reads."""
        inside = Counter(name for node in self.nodes.values() for name in node.inputs)
        names = [operation.output for operation in self.operations]
        return [name for name in names if self._uses[name] > inside[name]]

    @property
    def is_worth_it(self) -> bool:
        """Whether any operation is more than moving numbers."""
        return any(isinstance(o, Product | Convolution | Batched | Recurrent) for o in self.operations)

    def uses(self, name: str) -> int:
        """Return how often a value is read."""
        return self._uses.get(name, 0)

    def is_float(self, name: str) -> bool:
        """Whether a value is known to be float32."""
        return name in self._floats or self.inside(name) is not None

    def is_known(self, name: str) -> bool:
        """Whether a value follows from shapes."""
        return any(o.output == name for o in self.operations if isinstance(o, Known))

    def inside(self, name: str) -> Operation | None:
        """Return the operation that computes a value in this segment."""
        return next((o for o in self.operations if o.output == name and not isinstance(o, Known)), None)

    def producer(self, name: str) -> Operation | None:
        """Return the operation whose only reader is about to be added."""
        if self._uses.get(name, 0) != 1:
            return None
        return self.inside(name)

    def gives_planes(self, name: str) -> bool:
        """Whether an operation of the segment computes a value as planes."""
        operation = self.inside(name)
        if isinstance(operation, Pointwise):
            return operation.factors is not None or any(map(self.gives_planes, operation.inputs))
        return isinstance(operation, Convolution | Pool | Crop | Concatenation)

    @staticmethod
    def absorb(operation: Operation, output: str, index: int) -> None:
        """Let a node be a part of the operation before it."""
        operation.output = output
        operation.nodes.append(index)

    @staticmethod
    def clamp_of(context: NodeContext) -> Clamp | None:
        """Return what a Relu or Clip clamps to; None if that is not known before the run."""
        if context.node.op_type == "Relu":
            return Clamp(low=0.0)
        if context.opset < 11:
            lowest, highest = context.number("min", -math.inf), context.number("max", math.inf)
            return Clamp(low=lowest, high=highest)
        bounds = [-math.inf, math.inf]
        for i in (1, 2):
            if context.has_input(i):
                constant = context.constant(i)
                if constant is None or math.prod(constant.shape) != 1:
                    return None
                bounds[i - 1] = float(constant.array().reshape(()))
        return Clamp(low=bounds[0], high=bounds[1]) if bounds[0] <= bounds[1] else None


Read = Callable[[Collected, NodeContext, int], bool]
"""Takes a node, by its context and place, into what was collected; False if it is none of a segment."""
