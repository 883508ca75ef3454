"""Functions of one element, and softmax."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from nqruntime.kernels.coefficients import ERF_ABOVE, ERF_BELOW

from .registry import NodeContext, Run, operator, register_function

Activation = Callable[[np.ndarray], np.ndarray]

_SELU_ALPHA = 1.67326319217681884765625
_SELU_GAMMA = 1.05070102214813232421875


_ERF_ABOVE, _ERF_BELOW = (np.array(each, dtype=np.float32) for each in (ERF_ABOVE, ERF_BELOW))
_EXACT_ERF = np.frompyfunc(math.erf, 1, 1)


def sigmoid(x: np.ndarray) -> np.ndarray:
    """Return 1 / (1 + exp(-x)) without overflow or loss of small results."""
    decay = np.exp(-np.abs(x))
    result: np.ndarray = np.where(x >= 0, 1, decay) / (1 + decay)
    return result.astype(x.dtype, copy=False)


def relu(x: np.ndarray) -> np.ndarray:
    """Return x where it is positive, else 0."""
    result: np.ndarray = np.maximum(x, 0)
    return result


def softplus(x: np.ndarray) -> np.ndarray:
    """Return log(1 + exp(x)) without overflow."""
    result: np.ndarray = np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))
    return result


def softsign(x: np.ndarray) -> np.ndarray:
    """Return x / (1 + |x|)."""
    result: np.ndarray = x / (1 + np.abs(x))
    return result


def leaky_relu(alpha: float) -> Activation:
    """Return a function that scales negative elements by `alpha`."""
    return lambda x: np.where(x < 0, x * x.dtype.type(alpha), x)


def thresholded_relu(alpha: float) -> Activation:
    """Return a function that keeps elements above `alpha`."""
    return lambda x: np.where(x > x.dtype.type(alpha), x, x.dtype.type(0))


def elu(alpha: float) -> Activation:
    """Return a function that replaces negative x by alpha * (exp(x) - 1)."""
    return lambda x: np.where(x < 0, x.dtype.type(alpha) * np.expm1(np.minimum(x, 0)), x)


def hard_sigmoid(alpha: float, beta: float) -> Activation:
    """Return a function that clips alpha * x + beta to 0 and 1."""
    return lambda x: np.clip(x.dtype.type(alpha) * x + x.dtype.type(beta), 0, 1)


register_function("Relu", 6, relu)
register_function("Sigmoid", 6, sigmoid)
register_function("Tanh", 6, np.tanh)
register_function("Sqrt", 6, np.sqrt)
register_function("Exp", 6, np.exp)
register_function("Log", 6, np.log)
register_function("Neg", 6, np.negative)
register_function("Abs", 6, np.abs)
register_function("Floor", 6, np.floor)
register_function("Ceil", 6, np.ceil)
register_function("Reciprocal", 6, np.reciprocal)
register_function("Sin", 7, np.sin)
register_function("Cos", 7, np.cos)
register_function("Round", 11, np.rint)
register_function("Sign", 9, np.sign)
register_function("IsNaN", 9, np.isnan)
register_function("Mish", 18, lambda x: x * np.tanh(softplus(x)))
register_function("Softplus", 1, softplus)
register_function("Softsign", 1, softsign)
register_function("HardSwish", 14, lambda x: x * np.clip(x / 6 + x.dtype.type(0.5), 0, 1))


@operator("LeakyRelu", 6)
def prepare_leaky_relu(context: NodeContext) -> Run:
    """Scale negative elements by `alpha`."""
    return leaky_relu(context.number("alpha", 0.01))


@operator("ThresholdedRelu", 10)
def prepare_thresholded_relu(context: NodeContext) -> Run:
    """Keep elements above `alpha`."""
    return thresholded_relu(context.number("alpha", 1.0))


@operator("PRelu", 7)
def prelu(context: NodeContext) -> Run:
    """Scale negative elements by a slope that broadcasts."""
    return lambda x, slope: np.where(x < 0, x * slope, x)


@operator("Elu", 6)
def prepare_elu(context: NodeContext) -> Run:
    """Replace negative x by alpha * (exp(x) - 1)."""
    return elu(context.number("alpha", 1.0))


@operator("Selu", 6)
def selu(context: NodeContext) -> Run:
    """Scaled exponential linear unit."""
    alpha = context.number("alpha", _SELU_ALPHA)
    gamma = context.number("gamma", _SELU_GAMMA)
    return lambda x: (
        x.dtype.type(gamma) * np.where(x <= 0, x.dtype.type(alpha) * np.expm1(np.minimum(x, 0)), x)
    )


@operator("HardSigmoid", 6)
def prepare_hard_sigmoid(context: NodeContext) -> Run:
    """Clip alpha * x + beta to 0 and 1."""
    return hard_sigmoid(context.number("alpha", 0.2), context.number("beta", 0.5))


def erf(x: np.ndarray) -> np.ndarray:
    """Return the error function: of float32 to 4e-7 by a ratio of polynomials, of float64 exactly."""
    if x.dtype != np.float32:
        exact: np.ndarray = _EXACT_ERF(x)
        return np.asarray(exact).astype(x.dtype)
    within = np.clip(x, np.float32(-4), np.float32(4))
    square = within * within
    ratio = within * _polynomial(square, _ERF_ABOVE) / _polynomial(square, _ERF_BELOW)
    result: np.ndarray = np.clip(ratio, np.float32(-1), np.float32(1))
    return result


def _polynomial(x: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    """Evaluate a polynomial whose constant term stands first."""
    total = np.full_like(x, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        total *= x
        total += coefficient
    return total


register_function("Erf", 9, erf)


@operator("Gelu", 20)
def gelu(context: NodeContext) -> Run:
    """Gaussian error linear unit, exact or in its tanh form."""
    form = context.text("approximate", "none")
    if form not in ("none", "tanh"):
        raise context.refuse(f"Gelu with approximate={form!r}")
    if form == "none":
        return lambda x: x * (x.dtype.type(0.5) * (1 + erf(x * x.dtype.type(math.sqrt(0.5)))))
    factor = math.sqrt(2 / math.pi)

    def run(x: np.ndarray) -> np.ndarray:
        inner = x.dtype.type(factor) * (x + x.dtype.type(0.044715) * x * x * x)
        result: np.ndarray = x.dtype.type(0.5) * x * (1 + np.tanh(inner))
        return result

    return run


@operator("Clip", 6)
def clip_by_attributes(context: NodeContext) -> Run:
    """Clip between the attributes `min` and `max`."""
    low, high = context.number("min", -math.inf), context.number("max", math.inf)
    return lambda x: np.clip(x, x.dtype.type(low), x.dtype.type(high))


@operator("Clip", 11)
def clip(context: NodeContext) -> Run:
    """Clip between the inputs `min` and `max`; where they cross, `max` wins."""

    def run(x: np.ndarray, low: np.ndarray | None = None, high: np.ndarray | None = None) -> np.ndarray:
        raised = x if low is None else np.maximum(x, low)
        return raised if high is None else np.minimum(raised, high)

    return run


def _softmax(x: np.ndarray, axes: int | tuple[int, ...]) -> np.ndarray:
    powers = np.exp(x - x.max(axis=axes, keepdims=True, initial=-np.inf))
    result: np.ndarray = powers / powers.sum(axis=axes, keepdims=True)
    return result


def _log_softmax(x: np.ndarray, axes: int | tuple[int, ...]) -> np.ndarray:
    shifted = x - x.max(axis=axes, keepdims=True, initial=-np.inf)
    result: np.ndarray = shifted - np.log(np.exp(shifted).sum(axis=axes, keepdims=True))
    return result


def _trailing_axes(axis: int, rank: int) -> tuple[int, ...]:
    """Axes that opsets before 13 coerce into one: `axis` and all behind it."""
    return tuple(range(axis % rank if rank else 0, rank))


def _register_softmax(name: str, function: Callable[[np.ndarray, int | tuple[int, ...]], np.ndarray]) -> None:
    def prepare_coerced(context: NodeContext) -> Run:
        axis = context.integer("axis", 1)
        return lambda x: function(x, _trailing_axes(axis, x.ndim))

    def prepare(context: NodeContext) -> Run:
        axis = context.integer("axis", -1)
        return lambda x: function(x, axis)

    operator(name, 1)(prepare_coerced)
    operator(name, 13)(prepare)


_register_softmax("Softmax", _softmax)
_register_softmax("LogSoftmax", _log_softmax)
