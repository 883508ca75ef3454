"""Products of byte vectors with matrices of bytes, 16 rows in the lanes of a vector.

As `rows`, with a group of four inputs in the place of one: weights lie in blocks of ROW_VECTORS times 16
rows, within a block group by group, a word of four bytes for each row. Sums are exact 32-bit integers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from llvmlite import ir

from nqformat.kernels.memory import load_parameter
from nqformat.kernels.words import U0, U1, U2, U4, U64, helper

from .blocks import LANES, ROW_VECTORS
from .emitter import I32, INDICES, VECTOR, Emitter, kernel_intrinsic
from .integers import BYTES, add_products, look_up_bytes, scaled_sums

_MOST_SOURCES = 6
_LINE = 4 * LANES
_STEP_GROUPS = 2

_Decode = Callable[[Emitter, Any, Any, int], list[list[Any]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bytes:
    """A way to store weights that are bytes.

    Attributes
    ----------
    decode : callable
        Turns (emitter, weights' address, table, n) into the n row vectors of both groups of a step.
    step_bytes : int
    """

    decode: _Decode
    step_bytes: int


def _decode_bytes(e: Emitter, weights: Any, table: Any, n_vectors: int) -> list[list[Any]]:
    return [
        [e.load(INDICES, weights, _LINE * (ROW_VECTORS * k + r)) for r in range(n_vectors)]
        for k in range(_STEP_GROUPS)
    ]


def _decode_nibbles(e: Emitter, weights: Any, table: Any, n_vectors: int) -> list[list[Any]]:
    """Low halves of the bytes are the symbols of the first group, high halves those of the second."""
    b = e.builder
    four, halves = ir.Constant(INDICES, [4] * LANES), ir.Constant(INDICES, [0x0F0F0F0F] * LANES)
    found: list[list[Any]] = [[], []]
    for r in range(n_vectors):
        symbols = e.load(INDICES, weights, _LINE * r)
        for k, numbers in enumerate((symbols, b.lshr(symbols, four))):
            looked_up = look_up_bytes(e, table, b.bitcast(b.and_(numbers, halves), BYTES))
            found[k].append(b.bitcast(looked_up, INDICES))
    return found


_WHOLE = _Bytes(decode=_decode_bytes, step_bytes=_STEP_GROUPS * _LINE * ROW_VECTORS)
_HALVES = _Bytes(decode=_decode_nibbles, step_bytes=_LINE * ROW_VECTORS)


def _emit_tile(kind: _Bytes, n_sources: int) -> Callable[..., None]:
    """Return the writer of one tile: a block of rows for some source vectors.

    Its arguments: steps, weights, codebook, source, bytes from one source vector to the next, out, bytes from
    one output vector to the next, table of the sources, sums of the weights, factors of the rows, bias,
    lowest and highest output.
    """
    n_chains = _STEP_GROUPS if n_sources == 1 else 1

    def emit(e: Emitter, *arguments: Any) -> None:
        steps, weights, codebook, source, pitch, out, out_pitch, table, totals, factors, bias = arguments[:11]
        b = e.builder
        book = e.load(BYTES, codebook)
        sources = [b.add(source, b.mul(pitch, e.number(s))) for s in range(n_sources)]
        sums = [
            [[e.variable(e.zeros(INDICES)) for _ in range(ROW_VECTORS)] for _ in range(n_sources)]
            for _ in range(n_chains)
        ]
        with e.loop(steps) as i:
            place = b.add(weights, b.mul(i, e.number(kind.step_bytes)))
            moved = b.mul(i, e.number(4 * _STEP_GROUPS))
            for k, vectors in enumerate(kind.decode(e, place, book, ROW_VECTORS)):
                for s in range(n_sources):
                    inputs = e.splat(e.load(I32, b.add(sources[s], moved), 4 * k))
                    for r, vector in enumerate(vectors):
                        total = sums[k % n_chains][s][r]
                        b.store(add_products(e, b.load(total), inputs, vector), total)
        low, high = e.load_splat(arguments[11]), e.load_splat(arguments[12])
        for s in range(n_sources):
            target = b.add(out, b.mul(out_pitch, e.number(s)))
            own = b.add(table, e.number(16 * s))
            for r in range(ROW_VECTORS):
                total = b.load(sums[0][s][r])
                for other in sums[1:]:
                    total = b.add(total, b.load(other[s][r]))
                line = _LINE * r
                weight_sums, factor = e.load(INDICES, totals, line), e.load(VECTOR, factors, line)
                value = b.fadd(scaled_sums(e, total, weight_sums, factor, own), e.load(VECTOR, bias, line))
                e.store(e.clamp(value, low, high), target, line)

    return emit


_BLOCK_OUT = U64(_LINE * ROW_VECTORS)
_LOW, _HIGH = U64(8 * 11), U64(8 * 12)
_MOST = U64(_MOST_SOURCES)


def _product(kind: _Bytes) -> Any:
    """Compile the product of a matrix of one kind of weights with any number of source vectors."""
    one, two, three, four, five, six = (
        kernel_intrinsic(_emit_tile(kind, n), 13) for n in range(1, _MOST_SOURCES + 1)
    )
    step_bytes = U64(kind.step_bytes)

    @helper
    def multiply(block):  # type: ignore[no-untyped-def]
        """Multiply blocks of rows with all source vectors; the block vouches for every area."""
        row_block = load_parameter(block, 0)
        pitch = load_parameter(block, 3)
        step = load_parameter(block, 6)
        steps = load_parameter(block, 7)
        book = load_parameter(block, 9)
        low = block + _LOW
        high = block + _HIGH
        while row_block < load_parameter(block, 1):
            moved = row_block * _BLOCK_OUT
            weights = load_parameter(block, 8) + row_block * steps * step_bytes
            bias = load_parameter(block, 10) + moved
            scale = load_parameter(block, 13) + moved
            sums = load_parameter(block, 14) + moved
            table = load_parameter(block, 15)
            source = load_parameter(block, 2)
            out = load_parameter(block, 5) + moved
            n = load_parameter(block, 4)
            passes = (n + _MOST - U1) // _MOST
            together = (n + passes - U1) // max(passes, U1)
            while n > U0:
                m = min(n, together)
                if m == U1:
                    one(steps, weights, book, source, pitch, out, step, table, sums, scale, bias, low, high)
                elif m == U2:
                    two(steps, weights, book, source, pitch, out, step, table, sums, scale, bias, low, high)
                elif m == U64(3):
                    three(steps, weights, book, source, pitch, out, step, table, sums, scale, bias, low, high)
                elif m == U4:
                    four(steps, weights, book, source, pitch, out, step, table, sums, scale, bias, low, high)
                elif m == U64(5):
                    five(steps, weights, book, source, pitch, out, step, table, sums, scale, bias, low, high)
                else:
                    six(steps, weights, book, source, pitch, out, step, table, sums, scale, bias, low, high)
                source += m * pitch
                out += m * step
                table += m << U4
                n -= m
            row_block += U1
        return np.int64(0)

    return multiply


multiply_int8 = _product(_WHOLE)
multiply_int8_nibbles = _product(_HALVES)
