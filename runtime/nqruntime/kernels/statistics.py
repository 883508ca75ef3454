"""Rows brought to a common scale: softmax and normalization by mean and deviation; means over rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir

from nqformat.kernels.memory import load_parameter
from nqformat.kernels.words import U0, U1, helper

from .emitter import LANES, VECTOR, Emitter, kernel_intrinsic
from .functions import exponential, square_root
from .lanes import constant_vector, first_lanes, keep, larger, less, load_lanes, pick, store_lanes

_Combine = Callable[[Any, Any], Any]


def _across(e: Emitter, value: Any, combine: _Combine) -> Any:
    """Return what all lanes give together, in every lane."""
    distance = LANES // 2
    while distance:
        value = combine(value, pick(e, value, value, [lane ^ distance for lane in range(LANES)]))
        distance //= 2
    return value


def _vectors(e: Emitter, columns: Any) -> Any:
    return e.builder.udiv(e.builder.add(columns, e.number(LANES - 1)), e.number(LANES))


def _lanes(e: Emitter, columns: Any, i: Any) -> tuple[Any, Any]:
    """Return the lanes of vector `i` of a row, and its distance in bytes."""
    b = e.builder
    return first_lanes(e, less(e, columns, b.shl(i, e.number(4)))), b.shl(i, e.number(6))


def _emit_softmax(e: Emitter, *arguments: Any) -> None:
    """Compute a row: columns, source, addend or 0, out, address of the source's factor."""
    columns, source, addend, out, factor = arguments
    b = e.builder
    vectors, scale = _vectors(e, columns), e.load_splat(factor)
    lowest = constant_vector(float("-inf"))
    has_addend = b.icmp_unsigned("!=", addend, e.number(0))
    most = e.variable(lowest)
    with e.loop(vectors) as i:
        lanes, moved = _lanes(e, columns, i)
        value = e.variable(b.fmul(load_lanes(e, b.add(source, moved), lanes), scale))
        with e.when(has_addend):
            b.store(b.fadd(b.load(value), load_lanes(e, b.add(addend, moved), lanes)), value)
        store_lanes(e, b.load(value), b.add(out, moved), lanes)
        b.store(larger(e, b.select(lanes, b.load(value), lowest), b.load(most)), most)
    top = _across(e, b.load(most), lambda x, y: larger(e, x, y))
    total = e.variable(e.zeros())
    with e.loop(vectors) as i:
        lanes, moved = _lanes(e, columns, i)
        raised = exponential(e, b.fsub(load_lanes(e, b.add(out, moved), lanes), top))
        store_lanes(e, raised, b.add(out, moved), lanes)
        b.store(b.fadd(b.load(total), keep(e, raised, lanes)), total)
    share = b.fdiv(constant_vector(1), _across(e, b.load(total), b.fadd))
    with e.loop(vectors) as i:
        lanes, moved = _lanes(e, columns, i)
        place = b.add(out, moved)
        store_lanes(e, b.fmul(load_lanes(e, place, lanes), share), place, lanes)


def _emit_normal(e: Emitter, *arguments: Any) -> None:
    """Compute a row: columns, source, addend or 0, out, factors, bias, epsilon, one over columns, centred."""
    columns, source, addend, out, factors, bias, epsilon, share, centred = arguments
    b = e.builder
    vectors, each = _vectors(e, columns), e.load_splat(share)
    has_addend = b.icmp_unsigned("!=", addend, e.number(0))
    total = e.variable(e.zeros())
    with e.loop(vectors) as i:
        lanes, moved = _lanes(e, columns, i)
        value = e.variable(load_lanes(e, b.add(source, moved), lanes))
        with e.when(has_addend):
            b.store(b.fadd(b.load(value), load_lanes(e, b.add(addend, moved), lanes)), value)
        store_lanes(e, b.load(value), b.add(out, moved), lanes)
        b.store(b.fadd(b.load(total), b.load(value)), total)
    mean = b.fmul(_across(e, b.load(total), b.fadd), each)
    is_centred = b.icmp_unsigned(
        "!=", e.splat(centred), ir.Constant(ir.VectorType(centred.type, LANES), None)
    )
    mean = b.select(is_centred, mean, e.zeros())
    squares = e.variable(e.zeros())
    with e.loop(vectors) as i:
        lanes, moved = _lanes(e, columns, i)
        rest = keep(e, b.fsub(load_lanes(e, b.add(out, moved), lanes), mean), lanes)
        b.store(e.multiply_add(rest, rest, b.load(squares)), squares)
    power = e.multiply_add(_across(e, b.load(squares), b.fadd), each, e.load_splat(epsilon))
    scale = b.fdiv(constant_vector(1), square_root(e, power))
    with e.loop(vectors) as i:
        lanes, moved = _lanes(e, columns, i)
        place = b.add(out, moved)
        normal = b.fmul(b.fsub(load_lanes(e, place, lanes), mean), scale)
        factor, added = (load_lanes(e, b.add(each, moved), lanes) for each in (factors, bias))
        store_lanes(e, e.multiply_add(normal, factor, added), place, lanes)


