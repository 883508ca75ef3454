"""Products with 16 rows of a matrix in the lanes of a vector: no transposed operand, any batch.

Dense weights lie in blocks of ROW_VECTORS times 16 rows, within a block input by input, so that a product
reads them once from beginning to end. A tile is a block of rows times up to six source vectors, all sums in
registers. With many source vectors, a piece of a block is decoded once to a buffer that stays in the cache.

Sparse rows lie in slices of 16 rows of about the same count of nonzeros (the SELL format of Kreutzer et al.,
2014), filled with zero weights; `row numbers` say which rows of the matrix these are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from llvmlite import ir

from nqformat.kernels.memory import load32, load_parameter
from nqformat.kernels.words import U0, U1, U2, U4, U8, U64, helper

from .blocks import LANES, PIECE_INPUTS, ROW_VECTORS
from .emitter import I8, I16, I32, INDICES, VECTOR, Emitter, kernel_intrinsic

_MOST_SOURCES = 6
_WORD_SYMBOLS = 8
_SYMBOLS = ir.VectorType(I8, LANES)
_COLUMNS = ir.VectorType(I16, LANES)

_Decode = Callable[[Emitter, Any, Any, Any, int], list[list[Any]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Weights:
    """A way to store dense weights.

    Attributes
    ----------
    decode : callable
        Turns (emitter, weights' address, codebook's address, codebook, n) into the weights of the inputs of a
        step, a list of n row vectors for each.
    step_bytes, step_inputs : int
    """

    decode: _Decode
    step_bytes: int
    step_inputs: int


def _decode_floats(e: Emitter, weights: Any, codebook: Any, table: Any, n_vectors: int) -> list[list[Any]]:
    return [[e.load(VECTOR, weights, 4 * LANES * r) for r in range(n_vectors)]]


def _decode_nibbles(e: Emitter, weights: Any, codebook: Any, table: Any, n_vectors: int) -> list[list[Any]]:
    """Look up the symbols of eight inputs in a word for each row, the first in the lowest bits.

    Loads at any byte take the place of shifts, as only the low four bits of a lane count.
    """
    four = ir.Constant(INDICES, [4] * LANES)
    found: list[list[Any]] = [[] for _ in range(_WORD_SYMBOLS)]
    for r in range(n_vectors):
        for k in range(0, _WORD_SYMBOLS, 2):
            symbols = e.load(INDICES, weights, 4 * LANES * r + k // 2)
            found[k].append(e.look_up(table, codebook, symbols))
            found[k + 1].append(e.look_up(table, codebook, e.builder.lshr(symbols, four)))
    return found


def _decode_nibble(
    e: Emitter, weights: Any, tables: tuple[Any, Any], number: Any, n_vectors: int
) -> list[Any]:
    """Return the weights of one input of a word, an i64 number below eight."""
    codebook, table = tables
    shift = e.splat(e.builder.trunc(e.builder.shl(number, e.number(2)), I32))
    words = [e.load(INDICES, weights, 4 * LANES * r) for r in range(n_vectors)]
    return [e.look_up(table, codebook, e.builder.lshr(word, shift)) for word in words]


def _decode_bytes(e: Emitter, weights: Any, codebook: Any, table: Any, n_vectors: int) -> list[list[Any]]:
    symbols = [e.widen(e.load(_SYMBOLS, weights, LANES * r)) for r in range(n_vectors)]
    return [[e.gather(codebook, indices) for indices in symbols]]


_FLOATS = _Weights(decode=_decode_floats, step_bytes=4 * LANES * ROW_VECTORS, step_inputs=1)
_NIBBLES = _Weights(decode=_decode_nibbles, step_bytes=4 * LANES * ROW_VECTORS, step_inputs=_WORD_SYMBOLS)
_BYTES = _Weights(decode=_decode_bytes, step_bytes=LANES * ROW_VECTORS, step_inputs=1)


def _emit_tile(kind: _Weights, n_sources: int, n_vectors: int = ROW_VECTORS) -> Callable[..., None]:
    """Return the writer of one tile, of all row vectors of a block or of the first few.

    Its arguments are addresses, counts and distances in bytes: inputs, weights, codebook, source, from one
    source vector to the next, out, from one output vector to the next, first value of the sums, from one such
    vector to the next, factors of the sums, bias, lowest and highest output.
    """
    n_chains = 2 if n_sources == 1 else 1

    def emit(e: Emitter, *arguments: Any) -> None:
        inputs, weights, codebook, source, source_pitch, out, out_pitch, initial, initial_pitch = arguments[
            :9
        ]
        b = e.builder
        table = e.load(VECTOR, codebook)
        sources, targets, beginnings = [source], [out], [initial]
        for _ in range(1, n_sources):
            sources.append(b.add(sources[-1], source_pitch))
            targets.append(b.add(targets[-1], out_pitch))
            beginnings.append(b.add(beginnings[-1], initial_pitch))
        sums = [
            [
                [
                    e.variable(e.zeros() if chain else e.load(VECTOR, beginnings[s], 4 * LANES * r))
                    for r in range(n_vectors)
                ]
                for s in range(n_sources)
            ]
            for chain in range(n_chains)
        ]

        def add_input(number: int, vectors: list[Any], factors_at: list[Any]) -> None:
            for s, place in enumerate(factors_at):
                factor = e.load_splat(place)
                for r in range(n_vectors):
                    total = sums[number % n_chains][s][r]
                    b.store(e.multiply_add(vectors[r], factor, b.load(total)), total)

        steps = b.udiv(inputs, e.number(kind.step_inputs))
        with e.loop(steps) as i:
            place = b.add(weights, b.mul(i, e.number(kind.step_bytes)))
            moved = b.mul(i, e.number(4 * kind.step_inputs))
            for k, vectors in enumerate(kind.decode(e, place, codebook, table, n_vectors)):
                add_input(k, vectors, [b.add(s, b.add(moved, e.number(4 * k))) for s in sources])
        if kind.step_inputs > 1:
            done = b.mul(steps, e.number(kind.step_inputs))
            place = b.add(weights, b.mul(steps, e.number(kind.step_bytes)))
            with e.loop(b.sub(inputs, done)) as k:
                moved = b.shl(b.add(done, k), e.number(2))
                vectors = _decode_nibble(e, place, (codebook, table), k, n_vectors)
                add_input(0, vectors, [b.add(s, moved) for s in sources])
        factors, bias = arguments[9:11]
        low, high = e.load_splat(arguments[11]), e.load_splat(arguments[12])
        for s in range(n_sources):
            for r in range(n_vectors):
                total = b.load(sums[0][s][r])
                for other in sums[1:]:
                    total = b.fadd(total, b.load(other[s][r]))
                factor, added = (e.load(VECTOR, place, 4 * LANES * r) for place in (factors, bias))
                e.store(e.clamp(e.multiply_add(total, factor, added), low, high), targets[s], 4 * LANES * r)

    return emit


def _emit_piece(kind: _Weights) -> Callable[..., None]:
    """Return the writer of the floats of some inputs of a block: steps, weights, codebook, out."""

    def emit(e: Emitter, *arguments: Any) -> None:
        steps, weights, codebook, out = arguments
        b = e.builder
        table = e.load(VECTOR, codebook)
        with e.loop(steps) as i:
            place = b.add(weights, b.mul(i, e.number(kind.step_bytes)))
            target = b.add(out, b.mul(i, e.number(4 * LANES * ROW_VECTORS * kind.step_inputs)))
            for k, vectors in enumerate(kind.decode(e, place, codebook, table, ROW_VECTORS)):
                for r, vector in enumerate(vectors):
                    e.store(vector, target, 4 * LANES * (k * ROW_VECTORS + r))

    return emit


_BLOCK_OUT = U64(4 * LANES * ROW_VECTORS)
_LOW, _HIGH = U64(8 * 11), U64(8 * 12)
_PIECE = U64(PIECE_INPUTS)
_MOST = U64(_MOST_SOURCES)


def _tiles(kind: _Weights) -> Any:
    """Compile the product of one block of rows with any number of source vectors, piece by piece or whole."""
    one, two, three, four, five, six = (
        kernel_intrinsic(_emit_tile(kind, n), 13) for n in range(1, _MOST_SOURCES + 1)
    )

    eight = kernel_intrinsic(_emit_tile(kind, 8, ROW_VECTORS // 2), 13)
    half_weights, half_out = U64(kind.step_bytes // 2), U64(2 * LANES * ROW_VECTORS)

    @helper
    def multiply(inputs, weights, book, source, pitch, n, out, step, start, add, scale, bias, low, high):  # type: ignore[no-untyped-def]
        if n == U8:  # each half of the block once, instead of the whole block twice
            for _ in range(2):
                eight(inputs, weights, book, source, pitch, out, step, start, add, scale, bias, low, high)
                weights += half_weights
                out += half_out
                start += half_out
                scale += half_out
                bias += half_out
            return U0
        passes = (n + _MOST - U1) // _MOST
        together = (n + passes - U1) // max(passes, U1)
        while n > U0:
            m = min(n, together)
            if m == U1:
                one(inputs, weights, book, source, pitch, out, step, start, add, scale, bias, low, high)
            elif m == U2:
                two(inputs, weights, book, source, pitch, out, step, start, add, scale, bias, low, high)
            elif m == U64(3):
                three(inputs, weights, book, source, pitch, out, step, start, add, scale, bias, low, high)
            elif m == U4:
                four(inputs, weights, book, source, pitch, out, step, start, add, scale, bias, low, high)
            elif m == U64(5):
                five(inputs, weights, book, source, pitch, out, step, start, add, scale, bias, low, high)
            else:
                six(inputs, weights, book, source, pitch, out, step, start, add, scale, bias, low, high)
            source += m * pitch
            out += m * step
            start += m * add
            n -= m
        return U0

    return multiply


_float_tiles = _tiles(_FLOATS)


def _product(kind: _Weights) -> Any:
    """Compile the product of a matrix of one kind of weights with any number of source vectors."""
    tiles = _float_tiles if kind is _FLOATS else _tiles(kind)
    decode_piece = kernel_intrinsic(_emit_piece(kind), 4)
    step_bytes, step_inputs = U64(kind.step_bytes), U64(kind.step_inputs)
    decoded = U64(kind is not _FLOATS)

    @helper
    def multiply(block):  # type: ignore[no-untyped-def]
        """Multiply blocks of rows with all source vectors; the block vouches for every area."""
        row_block = load_parameter(block, 0)
        last_block = load_parameter(block, 1)
        source = load_parameter(block, 2)
        pitch = load_parameter(block, 3)
        n_sources = load_parameter(block, 4)
        out_pitch = load_parameter(block, 6)
        inputs = load_parameter(block, 7)
        book = load_parameter(block, 9)
        buffer = load_parameter(block, 14)
        free = load_parameter(block, 15)
        ones = free + U8
        zeros = ones + _BLOCK_OUT
        low = block + _LOW
        high = block + _HIGH
        block_bytes = (inputs + step_inputs - U1) // step_inputs * step_bytes
        while row_block < last_block:
            weights = load_parameter(block, 8) + row_block * block_bytes
            bias = load_parameter(block, 10) + row_block * _BLOCK_OUT
            scale = load_parameter(block, 13) + row_block * _BLOCK_OUT
            out = load_parameter(block, 5) + row_block * _BLOCK_OUT
            if n_sources <= U2 * _MOST:
                tiles(
                    inputs, weights, book, source, pitch, n_sources, out, out_pitch,
                    zeros, U0, scale, bias, low, high,
                )  # fmt: skip
            else:
                first = U0
                while first < inputs:
                    n = min(_PIECE, inputs - first)
                    place = weights
                    if decoded != U0:
                        decode_piece((n + step_inputs - U1) // step_inputs, weights, book, buffer)
                        place = buffer
                    start, add = (zeros, U0) if first == U0 else (out, out_pitch)
                    part_scale, part_bias, least, most = ones, zeros, free, free + U4
                    if first + n == inputs:
                        part_scale, part_bias, least, most = scale, bias, low, high
                    part = source + (first << U2)
                    _float_tiles(
                        n, place, book, part, pitch, n_sources, out, out_pitch,
                        start, add, part_scale, part_bias, least, most,
                    )  # fmt: skip
                    weights += n // step_inputs * step_bytes
                    first += n
            row_block += U1
        return np.int64(0)

    return multiply


multiply_floats = _product(_FLOATS)
multiply_nibbles = _product(_NIBBLES)
multiply_bytes = _product(_BYTES)


def _emit_slice(few: bool) -> Callable[..., None]:
    """Return the writer of one slice of 16 sparse rows, with a codebook of at most 16 entries or of more.

    Its arguments: rounds, columns, symbols, codebook, source, out, row numbers, factors of the sums, bias,
    lowest and highest output.
    """

    def emit(e: Emitter, *arguments: Any) -> None:
        rounds, columns, symbols, codebook, source, out, rows, scale, bias, low, high = arguments
        b = e.builder
        table = e.load(VECTOR, codebook)
        total = e.variable(e.zeros())
        with e.loop(rounds) as i:
            places = e.widen(e.load(_COLUMNS, b.add(columns, b.mul(i, e.number(2 * LANES)))))
            indices = e.widen(e.load(_SYMBOLS, b.add(symbols, b.mul(i, e.number(LANES)))))
            weights = e.look_up(table, codebook, indices) if few else e.gather(codebook, indices)
            b.store(e.multiply_add(weights, e.gather(source, places), b.load(total)), total)
        numbers = e.load(INDICES, rows)
        found = e.multiply_add(b.load(total), e.gather(scale, numbers), e.gather(bias, numbers))
        e.scatter(e.clamp(found, e.load_splat(low), e.load_splat(high)), out, numbers)

    return emit


_slice_of_few = kernel_intrinsic(_emit_slice(True), 11)
_slice_of_many = kernel_intrinsic(_emit_slice(False), 11)


@helper
def multiply_slices(block):  # type: ignore[no-untyped-def]
    """Multiply slices of 16 sparse rows with all source vectors; the block vouches for every area."""
    row_block = load_parameter(block, 0)
    last_block = load_parameter(block, 1)
    pitch = load_parameter(block, 3)
    n_sources = load_parameter(block, 4)
    out_pitch = load_parameter(block, 6)
    starts = load_parameter(block, 8)
    codebook = load_parameter(block, 9)
    bias = load_parameter(block, 10)
    low = block + _LOW
    high = block + _HIGH
    scale = load_parameter(block, 13)
    few = load_parameter(block, 17)
    while row_block < last_block:
        first = load32(starts + (row_block << U2))
        rounds = load32(starts + (row_block << U2) + U4) - first
        columns = load_parameter(block, 15) + first * U64(2 * LANES)
        symbols = load_parameter(block, 16) + first * U64(LANES)
        rows = load_parameter(block, 14) + row_block * U64(4 * LANES)
        source = load_parameter(block, 2)
        out = load_parameter(block, 5)
        for _ in range(np.int64(n_sources)):
            if few != U0:
                _slice_of_few(rounds, columns, symbols, codebook, source, out, rows, scale, bias, low, high)
            else:
                _slice_of_many(rounds, columns, symbols, codebook, source, out, rows, scale, bias, low, high)
            source += pitch
            out += out_pitch
        row_block += U1
    return np.int64(0)
