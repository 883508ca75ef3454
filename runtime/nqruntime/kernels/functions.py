"""Functions of 16 floats: exponential, hyperbolic tangent, sigmoid, error function and what is made of them.

All are right for NaN and infinities. Largest relative errors, measured over all magnitudes: exponential and
sigmoid 2e-7, tanh 3e-7, erf 4e-7; below 1.2e-38 the sigmoid is zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llvmlite import ir

from .blocks import (
    ABSOLUTE,
    ELU,
    ERF,
    EXPONENTIAL,
    GELU,
    GELU_TANH,
    HARD_SIGMOID,
    HARD_SWISH,
    LANES,
    LEAKY_RELU,
    NEGATIVE,
    RECIPROCAL,
    SIGMOID,
    SILU,
    SQUARE_ROOT,
    TANH,
)
from .coefficients import ERF_ABOVE, ERF_BELOW, EXP_REST
from .emitter import INDICES, VECTOR, Emitter
from .lanes import constant_vector, declare

_ROUND = 12582912.0  # 1.5 * 2**23: adding it leaves a rounded integer in the lowest bits
_ROUND_BITS = 0x4B400000
_LOG2_HIGH, _LOG2_LOW = 0.693359375, -2.12194440054690583e-4
_SIGN = -0x80000000


def _integers(value: int) -> Any:
    return ir.Constant(INDICES, [value] * LANES)


def _polynomial(e: Emitter, x: Any, coefficients: Sequence[float]) -> Any:
    total = constant_vector(coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        total = e.multiply_add(total, x, constant_vector(coefficient))
    return total


def _power_of_two(e: Emitter, exponent: Any) -> Any:
    """Return 2 to the i32 vector `exponent`, within the exponents of normal floats."""
    biased = e.builder.add(exponent, _integers(127))
    return e.builder.bitcast(e.builder.shl(biased, _integers(23)), VECTOR)


def _reduced(e: Emitter, x: Any) -> tuple[Any, Any]:
    """Return n and exp(r) - 1, where x = n log(2) + r and r is at most half of log(2) away from 0."""
    b = e.builder
    shifted = e.multiply_add(x, constant_vector(1 / math.log(2)), constant_vector(_ROUND))
    rounded = b.fsub(shifted, constant_vector(_ROUND))
    rest = e.multiply_add(rounded, constant_vector(-_LOG2_HIGH), x)
    rest = e.multiply_add(rounded, constant_vector(-_LOG2_LOW), rest)
    number = b.sub(b.bitcast(shifted, INDICES), _integers(_ROUND_BITS))
    return number, e.multiply_add(b.fmul(rest, rest), _polynomial(e, rest, EXP_REST), rest)


def exponential(e: Emitter, x: Any) -> Any:
    """Return e to the power of each float."""
    b = e.builder
    number, less_one = _reduced(e, e.clamp(x, constant_vector(-105), constant_vector(90)))
    half = b.ashr(number, _integers(1))
    part = e.multiply_add(less_one, _power_of_two(e, half), _power_of_two(e, half))
    return b.fmul(part, _power_of_two(e, b.sub(number, half)))


def _exponential_less_one(e: Emitter, x: Any) -> Any:
    """Return exp(x) - 1 for x up to 80."""
    number, less_one = _reduced(e, e.clamp(x, constant_vector(-80), constant_vector(80)))
    power = _power_of_two(e, number)
    return e.multiply_add(power, less_one, e.builder.fsub(power, constant_vector(1)))


def absolute(e: Emitter, x: Any) -> Any:
    """Return magnitudes."""
    bits = e.builder.and_(e.builder.bitcast(x, INDICES), _integers(~_SIGN))
    return e.builder.bitcast(bits, VECTOR)


def tanh(e: Emitter, x: Any) -> Any:
    """Return hyperbolic tangents: exp(2 |x|) - 1 over exp(2 |x|) + 1, with the sign of x."""
    b = e.builder
    size = e.clamp(absolute(e, x), constant_vector(0), constant_vector(10))
    raised = _exponential_less_one(e, b.fadd(size, size))
    found = b.fdiv(raised, b.fadd(raised, constant_vector(2)))
    sign = b.and_(b.bitcast(x, INDICES), _integers(_SIGN))
    return b.bitcast(b.or_(b.bitcast(found, INDICES), sign), VECTOR)


def sigmoid(e: Emitter, x: Any) -> Any:
    """Return 1 / (1 + exp(-x))."""
    one = constant_vector(1)
    return e.builder.fdiv(one, e.builder.fadd(one, exponential(e, _negative(e, x))))


def erf(e: Emitter, x: Any) -> Any:
    """Return the error function."""
    b = e.builder
    within = e.clamp(x, constant_vector(-4), constant_vector(4))
    square = b.fmul(within, within)
    above = b.fmul(within, _polynomial(e, square, ERF_ABOVE))
    ratio = b.fdiv(above, _polynomial(e, square, ERF_BELOW))
    return e.clamp(ratio, constant_vector(-1), constant_vector(1))


def square_root(e: Emitter, x: Any) -> Any:
    """Return square roots."""
    function = declare(e, "llvm.sqrt.v16f32", VECTOR, [VECTOR])
    return e.builder.call(function, [x])


def _negative(e: Emitter, x: Any) -> Any:
    return e.builder.bitcast(e.builder.xor(e.builder.bitcast(x, INDICES), _integers(_SIGN)), VECTOR)


def _where_negative(e: Emitter, x: Any, other: Any) -> Any:
    return e.builder.select(e.builder.fcmp_ordered("<", x, e.zeros()), other, x)


def apply_function(e: Emitter, number: Any, x: Any, alpha: Any, beta: Any) -> Any:
    """Return the function of the i64 `number` of each float; `alpha` and `beta` are vectors.

    Functions that are made of the same one share its instructions, which take long to compile.
    """
    b = e.builder
    zero, one, half = e.zeros(), constant_vector(1), b.fmul(x, constant_vector(0.5))
    factor = math.sqrt(2 / math.pi)

    def by_tanh() -> Any:
        square = b.fmul(x, x)
        inner = e.multiply_add(square, constant_vector(0.044715 * factor), constant_vector(factor))
        return b.fmul(x, inner)

    inner = choose(
        e,
        number,
        {
            (GELU,): lambda: b.fmul(x, constant_vector(math.sqrt(0.5))),
            (GELU_TANH,): by_tanh,
            (SILU,): lambda: b.fmul(alpha, x),
        },
        x,
    )
    found = choose(
        e,
        number,
        {
            (EXPONENTIAL,): lambda: exponential(e, x),
            (TANH, GELU_TANH): lambda: tanh(e, inner),
            (SIGMOID, SILU): lambda: sigmoid(e, inner),
            (ERF, GELU): lambda: erf(e, inner),
            (HARD_SIGMOID, HARD_SWISH): lambda: e.clamp(e.multiply_add(alpha, x, beta), zero, one),
            (SQUARE_ROOT,): lambda: square_root(e, x),
            (RECIPROCAL,): lambda: b.fdiv(one, x),
            (ABSOLUTE,): lambda: absolute(e, x),
            (NEGATIVE,): lambda: _negative(e, x),
            (LEAKY_RELU,): lambda: _where_negative(e, x, b.fmul(alpha, x)),
            (ELU,): lambda: _where_negative(
                e, x, b.fmul(alpha, _exponential_less_one(e, e.clamp(x, x, zero)))
            ),
        },
        x,
    )
    gates: dict[tuple[int, ...], Callable[[], Any]] = {
        (GELU, GELU_TANH): lambda: e.multiply_add(half, found, half),
        (SILU, HARD_SWISH): lambda: b.fmul(x, found),
    }
    return choose(e, number, gates, found)


def choose(e: Emitter, number: Any, ways: Mapping[tuple[int, ...], Callable[[], Any]], otherwise: Any) -> Any:
    """Return the vector that the way of the i64 `number` writes, or `otherwise`."""
    b = e.builder
    before, after = b.block, b.append_basic_block("chosen")
    jump = b.switch(number, after)
    found = [(otherwise, before)]
    for keys, way in ways.items():
        block = b.append_basic_block("way")
        for key in keys:
            jump.add_case(e.number(key), block)
        b.position_at_end(block)
        found.append((way(), b.block))
        b.branch(after)
    b.position_at_end(after)
    result = b.phi(VECTOR)
    for value, block in found:
        result.add_incoming(value, block)
    return result
