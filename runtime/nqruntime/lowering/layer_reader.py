"""Which nodes of convolutional networks and of layers become operations, and which of these become one."""

from __future__ import annotations

import math

import numpy as np

from nqruntime.constants import Constant
from nqruntime.graph import Node
from nqruntime.operators import NodeContext
from nqruntime.operators.windows import read_window_rule
from nqruntime.symbols import MatrixWeights, read_matrix

from .collected import Collected, Read
from .convolution import Convolution
from .elementwise import Elementwise
from .pointwise import Pointwise
from .pooling import GlobalAverage, Pool
from .product import Product
from .rearrangement import Concatenation, Crop
from .view import View

__all__ = ["READERS"]


def _product(reader: Collected, context: NodeContext, index: int) -> bool:
    """Take a MatMul or a Gemm with a constant matrix."""
    node, weight = context.node, context.constant(1)
    if weight is None or len(weight.shape) != 2 or 0 in weight.shape or context.constant(0) is not None:
        return False
    is_gemm = node.op_type == "Gemm"
    transposed = True
    if is_gemm:
        plain = context.number("alpha", 1.0) == context.number("beta", 1.0) == 1.0
        if not plain or context.integer("transA", 0):
            return False
        transposed = not context.integer("transB", 0)
    matrix = weight.transposed((1, 0) if transposed else (0, 1))
    n_rows, n_columns = matrix.shape
    bias = _bias(context, n_rows)
    if bias is None and context.has_input(2):
        return False
    weights = _float32_matrix(matrix, (n_rows, n_columns))
    if weights is None:
        return False
    reader.weight_shapes[node.inputs[1]] = weight.shape
    reader.operations.append(
        Product(
            inputs=[node.inputs[0]],
            output=node.outputs[0],
            nodes=[index],
            weights=weights,
            chooser=reader.chooser,
            rank=2 if is_gemm else None,
            bias=bias,
        )
    )
    return True


def _view(reader: Collected, context: NodeContext, index: int) -> bool:
    """Take a Flatten, or a Reshape to a constant shape."""
    node = context.node
    if context.constant(0) is not None:
        return False
    if not reader.is_float(node.inputs[0]) and reader.uses(node.outputs[0]) != 1:
        return False
    view = View(inputs=[node.inputs[0]], output=node.outputs[0], nodes=[index])
    if node.op_type == "Flatten":
        view.axis = context.integer("axis", 1)
    else:
        target = context.constant(1)
        if target is None and reader.is_known(node.inputs[1]) and not context.integer("allowzero", 0):
            view.known = node.inputs[1]
            reader.operations.append(view)
            return True
        if target is None or len(target.shape) != 1:
            return False
        view.target = tuple(int(size) for size in target.array())
        if 0 in view.target and context.integer("allowzero", 0):
            return False
    reader.operations.append(view)
    return True


def _convolution(reader: Collected, context: NodeContext, index: int) -> bool:
    """Take a Conv of one or two spatial axes with constant weights."""
    node, weight = context.node, context.constant(1)
    if weight is None or len(weight.shape) not in (3, 4) or 0 in weight.shape:
        return False
    kernel, groups = weight.shape[2:], context.integer("group", 1)
    if context.integers("kernel_shape") not in (None, kernel) or context.constant(0) is not None:
        return False
    if groups < 1 or weight.shape[0] % groups:
        return False
    bias = _bias(context, weight.shape[0])
    if bias is None and context.has_input(2):
        return False
    weights = _float32_matrix(weight, (weight.shape[0], math.prod(weight.shape[1:])))
    if weights is None:
        return False
    reader.weight_shapes[node.inputs[1]] = weight.shape
    reader.operations.append(
        Convolution(
            inputs=[node.inputs[0]],
            output=node.outputs[0],
            nodes=[index],
            weights=weights,
            rule=read_window_rule(context, kernel),
            n_groups=groups,
            chooser=reader.chooser,
            bias=bias,
        )
    )
    return True


