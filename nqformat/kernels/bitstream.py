"""Kernels on raw addresses, compiled by Numba into one function; imported on first compilation only.

:func:`run_kernel` is the only entry: a kernel number and the address of a block of int64 parameters
(``blocks.py`` names the places). No kernel allocates, raises or calls back; each returns a status, 0 or more
if all went well and -1 if the data is damaged. Every function states why its accesses stay inside the
areas that its caller vouches for.
"""

from __future__ import annotations

import numba
import numpy as np

from .blocks import (
    BYTES,
    CODED,
    COUNT,
    DENSE,
    HYBRID,
    MASK,
    PACK_BITS,
    PACK_CODES,
    PLANES,
    POPCOUNT,
    POSITIONS_TILE,
    SINGLE,
    SPARSE,
    STORED,
    TABLE,
    WIDE,
)
from .memory import (
    clear_bytes,
    count_leading_zeros,
    count_ones,
    load8,
    load16,
    load32,
    load64,
    load_parameter,
    store8,
    store16,
    store32,
    store64,
)

_helper = numba.njit(error_model="numpy")
_inlined = numba.njit(error_model="numpy", forceinline=True)

_U = np.uint64
_0, _1, _2, _3, _4, _6, _7, _8 = (np.uint64(i) for i in (0, 1, 2, 3, 4, 6, 7, 8))
_16, _32, _48, _56, _63, _255 = (np.uint64(i) for i in (16, 32, 48, 56, 63, 255))
_SENTINEL = np.uint64(1 << 63)
_NIBBLE_PAIRS = np.uint64(0x00FF00FF00FF00FF)
_BASE_MASK = np.uint64((1 << 56) - 1)
_DAMAGED = np.int64(-1)


@_helper
def _load_tail(source, start, stop):  # type: ignore[no-untyped-def]
    """Up to eight bytes from offset `start`, zero from `stop` on."""
    word = _0
    shift = _0
    while start < stop and shift < _U(64):
        word |= load8(source + start) << shift
        shift += _8
        start += _1
    return word


@_inlined
def _round_wide(source, position, out, table, mask):  # type: ignore[no-untyped-def]
    """Four look-ups of up to six symbols after one load; returns the new bit position and place."""
    word = (load64(source + (position >> _3)) >> (position & _7)) | _SENTINEL
    for _ in range(4):
        entry = load64(table + ((word & mask) << _3))
        word >>= entry & _63
        store64(out, entry >> _16)
        out += (entry >> _8) & _255
    return position + count_leading_zeros(word), out


@_inlined
def _round_narrow(source, position, out, table, mask):  # type: ignore[no-untyped-def]
    """Four look-ups of up to three symbols after one load."""
    word = (load64(source + (position >> _3)) >> (position & _7)) | _SENTINEL
    for _ in range(4):
        entry = load32(table + ((word & mask) << _2))
        word >>= entry & _63
        store32(out, entry >> _8)
        out += (entry >> _6) & _3
    return position + count_leading_zeros(word), out


@_helper
def _rounds(limit, window, most, position, out, stop):  # type: ignore[no-untyped-def]
    """Count the rounds that are safe for one sub-stream, at most 2**40.

    A round takes at most ``4 * window`` bits (52) and writes at most ``4 * most`` numbers. With this count
    every load of 8 bytes ends at or before `limit` and every store of 8 bytes at or before `stop`.
    """
    n_bits = np.int64((limit << _3) - position) - 64
    n_numbers = np.int64(stop - out) - 8
    if n_bits < 0 or n_numbers < 0:
        return np.int64(0)
    by_bits = n_bits // np.int64(window << _2)
    by_numbers = n_numbers // np.int64(most << _2)
    return min(by_bits, by_numbers)


