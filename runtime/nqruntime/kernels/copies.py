"""Copies between layouts: rows of planes at any pitch, every n-th row and column, and transposition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from nqformat.kernels.memory import clear_bytes, load_parameter
from nqformat.kernels.words import U0, U1, U2, U4, U64, helper

from .blocks import LANES
from .emitter import VECTOR, Emitter, kernel_intrinsic
from .lanes import (
    first_lanes,
    first_of_pairs,
    less,
    load_every_second,
    load_every_second_lane,
    load_lanes,
    load_spread,
    one_of,
    store_lanes,
    transposed,
)


def _emit_row(step: int) -> Callable[..., None]:
    """Return the writer of a row: columns, columns written with zeros, source, out, step.

    `step` is 1 or 2, or 0 for one that only the argument tells.
    """

    def emit(e: Emitter, *arguments: Any) -> None:
        columns, written, source, out, any_step = arguments
        b = e.builder
        first_partial = e.variable(e.zeros(columns.type))
        if step:
            full = b.udiv(less(e, columns, e.number(step - 1)), e.number(LANES))
            with e.loop(full) as i:
                place = b.add(source, b.mul(i, e.number(4 * step * LANES)))
                value = e.load(VECTOR, place) if step == 1 else load_every_second(e, place)
                e.store(value, b.add(out, b.shl(i, e.number(6))))
            b.store(full, first_partial)
        start = b.load(first_partial)
        vectors = b.udiv(b.add(written, e.number(LANES - 1)), e.number(LANES))
        with e.loop(b.sub(vectors, start)) as i:
            number = b.add(start, i)
            first = b.shl(number, e.number(4))
            left = less(e, columns, first)
            place = b.add(source, b.mul(first, b.shl(any_step, e.number(2))))
            if step == 1:
                value = load_lanes(e, place, first_lanes(e, left))
            elif step == 2:
                value = load_every_second_lane(e, place, first_of_pairs(e, left))
            else:
                value = load_spread(e, place, any_step, first_lanes(e, left))
            target = b.add(out, b.shl(number, e.number(6)))
            store_lanes(e, value, target, first_lanes(e, less(e, written, first)))

    return emit


_copy_row = kernel_intrinsic(one_of({step: _emit_row(step) for step in (1, 2, 0)}), 6)


@helper
def copy_rows(block):  # type: ignore[no-untyped-def]
    """Copy rows of channels; the block vouches for every area."""
    n_images = load_parameter(block, 2)
    rows = load_parameter(block, 8)
    columns = load_parameter(block, 9)
    written = load_parameter(block, 10)
    source_pitch = load_parameter(block, 11)
    out_pitch = load_parameter(block, 12)
    step = load_parameter(block, 14)
    way = step if step <= U2 else U0
    before = load_parameter(block, 15)
    after = load_parameter(block, 16)
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
            row = U0
            while row < rows:
                _copy_row(way, columns, written, source, out, step)
                source += source_pitch
                out += out_pitch
                row += U1
            if after > U0:
                clear_bytes(out, after)
            channel += U1
        image += U1
    return np.int64(0)


def emit_square(e: Emitter, *arguments: Any) -> None:
    """Transpose up to 16 rows and columns.

    The arguments: rows, columns, columns written with zeros, source, its pitch, out, its pitch.
    """
    rows, columns, written, source, pitch, out, out_pitch = arguments
    b = e.builder
    loaded = []
    for k in range(LANES):
        there = b.select(b.icmp_unsigned("<", e.number(k), rows), columns, e.number(0))
        loaded.append(load_lanes(e, b.add(source, b.mul(e.number(k), pitch)), first_lanes(e, there)))
    for k, column in enumerate(transposed(e, loaded)):
        there = b.select(b.icmp_unsigned("<", e.number(k), columns), written, e.number(0))
        store_lanes(e, column, b.add(out, b.mul(e.number(k), out_pitch)), first_lanes(e, there))


_transpose_square = kernel_intrinsic(emit_square, 7)
_LANES = U64(LANES)


@helper
def transpose(block):  # type: ignore[no-untyped-def]
    """Transpose a matrix, 16 columns after 16 columns; the block vouches for every area."""
    group = load_parameter(block, 0)
    pitch = load_parameter(block, 3)
    out_pitch = load_parameter(block, 5)
    rows = load_parameter(block, 6)
    written = load_parameter(block, 8)
    while group < load_parameter(block, 1):
        first = group << U4
        columns = load_parameter(block, 7) - first
        row = U0
        while row < written:
            source = load_parameter(block, 2) + row * pitch + (first << U2)
            out = load_parameter(block, 4) + first * out_pitch + (row << U2)
            left = rows - row if row < rows else U0
            _transpose_square(left, columns, written - row, source, pitch, out, out_pitch)
            row += _LANES
        group += U1
    return np.int64(0)
