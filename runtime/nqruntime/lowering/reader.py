"""Which nodes of a graph become operations of a segment, and which of these become one."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping

import numpy as np

from nqformat.kernels.objects import KernelLibrary
from nqruntime.constants import Constant
from nqruntime.graph import Node
from nqruntime.operators import NodeContext
from nqruntime.symbols import read_matrix

from .operation import Clamp, Operation
from .product import Product
from .view import View


class SegmentReader:
    """Collects the operations of consecutive nodes.

    Parameters
    ----------
    library : KernelLibrary
    uses : mapping of str to int
        How often a value of the graph is read.
    low_memory : bool
    """

    def __init__(self, library: KernelLibrary, uses: Mapping[str, int], *, low_memory: bool) -> None:
        self._library = library
        self._uses = uses
        self._low_memory = low_memory
        self.operations: list[Operation] = []
        self.nodes: dict[int, Node] = {}
        self.weight_shapes: dict[str, tuple[int, ...]] = {}

    def take(self, index: int, context: NodeContext) -> bool:
        """Add a node; False if it is none of a segment."""
        node = context.node
        read = _READERS.get(node.op_type)
        if read is None or len(node.outputs) != 1 or not node.inputs:
            return False
        if not read(self, context, index):
            return False
        self.nodes[index] = node
        return True

    def outside_inputs(self) -> list[str]:
        """Return the values that operations read and none computes."""
        computed = {operation.output for operation in self.operations}
        read = [name for operation in self.operations for name in operation.inputs]
        return [name for name in dict.fromkeys(read) if name not in computed]

    def outside_outputs(self) -> list[str]:
        """Return the values that something outside reads."""
        inside = Counter(name for operation in self.operations for name in operation.inputs)
        names = [operation.output for operation in self.operations]
        return [name for name in names if self._uses[name] > inside[name]]

    @property
    def is_worth_it(self) -> bool:
        """Whether any operation is more than moving numbers."""
        views = {o.output for o in self.operations if isinstance(o, View)}
        return views.isdisjoint(self.outside_outputs()) and any(
            isinstance(operation, Product) for operation in self.operations
        )

    def _producer(self, name: str) -> Operation | None:
        """Return the operation whose only reader is about to be added."""
        if self._uses.get(name, 0) != 1:
            return None
        return next((o for o in self.operations if o.output == name), None)

    def _product(self, context: NodeContext, index: int) -> bool:
        """Take a MatMul or a Gemm with a constant matrix."""
        node, weight = context.node, context.constant(1)
        if weight is None or len(weight.shape) != 2 or 0 in weight.shape or context.constant(0) is not None:
            return False
        is_gemm = node.op_type == "Gemm"
        bias: np.ndarray | None = None
        transposed = True
        if is_gemm:
            plain = context.number("alpha", 1.0) == context.number("beta", 1.0) == 1.0
            if not plain or context.integer("transA", 0):
                return False
            transposed = not context.integer("transB", 0)
        matrix = weight.transposed((1, 0) if transposed else (0, 1))
        n_rows, n_columns = matrix.shape
        if is_gemm and context.has_input(2):
            constant = context.constant(2)
            bias = None if constant is None else _vector(constant, n_rows)
            if bias is None:
                return False
        if not _is_float32(matrix):
            return False
        self.weight_shapes[node.inputs[1]] = weight.shape
        self.operations.append(
            Product(
                inputs=[node.inputs[0]],
                output=node.outputs[0],
                nodes=[index],
                weights=read_matrix(matrix, (n_rows, n_columns)).detached(),
                library=self._library,
                low_memory=self._low_memory,
                rank=2 if is_gemm else None,
                bias=bias,
            )
        )
        return True

    def _view(self, context: NodeContext, index: int) -> bool:
        """Take a Flatten, or a Reshape to a constant shape, of a value that only it makes available."""
        node = context.node
        if self._uses.get(node.outputs[0], 0) != 1 or context.constant(0) is not None:
            return False
        view = View(inputs=[node.inputs[0]], output=node.outputs[0], nodes=[index])
        if node.op_type == "Flatten":
            view.axis = context.integer("axis", 1)
        else:
            target = context.constant(1)
            if target is None or len(target.shape) != 1:
                return False
            view.target = tuple(int(size) for size in target.array())
            if 0 in view.target and context.integer("allowzero", 0):
                return False
        self.operations.append(view)
        return True

    def _addition(self, context: NodeContext, index: int) -> bool:
        """Take the addition of a constant vector to a product."""
        node = context.node
        for data, other in ((0, 1), (1, 0)):
            constant = context.constant(other)
            if constant is None:
                continue
            producer = self._producer(node.inputs[data])
            if not isinstance(producer, Product) or producer.bias is not None or not producer.clamp.is_open:
                return False
            vector = _vector(constant, producer.matrix_shape[0])
            if vector is None:
                return False
            producer.bias = vector
            _absorb(producer, node.outputs[0], index)
            return True
        return False

    def _clamp(self, context: NodeContext, index: int) -> bool:
        """Take a Relu, or a Clip with constant bounds."""
        node = context.node
        clamp = _read_clamp(context)
        producer = self._producer(node.inputs[0])
        if clamp is None or not isinstance(producer, Product) or not producer.clamp.is_open:
            return False
        producer.clamp = clamp
        _absorb(producer, node.outputs[0], index)
        return True


def _absorb(operation: Operation, output: str, index: int) -> None:
    operation.output = output
    operation.nodes.append(index)


def _read_clamp(context: NodeContext) -> Clamp | None:
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


def _is_float32(constant: Constant) -> bool:
    return constant.packed() is not None or constant.array().dtype == np.float32


def _vector(constant: Constant, size: int) -> np.ndarray | None:
    """Return a constant that broadcasts along the last axis as a vector of `size`; None if it is none."""
    array = constant.array()
    if array.dtype != np.float32 or array.size not in (1, size) or math.prod(array.shape[:-1]) != 1:
        return None
    return np.broadcast_to(array.reshape(-1), (size,))


_READERS: dict[str, Callable[[SegmentReader, NodeContext, int], bool]] = {
    "MatMul": SegmentReader._product,
    "Gemm": SegmentReader._product,
    "Flatten": SegmentReader._view,
    "Reshape": SegmentReader._view,
    "Add": SegmentReader._addition,
    "Relu": SegmentReader._clamp,
    "Clip": SegmentReader._clamp,
}