def _pool(reader: Collected, context: NodeContext, index: int) -> bool:
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
    reader.operations.append(pool)
    return True


def _global_average(reader: Collected, context: NodeContext, index: int) -> bool:
    """Take a GlobalAveragePool, or a ReduceMean over two spatial axes that keeps them."""
    node = context.node
    if node.op_type == "ReduceMean":
        axes = context.integers("axes")
        if axes is None and (constant := context.constant(1)) is not None:
            axes = tuple(int(axis) for axis in constant.array().reshape(-1))
        if axes is None or sorted(axis % 4 for axis in axes) != [2, 3]:
            return False
    if reader.inside(node.inputs[0]) is None:
        return False
    reduces = node.op_type == "ReduceMean"
    reader.operations.append(
        GlobalAverage(
            inputs=[node.inputs[0]],
            output=node.outputs[0],
            nodes=[index],
            keeps_axes=not reduces or bool(context.integer("keepdims", 1)),
            rank=4 if reduces else None,
        )
    )
    return True


def _slice(reader: Collected, context: NodeContext, index: int) -> bool:
    """Take a Slice of rows and columns between constant bounds."""
    node = context.node
    if not reader.gives_planes(node.inputs[0]) or len(node.inputs) < 4 or not context.has_input(3):
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
    producer = reader.producer(node.inputs[0])
    if isinstance(producer, Crop) and producer.takes(ranges):
        producer.ranges.update(ranges)
        reader.absorb(producer, node.outputs[0], index)
        return True
    reader.operations.append(
        Crop(inputs=[node.inputs[0]], output=node.outputs[0], nodes=[index], ranges=ranges)
    )
    return True


def _pad(reader: Collected, context: NodeContext, index: int) -> bool:
    """Take a Pad that adds channels of zeros."""
    node, pads = context.node, _integers(context.constant(1))
    if reader.inside(node.inputs[0]) is None or pads is None or len(pads) != 8 or context.has_input(3):
        return False
    others = [pads[i] for i in (0, 2, 3, 4, 6, 7)]
    if any(others) or min(pads) < 0 or context.text("mode", "constant") != "constant":
        return False
    if context.has_input(2):
        value = context.constant(2)
        if value is None or math.prod(value.shape) != 1 or float(value.array().reshape(())) != 0:
            return False
    crop = reader.producer(node.inputs[0])
    if not isinstance(crop, Crop) or crop.before or crop.after:
        crop = Crop(inputs=[node.inputs[0]], output=node.outputs[0], nodes=[])
        reader.operations.append(crop)
    crop.before, crop.after = pads[1], pads[5]
    reader.absorb(crop, node.outputs[0], index)
    return True


def _concatenation(reader: Collected, context: NodeContext, index: int) -> bool:
    """Take a Concat of channels of which some are computed here."""
    node = context.node
    if context.integer("axis", 0) != 1 or any(context.constant(i) for i in range(len(node.inputs))):
        return False
    producers = [reader.inside(name) for name in node.inputs]
    planes = (Convolution, Pool, Pointwise, Crop, Concatenation)
    if not any(isinstance(producer, planes) for producer in producers):
        return False
    reader.operations.append(Concatenation(inputs=list(node.inputs), output=node.outputs[0], nodes=[index]))
    return True


def _addition(reader: Collected, context: NodeContext, index: int) -> bool:
    """Take the addition of a constant vector to a product, or of two values."""
    node = context.node
    for data, other in ((0, 1), (1, 0)):
        constant = context.constant(other)
        if constant is None:
            continue
        producer = reader.producer(node.inputs[data])
        if not isinstance(producer, Product) or producer.bias is not None or not producer.clamp.is_open:
            return False
        vector = _vector(constant, producer.matrix_shape[0])
        if vector is None:
            return False
        producer.bias = vector
        reader.absorb(producer, node.outputs[0], index)
        return True
    return _sum(reader, node, index)


