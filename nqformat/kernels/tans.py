"""Kernels for chunks under a tANS code (spec 5.3).

A table entry is ``n_bits | symbol << 8 | next_state_base << 16``: with the bits lowest, an entry shifts and
masks the bitstream as it is. States stay below the table size by construction of the table
(base + 2**n_bits <= 2**table_log2), and those read from the file are masked to it, so that no look-up leaves
the table whatever the bytes say.
"""

from __future__ import annotations

import numpy as np

from .memory import count_leading_zeros, load8, load32, load64, load_parameter, store8
from .words import SENTINEL, U0, U1, U2, U3, U4, U7, U8, U16, U255, helper, inlined, load_tail

_ROUND_BITS = np.int64(48)
_STATE_BITS_MASK = U255


@inlined
def _step(table, word, state):  # type: ignore[no-untyped-def]
    """One symbol: the entry, the word without its bits, and the next state."""
    entry = load32(table + (state << U2))
    n_bits = entry & _STATE_BITS_MASK
    return entry, word >> n_bits, (entry >> U16) + (word & ((U1 << n_bits) - U1))


@inlined
def _round(source, position, table, first, second, out):  # type: ignore[no-untyped-def]
    """Four symbols after one load, of at most 12 bits each; returns the new bit position and states."""
    word = (load64(source + (position >> U3)) >> (position & U7)) | SENTINEL
    entry, word, first = _step(table, word, first)
    store8(out, entry >> U8)
    entry, word, second = _step(table, word, second)
    store8(out + U1, entry >> U8)
    entry, word, first = _step(table, word, first)
    store8(out + U2, entry >> U8)
    entry, word, second = _step(table, word, second)
    store8(out + U3, entry >> U8)
    return position + count_leading_zeros(word), first, second


@helper
def _rounds_by_bits(limit, position):  # type: ignore[no-untyped-def]
    """Count the rounds whose loads of 8 bytes end at or before `limit`: each takes at most 48 bits."""
    n_bits = np.int64((limit << U3) - position) - 64
    if n_bits < 0:
        return np.int64(0)
    return n_bits // _ROUND_BITS + 1


@helper
def _start(source, limit, byte, mask, log2, n_symbols):  # type: ignore[no-untyped-def]
    """Bit position after the first states of a sub-stream, and these states."""
    word = load64(source + byte) if byte + U8 <= limit else load_tail(source, byte, limit)
    position = (byte << U3) + min(n_symbols, U2) * log2
    return position, word & mask, (word >> log2) & mask


@helper
def _finish(source, limit, stop_byte, position, first, second, out, stop, table):  # type: ignore[no-untyped-def]
    """Decode the rest of one sub-stream and check its end; True if it is exact.

    The last two symbols take no bits, as no symbol follows in their lanes.
    """
    while out + U4 + U2 <= stop and (position >> U3) + U8 <= limit:
        position, first, second = _round(source, position, table, first, second, out)
        out += U4
    end = stop_byte << U3
    while out < stop:
        if position > end:
            return False
        start = position >> U3
        word = load64(source + start) if start + U8 <= limit else load_tail(source, start, limit)
        entry, _rest, state = _step(table, word >> (position & U7), first)
        store8(out, entry >> U8)
        if out + U2 < stop:
            position += entry & _STATE_BITS_MASK
        first, second = second, state
        out += U1
    if position > end or end - position >= U8:
        return False
    return position == end or (load8(source + stop_byte - U1) >> (position & U7)) == U0


@helper
def decode_tans(block, row, out):  # type: ignore[no-untyped-def]
    """Decode the one or four sub-streams of a tANS chunk to its symbols at `out`.

    The caller has checked that the sub-streams lie below `limit`; nothing is written beyond the symbols, as
    the rounds of the four sub-streams together stay two symbols short of the shortest one's end.
    """
    source, limit = load_parameter(block, 0), load_parameter(block, 1)
    table, log2 = load_parameter(block, 3), load_parameter(block, 5)
    mask = (U1 << log2) - U1
    byte0, n = load_parameter(row, 0), load_parameter(row, 6)
    byte1 = byte0 + load_parameter(row, 1)
    if load_parameter(row, 5) == U1:
        position, first, second = _start(source, limit, byte0, mask, log2, n)
        return _finish(source, limit, byte1, position, first, second, out, out + n, table)
    byte2 = byte1 + load_parameter(row, 2)
    byte3 = byte2 + load_parameter(row, 3)
    byte4 = byte3 + load_parameter(row, 4)
    bound1 = min((n + U3) >> U2, n)
    bound2, bound3 = min(bound1 + bound1, n), min(bound1 + bound1 + bound1, n)
    p0, x0, y0 = _start(source, limit, byte0, mask, log2, bound1)
    p1, x1, y1 = _start(source, limit, byte1, mask, log2, bound2 - bound1)
    p2, x2, y2 = _start(source, limit, byte2, mask, log2, bound3 - bound2)
    p3, x3, y3 = _start(source, limit, byte3, mask, log2, n - bound3)
    place = out
    by_symbols = (np.int64(n - bound3) - 2) >> 2
    while True:
        rounds = min(
            by_symbols,
            _rounds_by_bits(limit, p0),
            _rounds_by_bits(limit, p1),
            _rounds_by_bits(limit, p2),
            _rounds_by_bits(limit, p3),
        )
        if rounds <= 0:
            break
        by_symbols -= rounds
        while rounds > 0:
            p0, x0, y0 = _round(source, p0, table, x0, y0, place)
            p1, x1, y1 = _round(source, p1, table, x1, y1, place + bound1)
            p2, x2, y2 = _round(source, p2, table, x2, y2, place + bound2)
            p3, x3, y3 = _round(source, p3, table, x3, y3, place + bound3)
            place += U4
            rounds -= 1
    done = place - out
    exact = True
    for stream in range(4):
        if stream == 0:
            byte, position, first, second, start, stop = byte1, p0, x0, y0, U0, bound1
        elif stream == 1:
            byte, position, first, second, start, stop = byte2, p1, x1, y1, bound1, bound2
        elif stream == 2:
            byte, position, first, second, start, stop = byte3, p2, x2, y2, bound2, bound3
        else:
            byte, position, first, second, start, stop = byte4, p3, x3, y3, bound3, n
        exact &= _finish(source, limit, byte, position, first, second, out + start + done, out + stop, table)
    return exact