@_helper
def _finish(source, limit, stop_byte, position, out, stop, table, singles, wide, mask):  # type: ignore[no-untyped-def]
    """Decode the rest of one sub-stream and check its end; True if it is exact."""
    if wide:
        while out + _32 <= stop and (position >> _3) + _8 <= limit:
            position, out = _round_wide(source, position, out, table, mask)
    else:
        while out + _32 <= stop and (position >> _3) + _8 <= limit:
            position, out = _round_narrow(source, position, out, table, mask)
    end = stop_byte << _3
    while out < stop:
        if position >= end:
            return False
        start = position >> _3
        word = load64(source + start) if start + _8 <= limit else _load_tail(source, start, limit)
        entry = load16(singles + (((word >> (position & _7)) & mask) << _1))
        store8(out, entry)
        out += _1
        position += entry >> _8
    if position > end or end - position >= _8:
        return False
    return position == end or (load8(source + stop_byte - _1) >> (position & _7)) == _0


@_helper
def _decode_coded(block, row, out):  # type: ignore[no-untyped-def]
    """Decode the one or four sub-streams of a prefix-coded chunk to its symbols at `out`.

    The caller has checked that the sub-streams lie below `limit`; nothing is written beyond the symbols.
    """
    source, limit = load_parameter(block, 0), load_parameter(block, 1)
    wide = load_parameter(block, 2) == _U(WIDE)
    table, singles = load_parameter(block, 3), load_parameter(block, 4)
    window, most = load_parameter(block, 5), load_parameter(block, 6)
    mask = (_1 << window) - _1
    byte0 = load_parameter(row, 0)
    n_symbols = load_parameter(row, 6)
    if load_parameter(row, 5) == _1:
        byte1 = byte0 + load_parameter(row, 1)
        stop = out + n_symbols
        return _finish(source, limit, byte1, byte0 << _3, out, stop, table, singles, wide, mask)
    quarter = (n_symbols + _3) >> _2
    byte1 = byte0 + load_parameter(row, 1)
    byte2 = byte1 + load_parameter(row, 2)
    byte3 = byte2 + load_parameter(row, 3)
    byte4 = byte3 + load_parameter(row, 4)
    position0, position1, position2, position3 = byte0 << _3, byte1 << _3, byte2 << _3, byte3 << _3
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


@_helper
def _decode_symbols(block, row, out):  # type: ignore[no-untyped-def]
    """Decode a chunk of any codec to its symbols; returns whether it is intact.

    The places of the last group beyond the numbers must be zero (spec 4.2).
    """
    source, limit, kind = load_parameter(block, 0), load_parameter(block, 1), load_parameter(block, 2)
    start, n_coded = load_parameter(row, 0), load_parameter(row, 1)
    n_symbols, n_numbers = load_parameter(row, 6), load_parameter(row, 7)
    n_all = n_coded + load_parameter(row, 2) + load_parameter(row, 3) + load_parameter(row, 4)
    if start > limit or n_all > limit - start:
        return False
    if kind == _U(STORED):
        if n_coded != n_symbols:
            return False
        highest = _0
        for i in range(np.int64(n_symbols)):
            symbol = load8(source + start + _U(i))
            store8(out + _U(i), symbol)
            highest = max(highest, symbol)
        if highest > load_parameter(block, 9):
            return False
    elif kind == _U(SINGLE):
        if n_all != _0:
            return False
        symbol = load_parameter(block, 10)
        for i in range(np.int64(n_symbols)):
            store8(out + _U(i), symbol)
    elif not _decode_coded(block, row, out):
        return False
    filling = n_symbols * load_parameter(block, 7) - n_numbers
    if filling == _0:
        return True
    last = load64(load_parameter(block, 8) + (load8(out + n_symbols - _1) << _3))
    return last >> ((load_parameter(block, 7) - filling) << _3) == _0


@_helper
def _decode_numbers(block, row, out, spare):  # type: ignore[no-untyped-def]
    """Decode a chunk of any codec to numbers of one byte each; returns whether it is intact.

    `out` and `spare` have room for the numbers of a chunk and 16 bytes; with groups of one, `out` needs no
    spare bytes and `spare` is not used.
    """
    group = load_parameter(block, 7)
    if group == _1:
        return _decode_symbols(block, row, out)
    if not _decode_symbols(block, row, spare):
        return False
    spread = load_parameter(block, 8)
    for i in range(np.int64(load_parameter(row, 6))):
        store64(out + _U(i) * group, load64(spread + (load8(spare + _U(i)) << _3)))
    return True


