"""Convolution of planes with a weight for each tap, for many outputs at once.

A tile is eight outputs times up to three vectors of positions, all sums in registers. The weights of eight
outputs for a block of input channels are floats, or are decoded to a buffer that stays in the first-level
cache while the tiles of all images are computed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir

from nqformat.kernels.memory import load_parameter
from nqformat.kernels.words import U0, U1, U2, U4, U6, U64, helper

from .blocks import BYTE_WEIGHTS, FLOAT_WEIGHTS, LANES, NIBBLE_WEIGHTS, OUTPUTS_TOGETHER
from .emitter import I8, I32, I64, INDICES, VECTOR, Emitter, has_avx512, kernel_intrinsic
from .lanes import look_up_among_256, one_of
from .planes import HIGH, LOW, clear_margins, start_sums, store_sums

_MOST_VECTORS = 3 if has_avx512() else 1


def _emit_dense_tile(n_vectors: int) -> Callable[..., None]:
    """Return the writer of a tile of OUTPUTS_TOGETHER outputs for one block of input channels.

    Its arguments: parameter block, weights, number of taps, source, out, bias, residual, mask, whether the
    block of channels is the first, and the last, number of outputs that exist, and a place to store others.
    """

    def emit(e: Emitter, *arguments: Any) -> None:
        block, weights, n_taps, source, out, bias, residual, mask, first, last, n_outputs, other = arguments
        b = e.builder
        offsets = e.load(I64, block, 8 * 19)
        out_step, residual_step = e.load(I64, block, 8 * 6), e.load(I64, block, 8 * 14)
        limits = e.load_splat(block, LOW), e.load_splat(block, HIGH), mask
        tile = [[e.variable(e.zeros()) for _ in range(n_vectors)] for _ in range(OUTPUTS_TOGETHER)]
        targets = []
        for k, sums in enumerate(tile):
            exists = b.icmp_unsigned("<", e.number(k), n_outputs)
            target = b.select(exists, b.add(out, b.mul(e.number(k), out_step)), other)
            addend = b.select(exists, b.add(residual, b.mul(e.number(k), residual_step)), e.number(0))
            constant = b.select(exists, b.add(bias, e.number(4 * k)), bias)
            targets.append(target)
            start_sums(e, sums, first, (constant, addend), target)
        with e.loop(n_taps) as i:
            offset = b.sext(e.load(I32, b.add(offsets, b.shl(i, e.number(2)))), I64)
            place = b.add(source, offset)
            vectors = [e.load(VECTOR, place, 4 * LANES * j) for j in range(n_vectors)]
            factors = b.add(weights, b.mul(i, e.number(4 * OUTPUTS_TOGETHER)))
            for k, sums in enumerate(tile):
                factor = e.load_splat(factors, 4 * k)
                for vector, total in zip(vectors, sums, strict=True):
                    b.store(e.multiply_add(factor, vector, b.load(total)), total)
        for target, sums in zip(targets, tile, strict=True):
            store_sums(e, sums, last, limits, target)

    return emit


def _emit_nibbles(e: Emitter, *arguments: Any) -> None:
    """Decode groups of 16 bytes to two vectors, low halves first: groups, symbols, codebook, out."""
    groups, symbols, codebook, out = arguments
    b = e.builder
    table = e.load(VECTOR, codebook)
    with e.loop(groups) as i:
        stored = e.widen(e.load(ir.VectorType(I8, LANES), b.add(symbols, b.shl(i, e.number(4)))))
        high = b.lshr(stored, ir.Constant(INDICES, [4] * LANES))
        place = b.add(out, b.shl(i, e.number(7)))
        e.store(e.look_up(table, codebook, stored), place)
        e.store(e.look_up(table, codebook, high), place, 4 * LANES)


def _emit_bytes(e: Emitter, *arguments: Any) -> None:
    """Decode groups of 16 bytes to one vector; groups, symbols, codebook of 256 entries, out."""
    groups, symbols, codebook, out = arguments
    b = e.builder
    tables = [e.load(VECTOR, codebook, 4 * LANES * k) for k in range(16)] if has_avx512() else []
    with e.loop(groups) as i:
        place, target = b.add(symbols, b.shl(i, e.number(4))), b.add(out, b.shl(i, e.number(6)))
        if tables:
            stored = e.widen(e.load(ir.VectorType(I8, LANES), place))
            e.store(look_up_among_256(e, tables, stored), target)
        else:
            for k in range(LANES):
                symbol = b.zext(e.load(I8, place, k), I64)
                e.store(e.load(I32, b.add(codebook, b.shl(symbol, e.number(2)))), target, 4 * k)


_tile = kernel_intrinsic(one_of({n: _emit_dense_tile(n) for n in range(1, _MOST_VECTORS + 1)}), 13)
_decode_nibbles = kernel_intrinsic(_emit_nibbles, 4)
_decode_bytes = kernel_intrinsic(_emit_bytes, 4)
_MOST = U64(_MOST_VECTORS)
_TOGETHER = U64(OUTPUTS_TOGETHER)


@helper
def _decoded(block, piece, n_bytes):  # type: ignore[no-untyped-def]
    """Address of the floats of a piece of weights of `n_bytes`, a multiple of 16 unless these are floats."""
    kind = load_parameter(block, 28)
    weights = load_parameter(block, 18) + piece * n_bytes
    if kind == U64(FLOAT_WEIGHTS):
        return weights
    codebook = load_parameter(block, 20)
    buffer = load_parameter(block, 21)
    if kind == U64(NIBBLE_WEIGHTS):
        _decode_nibbles(n_bytes >> U4, weights, codebook, buffer)
    elif kind == U64(BYTE_WEIGHTS):
        _decode_bytes(n_bytes >> U4, weights, codebook, buffer)
    return buffer


@helper
def _tiles_of_image(block, image, output, n, weights, n_taps, moved, begin, end):  # type: ignore[no-untyped-def]
    """Add one block of input channels, `moved` bytes from the first, to `n` outputs from `output` on."""
    source = load_parameter(block, 3) + image * load_parameter(block, 4) + moved
    out = load_parameter(block, 5) + image * load_parameter(block, 7) + output * load_parameter(block, 6)
    residual = load_parameter(block, 13)
    if residual != U0:
        residual += image * load_parameter(block, 15) + output * load_parameter(block, 14)
    mask = load_parameter(block, 9)
    bias = load_parameter(block, 10) + (output << U2)
    other = load_parameter(block, 22)
    n_vectors = load_parameter(block, 8)
    n_tiles = (n_vectors + _MOST - U1) // _MOST
    tile = U0
    while tile < n_tiles:
        m = (n_vectors + tile) // n_tiles
        _tile(m, block, weights, n_taps, source, out, bias, residual, mask, begin, end, n, other)
        step = m << U6
        source += step
        out += step
        mask += step
        if residual != U0:
            residual += step
        tile += U1
    return U0


@helper
def convolve_dense(block):  # type: ignore[no-untyped-def]
    """Convolve planes with a weight for each tap; the block vouches for every area."""
    first_output = load_parameter(block, 0)
    last_output = load_parameter(block, 1)
    n_images = load_parameter(block, 2)
    n_blocks = load_parameter(block, 23)
    block_bytes = load_parameter(block, 24)
    n_pieces = (load_parameter(block, 25) + _TOGETHER - U1) // _TOGETHER
    piece_bytes = load_parameter(block, 29)
    channels = U0
    while channels < n_blocks:
        begin = U64(channels == U0)
        end = U64(channels + U1 == n_blocks)
        n_taps = load_parameter(block, 27) if channels + U1 == n_blocks else load_parameter(block, 26)
        output = first_output
        while output < last_output:
            n = min(_TOGETHER, last_output - output)
            weights = _decoded(block, channels * n_pieces + output // _TOGETHER, piece_bytes)
            image = U0
            while image < n_images:
                if begin != U0:
                    clear_margins(block, output, output + n, image)
                moved = channels * block_bytes
                _tiles_of_image(block, image, output, n, weights, n_taps, moved, begin, end)
                image += U1
            output += _TOGETHER
        channels += U1
    return np.int64(0)