def _sum(reader: Collected, node: Node, index: int) -> bool:
    first, second = node.inputs
    if first == second or not (reader.gives_planes(first) or reader.gives_planes(second)):
        return False
    for data, other in ((first, second), (second, first)):
        producer = reader.producer(data)
        if isinstance(producer, Convolution) and producer.takes_sum:
            reader.operations = [*(o for o in reader.operations if o is not producer), producer]
            producer.inputs.append(other)
            reader.absorb(producer, node.outputs[0], index)
            return True
    reader.operations.append(Pointwise(inputs=[first, second], output=node.outputs[0], nodes=[index]))
    return True


def _batch_norm(reader: Collected, context: NodeContext, index: int) -> bool:
    """Take a BatchNormalization with constant statistics."""
    node = context.node
    if reader.inside(node.inputs[0]) is None or context.integer("training_mode", 0):
        return False
    constants = [context.constant(i) for i in range(1, 5)]
    if any(c is None or len(c.shape) != 1 for c in constants) or not context.integer("spatial", 1):
        return False
    scale, bias, mean, variance = (c.array() for c in constants if c is not None)
    if any(array.dtype != np.float32 or array.shape != scale.shape for array in (bias, mean, variance)):
        return False
    factors = scale / np.sqrt(variance + np.float32(context.number("epsilon", 1e-5)))
    reader.operations.append(
        Pointwise(
            inputs=[node.inputs[0]],
            output=node.outputs[0],
            nodes=[index],
            factors=factors.astype(np.float32),
            bias=(bias - mean * factors).astype(np.float32),
        )
    )
    return True


def _clamp(reader: Collected, context: NodeContext, index: int) -> bool:
    """Take a Relu, or a Clip with constant bounds."""
    node = context.node
    clamp = reader.clamp_of(context)
    if clamp is None:
        return False
    producer = reader.producer(node.inputs[0])
    kinds = Product | Convolution | Pointwise | Elementwise
    if isinstance(producer, kinds) and producer.clamp.is_open:
        producer.clamp = clamp
        reader.absorb(producer, node.outputs[0], index)
        return True
    if not reader.gives_planes(node.inputs[0]):
        return False
    reader.operations.append(
        Pointwise(inputs=[node.inputs[0]], output=node.outputs[0], nodes=[index], clamp=clamp)
    )
    return True


def _float32_matrix(constant: Constant, shape: tuple[int, int]) -> MatrixWeights | None:
    """Return a constant as a matrix that needs no file, its coding undone once; None if it is not float32."""
    weights = read_matrix(constant, shape).detached()
    return weights if weights.floats is None or weights.floats.dtype == np.float32 else None


def _integers(constant: Constant | None) -> list[int] | None:
    """Return the numbers of a constant; None if it is not known before the run."""
    return None if constant is None else [int(number) for number in constant.array().reshape(-1)]


def _bias(context: NodeContext, length: int) -> np.ndarray | None:
    """Return a constant third input as a vector; None if there is none, or not such a one."""
    constant = context.constant(2) if context.has_input(2) else None
    return None if constant is None else _vector(constant, length)


def _vector(constant: Constant, size: int) -> np.ndarray | None:
    """Return a constant that broadcasts along the last axis as a vector of `size`; None if it is none."""
    array = constant.array()
    if array.dtype != np.float32 or array.size not in (1, size) or math.prod(array.shape[:-1]) != 1:
        return None
    return np.broadcast_to(array.reshape(-1), (size,))


READERS: dict[str, Read] = {
    "MatMul": _product,
    "Gemm": _product,
    "Conv": _convolution,
    "MaxPool": _pool,
    "AveragePool": _pool,
    "GlobalAveragePool": _global_average,
    "ReduceMean": _global_average,
    "Slice": _slice,
    "Pad": _pad,
    "Concat": _concatenation,
    "BatchNormalization": _batch_norm,
    "Flatten": _view,
    "Reshape": _view,
    "Add": _addition,
    "Relu": _clamp,
    "Clip": _clamp,
}
