"""Element by element on rows: an operation of two values that broadcast, then a function; also copies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from nqformat.kernels.memory import load_parameter
from nqformat.kernels.words import U0, U1, helper

from .blocks import ADD, DIVIDE, DIVIDE_BY_FIRST, LARGEST, MULTIPLY, SMALLEST, SUBTRACT, SUBTRACT_FIRST
from .emitter import LANES, Emitter, kernel_intrinsic
from .functions import apply_function, choose
from .lanes import first_lanes, larger, less, load_lanes, load_spread, store_lanes

_SCALE, _ALPHA, _BETA, _LOW, _HIGH = (8 * place for place in (21, 22, 23, 24, 25))


def _operations(e: Emitter, x: Any, y: Any) -> dict[tuple[int], Callable[[], Any]]:
    """Return what writes each operation of two vectors, by its number."""
    b = e.builder
    return {
        (ADD,): lambda: b.fadd(x, y),
        (SUBTRACT,): lambda: b.fsub(x, y),
        (SUBTRACT_FIRST,): lambda: b.fsub(y, x),
        (MULTIPLY,): lambda: b.fmul(x, y),
        (DIVIDE,): lambda: b.fdiv(x, y),
        (DIVIDE_BY_FIRST,): lambda: b.fdiv(y, x),
        (SMALLEST,): lambda: _smaller(e, x, y),
        (LARGEST,): lambda: larger(e, x, y),
    }


def _emit_row(e: Emitter, *arguments: Any) -> None:
    """Compute a row: parameter block, a, its column step, b or 0, its column step, out."""
    block, first, first_step, second, second_step, out = arguments
    b = e.builder
    columns, operation, function = (e.load(first.type, block, 8 * place) for place in (18, 19, 20))
    scale, alpha, beta, low, high = (
        e.load_splat(block, place) for place in (_SCALE, _ALPHA, _BETA, _LOW, _HIGH)
    )
    dense = b.icmp_unsigned("==", first_step, e.number(1))
    uniform = b.icmp_unsigned("==", second_step, e.number(0))
    has_second = b.icmp_unsigned("!=", second, e.number(0))
    with e.loop(b.udiv(b.add(columns, e.number(LANES - 1)), e.number(LANES))) as i:
        lanes = first_lanes(e, less(e, columns, b.shl(i, e.number(4))))
        moved = b.shl(i, e.number(6))
        variable = e.variable(e.zeros())
        with e.builder.if_else(dense) as (then, otherwise):
            with then:
                b.store(load_lanes(e, b.add(first, moved), lanes), variable)
            with otherwise:
                place = b.add(first, b.mul(moved, first_step))
                b.store(load_spread(e, place, first_step, lanes), variable)
        x = b.fmul(b.load(variable), scale)
        other = e.variable(e.zeros())
        with e.when(has_second), e.builder.if_else(uniform) as (then, otherwise):
            with then:
                b.store(e.load_splat(second), other)
            with otherwise:
                b.store(load_lanes(e, b.add(second, moved), lanes), other)
        x = choose(e, operation, _operations(e, x, b.load(other)), x)
        x = apply_function(e, function, x, alpha, beta)
        store_lanes(e, e.clamp(x, low, high), b.add(out, moved), lanes)


def _smaller(e: Emitter, a: Any, b: Any) -> Any:
    """Return the smaller floats of two vectors, NaN if one is."""
    found = e.builder.select(e.builder.fcmp_ordered("<", a, b), a, b)
    return e.builder.select(e.builder.fcmp_unordered("uno", a, a), a, found)


_compute_row = kernel_intrinsic(_emit_row, 6)


@helper
def compute_rows(block):  # type: ignore[no-untyped-def]
    """Compute rows of an array of four axes; the block vouches for every area."""
    row = load_parameter(block, 0)
    n_middle = load_parameter(block, 4)
    n_inner = load_parameter(block, 5)
    second = load_parameter(block, 12)
    while row < load_parameter(block, 1):
        inner = row % n_inner
        middle = row // n_inner % n_middle
        outer = row // n_inner // n_middle
        first = load_parameter(block, 2) + outer * load_parameter(block, 6)
        first += middle * load_parameter(block, 7) + inner * load_parameter(block, 8)
        out = load_parameter(block, 3) + outer * load_parameter(block, 9)
        out += middle * load_parameter(block, 10) + inner * load_parameter(block, 11)
        other = second
        if second != U0:
            other += outer * load_parameter(block, 13)
            other += middle * load_parameter(block, 14) + inner * load_parameter(block, 15)
        _compute_row(block, first, load_parameter(block, 16), other, load_parameter(block, 17), out)
        row += U1
    return np.int64(0)
