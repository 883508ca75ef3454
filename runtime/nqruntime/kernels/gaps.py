"""Products of sparse rows in a byte and a half a nonzero: the distance from the last one, and a symbol.

A nonzero that is further away than a byte says is reached over zero weights, and the rows are filled with
such to multiples of GAPS_TOGETHER.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from nqformat.kernels.memory import load32, load_parameter
from nqformat.kernels.words import U0, U1, U2, U4, U64, helper

from .blocks import GAPS_TOGETHER
from .emitter import F32, I8, I64, Emitter, kernel_intrinsic

_LOW, _HIGH = U64(8 * 11), U64(8 * 12)


def _emit_row() -> Callable[..., None]:
    """Return the writer of one row and source vector.

    Its arguments: rounds, gaps, symbols, codebook, source, out, factor of the sum, bias, lowest and highest
    output.
    """

    def emit(e: Emitter, *arguments: Any) -> None:
        rounds, gaps, symbols, codebook, source, out, factor_at, bias_at, low, high = arguments
        b = e.builder
        column = e.variable(source)
        sums = [e.variable(e.zeros(F32)) for _ in range(GAPS_TOGETHER)]
        with e.loop(rounds) as i:
            gaps_at = b.add(gaps, b.mul(i, e.number(GAPS_TOGETHER)))
            pairs_at = b.add(symbols, b.mul(i, e.number(GAPS_TOGETHER // 2)))
            place = b.load(column)
            for k in range(GAPS_TOGETHER):
                gap = b.zext(e.load(I8, gaps_at, k), I64)
                place = b.add(place, b.shl(gap, e.number(2)))
                pair = b.zext(e.load(I8, pairs_at, k // 2), I64)
                symbol = b.lshr(pair, e.number(4)) if k % 2 else b.and_(pair, e.number(15))
                weight = e.load(F32, b.add(codebook, b.shl(symbol, e.number(2))))
                product = b.fmul(weight, e.load(F32, place))
                b.store(b.fadd(b.load(sums[k]), product), sums[k])
            b.store(place, column)
        total = b.load(sums[0])
        for other in sums[1:]:
            total = b.fadd(total, b.load(other))
        total = b.fadd(b.fmul(total, e.load(F32, factor_at)), e.load(F32, bias_at))
        e.store(e.clamp(total, e.load(F32, low), e.load(F32, high)), out)

    return emit


_row = kernel_intrinsic(_emit_row(), 10)


@helper
def multiply_gaps(block):  # type: ignore[no-untyped-def]
    """Multiply sparse rows with all source vectors; the block vouches for every area."""
    row = load_parameter(block, 0)
    last = load_parameter(block, 1)
    pitch = load_parameter(block, 3)
    out_pitch = load_parameter(block, 6)
    starts = load_parameter(block, 8)
    codebook = load_parameter(block, 9)
    while row < last:
        first = load32(starts + (row << U2))
        rounds = (load32(starts + (row << U2) + U4) - first) // U64(GAPS_TOGETHER)
        gaps = load_parameter(block, 14) + first
        symbols = load_parameter(block, 15) + (first >> U1)
        factor = load_parameter(block, 13) + (row << U2)
        bias = load_parameter(block, 10) + (row << U2)
        source = load_parameter(block, 2)
        out = load_parameter(block, 5) + (row << U2)
        left = load_parameter(block, 4)
        while left > U0:
            _row(rounds, gaps, symbols, codebook, source, out, factor, bias, block + _LOW, block + _HIGH)
            source += pitch
            out += out_pitch
            left -= U1
        row += U1
    return np.int64(0)
