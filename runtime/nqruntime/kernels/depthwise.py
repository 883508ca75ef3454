"""Depthwise convolution of planes: each output reads one input channel.

Without strides, a tile is up to four vectors of positions of all rows. With strides, rows are computed one by
one, lanes being every n-th column of the source.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from nqformat.kernels.memory import clear_bytes, load_parameter
from nqformat.kernels.words import U0, U1, U2, U6, U64, helper

from .emitter import F32, I32, I64, LANES, VECTOR, Emitter, kernel_intrinsic
from .lanes import (
    first_lanes,
    first_of_pairs,
    keep,
    less,
    load_every_second_lane,
    load_lanes,
    load_spread,
    one_of,
    store_lanes,
)
from .planes import HIGH, LOW, clear_margins, start_sums, store_sums

_MOST_VECTORS = 4


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


_channel = kernel_intrinsic(one_of({n: _emit_channel_tile(n) for n in range(1, _MOST_VECTORS + 1)}), 8)
_MOST = U64(_MOST_VECTORS)


@helper
def convolve_depthwise(block):  # type: ignore[no-untyped-def]
    """Convolve each channel on its own; the block vouches for every area."""
    n_images = load_parameter(block, 2)
    n_vectors = load_parameter(block, 8)
    weight_step = load_parameter(block, 20) << U2
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

    `step` is 1 or 2, or 0 for one that only the block tells.
    """

    def emit(e: Emitter, *arguments: Any) -> None:
        block, weights, source, out, bias = arguments
        b = e.builder
        columns, written, any_step = (e.load(I64, block, 8 * k) for k in (9, 10, 14))
        offsets, n_taps = e.load(I64, block, 8 * 18), e.load(I64, block, 8 * 19)
        low, high = e.load_splat(block, 8 * 22), e.load_splat(block, 8 * 23)
        with e.loop(b.udiv(b.add(written, e.number(LANES - 1)), e.number(LANES))) as i:
            first = b.shl(i, e.number(4))
            left = less(e, columns, first)
            lanes, pairs = first_lanes(e, left), first_of_pairs(e, left)
            start = b.add(source, b.mul(first, b.shl(any_step, e.number(2))))
            total = e.variable(e.load_splat(bias))
            with e.loop(n_taps) as k:
                place = b.shl(k, e.number(2))
                inputs = b.add(start, b.sext(e.load(I32, b.add(offsets, place)), I64))
                if step == 1:
                    value = load_lanes(e, inputs, lanes)
                elif step == 2:
                    value = load_every_second_lane(e, inputs, pairs)
                else:
                    value = load_spread(e, inputs, any_step, lanes)
                factor = e.splat(e.load(F32, b.add(weights, place)))
                b.store(e.multiply_add(factor, value, b.load(total)), total)
            value = keep(e, e.clamp(b.load(total), low, high), lanes)
            target = b.add(out, b.shl(first, e.number(2)))
            store_lanes(e, value, target, first_lanes(e, less(e, written, first)))

    return emit


_row = kernel_intrinsic(one_of({step: _emit_row(step) for step in (1, 2, 0)}), 6)


@helper
def convolve_depthwise_rows(block):  # type: ignore[no-untyped-def]
    """Convolve each channel on its own, row by row; the block vouches for every area."""
    n_images = load_parameter(block, 2)
    step = load_parameter(block, 14)
    way = step if step <= U2 else U0
    before = load_parameter(block, 15)
    after = load_parameter(block, 16)
    weight_step = load_parameter(block, 19) << U2
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
