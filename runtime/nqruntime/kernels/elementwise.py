"""Element by element on rows: an operation of two values that broadcast, then a function; also copies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from nqformat.kernels.words import helper

from .arrays import items, moved, parameters, three_axes
from .blocks import ADD, DIVIDE, DIVIDE_BY_FIRST, LANES, LARGEST, MULTIPLY, SMALLEST, SUBTRACT, SUBTRACT_FIRST
from .emitter import Emitter, kernel_intrinsic
from .functions import apply_function, choose
from .lanes import first_lanes, larger, less, load_lanes, load_spread, store_lanes

_SCALE, _ALPHA, _BETA, _LOW, _HIGH = (8 * place for place in (21, 22, 23, 24, 25))


def _operations(e: Emitter, x: Any, y: Any) -> dict[tuple[int, ...], Callable[[], Any]]:
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
        distance = b.shl(i, e.number(6))
        variable = e.variable(e.zeros())
        with e.builder.if_else(dense) as (then, otherwise):
            with then:
                b.store(load_lanes(e, b.add(first, distance), lanes), variable)
            with otherwise:
                place = b.add(first, b.mul(distance, first_step))
                b.store(load_spread(e, place, first_step, lanes), variable)
        x = b.fmul(b.load(variable), scale)
        other = e.variable(e.zeros())
        with e.when(has_second), e.builder.if_else(uniform) as (then, otherwise):
            with then:
                b.store(e.load_splat(second), other)
            with otherwise:
                b.store(load_lanes(e, b.add(second, distance), lanes), other)
        x = choose(e, operation, _operations(e, x, b.load(other)), x)
        x = apply_function(e, function, x, alpha, beta)
        store_lanes(e, e.clamp(x, low, high), b.add(out, distance), lanes)


def _smaller(e: Emitter, a: Any, b: Any) -> Any:
    """Return the smaller floats of two vectors, NaN if one is."""
    found = e.builder.select(e.builder.fcmp_ordered("<", a, b), a, b)
    return e.builder.select(e.builder.fcmp_unordered("uno", a, a), a, found)


def _emit_rows(e: Emitter, block: Any) -> None:
    """Compute the rows of a block."""
    b = e.builder
    first, out, n_middle, n_inner = parameters(e, block, 2, 4)
    first_steps, out_steps = parameters(e, block, 6, 3), parameters(e, block, 9, 3)
    second, *second_steps = parameters(e, block, 12, 4)
    steps = parameters(e, block, 16, 2)
    with items(e, block) as row:
        places = three_axes(e, row, n_middle, n_inner)
        other = b.select(
            b.icmp_unsigned("!=", second, e.number(0)), moved(e, second, places, second_steps), second
        )
        source, target = moved(e, first, places, first_steps), moved(e, out, places, out_steps)
        _emit_row(e, block, source, steps[0], other, steps[1], target)


_compute_rows = kernel_intrinsic(_emit_rows, 1)


@helper
def compute_rows(block):  # type: ignore[no-untyped-def]
    """Compute rows of an array of four axes; the block vouches for every area."""
    _compute_rows(block)
    return np.int64(0)