@_helper
def _map_groups(symbols, n_symbols, n_numbers, group, size, tuples, out):  # type: ignore[no-untyped-def]
    """Write the `group` values of each symbol, `size` bytes each, from rows of whole uint64 words.

    Rows are stored whole while they end inside the values; the last ones go byte by byte.
    """
    row_bytes = group * size
    n_words = (row_bytes + _7) >> _3
    stop = out + n_numbers * size
    row_shift = n_words << _3
    i = _0
    if row_bytes == _2:
        while i + _4 <= n_symbols and out + _8 <= stop:
            word = load32(symbols + i)
            low = load64(tuples + ((word & _255) << _3)) | (
                load64(tuples + (((word >> _8) & _255) << _3)) << _16
            )
            high = load64(tuples + (((word >> _16) & _255) << _3)) | (
                load64(tuples + ((word >> _U(24)) << _3)) << _16
            )
            store64(out, low | (high << _32))
            out += _8
            i += _4
    elif n_words == _1:
        while i + _4 <= n_symbols and out + _32 <= stop:
            word = load32(symbols + i)
            for _ in range(4):
                store64(out, load64(tuples + ((word & _255) << _3)))
                out += row_bytes
                word >>= _8
            i += _4
    else:
        while i < n_symbols and out + row_shift <= stop:
            row = tuples + load8(symbols + i) * row_shift
            place = out
            for _ in range(np.int64(n_words)):
                store64(place, load64(row))
                place += _8
                row += _8
            out += row_bytes
            i += _1
    while i < n_symbols:
        row = tuples + load8(symbols + i) * row_shift
        end = min(out + row_bytes, stop)
        while out < end:
            store8(out, load8(row))
            out += _1
            row += _1
        i += _1


@_helper
def _map_numbers(numbers, n, size, values, pairs, out):  # type: ignore[no-untyped-def]
    """Write the value of each number: `size` bytes each from uint64 `values`.

    `pairs`, if not 0, has the values of two numbers below 16 for each byte that joins them; only for sizes
    2 and 4. Reads and writes exactly n numbers and values.
    """
    whole = np.int64(n & ~_7)
    i = _0
    if size == _4 and pairs != _0:
        for _ in range(0, whole, 8):
            word = load64(numbers + i)
            word = (word | (word >> _4)) & _NIBBLE_PAIRS
            place = out + (i << _2)
            store64(place, load64(pairs + ((word & _255) << _3)))
            store64(place + _8, load64(pairs + (((word >> _16) & _255) << _3)))
            store64(place + _16, load64(pairs + (((word >> _32) & _255) << _3)))
            store64(place + _U(24), load64(pairs + ((word >> _48) << _3)))
            i += _8
    elif size == _2 and pairs != _0:
        for _ in range(0, whole, 8):
            word = load64(numbers + i)
            word = (word | (word >> _4)) & _NIBBLE_PAIRS
            place = out + (i << _1)
            store32(place, load64(pairs + ((word & _255) << _3)))
            store32(place + _4, load64(pairs + (((word >> _16) & _255) << _3)))
            store32(place + _8, load64(pairs + (((word >> _32) & _255) << _3)))
            store32(place + _U(12), load64(pairs + ((word >> _48) << _3)))
            i += _8
    elif size == _4:
        for _ in range(0, whole, 8):
            word = load64(numbers + i)
            place = out + (i << _2)
            for k in range(4):
                first = load64(values + ((word & _255) << _3))
                second = load64(values + (((word >> _8) & _255) << _3))
                store64(place + _U(8 * k), first | (second << _32))
                word >>= _16
            i += _8
    while i < n:
        value = load64(values + (load8(numbers + i) << _3))
        if size == _4:
            store32(out + (i << _2), value)
        elif size == _2:
            store16(out + (i << _1), value)
        elif size == _8:
            store64(out + (i << _3), value)
        else:
            store8(out + i, value)
        i += _1


