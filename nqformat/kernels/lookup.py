"""Kernel that builds the look-up tables of a prefix code."""

from __future__ import annotations

import numpy as np

from .blocks import WIDE
from .memory import load8, load16, load_parameter, store16, store32, store64
from .words import U0, U1, U2, U3, U6, U8, U16, U64, U255, helper


@helper
def build_table(block):  # type: ignore[no-untyped-def]
    """Look-up tables of a complete code; returns the most symbols of one entry.

    The caller has checked that the Kraft sum of the 256 lengths is exactly 1 and that no length exceeds
    `window`, so the strided stores of a codeword stay in the table and every entry is filled.
    """
    lengths, window, kind = load_parameter(block, 0), load_parameter(block, 1), load_parameter(block, 2)
    table, singles = load_parameter(block, 3), load_parameter(block, 4)
    n_entries = U1 << window
    code = U0
    for length in range(1, np.int64(window) + 1):
        code <<= U1
        n_bits = U64(length)
        for symbol in range(256):
            if load8(lengths + U64(symbol)) == n_bits:
                reversed_code = U0
                for bit in range(length):
                    reversed_code |= ((code >> U64(bit)) & U1) << U64(length - 1 - bit)
                entry = U64(symbol) | (n_bits << U8)
                while reversed_code < n_entries:
                    store16(singles + (reversed_code << U1), entry)
                    reversed_code += U1 << n_bits
                code += U1
    wide = kind == U64(WIDE)
    room = U6 if wide else U3
    most = U0
    for index in range(np.int64(n_entries)):
        rest = U64(index)
        n_bits = n_numbers = packed = U0
        while n_numbers < room:
            entry = load16(singles + (rest << U1))
            length = entry >> U8
            if n_bits + length > window:
                break
            packed |= (entry & U255) << (n_numbers << U3)
            n_numbers += U1
            n_bits += length
            rest >>= length
        most = max(most, n_numbers)
        if wide:
            store64(table + (U64(index) << U3), n_bits | (n_numbers << U8) | (packed << U16))
        else:
            store32(table + (U64(index) << U2), n_bits | (n_numbers << U6) | (packed << U8))
    return np.int64(most)
