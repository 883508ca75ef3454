"""Which nodes of a graph become operations of a segment, and which of these become one."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping

import numpy as np

from nqruntime.constants import Constant
from nqruntime.graph import Node
from nqruntime.operators import NodeContext
from nqruntime.operators.windows import read_window_rule
from nqruntime.symbols import MatrixWeights, read_matrix

from . import sequence_reader
from .batched import Batched
from .convolution import Convolution
from .elementwise import Elementwise
from .known import Known
from .measuring import Chooser
from .operation import Clamp, Operation
from .pointwise import Pointwise
from .pooling import GlobalAverage, Pool
from .product import Product
from .rearrangement import Concatenation, Crop
from .recurrent import Recurrent
from .view import View


class SegmentReader:
    """Collects the operations of consecutive nodes.

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

    def take(self, index: int, context: NodeContext) -> bool:
        """Add a node; False if it is none of a segment."""
        node = context.node
        several = node.op_type in sequence_reader.SEVERAL_OUTPUTS
        if not node.inputs or (len(node.outputs) != 1 and not several):
            return False
        if sequence_reader.read_known(self, context, index):
            self.nodes[index] = node
            return True
        for readers in (_READERS, sequence_reader.READERS):
            read = readers.get(node.op_type)
            if read is not None and read(self, context, index):
                self.nodes[index] = node
                return True
        return False

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

    def absorb(self, operation: Operation, output: str, index: int) -> None:
        """Let a node be a part of the operation before it."""
        _absorb(operation, output, index)

    @staticmethod
    def clamp_of(context: NodeContext) -> Clamp | None:
        """Return what a Relu or Clip clamps to; None if that is not known before the run."""
        return _read_clamp(context)

    def _gives_planes(self, name: str) -> bool:
        """Whether an operation of the segment computes a value as planes."""
        operation = self.inside(name)
        if isinstance(operation, Pointwise):
            return operation.factors is not None or any(map(self._gives_planes, operation.inputs))
        return isinstance(operation, Convolution | Pool | Crop | Concatenation)

    def producer(self, name: str) -> Operation | None:
        """Return the operation whose only reader is about to be added."""
        if self._uses.get(name, 0) != 1:
            return None
        return self.inside(name)

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
        weights = _float32_matrix(matrix, (n_rows, n_columns))
        if weights is None:
            return False
        self.weight_shapes[node.inputs[1]] = weight.shape
        self.operations.append(
            Product(
                inputs=[node.inputs[0]],
                output=node.outputs[0],
                nodes=[index],
                weights=weights,
                chooser=self.chooser,
                rank=2 if is_gemm else None,
                bias=bias,
            )
        )
        return True

    def _view(self, context: NodeContext, index: int) -> bool:
        """Take a Flatten, or a Reshape to a constant shape."""
        node = context.node
        if context.constant(0) is not None:
            return False
        if not self.is_float(node.inputs[0]) and self._uses.get(node.outputs[0], 0) != 1:
            return False
        view = View(inputs=[node.inputs[0]], output=node.outputs[0], nodes=[index])
        if node.op_type == "Flatten":
            view.axis = context.integer("axis", 1)
        else:
            target = context.constant(1)
            if target is None and self.is_known(node.inputs[1]) and not context.integer("allowzero", 0):
                view.known = node.inputs[1]
                self.operations.append(view)
                return True
            if target is None or len(target.shape) != 1:
                return False
            view.target = tuple(int(size) for size in target.array())
            if 0 in view.target and context.integer("allowzero", 0):
                return False
        self.operations.append(view)
        return True

    def _convolution(self, context: NodeContext, index: int) -> bool:
        """Take a Conv of one or two spatial axes with constant weights."""
        node, weight = context.node, context.constant(1)
        if weight is None or len(weight.shape) not in (3, 4) or 0 in weight.shape:
            return False
        kernel, groups = weight.shape[2:], context.integer("group", 1)
        if context.integers("kernel_shape") not in (None, kernel) or context.constant(0) is not None:
            return False
        if groups < 1 or weight.shape[0] % groups:
            return False
        bias: np.ndarray | None = None
        if context.has_input(2):
            constant = context.constant(2)
            bias = None if constant is None else _vector(constant, weight.shape[0])
            if bias is None:
                return False
        weights = _float32_matrix(weight, (weight.shape[0], math.prod(weight.shape[1:])))
        if weights is None:
            return False
        self.weight_shapes[node.inputs[1]] = weight.shape
        self.operations.append(
            Convolution(
                inputs=[node.inputs[0]],
                output=node.outputs[0],
                nodes=[index],
                weights=weights,
                rule=read_window_rule(context, kernel),
                n_groups=groups,
                chooser=self.chooser,
                bias=bias,
            )
        )
        return True

    def _pool(self, context: NodeContext, index: int) -> bool:
        """Take pooling over one or two spatial axes."""
        node, kernel = context.node, context.integers("kernel_shape")
        if kernel is None or len(kernel) not in (1, 2) or context.constant(0) is not None:
            return False
        average = node.op_type == "AveragePool"
        pool = Pool(
            inputs=[node.inputs[0]],
            output=node.outputs[0],
            nodes=[index],
            rule=read_window_rule(context, kernel),
            average=average,
            counts_padding=bool(average and context.integer("count_include_pad", 0)),
        )
        if pool.rule.ceil_mode:
            return False
        self.operations.append(pool)
        return True

    def _global_average(self, context: NodeContext, index: int) -> bool:
        """Take a GlobalAveragePool, or a ReduceMean over two spatial axes that keeps them."""
        node = context.node
        if node.op_type == "ReduceMean":
            axes = context.integers("axes")
            if axes is None and (constant := context.constant(1)) is not None:
                axes = tuple(int(axis) for axis in constant.array().reshape(-1))
            if axes is None or sorted(axis % 4 for axis in axes) != [2, 3]:
                return False
        if self.inside(node.inputs[0]) is None:
            return False
        reduces = node.op_type == "ReduceMean"
        self.operations.append(
            GlobalAverage(
                inputs=[node.inputs[0]],
                output=node.outputs[0],
                nodes=[index],
                keeps_axes=not reduces or bool(context.integer("keepdims", 1)),
                rank=4 if reduces else None,
            )
        )
        return True

    def _slice(self, context: NodeContext, index: int) -> bool:
        """Take a Slice of rows and columns between constant bounds."""
        node = context.node
        if not self._gives_planes(node.inputs[0]) or len(node.inputs) < 4 or not context.has_input(3):
            return False
        found = [_integers(context.constant(i)) if context.has_input(i) else None for i in range(1, 5)]
        starts, ends, axes = found[:3]
        if starts is None or ends is None or axes is None:
            return False
        steps = found[3] if context.has_input(4) else [1] * len(starts)
        if steps is None or not set(axes) <= {2, 3} or min(steps) < 1 or len(set(axes)) != len(axes):
            return False
        ranges = {
            axis: slice(start, end, step)
            for axis, start, end, step in zip(axes, starts, ends, steps, strict=True)
        }
        producer = self.producer(node.inputs[0])
        if isinstance(producer, Crop) and producer.takes(ranges):
            producer.ranges.update(ranges)
            _absorb(producer, node.outputs[0], index)
            return True
        self.operations.append(
            Crop(inputs=[node.inputs[0]], output=node.outputs[0], nodes=[index], ranges=ranges)
        )
        return True

    def _pad(self, context: NodeContext, index: int) -> bool:
        """Take a Pad that adds channels of zeros."""
        node, pads = context.node, _integers(context.constant(1))
        if self.inside(node.inputs[0]) is None or pads is None or len(pads) != 8 or context.has_input(3):
            return False
        others = [pads[i] for i in (0, 2, 3, 4, 6, 7)]
        if any(others) or min(pads) < 0 or context.text("mode", "constant") != "constant":
            return False
        if context.has_input(2):
            value = context.constant(2)
            if value is None or math.prod(value.shape) != 1 or float(value.array().reshape(())) != 0:
                return False
        crop = self.producer(node.inputs[0])
        if not isinstance(crop, Crop) or crop.before or crop.after:
            crop = Crop(inputs=[node.inputs[0]], output=node.outputs[0], nodes=[])
            self.operations.append(crop)
        crop.before, crop.after = pads[1], pads[5]
        _absorb(crop, node.outputs[0], index)
        return True

    def _concatenation(self, context: NodeContext, index: int) -> bool:
        """Take a Concat of channels of which some are computed here."""
        node = context.node
        if context.integer("axis", 0) != 1 or any(context.constant(i) for i in range(len(node.inputs))):
            return False
        producers = [self.inside(name) for name in node.inputs]
        planes = (Convolution, Pool, Pointwise, Crop, Concatenation)
        if not any(isinstance(producer, planes) for producer in producers):
            return False
        self.operations.append(Concatenation(inputs=list(node.inputs), output=node.outputs[0], nodes=[index]))
        return True

    def _addition(self, context: NodeContext, index: int) -> bool:
        """Take the addition of a constant vector to a product, or of two values."""
        node = context.node
        for data, other in ((0, 1), (1, 0)):
            constant = context.constant(other)
            if constant is None:
                continue
            producer = self.producer(node.inputs[data])
            if not isinstance(producer, Product) or producer.bias is not None or not producer.clamp.is_open:
                return False
            vector = _vector(constant, producer.matrix_shape[0])
            if vector is None:
                return False
            producer.bias = vector
            _absorb(producer, node.outputs[0], index)
            return True
        return self._sum(node, index)

    def _sum(self, node: Node, index: int) -> bool:
        first, second = node.inputs
        if first == second or not (self._gives_planes(first) or self._gives_planes(second)):
            return False
        for data, other in ((first, second), (second, first)):
            producer = self.producer(data)
            if isinstance(producer, Convolution) and producer.takes_sum:
                self.operations = [*(o for o in self.operations if o is not producer), producer]
                producer.inputs.append(other)
                _absorb(producer, node.outputs[0], index)
                return True
        self.operations.append(Pointwise(inputs=[first, second], output=node.outputs[0], nodes=[index]))
        return True

    def _batch_norm(self, context: NodeContext, index: int) -> bool:
        """Take a BatchNormalization with constant statistics."""
        node = context.node
        if self.inside(node.inputs[0]) is None or context.integer("training_mode", 0):
            return False
        constants = [context.constant(i) for i in range(1, 5)]
        if any(c is None or len(c.shape) != 1 for c in constants) or not context.integer("spatial", 1):
            return False
        scale, bias, mean, variance = (c.array() for c in constants if c is not None)
        if any(array.dtype != np.float32 or array.shape != scale.shape for array in (bias, mean, variance)):
            return False
        factors = scale / np.sqrt(variance + np.float32(context.number("epsilon", 1e-5)))
        self.operations.append(
            Pointwise(
                inputs=[node.inputs[0]],
                output=node.outputs[0],
                nodes=[index],
                factors=factors.astype(np.float32),
                bias=(bias - mean * factors).astype(np.float32),
            )
        )
        return True

    def _clamp(self, context: NodeContext, index: int) -> bool:
        """Take a Relu, or a Clip with constant bounds."""
        node = context.node
        clamp = _read_clamp(context)
        if clamp is None:
            return False
        producer = self.producer(node.inputs[0])
        kinds = Product | Convolution | Pointwise | Elementwise
        if isinstance(producer, kinds) and producer.clamp.is_open:
            producer.clamp = clamp
            _absorb(producer, node.outputs[0], index)
            return True
        if not self._gives_planes(node.inputs[0]):
            return False
        self.operations.append(
            Pointwise(inputs=[node.inputs[0]], output=node.outputs[0], nodes=[index], clamp=clamp)
        )
        return True

    def inside(self, name: str) -> Operation | None:
        """Return the operation that computes a value in this segment."""
        return next((o for o in self.operations if o.output == name and not isinstance(o, Known)), None)

    def is_known(self, name: str) -> bool:
        """Whether a value follows from shapes."""
        return any(o.output == name for o in self.operations if isinstance(o, Known))


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


