"""Arithmetic on broadcast operands, and casts."""

from __future__ import annotations

from functools import reduce

import numpy as np

from nqruntime.element_types import element_type

from .registry import NodeContext, Run, operator

_REDUCED_PRECISION = ("float16", "bfloat16")


@operator("Add", 7)
def add(context: NodeContext) -> Run:
    """Return a + b."""
    return np.add


@operator("Sub", 7)
def subtract(context: NodeContext) -> Run:
    """Return a - b."""
    return np.subtract


@operator("Mul", 7)
def multiply(context: NodeContext) -> Run:
    """Return a * b."""
    return np.multiply


@operator("Div", 7)
def divide(context: NodeContext) -> Run:
    """Return a / b; integers round toward zero."""

    def run(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        if a.dtype.kind == "f":
            ratio: np.ndarray = np.true_divide(a, b)
            return ratio
        quotient: np.ndarray = np.floor_divide(a, b)
        if a.dtype.kind == "i":
            quotient += ((quotient < 0) & (quotient * b != a)).astype(a.dtype)
        return quotient

    return run


@operator("Pow", 7)
def power(context: NodeContext) -> Run:
    """Return a to the power b, in the type of a."""

    def run(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        if a.dtype.kind == "f" and b.size == 1 and b.ndim <= a.ndim and b.item() == 2:
            square: np.ndarray = np.square(a)
            return square
        result: np.ndarray = np.power(a, b.astype(a.dtype) if a.dtype.kind == "f" else b)
        return result.astype(a.dtype, copy=False)

    return run


@operator("Max", 8)
def maximum(context: NodeContext) -> Run:
    """Return the largest of all operands, element by element."""
    return lambda *arrays: reduce(np.maximum, arrays)


@operator("Min", 8)
def minimum(context: NodeContext) -> Run:
    """Return the smallest of all operands, element by element."""
    return lambda *arrays: reduce(np.minimum, arrays)


@operator("Sum", 8)
def total(context: NodeContext) -> Run:
    """Return the sum of all operands, element by element."""
    return lambda *arrays: reduce(np.add, arrays)


@operator("Identity")
@operator("Dropout", 7)
def identity(context: NodeContext) -> Run:
    """Return the input; dropout does nothing outside training."""
    context.expect_outputs(1, "the mask of Dropout")
    return lambda x: x


@operator("Dropout", 12)
def dropout(context: NodeContext) -> Run:
    """Return the input, unless training is asked for."""
    context.expect_outputs(1, "the mask of Dropout")
    training = context.constant(2)
    if context.has_input(2) and (training is None or bool(training.array().any())):
        raise context.refuse("Dropout in training mode")
    return lambda x, ratio=None, training=None: x


@operator("Cast", 6)
def cast(context: NodeContext) -> Run:
    """Change the element type; floats round toward zero on the way to integers."""
    number = context.integer("to", 0)
    element = element_type(number)
    if element is None or element.dtype is None or element.label in _REDUCED_PRECISION:
        name = element.label if element else f"ONNX data type {number}"
        raise context.refuse(f"Cast to {name}")
    dtype = element.dtype.storage_dtype
    return lambda x: x.astype(dtype)
