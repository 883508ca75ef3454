"""Kernels from the chunks of any codec to symbols and numbers (spec 4)."""

from __future__ import annotations

import numpy as np

from .blocks import SINGLE, STORED, TANS
from .memory import load8, load64, load_parameter, store8, store64
from .prefix import decode_coded
from .tans import decode_tans
from .words import U0, U1, U3, U64, helper


@helper
def decode_symbols(block, row, out):  # type: ignore[no-untyped-def]
    """Decode a chunk of any codec to its symbols; returns whether it is intact.

    The places of the last group beyond the numbers must be zero (spec 4.2).
    """
    source, limit, kind = load_parameter(block, 0), load_parameter(block, 1), load_parameter(block, 2)
    start, n_coded = load_parameter(row, 0), load_parameter(row, 1)
    n_symbols, n_numbers = load_parameter(row, 6), load_parameter(row, 7)
    n_all = n_coded + load_parameter(row, 2) + load_parameter(row, 3) + load_parameter(row, 4)
    if start > limit or n_all > limit - start:
        return False
    if kind == U64(STORED):
        if n_coded != n_symbols:
            return False
        highest = U0
        for i in range(np.int64(n_symbols)):
            symbol = load8(source + start + U64(i))
            store8(out + U64(i), symbol)
            highest = max(highest, symbol)
        if highest > load_parameter(block, 9):
            return False
    elif kind == U64(SINGLE):
        if n_all != U0:
            return False
        symbol = load_parameter(block, 10)
        for i in range(np.int64(n_symbols)):
            store8(out + U64(i), symbol)
    elif kind == U64(TANS):
        if not decode_tans(block, row, out):
            return False
    elif not decode_coded(block, row, out):
        return False
    filling = n_symbols * load_parameter(block, 7) - n_numbers
    if filling == U0:
        return True
    last = load64(load_parameter(block, 8) + (load8(out + n_symbols - U1) << U3))
    return last >> ((load_parameter(block, 7) - filling) << U3) == U0


@helper
def decode_numbers(block, row, out, spare):  # type: ignore[no-untyped-def]
    """Decode a chunk of any codec to numbers of one byte each; returns whether it is intact.

    `out` and `spare` have room for the numbers of a chunk and 16 bytes; with groups of one, `out` needs no
    spare bytes and `spare` is not used.
    """
    group = load_parameter(block, 7)
    if group == U1:
        return decode_symbols(block, row, out)
    if not decode_symbols(block, row, spare):
        return False
    spread = load_parameter(block, 8)
    for i in range(np.int64(load_parameter(row, 6))):
        store64(out + U64(i) * group, load64(spread + (load8(spare + U64(i)) << U3)))
    return True