def _float32_matrix(constant: Constant, shape: tuple[int, int]) -> MatrixWeights | None:
    """Return a constant as a matrix that needs no file, its coding undone once; None if it is not float32."""
    weights = read_matrix(constant, shape).detached()
    return weights if weights.floats is None or weights.floats.dtype == np.float32 else None


def _integers(constant: Constant | None) -> list[int] | None:
    """Return the numbers of a constant; None if it is not known before the run."""
    return None if constant is None else [int(number) for number in constant.array().reshape(-1)]


def _vector(constant: Constant, size: int) -> np.ndarray | None:
    """Return a constant that broadcasts along the last axis as a vector of `size`; None if it is none."""
    array = constant.array()
    if array.dtype != np.float32 or array.size not in (1, size) or math.prod(array.shape[:-1]) != 1:
        return None
    return np.broadcast_to(array.reshape(-1), (size,))


_READERS: dict[str, Callable[[SegmentReader, NodeContext, int], bool]] = {
    "MatMul": SegmentReader._product,
    "Gemm": SegmentReader._product,
    "Conv": SegmentReader._convolution,
    "MaxPool": SegmentReader._pool,
    "AveragePool": SegmentReader._pool,
    "GlobalAveragePool": SegmentReader._global_average,
    "ReduceMean": SegmentReader._global_average,
    "Slice": SegmentReader._slice,
    "Pad": SegmentReader._pad,
    "Concat": SegmentReader._concatenation,
    "BatchNormalization": SegmentReader._batch_norm,
    "Flatten": SegmentReader._view,
    "Reshape": SegmentReader._view,
    "Add": SegmentReader._addition,
    "Relu": SegmentReader._clamp,
    "Clip": SegmentReader._clamp,
}
