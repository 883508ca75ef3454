"""Convolution of planes of bytes with a weight for each tap, for many outputs at once.

A position of a group of four input channels is a word of four bytes, so that taps are shifts as among planes
of floats; a weight is a word, too. A tile is eight outputs times up to three vectors of positions; sums are
exact 32-bit integers, which wait in the output between blocks of input channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from nqformat.kernels.memory import load_parameter
from nqformat.kernels.words import U0, U1, U2, U4, U6, U64, helper

from .blocks import LANES, OUTPUTS_TOGETHER
from .emitter import I32, I64, INDICES, VECTOR, Emitter, has_avx512, kernel_intrinsic
from .integers import add_products, scaled_sums
from .lanes import mask_lanes, one_of
from .planes import HIGH, LOW, clear_margins

_MOST_VECTORS = 3 if has_avx512() else 1
_LINE = 4 * LANES


def _emit_tile(n_vectors: int) -> Callable[..., None]:
    """Return the writer of a tile of OUTPUTS_TOGETHER outputs for one block of input channels.

    Its arguments: parameter block, weights, number of taps, source, out, bytes from the first output's bias
    to the tile's, table of the image, residual, mask, whether the block of channels is the first, and the
    last, number of outputs that exist, and a place to store others.
    """

    def emit(e: Emitter, *arguments: Any) -> None:
        (block, weights, n_taps, source, out, moved, table, residual, mask, first, last, n_outputs, other) = (
            arguments
        )
        b = e.builder
        offsets = e.load(I64, block, 8 * 19)
        out_step, residual_step = e.load(I64, block, 8 * 6), e.load(I64, block, 8 * 14)
        bias, totals, factors = (b.add(e.load(I64, block, 8 * k), moved) for k in (10, 20, 28))
        tile = [[e.variable(e.zeros(INDICES)) for _ in range(n_vectors)] for _ in range(OUTPUTS_TOGETHER)]
        exists = [b.icmp_unsigned("<", e.number(k), n_outputs) for k in range(OUTPUTS_TOGETHER)]
        targets = [
            b.select(exists[k], b.add(out, b.mul(e.number(k), out_step)), other)
            for k in range(OUTPUTS_TOGETHER)
        ]
        with e.when(b.icmp_unsigned("==", first, e.number(0))):
            for target, sums in zip(targets, tile, strict=True):
                for j, total in enumerate(sums):
                    b.store(e.load(INDICES, target, _LINE * j), total)
        with e.loop(n_taps) as i:
            offset = b.sext(e.load(I32, b.add(offsets, b.shl(i, e.number(2)))), I64)
            place = b.add(source, offset)
            vectors = [e.load(INDICES, place, _LINE * j) for j in range(n_vectors)]
            words = b.add(weights, b.mul(i, e.number(4 * OUTPUTS_TOGETHER)))
            for k, sums in enumerate(tile):
                word = e.splat(e.load(I32, words, 4 * k))
                for vector, total in zip(vectors, sums, strict=True):
                    b.store(add_products(e, b.load(total), vector, word), total)
        with b.if_else(b.icmp_unsigned("!=", last, e.number(0))) as (finish, wait):
            with finish:
                low, high = e.load_splat(block, LOW), e.load_splat(block, HIGH)
                for k, sums in enumerate(tile):
                    own = b.select(exists[k], e.number(4 * k), e.number(0))
                    total_of, factor = (
                        e.splat(e.load(I32, b.add(totals, own))),
                        e.load_splat(b.add(factors, own)),
                    )
                    constant = e.load_splat(b.add(bias, own))
                    values = [
                        e.variable(b.fadd(scaled_sums(e, b.load(total), total_of, factor, table), constant))
                        for total in sums
                    ]
                    addend = b.add(residual, b.mul(e.number(k), residual_step))
                    given = b.icmp_unsigned("!=", residual, e.number(0))
                    with e.when(b.and_(given, exists[k])):
                        for j, value in enumerate(values):
                            b.store(b.fadd(b.load(value), e.load(VECTOR, addend, _LINE * j)), value)
                    for j, value in enumerate(values):
                        kept = mask_lanes(e, e.clamp(b.load(value), low, high), mask, _LINE * j)
                        e.store(kept, targets[k], _LINE * j)
            with wait:
                for target, sums in zip(targets, tile, strict=True):
                    for j, total in enumerate(sums):
                        e.store(b.load(total), target, _LINE * j)

    return emit


_tile = kernel_intrinsic(one_of({n: _emit_tile(n) for n in range(1, _MOST_VECTORS + 1)}), 14)
_MOST = U64(_MOST_VECTORS)
_TOGETHER = U64(OUTPUTS_TOGETHER)


@helper
def _tiles_of_image(block, image, output, n, weights, n_taps, moved, begin, end):  # type: ignore[no-untyped-def]
    """Add one block of input channels, `moved` bytes from the first, to `n` outputs from `output` on."""
    source = load_parameter(block, 3) + image * load_parameter(block, 4) + moved
    out = load_parameter(block, 5) + image * load_parameter(block, 7) + output * load_parameter(block, 6)
    residual = load_parameter(block, 13)
    if residual != U0:
        residual += image * load_parameter(block, 15) + output * load_parameter(block, 14)
    mask = load_parameter(block, 9)
    table = load_parameter(block, 21) + (image << U4)
    other = load_parameter(block, 22)
    n_vectors = load_parameter(block, 8)
    n_tiles = (n_vectors + _MOST - U1) // _MOST
    place = output << U2
    tile = U0
    while tile < n_tiles:
        m = (n_vectors + tile) // n_tiles
        _tile(m, block, weights, n_taps, source, out, place, table, residual, mask, begin, end, n, other)
        step = m << U6
        source += step
        out += step
        mask += step
        if residual != U0:
            residual += step
        tile += U1
    return U0


@helper
def convolve_int8(block):  # type: ignore[no-untyped-def]
    """Convolve planes of bytes; the block vouches for every area."""
    first_output = load_parameter(block, 0)
    last_output = load_parameter(block, 1)
    n_images = load_parameter(block, 2)
    n_blocks = load_parameter(block, 23)
    n_pieces = (load_parameter(block, 25) + _TOGETHER - U1) // _TOGETHER
    channels = U0
    while channels < n_blocks:
        begin = U64(channels == U0)
        end = U64(channels + U1 == n_blocks)
        n_taps = load_parameter(block, 27) if channels + U1 == n_blocks else load_parameter(block, 26)
        moved = channels * load_parameter(block, 24)
        output = first_output
        while output < last_output:
            n = min(_TOGETHER, last_output - output)
            piece = channels * n_pieces + output // _TOGETHER
            weights = load_parameter(block, 18) + piece * load_parameter(block, 29)
            image = U0
            while image < n_images:
                if begin != U0:
                    clear_margins(block, output, output + n, image)
                _tiles_of_image(block, image, output, n, weights, n_taps, moved, begin, end)
                image += U1
            output += _TOGETHER
        channels += U1
    return np.int64(0)
