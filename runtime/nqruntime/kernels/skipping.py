"""Products of a sparse matrix by columns with a vector of many zeros, whose columns are skipped."""

from __future__ import annotations

from typing import Any

import numpy as np

from nqformat.kernels.memory import clear_bytes, load32, load_parameter
from nqformat.kernels.words import U0, U1, U2, U4, U64, helper

from .blocks import LANES
from .emitter import F32, I8, I16, I64, VECTOR, Emitter, kernel_intrinsic

_SIGNS_OFF = U64(0x7FFFFFFF)
_LOW, _HIGH = U64(8 * 11), U64(8 * 12)
_VECTOR_BYTES = U64(4 * LANES)


def _emit_column(e: Emitter, *arguments: Any) -> None:
    """Add a column times a factor: nonzeros, rows, symbols, codebook, the factor's address, out."""
    count, rows, symbols, codebook, factor_at, out = arguments
    b = e.builder
    factor = e.load(F32, factor_at)
    with e.loop(count) as i:
        row = b.zext(e.load(I16, b.add(rows, b.shl(i, e.number(1)))), I64)
        symbol = b.zext(e.load(I8, b.add(symbols, i)), I64)
        weight = e.load(F32, b.add(codebook, b.shl(symbol, e.number(2))))
        place = b.add(out, b.shl(row, e.number(2)))
        e.store(b.fadd(e.load(F32, place), b.fmul(weight, factor)), place)


def _emit_finish(e: Emitter, *arguments: Any) -> None:
    """Finish sums in place: vectors, out, factors of the sums, bias, lowest and highest output."""
    count, out, factors, bias, low, high = arguments
    b = e.builder
    lowest, highest = e.load_splat(low), e.load_splat(high)
    with e.loop(count) as i:
        moved = b.mul(i, e.number(4 * LANES))
        total, factor, added = (e.load(VECTOR, b.add(place, moved)) for place in (out, factors, bias))
        e.store(e.clamp(e.multiply_add(total, factor, added), lowest, highest), b.add(out, moved))


_add_column = kernel_intrinsic(_emit_column, 6)
_finish = kernel_intrinsic(_emit_finish, 6)


@helper
def multiply_skipping(block):  # type: ignore[no-untyped-def]
    """Multiply if the vector has few enough nonzeros; returns how many steps that makes needless.

    The block vouches for every area; rows and symbols were checked when they were packed.
    """
    source = load_parameter(block, 2)
    inputs = load_parameter(block, 7)
    nonzeros = U0
    for k in range(np.int64(inputs)):
        if load32(source + (U64(k) << U2)) & _SIGNS_OFF != U0:
            nonzeros += U1
    if nonzeros > load_parameter(block, 17):
        return np.int64(0)
    if load_parameter(block, 0) < load_parameter(block, 1):
        out = load_parameter(block, 5)
        starts = load_parameter(block, 8)
        n_vectors = load_parameter(block, 16)
        clear_bytes(out, n_vectors * _VECTOR_BYTES)
        for k in range(np.int64(inputs)):
            place = source + (U64(k) << U2)
            if load32(place) & _SIGNS_OFF != U0:
                first = load32(starts + (U64(k) << U2))
                count = load32(starts + (U64(k) << U2) + U4) - first
                rows = load_parameter(block, 14) + first + first
                symbols = load_parameter(block, 15) + first
                _add_column(count, rows, symbols, load_parameter(block, 9), place, out)
        _finish(
            n_vectors, out, load_parameter(block, 13), load_parameter(block, 10), block + _LOW, block + _HIGH
        )
    return np.int64(load_parameter(block, 18))
