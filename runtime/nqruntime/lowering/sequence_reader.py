"""Nodes of transformers as operations of a segment, and which of these become one."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from nqruntime.constants import Constant
from nqruntime.kernels import blocks
from nqruntime.operators import NodeContext, Prepared, find_operator
from nqruntime.packing.sequences import Formula

from .batched import Batched
from .collected import Collected, Read
from .elementwise import Elementwise
from .known import MOST_ELEMENTS, OF_KNOWN, OF_SHAPES, Known
from .moved_reader import READERS as MOVED_READERS
from .moved_reader import add_operation, integers_of
from .operation import Operation
from .recurrent_reader import read_recurrent
from .statistics import Mean, Normal, Softmax

_HARD_SWISH = (1 / 6, 0.5)
_FLAT_BEFORE = 13
_MOST_CONSTANT_BYTES = 1 << 22


def _floats(constant: Constant | None) -> np.ndarray | None:
    """Return a constant of float32 that is no large table; None for any other."""
    if constant is None or 4 * math.prod(constant.shape) > _MOST_CONSTANT_BYTES or 0 in constant.shape:
        return None
    array = constant.array()
    return array if array.dtype == np.float32 else None


def _number(constant: Constant | None) -> float | None:
    """Return a constant of one element."""
    array = _floats(constant)
    return float(array.reshape(())) if array is not None and array.size == 1 and array.ndim <= 1 else None


def _replace(reader: Collected, old: list[Operation], new: Operation, index: int) -> bool:
    """Put an operation in the place of others that only it reads."""
    nodes = sorted({node for operation in old for node in operation.nodes} | {index})
    reader.operations = [o for o in reader.operations if all(o is not each for each in old)]
    new.nodes = nodes
    return add_operation(reader, new)


def _function(number: int, *, alpha: float = 1.0, beta: float = 0.0) -> Read:
    """Return a reader of a function of one value, with defaults of its attributes."""

    def read(reader: Collected, context: NodeContext, index: int) -> bool:
        node = context.node
        name = node.inputs[0]
        if not reader.is_float(name):
            return False
        given = Formula(
            function=number, alpha=context.number("alpha", alpha), beta=context.number("beta", beta)
        )
        producer = reader.producer(name)
        if isinstance(producer, Elementwise) and producer.takes_function:
            scale, operation = producer.formula.scale, producer.formula.operation
            producer.formula = replace(given, scale=scale, operation=operation)
            producer.output = node.outputs[0]
            producer.nodes.append(index)
            return True
        return add_operation(
            reader, Elementwise(inputs=[name], output=node.outputs[0], nodes=[index], formula=given)
        )

    return read


def _hard_swish(reader: Collected, context: NodeContext, index: int) -> bool:
    return _function(blocks.HARD_SWISH, alpha=_HARD_SWISH[0], beta=_HARD_SWISH[1])(reader, context, index)


def _gelu(reader: Collected, context: NodeContext, index: int) -> bool:
    form = {"none": blocks.GELU, "tanh": blocks.GELU_TANH}.get(context.text("approximate", "none"))
    return form is not None and _function(form)(reader, context, index)


def _read_clamp(reader: Collected, context: NodeContext, index: int) -> bool:
    """Take what the reader of planes left of Relu and Clip."""
    node = context.node
    clamp = reader.clamp_of(context)
    if clamp is None or not reader.is_float(node.inputs[0]):
        return False
    found = Elementwise(inputs=[node.inputs[0]], output=node.outputs[0], nodes=[index], formula=Formula())
    found.clamp = clamp
    return add_operation(reader, found)


def _operation(number: int, reversed_number: int) -> Read:
    """Return a reader of an operation of two values."""

    def read(reader: Collected, context: NodeContext, index: int) -> bool:
        node = context.node
        if len(node.inputs) != 2 or not context.has_input(1):
            return False
        for data, other in ((0, 1), (1, 0)):
            if context.constant(other) is None:
                continue
            operation = number if other == 1 else reversed_number
            return _with_constant(reader, context, index, operation, data=node.inputs[data], other=other)
        if not all(reader.is_float(name) for name in node.inputs):
            return False
        return _of_two(reader, context, index, number)

    return read


def _with_constant(
    reader: Collected, context: NodeContext, index: int, operation: int, *, data: str, other: int
) -> bool:
    """Take an operation of a value and a constant."""
    node, values = context.node, _floats(context.constant(other))
    if values is None or not reader.is_float(data):
        return False
    producer, output = reader.producer(data), node.outputs[0]
    if isinstance(producer, Normal) and _joins_normal(producer, operation, values):
        reader.absorb(producer, output, index)
        return True
    number = _number(context.constant(other))
    if operation == blocks.DIVIDE and number:
        number, operation = 1 / number, blocks.MULTIPLY
    if number is not None and operation == blocks.MULTIPLY and math.isfinite(number):
        if isinstance(producer, Batched):
            producer.scale *= number
            reader.absorb(producer, output, index)
            return True
        if number == 0.5 and _joins_gelu(reader, data, output, index):
            return True
        formula = Formula(scale=number)
        return add_operation(
            reader, Elementwise(inputs=[data], output=output, nodes=[index], formula=formula)
        )
    formula = Formula(operation=operation)
    found = Elementwise(inputs=[data], output=output, nodes=[index], formula=formula, constant=values)
    return add_operation(reader, found)


def _joins_normal(normal: Normal, operation: int, values: np.ndarray) -> bool:
    """Let factors or a bias of the last axis join a normalization."""
    if normal.axis != -1 or math.prod(values.shape[:-1]) != 1 or values.ndim < 1 or normal.bias is not None:
        return False
    if operation == blocks.MULTIPLY and normal.factors is None:
        normal.factors = values.reshape(-1)
    elif operation == blocks.ADD:
        normal.bias = values.reshape(-1)
    else:
        return False
    return True


def _joins_gelu(reader: Collected, data: str, output: str, index: int) -> bool:
    """Take 0.5 * (x * (1 + erf(x / sqrt(2))))."""
    product = reader.producer(data)
    if not isinstance(product, Elementwise) or len(product.inputs) != 2:
        return False
    if not product.is_only(blocks.MULTIPLY):
        return False
    for x, other in (product.inputs, product.inputs[::-1]):
        found = _one_plus_erf(reader, x, other)
        if found is not None:
            gelu = Elementwise(inputs=[x], output=output, nodes=[], formula=Formula(function=blocks.GELU))
            return _replace(reader, [product, *found], gelu, index)
    return False


def _one_plus_erf(reader: Collected, x: str, name: str) -> list[Operation] | None:
    """Return the operations of 1 + erf(x / sqrt(2)), if a value is that."""
    plus = reader.producer(name)
    if not isinstance(plus, Elementwise) or not plus.is_only(blocks.ADD) or plus.constant is None:
        return None
    erf = reader.producer(plus.inputs[0])
    if not isinstance(erf, Elementwise) or not (plus.constant == 1).all():
        return None
    formula = erf.formula
    is_erf = formula.function == blocks.ERF and formula.operation == 0 and erf.clamp.is_open
    if not is_erf or erf.inputs != [x] or abs(formula.scale - math.sqrt(0.5)) > 1e-6:
        return None
    return [plus, erf]


def _of_two(reader: Collected, context: NodeContext, index: int, operation: int) -> bool:
    """Take an operation of two values, or a function times its argument, or a normalization in parts."""
    node = context.node
    first, second = node.inputs
    output = node.outputs[0]
    if operation == blocks.MULTIPLY and _joins_gate(reader, first, second, output, index):
        return True
    if operation == blocks.DIVIDE and _joins_deviation(reader, first, second, output, index):
        return True
    found = Elementwise(
        inputs=[first, second], output=output, nodes=[index], formula=Formula(operation=operation)
    )
    if operation in (blocks.MULTIPLY, blocks.ADD):
        _join_factor(reader, found)
    return add_operation(reader, found)


def _join_factor(reader: Collected, found: Elementwise) -> None:
    """Let a factor of one of two values join their operation."""
    for first, second in (found.inputs, found.inputs[::-1]):
        producer = reader.producer(first)
        if isinstance(producer, Elementwise) and producer.is_factor and producer.constant is None:
            reader.operations = [o for o in reader.operations if o is not producer]
            found.inputs = [producer.inputs[0], second]
            found.formula = replace(found.formula, scale=producer.formula.scale)
            found.nodes = [*producer.nodes, *found.nodes]
            return


_GATES = {blocks.SIGMOID: blocks.SILU, blocks.HARD_SIGMOID: blocks.HARD_SWISH}


def _joins_gate(reader: Collected, first: str, second: str, output: str, index: int) -> bool:
    """Take x times its sigmoid or hard sigmoid."""
    for x, name in ((first, second), (second, first)):
        gate = reader.producer(name)
        if not isinstance(gate, Elementwise) or gate.inputs != [x] or gate.constant is not None:
            continue
        formula = gate.formula
        if formula.function not in _GATES or formula.operation or not gate.clamp.is_open:
            continue
        alpha = formula.scale if formula.function == blocks.SIGMOID else formula.alpha * formula.scale
        gate.formula = Formula(function=_GATES[formula.function], alpha=alpha, beta=formula.beta)
        reader.absorb(gate, output, index)
        return True
    return False


def _joins_deviation(reader: Collected, centred_name: str, root_name: str, output: str, index: int) -> bool:
    """Take (x - mean(x)) / sqrt(mean((x - mean(x))**2) + epsilon), each a node of its own."""
    centred, root = reader.inside(centred_name), reader.producer(root_name)
    if not isinstance(centred, Elementwise) or not centred.is_only(blocks.SUBTRACT):
        return False
    if not isinstance(root, Elementwise) or len(centred.inputs) != 2 or root.constant is None:
        return False
    formula, epsilon = root.formula, root.constant
    if formula.operation != blocks.ADD or formula.function != blocks.SQUARE_ROOT or formula.scale != 1:
        return False
    variance, mean = reader.producer(root.inputs[0]), reader.producer(centred.inputs[1])
    if (
        variance is None
        or mean is None
        or not _is_last_mean(variance)
        or not _is_last_mean(mean)
        or epsilon.size != 1
    ):
        return False
    square = reader.producer(variance.inputs[0])
    if not isinstance(square, Elementwise) or not square.is_only(blocks.MULTIPLY):
        return False
    if square.inputs != [centred_name] * 2 or mean.inputs != centred.inputs[:1]:
        return False
    if reader.uses(centred_name) != square.n_reads + 1:
        return False
    normal = Normal(
        inputs=list(mean.inputs), output=output, nodes=[], axis=-1, epsilon=float(epsilon.reshape(()))
    )
    return _replace(reader, [centred, root, variance, mean, square], normal, index)


def _is_last_mean(operation: Operation) -> bool:
    """Whether an operation is a mean along the last axis, which it keeps."""
    return (
        isinstance(operation, Mean)
        and operation.axes == (-1,)
        and operation.keeps_axes
        and not operation.is_sum
    )


def _power(reader: Collected, context: NodeContext, index: int) -> bool:
    """Take squares."""
    node = context.node
    if _number(context.constant(1)) != 2 or not reader.is_float(node.inputs[0]):
        return False
    formula = Formula(operation=blocks.MULTIPLY)
    square = Elementwise(inputs=[node.inputs[0]] * 2, output=node.outputs[0], nodes=[index], formula=formula)
    square.n_reads = 1
    return add_operation(reader, square)


def _product(reader: Collected, context: NodeContext, index: int) -> bool:
    """Take a MatMul of two values."""
    node = context.node
    if context.constant(0) is not None or context.constant(1) is not None:
        return False
    if not all(reader.is_float(name) for name in node.inputs):
        return False
    found = Batched(inputs=list(node.inputs), output=node.outputs[0], nodes=[index])
    for i, name in enumerate(found.inputs):
        producer = reader.producer(name)
        if isinstance(producer, Elementwise) and producer.is_factor and producer.constant is None:
            reader.operations = [o for o in reader.operations if o is not producer]
            found.inputs[i] = producer.inputs[0]
            found.scale *= producer.formula.scale
            found.nodes = [*producer.nodes, *found.nodes]
    return add_operation(reader, found)


def _softmax(reader: Collected, context: NodeContext, index: int) -> bool:
    """Take a Softmax, with a factor and an addend of what goes into it."""
    node, is_flat = context.node, context.opset < _FLAT_BEFORE
    if not reader.is_float(node.inputs[0]):
        return False
    found = Softmax(
        inputs=[node.inputs[0]],
        output=node.outputs[0],
        nodes=[index],
        axis=context.integer("axis", 1 if is_flat else -1),
        is_flat=is_flat,
    )
    total = reader.producer(node.inputs[0])
    if isinstance(total, Elementwise) and total.formula.operation in (0, blocks.ADD) and total.takes_function:
        reader.operations = [o for o in reader.operations if o is not total]
        found.inputs, found.addend = list(total.inputs), total.constant
        found.scale, found.nodes = total.formula.scale, [*total.nodes, index]
    return add_operation(reader, found)


def _join_sum(reader: Collected, normal: Normal) -> None:
    """Let the sum of two values that is normalized join the normalization."""
    total = reader.producer(normal.inputs[0])
    if isinstance(total, Elementwise) and total.is_only(blocks.ADD) and len(total.inputs) == 2:
        reader.operations = [o for o in reader.operations if o is not total]
        normal.inputs = list(total.inputs)
        normal.nodes = [*total.nodes, *normal.nodes]


def _normal(reader: Collected, context: NodeContext, index: int) -> bool:
    """Take a LayerNormalization or an RMSNormalization with constant factors."""
    node = context.node
    factors = _floats(context.constant(1))
    bias = _floats(context.constant(2)) if context.has_input(2) else None
    if factors is None or (bias is None and context.has_input(2)) or not reader.is_float(node.inputs[0]):
        return False
    found = Normal(
        inputs=[node.inputs[0]],
        output=node.outputs[0],
        nodes=[index],
        axis=context.integer("axis", -1),
        epsilon=context.number("epsilon", 1e-5),
        factors=factors,
        bias=bias,
        is_centred=node.op_type == "LayerNormalization",
    )
    if math.prod(factors.shape[:-1]) != 1 or (bias is not None and math.prod(bias.shape[:-1]) != 1):
        return False
    _join_sum(reader, found)
    return add_operation(reader, found)


def _mean(reader: Collected, context: NodeContext, index: int) -> bool:
    """Take a mean or a sum over constant axes."""
    node, axes = context.node, integers_of(context, 1, "axes")
    if not axes or not reader.is_float(node.inputs[0]):
        return False
    keeps, is_sum = bool(context.integer("keepdims", 1)), node.op_type == "ReduceSum"
    found = Mean(
        inputs=[node.inputs[0]],
        output=node.outputs[0],
        nodes=[index],
        axes=axes,
        keeps_axes=keeps,
        is_sum=is_sum,
    )
    return add_operation(reader, found)


def read_known(reader: Collected, context: NodeContext, index: int) -> bool:
    """Take what follows from shapes, and from what follows from them."""
    node = context.node
    names = [name for name in node.inputs if name]
    given = [name for i, name in enumerate(node.inputs) if name and context.constant(i) is None]
    of_shape = node.op_type in OF_SHAPES and len(given) == 1 == len(names) and not reader.is_known(given[0])
    of_known = node.op_type in OF_KNOWN | OF_SHAPES and given and all(map(reader.is_known, given))
    if len(node.outputs) != 1 or not (of_shape or of_known):
        return False
    operator = find_operator(node.op_type, context.opset)
    prepared = None if operator is None else operator(context)
    if prepared is None or isinstance(prepared, Prepared):
        return False
    operands: list[str | np.ndarray | None] = []
    for i, name in enumerate(node.inputs):
        constant = context.constant(i)
        if constant is not None and math.prod(constant.shape) > MOST_ELEMENTS:
            return False
        operands.append((name or None) if constant is None else constant.array())
    found = Known(inputs=given, output=node.outputs[0], nodes=[index], run=prepared)
    found.operands, found.reads_shape = operands, of_shape
    return add_operation(reader, found)


SEVERAL_OUTPUTS = frozenset({"Split", "LSTM", "GRU", "RNN"})
"""Operators whose nodes may have several outputs here."""

READERS: dict[str, Read] = {
    "Add": _operation(blocks.ADD, blocks.ADD),
    "Sub": _operation(blocks.SUBTRACT, blocks.SUBTRACT_FIRST),
    "Mul": _operation(blocks.MULTIPLY, blocks.MULTIPLY),
    "Div": _operation(blocks.DIVIDE, blocks.DIVIDE_BY_FIRST),
    "Exp": _function(blocks.EXPONENTIAL),
    "Tanh": _function(blocks.TANH),
    "Sigmoid": _function(blocks.SIGMOID),
    "Erf": _function(blocks.ERF),
    "Gelu": _gelu,
    "Swish": _function(blocks.SILU),
    "HardSigmoid": _function(blocks.HARD_SIGMOID, alpha=0.2, beta=0.5),
    "HardSwish": _hard_swish,
    "Sqrt": _function(blocks.SQUARE_ROOT),
    "Reciprocal": _function(blocks.RECIPROCAL),
    "Abs": _function(blocks.ABSOLUTE),
    "Neg": _function(blocks.NEGATIVE),
    "LeakyRelu": _function(blocks.LEAKY_RELU, alpha=0.01),
    "Elu": _function(blocks.ELU),
    "Relu": _read_clamp,
    "Clip": _read_clamp,
    "Pow": _power,
    "MatMul": _product,
    "LSTM": read_recurrent,
    "GRU": read_recurrent,
    "RNN": read_recurrent,
    "Softmax": _softmax,
    "LayerNormalization": _normal,
    "RMSNormalization": _normal,
    "ReduceMean": _mean,
    "ReduceSum": _mean,
    **MOVED_READERS,
}
