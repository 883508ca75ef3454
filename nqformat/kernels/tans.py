"""Numba kernels for tANS bitstreams; imported on first use only.

States stay below the table size by construction of the table (base + 2**n_bits <= 2**table_log2), and every
state read from the file is masked to it, so that no look-up leaves the table whatever the bytes say.
"""

from __future__ import annotations

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_BYTES = types.Array(types.uint8, 1, "C", readonly=True)
_STATES = types.Array(types.uint16, 1, "C", readonly=True)
_TABLE = types.Array(types.uint32, 1, "C", readonly=True)
_BOUNDS = types.Array(types.int64, 1, "C", readonly=True)
_OUT = types.Array(types.uint8, 1, "C")
_NUMBERS = types.Array(types.uint64, 1, "C")


@intrinsic
def _load_word(typing_context, buffer, start):  # type: ignore[no-untyped-def]
    """Eight bytes of a uint8 array from `start`, little-endian; the caller has checked the bound."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        place = builder.gep(array.data, [arguments[1]])
        word = builder.load(builder.bitcast(place, ir.IntType(64).as_pointer()))
        word.align = 1
        return word

    return types.uint64(buffer, start), generate


@numba.njit(inline="always")
def _load_tail(buffer, start, stop):  # type: ignore[no-untyped-def]
    """Up to eight bytes from `start`, zero beyond `stop`."""
    word = np.uint64(0)
    for byte in range(min(8, stop - start)):
        word |= np.uint64(buffer[start + byte]) << np.uint64(8 * byte)
    return word


@numba.njit(
    types.int64(_BYTES, _BOUNDS, _BOUNDS, _STATES, types.int64, _NUMBERS, _OUT), cache=True, nogil=True
)
def encode_tans(symbols, frequencies, first_place, states, table_log2, numbers, widths):  # type: ignore[no-untyped-def]
    """Fill numbers and widths as the reference does; returns 0, or 1 for a symbol without frequency."""
    n = symbols.size
    n_lanes = min(2, n)
    if numbers.size != n + n_lanes or widths.size != n + n_lanes or states.size != 1 << table_log2:
        return 1
    n_states = np.int64(1) << table_log2
    first = np.int64(-1)
    second = np.int64(-1)
    for i in range(n - 1, -1, -1):
        symbol = symbols[i]
        count = frequencies[symbol]
        if count <= 0:
            return 1
        state = second if i & 1 else first
        if state < 0:
            state = np.int64(states[first_place[symbol]])
            numbers[n_lanes + i] = 0
            widths[n_lanes + i] = 0
        else:
            whole = state + n_states
            n_bits = np.int64(0)
            while whole >> n_bits >= 2 * count:
                n_bits += 1
            numbers[n_lanes + i] = np.uint64(whole & ((np.int64(1) << n_bits) - 1))
            widths[n_lanes + i] = np.uint8(n_bits)
            state = np.int64(states[first_place[symbol] + (whole >> n_bits) - count])
        if i & 1:
            second = state
        else:
            first = state
    if n_lanes > 0:
        numbers[0] = np.uint64(first)
        widths[0] = np.uint8(table_log2)
    if n_lanes > 1:
        numbers[1] = np.uint64(second)
        widths[1] = np.uint8(table_log2)
    return 0


@numba.njit(inline="always")
def _finish_stream(buffer, start, stop, position, table, table_log2, first, second, place, last, out):  # type: ignore[no-untyped-def]
    """Decode one sub-stream from `place` on, reading no byte beyond `stop`: 0 or 1.

    `first` is the state of the next symbol, `second` that of the one after.
    """
    mask = np.uint64((1 << table_log2) - 1)
    n_bits = np.uint64(8 * (stop - start))
    while place < last:
        entry = np.uint64(table[first & mask])
        out[place] = np.uint8(entry & np.uint64(0xFF))
        if place + 2 < last:
            width = (entry >> np.uint64(8)) & np.uint64(0xFF)
            if position + width > n_bits:
                return 1
            word = _load_tail(buffer, start + np.int64(position >> np.uint64(3)), stop)
            word >>= position & np.uint64(7)
            first = (entry >> np.uint64(16)) + (word & ((np.uint64(1) << width) - np.uint64(1)))
            position += width
        place += 1
        first, second = second, first
    if position > n_bits or n_bits - position >= np.uint64(8):
        return 1
    if position < n_bits and (buffer[stop - 1] >> np.uint8(position & np.uint64(7))) != 0:
        return 1
    return 0


@numba.njit(inline="always")
def _step(table, mask, word, state):  # type: ignore[no-untyped-def]
    """One symbol: the entry, the word without its bits, the next state, and the bits taken."""
    entry = np.uint64(table[state & mask])
    width = (entry >> np.uint64(8)) & np.uint64(0xFF)
    state = (entry >> np.uint64(16)) + (word & ((np.uint64(1) << width) - np.uint64(1)))
    return np.uint8(entry & np.uint64(0xFF)), word >> width, state, width


@numba.njit(inline="always")
def _round(buffer, start, position, table, mask, first, second, out, place):  # type: ignore[no-untyped-def]
    """Four symbols from one word: at most 7 + 4 * 12 bits; the caller has checked every bound."""
    word = _load_word(buffer, start + (position >> np.uint64(3))) >> (position & np.uint64(7))
    out[place], word, first, w0 = _step(table, mask, word, first)
    out[place + np.uint64(1)], word, second, w1 = _step(table, mask, word, second)
    out[place + np.uint64(2)], word, first, w2 = _step(table, mask, word, first)
    out[place + np.uint64(3)], word, second, w3 = _step(table, mask, word, second)
    return position + w0 + w1 + w2 + w3, first, second


@numba.njit(inline="always")
def _safe_rounds(n_bytes, position, n_symbols):  # type: ignore[no-untyped-def]
    """Count rounds of four symbols that stay inside: each takes at most 48 bits and reads 8 bytes ahead.

    The last two symbols read no bits and are left to the careful loop.
    """
    ahead = n_bytes - 8 - np.int64(position >> np.uint64(3))
    if ahead < 0 or n_symbols < 6:
        return np.int64(0)
    return min(ahead // 6 + 1, (n_symbols - 2) // 4)


@numba.njit(types.int32(_BYTES, _BOUNDS, _TABLE, types.int64, _BOUNDS, _OUT), cache=True, nogil=True)
def decode_tans_streams(buffer, byte_bounds, table, table_log2, symbol_bounds, out):  # type: ignore[no-untyped-def]
    """Decode adjacent sub-streams of one tANS code, four at a time where there are four.

    Parameters and return value are those of ``decode_prefix_streams``; `table` is uint32[2**table_log2] with
    ``symbol | n_bits << 8 | next_state_base << 16``.

    Notes
    -----
    The number of unchecked rounds is computed before they run: round r starts at most 6 r bytes after the
    position and reads 8 bytes, so it stays in its sub-stream while 6 r + 8 bytes lie ahead.
    """
    n_streams = byte_bounds.size - 1
    if symbol_bounds.size != byte_bounds.size or table.size != 1 << table_log2:
        return 2
    if table_log2 > 12 or byte_bounds[0] < 0 or byte_bounds[n_streams] > buffer.size:
        return 2
    if symbol_bounds[0] < 0 or symbol_bounds[n_streams] > out.size:
        return 2
    for i in range(n_streams):
        if byte_bounds[i + 1] < byte_bounds[i] or symbol_bounds[i + 1] < symbol_bounds[i]:
            return 2
        n_lanes = min(2, symbol_bounds[i + 1] - symbol_bounds[i])
        if 8 * (byte_bounds[i + 1] - byte_bounds[i]) < n_lanes * table_log2:
            return 1
    mask = np.uint64((1 << table_log2) - 1)
    log2 = np.uint64(table_log2)
    if n_streams == 4 and symbol_bounds[4] - symbol_bounds[3] >= 8:
        b0, b1, b2, b3 = byte_bounds[0], byte_bounds[1], byte_bounds[2], byte_bounds[3]
        o0, o1 = np.uint64(symbol_bounds[0]), np.uint64(symbol_bounds[1])
        o2, o3 = np.uint64(symbol_bounds[2]), np.uint64(symbol_bounds[3])
        u0, u1, u2, u3 = np.uint64(b0), np.uint64(b1), np.uint64(b2), np.uint64(b3)
        p0 = p1 = p2 = p3 = np.uint64(2) * log2
        x0 = _load_tail(buffer, b0, byte_bounds[1])
        x1 = _load_tail(buffer, b1, byte_bounds[2])
        x2 = _load_tail(buffer, b2, byte_bounds[3])
        x3 = _load_tail(buffer, b3, byte_bounds[4])
        y0, y1, y2, y3 = (x0 >> log2) & mask, (x1 >> log2) & mask, (x2 >> log2) & mask, (x3 >> log2) & mask
        x0, x1, x2, x3 = x0 & mask, x1 & mask, x2 & mask, x3 & mask
        while True:
            rounds = min(
                _safe_rounds(byte_bounds[1] - b0, p0, symbol_bounds[1] - np.int64(o0)),
                _safe_rounds(byte_bounds[2] - b1, p1, symbol_bounds[2] - np.int64(o1)),
                _safe_rounds(byte_bounds[3] - b2, p2, symbol_bounds[3] - np.int64(o2)),
                _safe_rounds(byte_bounds[4] - b3, p3, symbol_bounds[4] - np.int64(o3)),
            )
            if rounds <= 0:
                break
            for _ in range(rounds):
                p0, x0, y0 = _round(buffer, u0, p0, table, mask, x0, y0, out, o0)
                p1, x1, y1 = _round(buffer, u1, p1, table, mask, x1, y1, out, o1)
                p2, x2, y2 = _round(buffer, u2, p2, table, mask, x2, y2, out, o2)
                p3, x3, y3 = _round(buffer, u3, p3, table, mask, x3, y3, out, o3)
                o0 += np.uint64(4)
                o1 += np.uint64(4)
                o2 += np.uint64(4)
                o3 += np.uint64(4)
        if _finish_stream(
            buffer, b0, byte_bounds[1], p0, table, table_log2, x0, y0, np.int64(o0), symbol_bounds[1], out
        ):
            return 1
        if _finish_stream(
            buffer, b1, byte_bounds[2], p1, table, table_log2, x1, y1, np.int64(o1), symbol_bounds[2], out
        ):
            return 1
        if _finish_stream(
            buffer, b2, byte_bounds[3], p2, table, table_log2, x2, y2, np.int64(o2), symbol_bounds[3], out
        ):
            return 1
        return _finish_stream(
            buffer, b3, byte_bounds[4], p3, table, table_log2, x3, y3, np.int64(o3), symbol_bounds[4], out
        )
    for i in range(n_streams):
        start, stop = byte_bounds[i], byte_bounds[i + 1]
        place, last = symbol_bounds[i], symbol_bounds[i + 1]
        n_lanes = min(2, last - place)
        word = _load_tail(buffer, start, stop)
        x = word & mask
        y = (word >> log2) & mask
        position = np.uint64(n_lanes) * log2
        while True:
            rounds = _safe_rounds(stop - start, position, last - place)
            if rounds <= 0:
                break
            for _ in range(rounds):
                position, x, y = _round(
                    buffer, np.uint64(start), position, table, mask, x, y, out, np.uint64(place)
                )
                place += 4
        if _finish_stream(buffer, start, stop, position, table, table_log2, x, y, place, last, out):
            return 1
    return 0
