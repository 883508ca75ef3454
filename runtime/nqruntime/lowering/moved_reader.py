"""Nodes that move elements, as operations of a segment."""

from __future__ import annotations

import math

from nqruntime.operators import NodeContext

from .batched import Batched
from .collected import Collected, Read
from .joined import Joined
from .moved import Axes, Parts, Share, Transposed
from .operation import Operation
from .recurrent import Recurrent


def integers_of(context: NodeContext, place: int, name: str) -> tuple[int, ...] | None:
    """Return integers of an attribute or, in newer opsets, of a constant input."""
    found = context.integers(name)
    constant = context.constant(place)
    if found is None and constant is not None:
        found = tuple(int(number) for number in constant.array().reshape(-1))
    return found


def add_operation(reader: Collected, operation: Operation) -> bool:
    """Append an operation."""
    reader.operations.append(operation)
    return True


def _transposed(reader: Collected, context: NodeContext, index: int) -> bool:
    """Take a Transpose; that of a product becomes the order in which it is stored."""
    node, order = context.node, context.integers("perm")
    if not reader.is_float(node.inputs[0]):
        return False
    producer = reader.producer(node.inputs[0])
    stored = isinstance(producer, Batched | Recurrent) and producer.order is None
    if stored and order and order[-1] == len(order) - 1:
        assert isinstance(producer, Batched | Recurrent)
        producer.order = order
        reader.absorb(producer, node.outputs[0], index)
        return True
    return add_operation(
        reader, Transposed(inputs=[node.inputs[0]], output=node.outputs[0], nodes=[index], order=order)
    )


def _gathered(reader: Collected, context: NodeContext, index: int) -> bool:
    """Take a Gather of one constant place."""
    node, place = context.node, context.constant(1)
    if place is None or math.prod(place.shape) != 1 or len(place.shape) > 1:
        return False
    if context.constant(0) is not None or reader.inside(node.inputs[0]) is None:
        return False
    axis, number = context.integer("axis", 0), int(place.array().reshape(()))
    part = slice(number, number + 1 if number != -1 else None)
    found = Parts(inputs=[node.inputs[0]], output=node.outputs[0], nodes=[index], ranges={axis: part})
    found.dropped = () if place.shape else (axis,)
    return add_operation(reader, found)


def _sliced(reader: Collected, context: NodeContext, index: int) -> bool:
    """Take a Slice between constant bounds."""
    node = context.node
    if reader.inside(node.inputs[0]) is None or len(node.inputs) < 3:
        return False
    constants = [context.constant(i) if context.has_input(i) else None for i in range(1, 5)]
    if any(context.has_input(i) and constants[i - 1] is None for i in range(1, 5)):
        return False
    starts, ends, axes, steps = (
        None if c is None else [int(number) for number in c.array().reshape(-1)] for c in constants
    )
    if starts is None or ends is None:
        return False
    axes = list(range(len(starts))) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    if min(steps, default=1) < 1 or len({len(each) for each in (starts, ends, axes, steps)}) != 1:
        return False
    ranges = {axis: slice(*own) for axis, *own in zip(axes, starts, ends, steps, strict=True)}
    if len(ranges) != len(axes) or (min(axes) < 0 <= max(axes)):
        return False
    return add_operation(
        reader, Parts(inputs=[node.inputs[0]], output=node.outputs[0], nodes=[index], ranges=ranges)
    )


def _split(reader: Collected, context: NodeContext, index: int) -> bool:
    """Take a Split into constant or equal sizes."""
    node = context.node
    if reader.inside(node.inputs[0]) is None or (context.has_input(1) and context.constant(1) is None):
        return False
    sizes = integers_of(context, 1, "split")
    count = len(node.outputs)
    for number, output in enumerate(node.outputs):
        if output:
            share = Share(
                inputs=[node.inputs[0]],
                output=output,
                nodes=[index],
                axis=context.integer("axis", 0),
                number=number,
                count=count,
                sizes=None if sizes is None else list(sizes),
            )
            reader.operations.append(share)
    return True


def _axes(reader: Collected, context: NodeContext, index: int) -> bool:
    """Take a Squeeze or an Unsqueeze along constant axes."""
    node = context.node
    axes = integers_of(context, 1, "axes")
    adds = node.op_type == "Unsqueeze"
    if reader.inside(node.inputs[0]) is None or (axes is None and (adds or context.has_input(1))):
        return False
    return add_operation(
        reader, Axes(inputs=[node.inputs[0]], output=node.outputs[0], nodes=[index], axes=axes, adds=adds)
    )


def _joined(reader: Collected, context: NodeContext, index: int) -> bool:
    """Take a Concat of values."""
    node = context.node
    if not all(reader.is_float(name) for name in node.inputs) or "axis" not in node.attributes:
        return False
    axis = context.integer("axis", 0)
    return add_operation(
        reader, Joined(inputs=list(node.inputs), output=node.outputs[0], nodes=[index], axis=axis)
    )


READERS: dict[str, Read] = {
    "Concat": _joined,
    "Transpose": _transposed,
    "Gather": _gathered,
    "Slice": _sliced,
    "Split": _split,
    "Squeeze": _axes,
    "Unsqueeze": _axes,
}