@_helper
def _decode_dense(block):  # type: ignore[no-untyped-def]
    """Decode rows `first` to `last` of a dense tensor, each through a buffer that stays in cache."""
    stream, out, size = load_parameter(block, 0), load_parameter(block, 1), load_parameter(block, 2)
    values, joined, buffer = load_parameter(block, 3), load_parameter(block, 4), load_parameter(block, 5)
    row_bytes = _U(8 * CODED)
    row = load_parameter(stream, 11) + load_parameter(block, 7) * row_bytes
    group = load_parameter(stream, 7)
    for _ in range(np.int64(load_parameter(block, 7)), np.int64(load_parameter(block, 8))):
        place, n = load_parameter(row, 9), load_parameter(row, 7)
        if place > load_parameter(block, 9) or n > load_parameter(block, 9) - place:
            return _DAMAGED
        direct = size == _0 and group == _1
        if not _decode_symbols(stream, row, out + place if direct else buffer):
            return _DAMAGED
        if size == _0:
            if not direct:
                n_symbols, spread = load_parameter(row, 6), load_parameter(stream, 8)
                _map_groups(buffer, n_symbols, n, group, _1, spread, out + place)
        elif group == _1:
            _map_numbers(buffer, n, size, values, joined, out + place * size)
        else:
            _map_groups(buffer, load_parameter(row, 6), n, group, size, joined, out + place * size)
        row += row_bytes
    return np.int64(0)


@_inlined
def _store_value(out, place, size, value):  # type: ignore[no-untyped-def]
    if size == _4:
        store32(out + (place << _2), value)
    elif size == _2:
        store16(out + (place << _1), value)
    elif size == _8:
        store64(out + (place << _3), value)
    else:
        store8(out + place, value)


@_helper
def _scatter_gaps(block, symbols, numbers, n, extra, extra_bytes, readable, position):  # type: ignore[no-untyped-def]
    """Place n values by their gap symbols, zeros between; returns the scan position after the last, or -1.

    A tile of positions is computed and compared with the number of elements, then its range is cleared while
    it fits the cache, then its values are stored. With a column scan nothing is cleared. Loads of extra bits
    that would pass `readable` take the bytes below it only.
    """
    out, size, values = load_parameter(block, 1), load_parameter(block, 2), load_parameter(block, 3)
    n_elements, gaps = load_parameter(block, 9), load_parameter(block, 10)
    n_rows, n_columns = load_parameter(block, 11), load_parameter(block, 12)
    places = load_parameter(block, 15)
    bit = _0
    row = column = _0
    if n_rows != _0:
        row, column = position % n_rows, position // n_rows
    if position > n_elements:
        return _DAMAGED
    done = _0
    while done < n:
        n_tile = min(n - done, _U(POSITIONS_TILE))
        tile_start = position
        for i in range(np.int64(n_tile)):
            entry = load64(gaps + (load8(symbols + done + _U(i)) << _3))
            width = entry >> _56
            start = bit >> _3
            word = load64(extra + start) if start + _8 <= readable else _load_tail(extra, start, readable)
            gap = (entry & _BASE_MASK) + ((word >> (bit & _7)) & ((_1 << width) - _1))
            bit += width
            position += gap
            if position >= n_elements:
                return _DAMAGED
            place = position
            position += _1
            if n_rows != _0:
                row += gap
                if row >= n_rows:
                    column += row // n_rows
                    row %= n_rows
                place = row * n_columns + column
                row += _1
            store64(places + (_U(i) << _3), place)
        if n_rows == _0:
            clear_bytes(out + tile_start * size, (position - tile_start) * size)
        if size == _4:
            for i in range(np.int64(n_tile)):
                value = load64(values + (load8(numbers + done + _U(i)) << _3))
                store32(out + (load64(places + (_U(i) << _3)) << _2), value)
        else:
            for i in range(np.int64(n_tile)):
                value = load64(values + (load8(numbers + done + _U(i)) << _3))
                _store_value(out, load64(places + (_U(i) << _3)), size, value)
        done += n_tile
    if (bit + _7) >> _3 != extra_bytes:
        return _DAMAGED
    if bit & _7 != _0 and (load8(extra + (bit >> _3)) >> (bit & _7)) != _0:
        return _DAMAGED
    return np.int64(position)


