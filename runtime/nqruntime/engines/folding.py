"""Nodes whose result is known before the network runs: moved weights stay quantized."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from nqformat.errors import FormatError
from nqruntime.constant_parts import PartsConstant
from nqruntime.constants import ArrayConstant, Constant
from nqruntime.operators import NodeContext, Prepared, find_operator

_MOST_COMPUTED = 1 << 12
_COMPUTED = frozenset(
    {"Add", "Cast", "Concat", "Div", "Gather", "Mul", "Neg", "Reshape", "Slice", "Sqrt", "Squeeze", "Sub"}
    | {"Unsqueeze", "Transpose", "Pow", "Equal", "Where", "ConstantOfShape"}
)
_ERRORS = (ValueError, TypeError, IndexError, ArithmeticError)


def folded(context: NodeContext) -> Constant | None:
    """Return the value of a node of constants only; None if it is better computed in each run."""
    node = context.node
    constants = [context.constant(i) for i, name in enumerate(node.inputs) if name]
    if not constants or any(constant is None for constant in constants):
        return None
    known = [constant for constant in constants if constant is not None]
    mover = _MOVERS.get(context.node.op_type)
    if mover is not None and not isinstance(known[0], ArrayConstant):
        found = mover(context, known)
        if found is not None:
            return found
    is_small = sum(math.prod(constant.shape) for constant in known) <= _MOST_COMPUTED
    return _computed(context, known) if is_small and context.node.op_type in _COMPUTED else None


def _computed(context: NodeContext, constants: list[Constant]) -> Constant | None:
    """Run the operator once; None if that fails, which the node's own step then explains."""
    operator = find_operator(context.node.op_type, context.opset)
    if operator is None:
        return None
    values = [constant.array() for constant in constants]
    if context.node.op_type == "ConstantOfShape" and not 0 <= math.prod(values[0].tolist()) <= _MOST_COMPUTED:
        return None
    arrays = iter(values)
    given = [next(arrays) if name else None for name in context.node.inputs]
    try:
        with np.errstate(all="ignore"):
            prepared = operator(context)
            if isinstance(prepared, Prepared):
                given = [None if i in prepared.taken else array for i, array in enumerate(given)]
                prepared = prepared.run
            found = prepared(*given)
    except (FormatError, *_ERRORS):
        return None
    return ArrayConstant(np.asarray(found)) if isinstance(found, np.ndarray | np.generic) else None


def _integers(constant: Constant) -> list[int]:
    return [int(number) for number in constant.array().reshape(-1)]


def _slice(context: NodeContext, constants: list[Constant]) -> Constant | None:
    """Take a range of the first axis that has more than one element."""
    if len(constants) not in (4, 5) or len(constants) != len(context.node.inputs):
        return None
    data, (start,), (stop,), (axis,) = (
        constants[0],
        *(_single(_integers(constant)) for constant in constants[1:4]),
    )
    step = _single(_integers(constants[4]))[0] if len(constants) == 5 else 1
    rank = len(data.shape)
    if start is None or stop is None or axis is None or step != 1 or not -rank <= axis < rank:
        return None
    axis %= rank
    if math.prod(data.shape[:axis]) != 1:
        return None
    first, last, _ = slice(start, stop).indices(data.shape[axis])
    each = math.prod(data.shape[axis + 1 :])
    if first >= last:
        return None
    shape = (*data.shape[:axis], last - first, *data.shape[axis + 1 :])
    return PartsConstant.of(data).part(first * each, last * each, shape)


def _single(numbers: Sequence[int]) -> tuple[int | None]:
    return (numbers[0],) if len(numbers) == 1 else (None,)


def _concat(context: NodeContext, constants: list[Constant]) -> Constant | None:
    """Join along the first axis that has more than one element."""
    first, axis = constants[0], context.integer("axis", 0)
    rank = len(first.shape)
    if not -rank <= axis < rank:
        return None
    axis %= rank
    if any(len(c.shape) != rank or math.prod(c.shape[:axis]) != 1 for c in constants):
        return None
    if any(
        c.shape[:axis] + c.shape[axis + 1 :] != first.shape[:axis] + first.shape[axis + 1 :]
        for c in constants
    ):
        return None
    size = sum(c.shape[axis] for c in constants)
    return PartsConstant.joined((*first.shape[:axis], size, *first.shape[axis + 1 :]), constants)


def _with_axes(context: NodeContext, constants: list[Constant]) -> Constant | None:
    """Give or take axes of size 1."""
    data, axes = constants[0], context.integers("axes")
    if len(constants) == 2:
        axes = tuple(_integers(constants[1]))
    if axes is None:
        return None
    adds = context.node.op_type == "Unsqueeze"
    rank = len(data.shape) + (len(axes) if adds else 0)
    places = {axis % rank for axis in axes if -rank <= axis < rank}
    if len(places) != len(axes):
        return None
    if adds:
        rest = iter(data.shape)
        shape = tuple(1 if axis in places else next(rest) for axis in range(rank))
    elif any(data.shape[axis] != 1 for axis in places):
        return None
    else:
        shape = tuple(size for axis, size in enumerate(data.shape) if axis not in places)
    return PartsConstant.of(data).part(0, math.prod(shape), shape)


_MOVERS: dict[str, Callable[[NodeContext, list[Constant]], Constant | None]] = {
    "Slice": _slice,
    "Concat": _concat,
    "Unsqueeze": _with_axes,
    "Squeeze": _with_axes,
}
