"""Pooling of planes: windows of any kernel, step and padding, and the average of whole channels.

An output row whose windows leave the columns of the source is made in two passes: the rows of its windows
are combined to one row in a buffer, between margins that change nothing; then each output combines the
columns of its window. Other rows are made directly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from nqformat.kernels.memory import clear_bytes, load_parameter
from nqformat.kernels.words import U0, U1, U2, U64, helper

from .blocks import LANES
from .emitter import F32, I32, I64, VECTOR, Emitter, kernel_intrinsic
from .lanes import (
    constant_vector,
    first_lanes,
    first_of_pairs,
    keep,
    lane_numbers,
    larger,
    less,
    load_every_second,
    load_every_second_lane,
    load_lanes,
    load_spread,
    one_of,
    store_lanes,
)


def _combine(e: Emitter, average: bool, total: Any, value: Any) -> None:
    old = e.builder.load(total)
    e.builder.store(e.builder.fadd(old, value) if average else larger(e, old, value), total)


def _neutral(average: bool) -> Any:
    return constant_vector(0.0 if average else -np.inf)


def _emit_rows(average: bool) -> Callable[..., None]:
    """Return the writer of the first pass: parameter block, first row's address, number of rows."""

    def emit(e: Emitter, *arguments: Any) -> None:
        block, source, rows = arguments
        b = e.builder
        width, pitch = e.load(I64, block, 8 * 11), e.load(I64, block, 8 * 17)
        buffer = b.add(e.load(I64, block, 8 * 21), b.shl(e.load(I64, block, 8 * 18), e.number(2)))
        with e.loop(b.udiv(b.add(width, e.number(LANES - 1)), e.number(LANES))) as i:
            moved = b.shl(i, e.number(6))
            total = e.variable(_neutral(average))
            with e.loop(rows) as r:
                place = b.add(b.add(source, moved), b.mul(r, pitch))
                _combine(e, average, total, e.load(VECTOR, place))
            e.store(b.load(total), b.add(buffer, moved))
        end = b.add(buffer, b.shl(width, e.number(2)))
        with e.loop(e.load(I64, block, 8 * 19)) as i:
            e.store(_neutral(average), b.add(end, b.shl(i, e.number(6))))

    return emit


def _emit_margin(average: bool) -> Callable[..., None]:
    """Return the writer of the left margin: parameter block."""

    def emit(e: Emitter, *arguments: Any) -> None:
        (block,) = arguments
        b = e.builder
        floats = e.load(I64, block, 8 * 18)
        with e.loop(b.udiv(b.add(floats, e.number(LANES - 1)), e.number(LANES))) as i:
            e.store(_neutral(average), b.add(e.load(I64, block, 8 * 21), b.shl(i, e.number(6))))

    return emit


def _load_column(e: Emitter, step: int, buffer: Any, first: Any, any_step: Any) -> Any:
    """Load floats number (first + lane) * step after `buffer`."""
    b = e.builder
    if step == 1:
        return e.load(VECTOR, b.add(buffer, b.shl(first, e.number(2))))
    if step == 2:
        return load_every_second(e, b.add(buffer, b.shl(first, e.number(3))))
    numbers = b.mul(lane_numbers(), e.splat(b.trunc(any_step, I32)))
    return e.gather(b.add(buffer, b.mul(first, b.shl(any_step, e.number(2)))), numbers)


def _finish(e: Emitter, average: bool, row: tuple[Any, Any, Any], first: Any, total: Any) -> None:
    """Store the outputs from number `first` on; `row` is (parameter block, out, row's count of elements)."""
    block, out, row_count = row
    b = e.builder
    columns, written = e.load(I64, block, 8 * 9), e.load(I64, block, 8 * 10)
    moved = b.shl(first, e.number(2))
    if average:
        counts = e.load(VECTOR, b.add(e.load(I64, block, 8 * 22), moved))
        total = b.fdiv(total, b.fmul(counts, e.splat(b.bitcast(b.trunc(row_count, I32), F32))))
    total = keep(e, total, first_lanes(e, less(e, columns, first)))
    store_lanes(e, total, b.add(out, moved), first_lanes(e, less(e, written, first)))


def _emit_inside(average: bool, step: int) -> Callable[..., None]:
    """Return the writer of a row of windows that stay inside the columns of the source.

    Its arguments: parameter block, first row's address, number of rows, out, row's count of elements.
    """

    def emit(e: Emitter, *arguments: Any) -> None:
        block, source, rows, out, row_count = arguments
        b = e.builder
        columns, written, any_step = (e.load(I64, block, 8 * k) for k in (9, 10, 14))
        taps, distance = e.load(I64, block, 8 * 15), b.shl(e.load(I64, block, 8 * 16), e.number(2))
        pitch = e.load(I64, block, 8 * 17)
        with e.loop(b.udiv(b.add(written, e.number(LANES - 1)), e.number(LANES))) as i:
            first = b.shl(i, e.number(4))
            left = less(e, columns, first)
            lanes, pairs = first_lanes(e, left), first_of_pairs(e, left)
            start = b.add(source, b.mul(first, b.shl(any_step, e.number(2))))
            total = e.variable(_neutral(average))
            with e.loop(rows) as r:
                row = b.add(start, b.mul(r, pitch))
                with e.loop(taps) as k:
                    place = b.add(row, b.mul(k, distance))
                    if step == 1:
                        value = load_lanes(e, place, lanes)
                    elif step == 2:
                        value = load_every_second_lane(e, place, pairs)
                    else:
                        value = load_spread(e, place, any_step, lanes)
                    _combine(e, average, total, value)
            _finish(e, average, (block, out, row_count), first, b.load(total))

    return emit