@_helper
def _decode_sparse(block):  # type: ignore[no-untyped-def]
    """Decode rows `first` to `last` of a sparse tensor; each row is a chunk of both streams.

    Without column scan, the elements up to the last stored one are written; the rest is the caller's.
    """
    stream, gap_stream = load_parameter(block, 0), load_parameter(block, 13)
    buffer, spare, symbols = load_parameter(block, 5), load_parameter(block, 6), load_parameter(block, 14)
    row_bytes = _U(8 * CODED)
    end = np.int64(0)
    row = load_parameter(stream, 11) + load_parameter(block, 7) * row_bytes
    gap_row = load_parameter(gap_stream, 11) + load_parameter(block, 7) * row_bytes
    for _ in range(np.int64(load_parameter(block, 7)), np.int64(load_parameter(block, 8))):
        n = load_parameter(row, 7)
        if n != load_parameter(gap_row, 7):
            return _DAMAGED
        if not _decode_numbers(stream, row, buffer, spare):
            return _DAMAGED
        if not _decode_numbers(gap_stream, gap_row, symbols, spare):
            return _DAMAGED
        start = load_parameter(gap_row, 0)
        for i in range(1, 5):
            start += load_parameter(gap_row, i)
        limit = load_parameter(gap_stream, 1)
        extra_bytes = load_parameter(gap_row, 8)
        if extra_bytes > limit - start:
            return _DAMAGED
        extra = load_parameter(gap_stream, 0) + start
        end = _scatter_gaps(
            block, symbols, buffer, n, extra, extra_bytes, limit - start, load_parameter(gap_row, 9)
        )
        expected = np.int64(load_parameter(gap_row, 10))
        if end < 0 or (expected >= 0 and end != expected):
            return _DAMAGED
        row += row_bytes
        gap_row += row_bytes
    return end


@_helper
def _expand_mask(block):  # type: ignore[no-untyped-def]
    """Write the elements of mask bytes: a value where a bit is set, else zero; returns the values used.

    `numbers` has one readable byte beyond the set bits. Elements end at `n_elements`; bits beyond it were
    checked by the caller, and are not looked at here.
    """
    mask, n_elements, numbers = load_parameter(block, 0), load_parameter(block, 1), load_parameter(block, 2)
    values, size, out = load_parameter(block, 3), load_parameter(block, 4), load_parameter(block, 5)
    used = _0
    place = _0
    for _ in range(np.int64(n_elements >> _3)):
        bits = load8(mask)
        mask += _1
        for _ in range(8):
            kept = bits & _1
            value = load64(values + (load8(numbers + used) << _3)) & (_0 - kept)
            _store_value(out, place, size, value)
            used += kept
            bits >>= _1
            place += _1
    if place < n_elements:
        bits = load8(mask)
        while place < n_elements:
            kept = bits & _1
            value = load64(values + (load8(numbers + used) << _3)) & (_0 - kept)
            _store_value(out, place, size, value)
            used += kept
            bits >>= _1
            place += _1
    return np.int64(used)


@_helper
def _count_mask(block):  # type: ignore[no-untyped-def]
    """Set bits of n bytes."""
    start, n = load_parameter(block, 0), load_parameter(block, 1)
    total = _0
    for i in range(np.int64(n >> _3)):
        total += count_ones(load64(start + (_U(i) << _3)))
    for i in range(np.int64(n & ~_7), np.int64(n)):
        total += count_ones(load8(start + _U(i)))
    return np.int64(total)


@_helper
def _join_hybrid(block):  # type: ignore[no-untyped-def]
    """Numbers of hybrid symbols as int64; -1 if a symbol stands for none or the extra bits are not exact."""
    symbols, n, bases = load_parameter(block, 0), load_parameter(block, 1), load_parameter(block, 2)
    extra, extra_bytes, out = load_parameter(block, 3), load_parameter(block, 4), load_parameter(block, 5)
    bit = _0
    for i in range(np.int64(n)):
        entry = load64(bases + (load8(symbols + _U(i)) << _3))
        if entry == _BASE_MASK:
            return _DAMAGED
        width = entry >> _56
        start = bit >> _3
        word = load64(extra + start) if start + _8 <= extra_bytes else _load_tail(extra, start, extra_bytes)
        number = (entry & _BASE_MASK) + ((word >> (bit & _7)) & ((_1 << width) - _1))
        store64(out + (_U(i) << _3), number)
        bit += width
    if (bit + _7) >> _3 != extra_bytes:
        return _DAMAGED
    if bit & _7 != _0 and (load8(extra + (bit >> _3)) >> (bit & _7)) != _0:
        return _DAMAGED
    return np.int64(0)


