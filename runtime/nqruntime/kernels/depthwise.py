"""Depthwise convolution of planes: each output reads one input channel.

Without strides, a tile is up to four vectors of positions of all rows. With strides, rows are computed one by
one, lanes being every n-th column of the source.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from nqformat.kernels.memory import clear_bytes, load32, load_parameter
from nqformat.kernels.words import U0, U1, U2, U4, U6, U8, U64, helper

from .blocks import LANES
from .emitter import F32, I32, I64, VECTOR, Emitter, has_avx512, kernel_intrinsic
from .lanes import (
    first_lanes,
    first_of_pairs,
    keep,
    less,
    load_every_second_lane,
    load_lanes,
    load_spread,
    mask_lanes,
    one_of,
    pick,
    store_lanes,
)
from .planes import HIGH, LOW, clear_margins, start_sums, store_sums

_MOST_VECTORS = 4
_NINE = 9
_JOINS_VECTORS = has_avx512()
_WORD_MASK = U64(0xFFFFFFFF)
_OF_NINE = 4


def _emit_channel_tile(n_vectors: int) -> Callable[..., None]:
    """Return the writer of a tile of one output that reads one input channel.

    Its arguments: parameter block, weights, source, out, bias, residual, mask.
    """

    def emit(e: Emitter, *arguments: Any) -> None:
        block, weights, source, out, bias, residual, mask = arguments
        b = e.builder
        n_taps, offsets = e.load(I64, block, 8 * 20), e.load(I64, block, 8 * 19)
        limits = e.load_splat(block, LOW), e.load_splat(block, HIGH), mask
        sums = [e.variable(e.zeros()) for _ in range(n_vectors)]
        start_sums(e, sums, e.number(1), (bias, residual), out)
        with e.loop(n_taps) as i:
            place = b.shl(i, e.number(2))
            inputs = b.add(source, b.sext(e.load(I32, b.add(offsets, place)), I64))
            factor = e.splat(e.load(F32, b.add(weights, place)))
            for j, total in enumerate(sums):
                vector = e.load(VECTOR, inputs, 4 * LANES * j)
                b.store(e.multiply_add(factor, vector, b.load(total)), total)
        store_sums(e, sums, e.number(1), limits, out)

    return emit


def _emit_three_rows(e: Emitter, *arguments: Any) -> None:
    """Compute all vectors of an output of three rows of three adjoining taps.

    Each row is read once: what its second and third tap read is put together from two vectors. Weights stay
    in registers. The arguments are those of a tile.
    """
    block, weights, source, out, bias, residual, mask = arguments
    b = e.builder
    offsets = e.load(I64, block, 8 * 19)
    limits = e.load_splat(block, LOW), e.load_splat(block, HIGH)
    factors = [e.load_splat(weights, 4 * k) for k in range(_NINE)]
    places = [b.add(source, b.sext(e.load(I32, offsets, 12 * row), I64)) for row in range(3)]
    held = [e.variable(e.load(VECTOR, place)) for place in places]
    initial = e.load_splat(bias)
    given = b.icmp_unsigned("!=", residual, e.number(0))

    def compute(line: Any, following: list[Any]) -> None:
        total = e.variable(initial)
        with e.when(given):
            b.store(b.fadd(initial, e.load(VECTOR, b.add(residual, line))), total)
        value = b.load(total)
        for row, (variable, after) in enumerate(zip(held, following, strict=True)):
            vector = b.load(variable)
            for k in range(3):
                shifted = pick(e, vector, after, range(k, k + LANES))
                value = e.multiply_add(factors[3 * row + k], shifted, value)
            b.store(after, variable)
        e.store(mask_lanes(e, e.clamp(value, *limits), b.add(mask, line)), b.add(out, line))

    before_last = b.sub(e.load(I64, block, 8 * 8), e.number(1))
    with e.loop(before_last) as i:
        line = b.shl(i, e.number(6))
        compute(line, [e.load(VECTOR, b.add(place, line), 4 * LANES) for place in places])
    line = b.shl(before_last, e.number(6))
    two = first_lanes(e, e.number(2))
    compute(line, [load_lanes(e, b.add(place, line), two, 4 * LANES) for place in places])


_three_rows = kernel_intrinsic(_emit_three_rows, 7)
_channel = kernel_intrinsic(one_of({n: _emit_channel_tile(n) for n in range(1, _MOST_VECTORS + 1)}), 8)
_MOST = U64(_MOST_VECTORS)


@helper
def _has_three_rows(block):  # type: ignore[no-untyped-def]
    """Whether the taps are three rows of three adjoining elements, and vectors are joined quickly."""
    if not _JOINS_VECTORS or load_parameter(block, 20) != U64(_NINE):
        return False
    offsets = load_parameter(block, 19)
    found = True
    for row in range(3):
        place = offsets + U64(12 * row)
        first = load32(place)
        second, third = (first + U4) & _WORD_MASK, (first + U8) & _WORD_MASK
        found = found and load32(place + U4) == second and load32(place + U8) == third
    return found


@helper
def convolve_depthwise(block):  # type: ignore[no-untyped-def]
    """Convolve each channel on its own; the block vouches for every area."""
    n_images = load_parameter(block, 2)
    n_vectors = load_parameter(block, 8)
    weight_step = load_parameter(block, 20) << U2
    in_threes = _has_three_rows(block)
    repeats = load_parameter(block, 21)
    n_tiles = (n_vectors + _MOST - U1) // _MOST
    image = U0
    while image < n_images:
        output = load_parameter(block, 0)
        clear_margins(block, output, load_parameter(block, 1), image)
        while output < load_parameter(block, 1):
            source = load_parameter(block, 3) + image * load_parameter(block, 4)
            source += output // repeats * load_parameter(block, 22)
            out = load_parameter(block, 5) + image * load_parameter(block, 7)
            out += output * load_parameter(block, 6)
            residual = load_parameter(block, 13)
            if residual != U0:
                residual += image * load_parameter(block, 15) + output * load_parameter(block, 14)
            weights = load_parameter(block, 18) + output * weight_step
            bias = load_parameter(block, 10) + (output << U2)
            mask = load_parameter(block, 9)
            tile = U0
            if in_threes:
                _three_rows(block, weights, source, out, bias, residual, mask)
                tile = n_tiles
            while tile < n_tiles:
                m = (n_vectors + tile) // n_tiles
                _channel(m, block, weights, source, out, bias, residual, mask)
                step = m << U6
                source += step
                out += step
                mask += step
                if residual != U0:
                    residual += step
                tile += U1
            output += U1
        image += U1
    return np.int64(0)


def _emit_row(step: int) -> Callable[..., None]:
    """Return the writer of an output row: parameter block, weights, source, out, bias.

    `step` is 1 or 2, or 0 for one that only the block tells, plus _OF_NINE for kernels of nine taps.
    """
    is_common, step = step >= _OF_NINE, step % _OF_NINE

    def emit(e: Emitter, *arguments: Any) -> None:
        block, weights, source, out, bias = arguments
        b = e.builder
        columns, written, any_step = (e.load(I64, block, 8 * k) for k in (9, 10, 14))
        offsets, n_taps = e.load(I64, block, 8 * 18), e.load(I64, block, 8 * 19)
        low, high = e.load_splat(block, 8 * 22), e.load_splat(block, 8 * 23)
        every = []
        if is_common:
            every = [
                (b.sext(e.load(I32, offsets, 4 * k), I64), e.load_splat(weights, 4 * k)) for k in range(_NINE)
            ]
        initial = e.load_splat(bias)
        with e.loop(b.udiv(b.add(written, e.number(LANES - 1)), e.number(LANES))) as i:
            first = b.shl(i, e.number(4))
            left = less(e, columns, first)
            lanes, pairs = first_lanes(e, left), first_of_pairs(e, left)
            start = b.add(source, b.mul(first, b.shl(any_step, e.number(2))))
            total = e.variable(initial)

            def add_tap(offset: Any, factor: Any) -> None:
                inputs = b.add(start, offset)
                if step == 1:
                    value = load_lanes(e, inputs, lanes)
                elif step == 2:
                    value = load_every_second_lane(e, inputs, pairs)
                else:
                    value = load_spread(e, inputs, any_step, lanes)
                b.store(e.multiply_add(factor, value, b.load(total)), total)

            with e.when(b.icmp_unsigned("!=", left, e.number(0))):
                for offset, factor in every:
                    add_tap(offset, factor)
                if not every:
                    with e.loop(n_taps) as k:
                        place = b.shl(k, e.number(2))
                        offset = b.sext(e.load(I32, b.add(offsets, place)), I64)
                        add_tap(offset, e.load_splat(b.add(weights, place)))
            value = keep(e, e.clamp(b.load(total), low, high), lanes)
            target = b.add(out, b.shl(first, e.number(2)))
            store_lanes(e, value, target, first_lanes(e, less(e, written, first)))

    return emit


_row = kernel_intrinsic(
    one_of({step: _emit_row(step) for step in (0, 1, 2, _OF_NINE, _OF_NINE + 1, _OF_NINE + 2)}), 6
)


@helper
def convolve_depthwise_rows(block):  # type: ignore[no-untyped-def]
    """Convolve each channel on its own, row by row; the block vouches for every area."""
    n_images = load_parameter(block, 2)
    step = load_parameter(block, 14)
    way = step if step <= U2 else U0
    before = load_parameter(block, 15)
    after = load_parameter(block, 16)
    n_taps = load_parameter(block, 19)
    weight_step = n_taps << U2
    if n_taps == U64(_NINE):
        way += U64(_OF_NINE)
    image = U0
    while image < n_images:
        output = load_parameter(block, 0)
        while output < load_parameter(block, 1):
            source = load_parameter(block, 3) + image * load_parameter(block, 4)
            source += output // load_parameter(block, 20) * load_parameter(block, 13)
            out = load_parameter(block, 5) + image * load_parameter(block, 7)
            out += output * load_parameter(block, 6)
            weights = load_parameter(block, 17) + output * weight_step
            bias = load_parameter(block, 21) + (output << U2)
            if before > U0:
                clear_bytes(out - before, before)
            for _ in range(np.int64(load_parameter(block, 8))):
                _row(way, block, weights, source, out, bias)
                source += load_parameter(block, 11)
                out += load_parameter(block, 12)
            if after > U0:
                clear_bytes(out, after)
            output += U1
        image += U1
    return np.int64(0)