def _emit_columns(average: bool, step: int) -> Callable[..., None]:
    """Return the writer of the second pass: parameter block, out, row's count of elements (float bits)."""

    def emit(e: Emitter, *arguments: Any) -> None:
        block, out, row_count = arguments
        b = e.builder
        buffer = e.load(I64, block, 8 * 21)
        written, any_step = e.load(I64, block, 8 * 10), e.load(I64, block, 8 * 14)
        taps, distance = e.load(I64, block, 8 * 15), b.shl(e.load(I64, block, 8 * 16), e.number(2))
        with e.loop(b.udiv(b.add(written, e.number(LANES - 1)), e.number(LANES))) as i:
            first = b.shl(i, e.number(4))
            total = e.variable(_neutral(average))
            with e.loop(taps) as k:
                place = b.add(buffer, b.mul(k, distance))
                _combine(e, average, total, _load_column(e, step, place, first, any_step))
            _finish(e, average, (block, out, row_count), first, b.load(total))

    return emit


_LARGEST, _AVERAGE = 0, 1

_fill_margin = kernel_intrinsic(one_of({kind: _emit_margin(bool(kind)) for kind in (_LARGEST, _AVERAGE)}), 2)
_combine_rows = kernel_intrinsic(one_of({kind: _emit_rows(bool(kind)) for kind in (_LARGEST, _AVERAGE)}), 4)
_WAYS = [(kind, step) for kind in (_LARGEST, _AVERAGE) for step in (0, 1, 2)]
_combine_columns = kernel_intrinsic(
    one_of({3 * kind + step: _emit_columns(bool(kind), step) for kind, step in _WAYS}), 4
)
_pool_inside = kernel_intrinsic(
    one_of({3 * kind + step: _emit_inside(bool(kind), step) for kind, step in _WAYS}), 6
)


@helper
def pool(block, kind):  # type: ignore[no-untyped-def]
    """Pool windows of channels, largest (0) or average (1); the block vouches for every area."""
    n_images = load_parameter(block, 2)
    out_rows = load_parameter(block, 8)
    out_pitch = load_parameter(block, 12)
    step = load_parameter(block, 14)
    way = U64(3) * kind + (step if step <= U2 else U0)
    before = load_parameter(block, 23)
    after = load_parameter(block, 24)
    inside = load_parameter(block, 25)
    _fill_margin(kind, block)
    image = U0
    while image < n_images:
        channel = load_parameter(block, 0)
        while channel < load_parameter(block, 1):
            source = load_parameter(block, 3) + image * load_parameter(block, 4)
            source += channel * load_parameter(block, 13)
            out = load_parameter(block, 5) + image * load_parameter(block, 7)
            out += channel * load_parameter(block, 6)
            if before > U0:
                clear_bytes(out - before, before)
            row = load_parameter(block, 20)
            for _ in range(np.int64(out_rows)):
                place = source + load_parameter(row, 0)
                n_rows = load_parameter(row, 1)
                count = load_parameter(row, 2)
                if inside != U0:
                    _pool_inside(way, block, place, n_rows, out, count)
                else:
                    _combine_rows(kind, block, place, n_rows)
                    _combine_columns(way, block, out, count)
                row += U64(24)
                out += out_pitch
            if after > U0:
                clear_bytes(out, after)
            channel += U1
        image += U1
    return np.int64(0)


def _emit_channel_sum(e: Emitter, *arguments: Any) -> None:
    """Store the sum of a channel divided by a count: vectors, source, out, count (address of a float)."""
    vectors, source, out, count = arguments
    b = e.builder
    sums = [e.variable(e.zeros()) for _ in range(4)]
    rounds = b.udiv(vectors, e.number(len(sums)))
    with e.loop(rounds) as i:
        place = b.add(source, b.shl(i, e.number(8)))
        for k, total in enumerate(sums):
            b.store(b.fadd(b.load(total), e.load(VECTOR, place, 4 * LANES * k)), total)
    done = b.mul(rounds, e.number(len(sums)))
    with e.loop(b.sub(vectors, done)) as i:
        place = b.add(source, b.shl(b.add(done, i), e.number(6)))
        b.store(b.fadd(b.load(sums[0]), e.load(VECTOR, place)), sums[0])
    values = [b.load(total) for total in sums]
    while len(values) > 1:
        values = [b.fadd(values[k], values[k + 1]) for k in range(0, len(values), 2)]
    lanes = [b.extract_element(values[0], e.number(k)) for k in range(LANES)]
    while len(lanes) > 1:
        lanes = [b.fadd(lanes[k], lanes[k + 1]) for k in range(0, len(lanes), 2)]
    e.store(b.fdiv(lanes[0], e.load(F32, count)), out)


_average_channel = kernel_intrinsic(_emit_channel_sum, 4)


@helper
def average_channels(block):  # type: ignore[no-untyped-def]
    """Average whole channels, whose positions outside of the image are zero."""
    n_images = load_parameter(block, 2)
    n_vectors = load_parameter(block, 8)
    after = load_parameter(block, 15)
    image = U0
    while image < n_images:
        channel = load_parameter(block, 0)
        while channel < load_parameter(block, 1):
            source = load_parameter(block, 3) + image * load_parameter(block, 4)
            source += channel * load_parameter(block, 13)
            out = load_parameter(block, 5) + image * load_parameter(block, 7)
            out += channel * load_parameter(block, 6)
            _average_channel(n_vectors, source, out, block + U64(8 * 14))
            if after > U0:
                clear_bytes(out + U64(4), after)
            channel += U1
        image += U1
    return np.int64(0)