@_helper
def _join_planes(block):  # type: ignore[no-untyped-def]
    """Elements of 2, 4 or 8 bytes from byte planes, rotated right by one bit if `rotate` is 1."""
    out, n, size, rotate = (
        load_parameter(block, 0), load_parameter(block, 1), load_parameter(block, 2), load_parameter(block, 3)
    )  # fmt: skip
    first, second, third, fourth = (
        load_parameter(block, 4), load_parameter(block, 5), load_parameter(block, 6), load_parameter(block, 7)
    )  # fmt: skip
    if size == _2 and rotate == _1:
        for i in range(np.int64(n)):
            joined = load8(first + _U(i)) | (load8(second + _U(i)) << _8)
            store16(out + (_U(i) << _1), (joined >> _1) | (joined << _U(15)))
    elif size == _2:
        for i in range(np.int64(n)):
            store16(out + (_U(i) << _1), load8(first + _U(i)) | (load8(second + _U(i)) << _8))
    elif size == _4 and rotate == _1:
        for i in range(np.int64(n)):
            low = load8(first + _U(i)) | (load8(second + _U(i)) << _8)
            joined = low | (load8(third + _U(i)) << _16) | (load8(fourth + _U(i)) << _U(24))
            store32(out + (_U(i) << _2), (joined >> _1) | (joined << _U(31)))
    else:
        for i in range(np.int64(n)):
            joined = _0
            for plane in range(np.int64(size)):
                joined |= load8(load_parameter(block, 4 + plane) + _U(i)) << _U(8 * plane)
            if rotate == _1:
                joined = (joined >> _1) | (joined << ((size << _3) - _1))
            _store_value(out, _U(i), size, joined)
    return np.int64(0)


@_helper
def _build_table(block):  # type: ignore[no-untyped-def]
    """Look-up tables of a complete code; returns the most symbols of one entry.

    The caller has checked that the Kraft sum of the 256 lengths is exactly 1 and that no length exceeds
    `window`, so the strided stores of a codeword stay in the table and every entry is filled.
    """
    lengths, window, kind = load_parameter(block, 0), load_parameter(block, 1), load_parameter(block, 2)
    table, singles = load_parameter(block, 3), load_parameter(block, 4)
    n_entries = _1 << window
    code = _0
    for length in range(1, np.int64(window) + 1):
        code <<= _1
        n_bits = _U(length)
        for symbol in range(256):
            if load8(lengths + _U(symbol)) == n_bits:
                reversed_code = _0
                for bit in range(length):
                    reversed_code |= ((code >> _U(bit)) & _1) << _U(length - 1 - bit)
                entry = _U(symbol) | (n_bits << _8)
                while reversed_code < n_entries:
                    store16(singles + (reversed_code << _1), entry)
                    reversed_code += _1 << n_bits
                code += _1
    wide = kind == _U(WIDE)
    room = _6 if wide else _3
    most = _0
    for index in range(np.int64(n_entries)):
        rest = _U(index)
        n_bits = n_numbers = packed = _0
        while n_numbers < room:
            entry = load16(singles + (rest << _1))
            length = entry >> _8
            if n_bits + length > window:
                break
            packed |= (entry & _255) << (n_numbers << _3)
            n_numbers += _1
            n_bits += length
            rest >>= length
        most = max(most, n_numbers)
        if wide:
            store64(table + (_U(index) << _3), n_bits | (n_numbers << _8) | (packed << _16))
        else:
            store32(table + (_U(index) << _2), n_bits | (n_numbers << _6) | (packed << _8))
    return np.int64(most)


