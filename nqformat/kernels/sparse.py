"""Kernels of sparse tensors and of hybrid numbers: gaps to elements (spec 4.3 and 7.4)."""

from __future__ import annotations

import numpy as np

from .blocks import CODED, POSITIONS_TILE
from .chunk_symbols import decode_numbers
from .memory import clear_bytes, load8, load64, load_parameter, store32, store64
from .words import BASE_MASK, DAMAGED, U0, U1, U2, U3, U4, U7, U8, U56, U64, helper, load_tail, store_value


@helper
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
    bit = U0
    row = column = U0
    if n_rows != U0:
        row, column = position % n_rows, position // n_rows
    if position > n_elements:
        return DAMAGED
    done = U0
    while done < n:
        n_tile = min(n - done, U64(POSITIONS_TILE))
        tile_start = position
        for i in range(np.int64(n_tile)):
            entry = load64(gaps + (load8(symbols + done + U64(i)) << U3))
            width = entry >> U56
            start = bit >> U3
            word = load64(extra + start) if start + U8 <= readable else load_tail(extra, start, readable)
            gap = (entry & BASE_MASK) + ((word >> (bit & U7)) & ((U1 << width) - U1))
            bit += width
            position += gap
            if position >= n_elements:
                return DAMAGED
            place = position
            position += U1
            if n_rows != U0:
                row += gap
                if row >= n_rows:
                    column += row // n_rows
                    row %= n_rows
                place = row * n_columns + column
                row += U1
            store64(places + (U64(i) << U3), place)
        if n_rows == U0:
            clear_bytes(out + tile_start * size, (position - tile_start) * size)
        if size == U4:
            for i in range(np.int64(n_tile)):
                value = load64(values + (load8(numbers + done + U64(i)) << U3))
                store32(out + (load64(places + (U64(i) << U3)) << U2), value)
        else:
            for i in range(np.int64(n_tile)):
                value = load64(values + (load8(numbers + done + U64(i)) << U3))
                store_value(out, load64(places + (U64(i) << U3)), size, value)
        done += n_tile
    if (bit + U7) >> U3 != extra_bytes:
        return DAMAGED
    if bit & U7 != U0 and (load8(extra + (bit >> U3)) >> (bit & U7)) != U0:
        return DAMAGED
    return np.int64(position)


@helper
def decode_sparse(block):  # type: ignore[no-untyped-def]
    """Decode rows `first` to `last` of a sparse tensor; each row is a chunk of both streams.

    Without column scan, the elements up to the last stored one are written; the rest is the caller's.
    """
    stream, gap_stream = load_parameter(block, 0), load_parameter(block, 13)
    buffer, spare, symbols = load_parameter(block, 5), load_parameter(block, 6), load_parameter(block, 14)
    row_bytes = U64(8 * CODED)
    end = np.int64(0)
    row = load_parameter(stream, 11) + load_parameter(block, 7) * row_bytes
    gap_row = load_parameter(gap_stream, 11) + load_parameter(block, 7) * row_bytes
    for _ in range(np.int64(load_parameter(block, 7)), np.int64(load_parameter(block, 8))):
        n = load_parameter(row, 7)
        if n != load_parameter(gap_row, 7):
            return DAMAGED
        if not decode_numbers(stream, row, buffer, spare):
            return DAMAGED
        if not decode_numbers(gap_stream, gap_row, symbols, spare):
            return DAMAGED
        start = load_parameter(gap_row, 0)
        for i in range(1, 5):
            start += load_parameter(gap_row, i)
        limit = load_parameter(gap_stream, 1)
        extra_bytes = load_parameter(gap_row, 8)
        if extra_bytes > limit - start:
            return DAMAGED
        extra = load_parameter(gap_stream, 0) + start
        end = _scatter_gaps(
            block, symbols, buffer, n, extra, extra_bytes, limit - start, load_parameter(gap_row, 9)
        )
        expected = np.int64(load_parameter(gap_row, 10))
        if end < 0 or (expected >= 0 and end != expected):
            return DAMAGED
        row += row_bytes
        gap_row += row_bytes
    return end


@helper
def join_hybrid(block):  # type: ignore[no-untyped-def]
    """Numbers of hybrid symbols as int64; -1 if a symbol stands for none or the extra bits are not exact."""
    symbols, n, bases = load_parameter(block, 0), load_parameter(block, 1), load_parameter(block, 2)
    extra, extra_bytes, out = load_parameter(block, 3), load_parameter(block, 4), load_parameter(block, 5)
    bit = U0
    for i in range(np.int64(n)):
        entry = load64(bases + (load8(symbols + U64(i)) << U3))
        if entry == BASE_MASK:
            return DAMAGED
        width = entry >> U56
        start = bit >> U3
        word = load64(extra + start) if start + U8 <= extra_bytes else load_tail(extra, start, extra_bytes)
        number = (entry & BASE_MASK) + ((word >> (bit & U7)) & ((U1 << width) - U1))
        store64(out + (U64(i) << U3), number)
        bit += width
    if (bit + U7) >> U3 != extra_bytes:
        return DAMAGED
    if bit & U7 != U0 and (load8(extra + (bit >> U3)) >> (bit & U7)) != U0:
        return DAMAGED
    return np.int64(0)
