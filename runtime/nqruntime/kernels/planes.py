"""Convolution of planes: channels whose rows follow one another with zeros between, so that a tap is a shift.

All positions of a channel form one range, cut into tiles of up to twelve vectors of 16; the sums of a tile
stay in registers while the nonzero weights (sparse) or the taps (dense) of a block of input channels are
added. Between blocks, sums wait in the output. A block's inputs around a tile stay in the first-level cache;
where each is read often, they are first copied at the distances that let all reads be whole lines.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir

from nqformat.kernels.memory import clear_bytes, load_parameter
from nqformat.kernels.words import U0, U1, U2, U6, U64, helper

from .blocks import LANES, TILE_VECTORS
from .emitter import I16, I32, I64, VECTOR, Emitter, kernel_intrinsic
from .lanes import mask_lanes, one_of

_MOST_VECTORS = TILE_VECTORS
LOW, HIGH = 8 * 11, 8 * 12
"""Bytes from a parameter block to the limits of the output."""


def start_sums(e: Emitter, sums: list[Any], first: Any, addends: tuple[Any, Any], out: Any) -> None:
    """Set the sums of a tile of one output to bias and residual, or to what `out` holds after other blocks.

    `first` is an i64; `addends` are the addresses of the output's bias and of the residual or 0.
    """
    b = e.builder
    bias, residual = addends
    with b.if_else(b.icmp_unsigned("!=", first, e.number(0))) as (begin, go_on):
        with begin:
            initial = e.load_splat(bias)
            for total in sums:
                b.store(initial, total)
            with e.when(b.icmp_unsigned("!=", residual, e.number(0))):
                for j, total in enumerate(sums):
                    b.store(b.fadd(initial, e.load(VECTOR, residual, 4 * LANES * j)), total)
        with go_on:
            for j, total in enumerate(sums):
                b.store(e.load(VECTOR, out, 4 * LANES * j), total)


def store_sums(e: Emitter, sums: list[Any], last: Any, limits: tuple[Any, Any, Any], out: Any) -> None:
    """Store the sums of a tile of one output; `limits` are low and high vectors and the mask's address.

    After the last block (`last`, an i64) sums are clamped, and cleared where the mask is 0.
    """
    b = e.builder
    low, high, mask = limits
    with b.if_else(b.icmp_unsigned("!=", last, e.number(0))) as (finish, wait):
        with finish:
            for j, total in enumerate(sums):
                value = e.clamp(b.load(total), low, high)
                e.store(mask_lanes(e, value, mask, 4 * LANES * j), out, 4 * LANES * j)
        with wait:
            for j, total in enumerate(sums):
                e.store(b.load(total), out, 4 * LANES * j)


def _emit_sparse_tile(n_vectors: int) -> Callable[..., None]:
    """Return the writer of a tile of all outputs for one block of input channels.

    Its arguments: parameter block, number of outputs, starts of the outputs' nonzeros, tap offsets, source,
    out, bias, residual, mask, whether the block of channels is the first, and the last.
    """
    n_chains = 4 if n_vectors == 1 else 2 if n_vectors < 4 else 1

    def emit(e: Emitter, *arguments: Any) -> None:
        block, outputs, starts, offsets, source, out, bias, residual, mask, first, last = arguments
        b = e.builder
        entries, codebook = e.load(I64, block, 8 * 19), e.load(I64, block, 8 * 21)
        out_step, residual_step = e.load(I64, block, 8 * 6), e.load(I64, block, 8 * 14)
        limits = e.load_splat(block, LOW), e.load_splat(block, HIGH), mask

        def add_nonzero(entry: Any, sums: list[Any]) -> None:
            tap = b.and_(entry, e.number(255))
            symbol = b.and_(b.lshr(entry, e.number(8)), e.number(255))
            offset = b.sext(e.load(I32, b.add(offsets, b.shl(tap, e.number(2)))), I64)
            weight = e.load_splat(b.add(codebook, b.shl(symbol, e.number(2))))
            inputs = b.add(source, offset)
            for j, total in enumerate(sums):
                vector = e.load(VECTOR, inputs, 4 * LANES * j)
                b.store(e.multiply_add(weight, vector, b.load(total)), total)

        with e.loop(outputs) as i:
            row = b.add(starts, b.shl(i, e.number(2)))
            start, stop = (b.zext(e.load(I32, row, 4 * k), I64) for k in range(2))
            target = b.add(out, b.mul(i, out_step))
            addend = b.add(residual, b.mul(i, residual_step))
            chains = [[e.variable(e.zeros()) for _ in range(n_vectors)] for _ in range(n_chains)]
            start_sums(e, chains[0], first, (b.add(bias, b.shl(i, e.number(2))), addend), target)
            count = b.sub(stop, start)
            place = b.add(entries, b.shl(start, e.number(1)))
            rounds = b.udiv(count, e.number(n_chains))
            with e.loop(rounds) as r:
                group = b.add(place, b.mul(r, e.number(2 * n_chains)))
                together = b.zext(e.load(ir.IntType(16 * n_chains), group), I64)
                for c, sums in enumerate(chains):
                    add_nonzero(b.lshr(together, e.number(16 * c)), sums)
            if n_chains > 1:
                done = b.mul(rounds, e.number(n_chains))
                with e.loop(b.sub(count, done)) as r:
                    entry = e.load(I16, b.add(place, b.shl(b.add(done, r), e.number(1))))
                    add_nonzero(b.zext(entry, I64), chains[0])
                for j, total in enumerate(chains[0]):
                    for other in chains[1:]:
                        b.store(b.fadd(b.load(total), b.load(other[j])), total)
            store_sums(e, chains[0], last, limits, target)

    return emit


def _emit_windows(e: Emitter, *arguments: Any) -> None:
    """Copy what a tile reads of a block of channels such that all its vectors are whole lines.

    Its arguments: parameter block, channels, source, vectors of the tile.
    """
    block, channels, source, n_vectors = arguments
    b = e.builder
    n_copies, copies, buffer, step, window = (e.load(I64, block, 8 * k) for k in range(27, 32))
    with e.loop(channels) as channel:
        begin = b.add(source, b.mul(channel, step))
        target = b.add(buffer, b.mul(channel, window))
        with e.loop(n_copies) as k:
            place = b.add(copies, b.mul(k, e.number(12)))
            shift, more, moved = (b.sext(e.load(I32, place, 4 * m), I64) for m in range(3))
            with e.loop(b.add(n_vectors, more)) as i:
                line = b.shl(i, e.number(6))
                vector = e.load(VECTOR, b.add(b.add(begin, shift), line))
                e.store(vector, b.add(b.add(target, moved), line))


_copy_windows = kernel_intrinsic(_emit_windows, 4)
_sparse_tile = kernel_intrinsic(one_of({n: _emit_sparse_tile(n) for n in range(1, _MOST_VECTORS + 1)}), 12)


@helper
def clear_margins(block, first, last, image):  # type: ignore[no-untyped-def]
    """Clear the margins of outputs `first` to `last` (bytes before and after the positions) of an image."""
    before = load_parameter(block, 16)
    after = load_parameter(block, 17)
    step = load_parameter(block, 6)
    positions = load_parameter(block, 8) << U6
    place = load_parameter(block, 5) + image * load_parameter(block, 7) + first * step
    while first < last:
        if before > U0:
            clear_bytes(place - before, before)
        if after > U0:
            clear_bytes(place + positions, after)
        place += step
        first += U1
    return U0


@helper
def convolve_sparse(block):  # type: ignore[no-untyped-def]
    """Convolve planes with nonzero weights; the block vouches for every area."""
    first_output = load_parameter(block, 0)
    last_output = load_parameter(block, 1)
    n_images = load_parameter(block, 2)
    n_vectors = load_parameter(block, 8)
    n_blocks = load_parameter(block, 22)
    n_starts = load_parameter(block, 25) << U2
    outputs = last_output - first_output
    bias = load_parameter(block, 10) + (first_output << U2)
    most = load_parameter(block, 26)
    n_tiles = (n_vectors + most - U1) // most
    n_copies = load_parameter(block, 27)
    image = U0
    while image < n_images:
        clear_margins(block, first_output, last_output, image)
        source = load_parameter(block, 3) + image * load_parameter(block, 4)
        out = load_parameter(block, 5) + image * load_parameter(block, 7)
        out += first_output * load_parameter(block, 6)
        residual = load_parameter(block, 13)
        if residual != U0:
            residual += image * load_parameter(block, 15) + first_output * load_parameter(block, 14)
        mask = load_parameter(block, 9)
        tile = U0
        while tile < n_tiles:
            n = (n_vectors + tile) // n_tiles
            starts = load_parameter(block, 18) + (first_output << U2)
            offsets = load_parameter(block, 20)
            inputs = source
            channels = U0
            while channels < n_blocks:
                begin = U64(channels == U0)
                channels += U1
                end = U64(channels == n_blocks)
                shifted = inputs
                if n_copies != U0:
                    taken = load_parameter(block, 33) if end != U0 else load_parameter(block, 32)
                    _copy_windows(block, taken, inputs, n)
                    shifted = load_parameter(block, 29)
                _sparse_tile(
                    n, block, outputs, starts, offsets, shifted, out, bias, residual, mask, begin, end
                )
                starts += n_starts
                offsets += load_parameter(block, 24)
                inputs += load_parameter(block, 23)
            moved = n << U6
            source += moved
            out += moved
            mask += moved
            if residual != U0:
                residual += moved
            tile += U1
        image += U1
    return np.int64(0)