@_helper
def _pack_codes(block):  # type: ignore[no-untyped-def]
    """Concatenate the codewords of n symbols; returns bits. `out` has room for 13 bits each and 16 bytes."""
    symbols, n = load_parameter(block, 0), load_parameter(block, 1)
    codes, out = load_parameter(block, 2), load_parameter(block, 3)
    start = out
    buffer = n_buffered = _0
    i = _0
    while i + _4 <= n:
        four = load32(symbols + i)
        a = load32(codes + ((four & _255) << _2))
        b = load32(codes + (((four >> _8) & _255) << _2))
        c = load32(codes + (((four >> _16) & _255) << _2))
        d = load32(codes + ((four >> _U(24)) << _2))
        n_a, n_c = a >> _16, c >> _16
        n_ab = n_a + (b >> _16)
        ab = (a & _U(0xFFFF)) | ((b & _U(0xFFFF)) << n_a)
        cd = (c & _U(0xFFFF)) | ((d & _U(0xFFFF)) << n_c)
        buffer |= (ab | (cd << n_ab)) << n_buffered
        n_buffered += n_ab + n_c + (d >> _16)
        store64(out, buffer)
        out += n_buffered >> _3
        buffer >>= n_buffered & _56
        n_buffered &= _7
        i += _4
    while i < n:
        entry = load32(codes + (load8(symbols + i) << _2))
        buffer |= (entry & _U(0xFFFF)) << n_buffered
        n_buffered += entry >> _16
        store64(out, buffer)
        out += n_buffered >> _3
        buffer >>= n_buffered & _56
        n_buffered &= _7
        i += _1
    store64(out, buffer)
    return np.int64(((out - start) << _3) + n_buffered)


@_helper
def _pack_bits(block):  # type: ignore[no-untyped-def]
    """Concatenate the low bits (at most 56) of n numbers; `out` has room for them and 16 bytes."""
    values, widths = load_parameter(block, 0), load_parameter(block, 1)
    n, out = load_parameter(block, 2), load_parameter(block, 3)
    buffer = n_buffered = _0
    for i in range(np.int64(n)):
        buffer |= load64(values + (_U(i) << _3)) << n_buffered
        n_buffered += load8(widths + _U(i))
        store64(out, buffer)
        out += n_buffered >> _3
        buffer >>= n_buffered & _56
        n_buffered &= _7
    store64(out, buffer)
    return np.int64(0)


@_helper
def _count_symbols(block):  # type: ignore[no-untyped-def]
    """Add the counts of n bytes to four zeroed tables of 256 uint64, which together are the histogram."""
    symbols, n, counts = load_parameter(block, 0), load_parameter(block, 1), load_parameter(block, 2)
    second, third, fourth = counts + _U(2048), counts + _U(4096), counts + _U(6144)
    for i in range(np.int64(n >> _3)):
        word = load64(symbols + (_U(i) << _3))
        for _ in range(2):
            place = counts + ((word & _255) << _3)
            store64(place, load64(place) + _1)
            place = second + (((word >> _8) & _255) << _3)
            store64(place, load64(place) + _1)
            place = third + (((word >> _16) & _255) << _3)
            store64(place, load64(place) + _1)
            place = fourth + (((word >> _U(24)) & _255) << _3)
            store64(place, load64(place) + _1)
            word >>= _32
    for i in range(np.int64(n & ~_7), np.int64(n)):
        place = counts + (load8(symbols + _U(i)) << _3)
        store64(place, load64(place) + _1)
    return np.int64(0)


def run_kernel(kernel, block):  # type: ignore[no-untyped-def]
    """Run kernel number `kernel` on the parameters at address `block`: int64 of two int64."""
    start = np.uint64(block)
    if kernel in (DENSE, BYTES):
        return _decode_dense(start)
    if kernel == SPARSE:
        return _decode_sparse(start)
    if kernel == MASK:
        return _expand_mask(start)
    if kernel == POPCOUNT:
        return _count_mask(start)
    if kernel == HYBRID:
        return _join_hybrid(start)
    if kernel == PLANES:
        return _join_planes(start)
    if kernel == TABLE:
        return _build_table(start)
    if kernel == PACK_CODES:
        return _pack_codes(start)
    if kernel == PACK_BITS:
        return _pack_bits(start)
    if kernel == COUNT:
        return _count_symbols(start)
    return np.int64(-2)
