"""Operators whose result does not depend on the values of activations."""

from __future__ import annotations

import math

import numpy as np

from nqruntime.constants import ArrayConstant, Constant, inline_constant

from .registry import NodeContext, Run, operator


def constant_value(context: NodeContext) -> Constant:
    """Return the value of a Constant node, in any of its attributes."""
    tensor = context.tensor("value")
    if tensor is not None:
        return inline_constant(tensor)
    if "value_float" in context.node.attributes:
        return ArrayConstant(np.array(context.number("value_float", 0.0), dtype=np.float32))
    if "value_int" in context.node.attributes:
        return ArrayConstant(np.array(context.integer("value_int", 0), dtype=np.int64))
    floats = context.numbers("value_floats")
    if floats is not None:
        return ArrayConstant(np.asarray(floats, dtype=np.float32))
    integers = context.integers("value_ints")
    if integers is not None:
        return ArrayConstant(np.array(integers, dtype=np.int64))
    raise context.refuse(f"Constant with {', '.join(context.node.attributes) or 'no value'}")


@operator("Constant")
def constant(context: NodeContext) -> Run:
    """Return the same value in each run."""
    value = constant_value(context).array()
    return lambda: value


@operator("ConstantOfShape", 9)
def constant_of_shape(context: NodeContext) -> Run:
    """Fill a shape with one value, 0.0 by default."""
    tensor = context.tensor("value")
    value = np.zeros(1, dtype=np.float32) if tensor is None else inline_constant(tensor).array()

    def run(shape: np.ndarray) -> np.ndarray:
        sizes = shape.tolist()
        context.check_size(math.prod(sizes), value.itemsize)
        return np.full(sizes, value.reshape(()), dtype=value.dtype)

    return run


@operator("Range", 11)
def arange(context: NodeContext) -> Run:
    """Return numbers from `start` to `limit` by steps of `delta`."""

    def run(start: np.ndarray, limit: np.ndarray, delta: np.ndarray) -> np.ndarray:
        first, step = start.reshape(()), delta.reshape(())
        n_elements = max(0, math.ceil((limit.reshape(()).item() - first.item()) / step.item()))
        context.check_size(n_elements, 8)
        numbers: np.ndarray = np.arange(n_elements).astype(start.dtype) * step + first
        return numbers.astype(start.dtype)

    return run
