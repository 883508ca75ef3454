"""Arithmetic on broadcast operands, and casts."""

from __future__ import annotations

from functools import reduce

import numpy as np

from nqruntime.element_types import HALVES, element_type, rounded_to_half

from .registry import NodeContext, Run, operator, register_function


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return a / b; integers round toward zero."""
    if a.dtype.kind == "f":
        ratio: np.ndarray = np.true_divide(a, b)
        return ratio
    quotient: np.ndarray = np.floor_divide(a, b)
    if a.dtype.kind == "i":
        quotient += ((quotient < 0) & (quotient * b != a)).astype(a.dtype)
    return quotient


def _power(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return a to the power b, in the type of a."""
    if a.dtype.kind == "f" and b.size == 1 and b.ndim <= a.ndim and b.item() == 2:
        square: np.ndarray = np.square(a)
        return square
    result: np.ndarray = np.power(a, b.astype(a.dtype) if a.dtype.kind == "f" else b)
    return result.astype(a.dtype, copy=False)


register_function("Add", 7, np.add)
register_function("Sub", 7, np.subtract)
register_function("Mul", 7, np.multiply)
register_function("Div", 7, _divide)
register_function("Pow", 7, _power)
register_function("Mean", 8, lambda *arrays: reduce(np.add, arrays) / arrays[0].dtype.type(len(arrays)))
register_function("Max", 8, lambda *arrays: reduce(np.maximum, arrays))
register_function("Min", 8, lambda *arrays: reduce(np.minimum, arrays))
register_function("Sum", 8, lambda *arrays: reduce(np.add, arrays))


@operator("Mod", 10)
def modulo(context: NodeContext) -> Run:
    """Remainder with the sign of the divisor, or with `fmod` that of the dividend."""
    return np.fmod if context.integer("fmod", 0) else np.mod


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
    """Change the element type; floats round toward zero on the way to integers.

    Half precision is float32 rounded to it.
    """
    number = context.integer("to", 0)
    element = element_type(number)
    if element is None or element.dtype is None:
        name = element.label if element else f"ONNX data type {number}"
        raise context.refuse(f"Cast to {name}")
    half = element.dtype
    if half in HALVES:
        return lambda x: rounded_to_half(x, half)
    dtype = element.dtype.storage_dtype
    return lambda x: x.astype(dtype)


@operator("CastLike", 15)
def cast_like(context: NodeContext) -> Run:
    """Change the element type to that of the second operand."""
    return lambda x, like: x.astype(like.dtype)
