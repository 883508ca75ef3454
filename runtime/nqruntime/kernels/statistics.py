"""Rows brought to a common scale: softmax and normalization by mean and deviation; means over rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir

from nqformat.kernels.words import helper

from .arrays import items, moved, parameter, parameters, three_axes
from .blocks import LANES
from .emitter import VECTOR, Emitter, kernel_intrinsic
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
        lanes, distance = _lanes(e, columns, i)
        value = e.variable(b.fmul(load_lanes(e, b.add(source, distance), lanes), scale))
        with e.when(has_addend):
            b.store(b.fadd(b.load(value), load_lanes(e, b.add(addend, distance), lanes)), value)
        store_lanes(e, b.load(value), b.add(out, distance), lanes)
        b.store(larger(e, b.select(lanes, b.load(value), lowest), b.load(most)), most)
    top = _across(e, b.load(most), lambda x, y: larger(e, x, y))
    total = e.variable(e.zeros())
    with e.loop(vectors) as i:
        lanes, distance = _lanes(e, columns, i)
        raised = exponential(e, b.fsub(load_lanes(e, b.add(out, distance), lanes), top))
        store_lanes(e, raised, b.add(out, distance), lanes)
        b.store(b.fadd(b.load(total), keep(e, raised, lanes)), total)
    share = b.fdiv(constant_vector(1), _across(e, b.load(total), b.fadd))
    with e.loop(vectors) as i:
        lanes, distance = _lanes(e, columns, i)
        place = b.add(out, distance)
        store_lanes(e, b.fmul(load_lanes(e, place, lanes), share), place, lanes)


def _emit_normal(e: Emitter, *arguments: Any) -> None:
    """Compute a row: columns, source, addend or 0, out, factors, bias, epsilon, one over columns, centred."""
    columns, source, addend, out, factors, bias, epsilon, share, centred = arguments
    b = e.builder
    vectors, each = _vectors(e, columns), e.load_splat(share)
    has_addend = b.icmp_unsigned("!=", addend, e.number(0))
    total = e.variable(e.zeros())
    with e.loop(vectors) as i:
        lanes, distance = _lanes(e, columns, i)
        value = e.variable(load_lanes(e, b.add(source, distance), lanes))
        with e.when(has_addend):
            b.store(b.fadd(b.load(value), load_lanes(e, b.add(addend, distance), lanes)), value)
        store_lanes(e, b.load(value), b.add(out, distance), lanes)
        b.store(b.fadd(b.load(total), b.load(value)), total)
    mean = b.fmul(_across(e, b.load(total), b.fadd), each)
    is_centred = b.icmp_unsigned(
        "!=", e.splat(centred), ir.Constant(ir.VectorType(centred.type, LANES), None)
    )
    mean = b.select(is_centred, mean, e.zeros())
    squares = e.variable(e.zeros())
    with e.loop(vectors) as i:
        lanes, distance = _lanes(e, columns, i)
        rest = keep(e, b.fsub(load_lanes(e, b.add(out, distance), lanes), mean), lanes)
        b.store(e.multiply_add(rest, rest, b.load(squares)), squares)
    power = e.multiply_add(_across(e, b.load(squares), b.fadd), each, e.load_splat(epsilon))
    scale = b.fdiv(constant_vector(1), square_root(e, power))
    with e.loop(vectors) as i:
        lanes, distance = _lanes(e, columns, i)
        place = b.add(out, distance)
        normal = b.fmul(b.fsub(load_lanes(e, place, lanes), mean), scale)
        factor, added = (load_lanes(e, b.add(each, distance), lanes) for each in (factors, bias))
        store_lanes(e, e.multiply_add(normal, factor, added), place, lanes)


def _emit_mean(e: Emitter, *arguments: Any) -> None:
    """Add up rows: columns, source, bytes from row to row, rows, out, address of the factor of the sums."""
    columns, source, pitch, rows, out, factor = arguments
    b = e.builder
    scale = e.load_splat(factor)
    with e.loop(_vectors(e, columns)) as i:
        lanes, distance = _lanes(e, columns, i)
        total = e.variable(e.zeros(VECTOR))
        start = b.add(source, distance)
        with e.loop(rows) as row:
            value = load_lanes(e, b.add(start, b.mul(row, pitch)), lanes)
            b.store(b.fadd(b.load(total), value), total)
        store_lanes(e, b.fmul(b.load(total), scale), b.add(out, distance), lanes)


def _emit_softmax_rows(e: Emitter, block: Any) -> None:
    b = e.builder
    source, pitch, out, out_pitch, columns, addend, n_middle, n_inner = parameters(e, block, 2, 8)
    steps, factor = parameters(e, block, 10, 3), b.add(block, e.number(8 * 13))
    with items(e, block) as row:
        other = moved(e, addend, three_axes(e, row, n_middle, n_inner), steps)
        other = b.select(b.icmp_unsigned("!=", addend, e.number(0)), other, addend)
        place, target = moved(e, source, [row], [pitch]), moved(e, out, [row], [out_pitch])
        _emit_softmax(e, columns, place, other, target, factor)


def _emit_normal_rows(e: Emitter, block: Any) -> None:
    b = e.builder
    source, pitch, out, out_pitch, columns, addend, addend_pitch, factors, bias = parameters(e, block, 2, 9)
    epsilon, share = (b.add(block, e.number(8 * place)) for place in (11, 12))
    centred = parameter(e, block, 13)
    with items(e, block) as row:
        other = moved(e, addend, [row], [addend_pitch])
        place, target = moved(e, source, [row], [pitch]), moved(e, out, [row], [out_pitch])
        other = b.select(b.icmp_unsigned("!=", addend, e.number(0)), other, addend)
        _emit_normal(e, columns, place, other, target, factors, bias, epsilon, share, centred)


def _emit_means(e: Emitter, block: Any) -> None:
    source, step, out, out_step, columns, pitch, rows = parameters(e, block, 2, 7)
    factor = e.builder.add(block, e.number(8 * 9))
    with items(e, block) as group:
        place, target = moved(e, source, [group], [step]), moved(e, out, [group], [out_step])
        _emit_mean(e, columns, place, pitch, rows, target, factor)


_softmax_rows, _normal_rows, _means = (
    kernel_intrinsic(emit, 1) for emit in (_emit_softmax_rows, _emit_normal_rows, _emit_means)
)


@helper
def softmax_rows(block):  # type: ignore[no-untyped-def]
    """Compute the softmax of rows; the block vouches for every area."""
    _softmax_rows(block)
    return np.int64(0)


@helper
def normalize_rows(block):  # type: ignore[no-untyped-def]
    """Normalize rows; the block vouches for every area."""
    _normal_rows(block)
    return np.int64(0)


@helper
def average_rows(block):  # type: ignore[no-untyped-def]
    """Add up groups of rows; the block vouches for every area."""
    _means(block)
    return np.int64(0)
