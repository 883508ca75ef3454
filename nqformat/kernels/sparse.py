"""Kernels of sparse tensors and of hybrid numbers: gaps to elements (spec 4.3 and 7.4)."""

from __future__ import annotations

import numpy as np

from .blocks import CODED, TILE_ELEMENTS
from .chunk_symbols import decode_numbers
from .memory import clear_bytes, load8, load64, load_parameter, order_stores, store32, store64
from .words import (
    BASE_MASK,
    DAMAGED,
    U0,
    U1,
    U2,
    U3,
    U4,
    U7,
    U8,
    U56,
    U64,
    first_tile,
    helper,
    inlined,
    load_tail,
    move_out,
    store_value,
)


@inlined
def _gap(gaps, symbol, extra, bit, readable):  # type: ignore[no-untyped-def]
    """Read a gap and count its extra bits; a load that would pass `readable` takes the bytes below it."""
    entry = load64(gaps + (symbol << U3))
    n_bits = entry >> U56
    start = bit >> U3
    word = load64(extra + start) if start + U8 <= readable else load_tail(extra, start, readable)
    return (entry & BASE_MASK) + ((word >> (bit & U7)) & ((U1 << n_bits) - U1)), n_bits


@helper
def _fill_rows(block, symbols, numbers, n, extra, readable, position):  # type: ignore[no-untyped-def]
    """Write zeros and n values by their gaps, from a position on; returns the position after them and bits.

    Elements are put together in a tile that stays in cache and is written once, so that each line of the
    result is stored whole. A position is compared with the tile's end before its value is stored, and that
    end never exceeds the elements.
    """
    out, size, values = load_parameter(block, 1), load_parameter(block, 2), load_parameter(block, 3)
    n_elements, tile, streamed = (
        load_parameter(block, 9),
        load_parameter(block, 10),
        load_parameter(block, 11),
    )
    gaps = load_parameter(block, 12)
    bit = U0
    first = position
    stop = min(first + first_tile(out + first * size, size), n_elements)
    clear_bytes(tile, U64(TILE_ELEMENTS) * size)
    i = U0
    while i < n:
        gap, n_bits = _gap(gaps, load8(symbols + i), extra, bit, readable)
        place = position + gap
        if place >= stop:
            if place >= n_elements:
                return n_elements + U1, bit
            move_out(tile, (stop - first) * size, out + first * size, streamed)
            first = stop
            stop = min(first + U64(TILE_ELEMENTS), n_elements)
            clear_bytes(tile, U64(TILE_ELEMENTS) * size)
            continue
        value = load64(values + (load8(numbers + i) << U3))
        if size == U4:
            store32(tile + ((place - first) << U2), value)
        else:
            store_value(tile, place - first, size, value)
        bit += n_bits
        position = place + U1
        i += U1
    move_out(tile, (position - first) * size, out + first * size, streamed)
    return position, bit


@helper
def _fill_columns(block, symbols, numbers, n, extra, readable, position):  # type: ignore[no-untyped-def]
    """Store n values by their gaps in a column scan; returns the position after them and the bits.

    The result is zero before. Each position is compared with the elements before its value is stored.
    """
    out, size, values = load_parameter(block, 1), load_parameter(block, 2), load_parameter(block, 3)
    n_elements, gaps = load_parameter(block, 9), load_parameter(block, 12)
    n_rows, n_columns = load_parameter(block, 13), load_parameter(block, 14)
    bit = U0
    row, column = position % n_rows, position // n_rows
    for i in range(np.int64(n)):
        gap, n_bits = _gap(gaps, load8(symbols + U64(i)), extra, bit, readable)
        bit += n_bits
        position += gap
        if position >= n_elements:
            return n_elements + U1, bit
        position += U1
        row += gap
        if row >= n_rows:
            column += row // n_rows
            row %= n_rows
        store_value(out, row * n_columns + column, size, load64(values + (load8(numbers + U64(i)) << U3)))
        row += U1
    return position, bit


@helper
def _scatter_gaps(block, symbols, numbers, n, extra, extra_bytes, readable, position):  # type: ignore[no-untyped-def]
    """Place n values by their gap symbols; returns the scan position after the last, or -1."""
    n_elements = load_parameter(block, 9)
    if position > n_elements:
        return DAMAGED
    if load_parameter(block, 13) == U0:
        position, bit = _fill_rows(block, symbols, numbers, n, extra, readable, position)
    else:
        position, bit = _fill_columns(block, symbols, numbers, n, extra, readable, position)
    if position > n_elements or (bit + U7) >> U3 != extra_bytes:
        return DAMAGED
    if bit & U7 != U0 and (load8(extra + (bit >> U3)) >> (bit & U7)) != U0:
        return DAMAGED
    return np.int64(position)


@helper
def decode_sparse(block):  # type: ignore[no-untyped-def]
    """Decode rows `first` to `last` of a sparse tensor; each row is a chunk of both streams.

    Without column scan, the elements up to the last stored one are written; the rest is the caller's.
    """
    stream, gap_stream = load_parameter(block, 0), load_parameter(block, 15)
    buffer, spare, symbols = load_parameter(block, 5), load_parameter(block, 6), load_parameter(block, 16)
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
    if load_parameter(block, 11) != U0:
        order_stores()
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
