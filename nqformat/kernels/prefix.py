"""Kernels for prefix-coded chunks (spec 5.1)."""

from __future__ import annotations

import numpy as np

from .blocks import WIDE
from .memory import (
    count_leading_zeros,
    load8,
    load16,
    load32,
    load64,
    load_parameter,
    store8,
    store32,
    store64,
)
from .words import SENTINEL, U0, U1, U2, U3, U6, U7, U8, U16, U32, U63, U64, U255, helper, inlined, load_tail


@inlined
def _round_wide(source, position, out, table, mask):  # type: ignore[no-untyped-def]
    """Four look-ups of up to six symbols after one load; returns the new bit position and place."""
    word = (load64(source + (position >> U3)) >> (position & U7)) | SENTINEL
    for _ in range(4):
        entry = load64(table + ((word & mask) << U3))
        word >>= entry & U63
        store64(out, entry >> U16)
        out += (entry >> U8) & U255
    return position + count_leading_zeros(word), out


@inlined
def _round_narrow(source, position, out, table, mask):  # type: ignore[no-untyped-def]
    """Four look-ups of up to three symbols after one load."""
    word = (load64(source + (position >> U3)) >> (position & U7)) | SENTINEL
    for _ in range(4):
        entry = load32(table + ((word & mask) << U2))
        word >>= entry & U63
        store32(out, entry >> U8)
        out += (entry >> U6) & U3
    return position + count_leading_zeros(word), out


@helper
def _rounds(limit, window, most, position, out, stop):  # type: ignore[no-untyped-def]
    """Count the rounds that are safe for one sub-stream, at most 2**40.

    A round takes at most ``4 * window`` bits (52) and writes at most ``4 * most`` numbers. With this count
    every load of 8 bytes ends at or before `limit` and every store of 8 bytes at or before `stop`.
    """
    n_bits = np.int64((limit << U3) - position) - 64
    n_numbers = np.int64(stop - out) - 8
    if n_bits < 0 or n_numbers < 0:
        return np.int64(0)
    by_bits = n_bits // np.int64(window << U2)
    by_numbers = n_numbers // np.int64(most << U2)
    return min(by_bits, by_numbers)


@helper
def _finish(source, limit, stop_byte, position, out, stop, table, singles, wide, mask):  # type: ignore[no-untyped-def]
    """Decode the rest of one sub-stream and check its end; True if it is exact."""
    if wide:
        while out + U32 <= stop and (position >> U3) + U8 <= limit:
            position, out = _round_wide(source, position, out, table, mask)
    else:
        while out + U32 <= stop and (position >> U3) + U8 <= limit:
            position, out = _round_narrow(source, position, out, table, mask)
    end = stop_byte << U3
    while out < stop:
        if position >= end:
            return False
        start = position >> U3
        word = load64(source + start) if start + U8 <= limit else load_tail(source, start, limit)
        entry = load16(singles + (((word >> (position & U7)) & mask) << U1))
        store8(out, entry)
        out += U1
        position += entry >> U8
    if position > end or end - position >= U8:
        return False
    return position == end or (load8(source + stop_byte - U1) >> (position & U7)) == U0


@helper
def decode_coded(block, row, out):  # type: ignore[no-untyped-def]
    """Decode the one or four sub-streams of a prefix-coded chunk to its symbols at `out`.

    The caller has checked that the sub-streams lie below `limit`; nothing is written beyond the symbols.
    """
    source, limit = load_parameter(block, 0), load_parameter(block, 1)
    wide = load_parameter(block, 2) == U64(WIDE)
    table, singles = load_parameter(block, 3), load_parameter(block, 4)
    window, most = load_parameter(block, 5), load_parameter(block, 6)
    mask = (U1 << window) - U1
    byte0 = load_parameter(row, 0)
    n_symbols = load_parameter(row, 6)
    if load_parameter(row, 5) == U1:
        byte1 = byte0 + load_parameter(row, 1)
        stop = out + n_symbols
        return _finish(source, limit, byte1, byte0 << U3, out, stop, table, singles, wide, mask)
    quarter = (n_symbols + U3) >> U2
    byte1 = byte0 + load_parameter(row, 1)
    byte2 = byte1 + load_parameter(row, 2)
    byte3 = byte2 + load_parameter(row, 3)
    byte4 = byte3 + load_parameter(row, 4)
    position0, position1, position2, position3 = byte0 << U3, byte1 << U3, byte2 << U3, byte3 << U3
    stop3 = out + n_symbols
    stop0 = min(out + quarter, stop3)
    stop1 = min(stop0 + quarter, stop3)
    stop2 = min(stop1 + quarter, stop3)
    out0, out1, out2, out3 = out, stop0, stop1, stop2
    while True:
        rounds = min(
            _rounds(limit, window, most, position0, out0, stop0),
            _rounds(limit, window, most, position1, out1, stop1),
            _rounds(limit, window, most, position2, out2, stop2),
            _rounds(limit, window, most, position3, out3, stop3),
        )
        if rounds <= 0:
            break
        if wide:
            while rounds > 0:
                position0, out0 = _round_wide(source, position0, out0, table, mask)
                position1, out1 = _round_wide(source, position1, out1, table, mask)
                position2, out2 = _round_wide(source, position2, out2, table, mask)
                position3, out3 = _round_wide(source, position3, out3, table, mask)
                rounds -= 1
        else:
            while rounds > 0:
                position0, out0 = _round_narrow(source, position0, out0, table, mask)
                position1, out1 = _round_narrow(source, position1, out1, table, mask)
                position2, out2 = _round_narrow(source, position2, out2, table, mask)
                position3, out3 = _round_narrow(source, position3, out3, table, mask)
                rounds -= 1
    exact = True
    for stream in range(4):
        if stream == 0:
            byte, position, place, stop = byte1, position0, out0, stop0
        elif stream == 1:
            byte, position, place, stop = byte2, position1, out1, stop1
        elif stream == 2:
            byte, position, place, stop = byte3, position2, out2, stop2
        else:
            byte, position, place, stop = byte4, position3, out3, stop3
        exact &= _finish(source, limit, byte, position, place, stop, table, singles, wide, mask)
    return exact