def _emit_mean(e: Emitter, *arguments: Any) -> None:
    """Add up rows: columns, source, bytes from row to row, rows, out, address of the factor of the sums."""
    columns, source, pitch, rows, out, factor = arguments
    b = e.builder
    scale = e.load_splat(factor)
    with e.loop(_vectors(e, columns)) as i:
        lanes, moved = _lanes(e, columns, i)
        total = e.variable(e.zeros(VECTOR))
        start = b.add(source, moved)
        with e.loop(rows) as row:
            value = load_lanes(e, b.add(start, b.mul(row, pitch)), lanes)
            b.store(b.fadd(b.load(total), value), total)
        store_lanes(e, b.fmul(b.load(total), scale), b.add(out, moved), lanes)


_softmax_row = kernel_intrinsic(_emit_softmax, 5)
_normal_row = kernel_intrinsic(_emit_normal, 9)
_mean_of_rows = kernel_intrinsic(_emit_mean, 6)
_U = np.uint64


@helper
def softmax_rows(block):  # type: ignore[no-untyped-def]
    """Compute the softmax of rows; the block vouches for every area."""
    row = load_parameter(block, 0)
    n_middle = load_parameter(block, 8)
    n_inner = load_parameter(block, 9)
    while row < load_parameter(block, 1):
        source = load_parameter(block, 2) + row * load_parameter(block, 3)
        out = load_parameter(block, 4) + row * load_parameter(block, 5)
        addend = load_parameter(block, 7)
        if addend != U0:
            addend += row // n_inner // n_middle * load_parameter(block, 10)
            addend += row // n_inner % n_middle * load_parameter(block, 11)
            addend += row % n_inner * load_parameter(block, 12)
        _softmax_row(load_parameter(block, 6), source, addend, out, block + _U(8 * 13))
        row += U1
    return np.int64(0)


@helper
def normalize_rows(block):  # type: ignore[no-untyped-def]
    """Normalize rows; the block vouches for every area."""
    row = load_parameter(block, 0)
    while row < load_parameter(block, 1):
        source = load_parameter(block, 2) + row * load_parameter(block, 3)
        out = load_parameter(block, 4) + row * load_parameter(block, 5)
        addend = load_parameter(block, 7)
        if addend != U0:
            addend += row * load_parameter(block, 8)
        _normal_row(
            load_parameter(block, 6), source, addend, out,
            load_parameter(block, 9), load_parameter(block, 10),
            block + _U(8 * 11), block + _U(8 * 12), load_parameter(block, 13),
        )  # fmt: skip
        row += U1
    return np.int64(0)


@helper
def average_rows(block):  # type: ignore[no-untyped-def]
    """Add up groups of rows; the block vouches for every area."""
    group = load_parameter(block, 0)
    while group < load_parameter(block, 1):
        source = load_parameter(block, 2) + group * load_parameter(block, 3)
        out = load_parameter(block, 4) + group * load_parameter(block, 5)
        _mean_of_rows(
            load_parameter(block, 6), source, load_parameter(block, 7), load_parameter(block, 8), out,
            block + _U(8 * 9),
        )  # fmt: skip
        group += U1
    return np.int64(0)
