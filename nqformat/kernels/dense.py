"""Kernels of dense and mask tensors and of byte planes: numbers to elements (spec 6 and 7)."""

from __future__ import annotations

import numpy as np

from .blocks import CODED, TILE_ELEMENTS
from .chunk_symbols import decode_symbols
from .memory import (
    count_ones,
    load8,
    load32,
    load64,
    load_parameter,
    order_stores,
    store8,
    store16,
    store32,
    store64,
)
from .words import (
    DAMAGED,
    NIBBLE_PAIRS,
    U0,
    U1,
    U2,
    U3,
    U4,
    U7,
    U8,
    U16,
    U32,
    U48,
    U64,
    U255,
    first_tile,
    helper,
    move_out,
    store_value,
)


@helper
def _map_groups(symbols, n_symbols, n_numbers, group, size, tuples, out):  # type: ignore[no-untyped-def]
    """Write the `group` values of each symbol, `size` bytes each, from rows of whole uint64 words.

    Rows are stored whole while they end inside the values; the last ones go byte by byte.
    """
    row_bytes = group * size
    n_words = (row_bytes + U7) >> U3
    stop = out + n_numbers * size
    row_shift = n_words << U3
    i = U0
    if row_bytes == U2:
        while i + U4 <= n_symbols and out + U8 <= stop:
            word = load32(symbols + i)
            low = load64(tuples + ((word & U255) << U3)) | (
                load64(tuples + (((word >> U8) & U255) << U3)) << U16
            )
            high = load64(tuples + (((word >> U16) & U255) << U3)) | (
                load64(tuples + ((word >> U64(24)) << U3)) << U16
            )
            store64(out, low | (high << U32))
            out += U8
            i += U4
    elif n_words == U1:
        while i + U4 <= n_symbols and out + U32 <= stop:
            word = load32(symbols + i)
            for _ in range(4):
                store64(out, load64(tuples + ((word & U255) << U3)))
                out += row_bytes
                word >>= U8
            i += U4
    else:
        while i < n_symbols and out + row_shift <= stop:
            row = tuples + load8(symbols + i) * row_shift
            place = out
            for _ in range(np.int64(n_words)):
                store64(place, load64(row))
                place += U8
                row += U8
            out += row_bytes
            i += U1
    while i < n_symbols:
        row = tuples + load8(symbols + i) * row_shift
        end = min(out + row_bytes, stop)
        while out < end:
            store8(out, load8(row))
            out += U1
            row += U1
        i += U1


@helper
def _map_numbers(numbers, n, size, values, pairs, out):  # type: ignore[no-untyped-def]
    """Write the value of each number: `size` bytes each from uint64 `values`.

    `pairs`, if not 0, has the values of two numbers below 16 for each byte that joins them; only for sizes
    2 and 4. Reads and writes exactly n numbers and values.
    """
    whole = np.int64(n & ~U7)
    i = U0
    if size == U4 and pairs != U0:
        for _ in range(0, whole, 8):
            word = load64(numbers + i)
            word = (word | (word >> U4)) & NIBBLE_PAIRS
            place = out + (i << U2)
            store64(place, load64(pairs + ((word & U255) << U3)))
            store64(place + U8, load64(pairs + (((word >> U16) & U255) << U3)))
            store64(place + U16, load64(pairs + (((word >> U32) & U255) << U3)))
            store64(place + U64(24), load64(pairs + ((word >> U48) << U3)))
            i += U8
    elif size == U2 and pairs != U0:
        for _ in range(0, whole, 8):
            word = load64(numbers + i)
            word = (word | (word >> U4)) & NIBBLE_PAIRS
            place = out + (i << U1)
            store32(place, load64(pairs + ((word & U255) << U3)))
            store32(place + U4, load64(pairs + (((word >> U16) & U255) << U3)))
            store32(place + U8, load64(pairs + (((word >> U32) & U255) << U3)))
            store32(place + U64(12), load64(pairs + ((word >> U48) << U3)))
            i += U8
    elif size == U4:
        for _ in range(0, whole, 8):
            word = load64(numbers + i)
            place = out + (i << U2)
            for k in range(4):
                first = load64(values + ((word & U255) << U3))
                second = load64(values + (((word >> U8) & U255) << U3))
                store64(place + U64(8 * k), first | (second << U32))
                word >>= U16
            i += U8
    while i < n:
        value = load64(values + (load8(numbers + i) << U3))
        if size == U4:
            store32(out + (i << U2), value)
        elif size == U2:
            store16(out + (i << U1), value)
        elif size == U8:
            store64(out + (i << U3), value)
        else:
            store8(out + i, value)
        i += U1


@helper
def _stream_numbers(block, row, numbers, out):  # type: ignore[no-untyped-def]
    """Write the values of a chunk's numbers tile by tile past the cache."""
    size, values, pairs = load_parameter(block, 2), load_parameter(block, 3), load_parameter(block, 4)
    tile, n = load_parameter(block, 10), load_parameter(row, 7)
    i = U0
    while i < n:
        n_tile = min(n - i, first_tile(out, size))
        _map_numbers(numbers + i, n_tile, size, values, pairs, tile)
        move_out(tile, n_tile * size, out, U1)
        out += n_tile * size
        i += n_tile


@helper
def _stream_groups(block, row, symbols, group, out):  # type: ignore[no-untyped-def]
    """Write the values of a chunk's groups tile by tile past the cache."""
    size, tuples = load_parameter(block, 2), load_parameter(block, 4)
    tile, n, n_symbols = load_parameter(block, 10), load_parameter(row, 7), load_parameter(row, 6)
    done = U0
    while done < n_symbols:
        n_tile = min(n_symbols - done, U64(TILE_ELEMENTS) // group)
        n_numbers = min(n - done * group, n_tile * group)
        _map_groups(symbols + done, n_tile, n_numbers, group, size, tuples, tile)
        move_out(tile, n_numbers * size, out, U1)
        out += n_numbers * size
        done += n_tile


@helper
def decode_dense(block):  # type: ignore[no-untyped-def]
    """Decode rows `first` to `last` of a dense tensor, each through a buffer that stays in cache."""
    stream, out, size = load_parameter(block, 0), load_parameter(block, 1), load_parameter(block, 2)
    values, joined, buffer = load_parameter(block, 3), load_parameter(block, 4), load_parameter(block, 5)
    row_bytes = U64(8 * CODED)
    row = load_parameter(stream, 11) + load_parameter(block, 7) * row_bytes
    group = load_parameter(stream, 7)
    streamed = load_parameter(block, 11) != U0
    for _ in range(np.int64(load_parameter(block, 7)), np.int64(load_parameter(block, 8))):
        place, n = load_parameter(row, 9), load_parameter(row, 7)
        if place > load_parameter(block, 9) or n > load_parameter(block, 9) - place:
            return DAMAGED
        direct = size == U0 and group == U1
        if not decode_symbols(stream, row, out + place if direct else buffer):
            return DAMAGED
        if size == U0:
            if not direct:
                n_symbols, spread = load_parameter(row, 6), load_parameter(stream, 8)
                _map_groups(buffer, n_symbols, n, group, U1, spread, out + place)
        elif group == U1:
            if streamed:
                _stream_numbers(block, row, buffer, out + place * size)
            else:
                _map_numbers(buffer, n, size, values, joined, out + place * size)
        elif streamed:
            _stream_groups(block, row, buffer, group, out + place * size)
        else:
            _map_groups(buffer, load_parameter(row, 6), n, group, size, joined, out + place * size)
        row += row_bytes
    if streamed:
        order_stores()
    return np.int64(0)


@helper
def expand_mask(block):  # type: ignore[no-untyped-def]
    """Write the elements of mask bytes: a value where a bit is set, else zero; returns the values used.

    `numbers` has one readable byte beyond the set bits. Elements end at `n_elements`; bits beyond it were
    checked by the caller, and are not looked at here.
    """
    mask, n_elements, numbers = load_parameter(block, 0), load_parameter(block, 1), load_parameter(block, 2)
    values, size, out = load_parameter(block, 3), load_parameter(block, 4), load_parameter(block, 5)
    used = U0
    place = U0
    for _ in range(np.int64(n_elements >> U3)):
        bits = load8(mask)
        mask += U1
        for _ in range(8):
            kept = bits & U1
            value = load64(values + (load8(numbers + used) << U3)) & (U0 - kept)
            store_value(out, place, size, value)
            used += kept
            bits >>= U1
            place += U1
    if place < n_elements:
        bits = load8(mask)
        while place < n_elements:
            kept = bits & U1
            value = load64(values + (load8(numbers + used) << U3)) & (U0 - kept)
            store_value(out, place, size, value)
            used += kept
            bits >>= U1
            place += U1
    return np.int64(used)


@helper
def count_mask(block):  # type: ignore[no-untyped-def]
    """Set bits of n bytes."""
    start, n = load_parameter(block, 0), load_parameter(block, 1)
    total = U0
    for i in range(np.int64(n >> U3)):
        total += count_ones(load64(start + (U64(i) << U3)))
    for i in range(np.int64(n & ~U7), np.int64(n)):
        total += count_ones(load8(start + U64(i)))
    return np.int64(total)


@helper
def join_planes(block):  # type: ignore[no-untyped-def]
    """Elements of 2, 4 or 8 bytes from byte planes, rotated right by one bit if `rotate` is 1."""
    out, n, size, rotate = (
        load_parameter(block, 0), load_parameter(block, 1), load_parameter(block, 2), load_parameter(block, 3)
    )  # fmt: skip
    first, second, third, fourth = (
        load_parameter(block, 4), load_parameter(block, 5), load_parameter(block, 6), load_parameter(block, 7)
    )  # fmt: skip
    if size == U2 and rotate == U1:
        for i in range(np.int64(n)):
            joined = load8(first + U64(i)) | (load8(second + U64(i)) << U8)
            store16(out + (U64(i) << U1), (joined >> U1) | (joined << U64(15)))
    elif size == U2:
        for i in range(np.int64(n)):
            store16(out + (U64(i) << U1), load8(first + U64(i)) | (load8(second + U64(i)) << U8))
    elif size == U4 and rotate == U1:
        for i in range(np.int64(n)):
            low = load8(first + U64(i)) | (load8(second + U64(i)) << U8)
            joined = low | (load8(third + U64(i)) << U16) | (load8(fourth + U64(i)) << U64(24))
            store32(out + (U64(i) << U2), (joined >> U1) | (joined << U64(31)))
    else:
        for i in range(np.int64(n)):
            joined = U0
            for plane in range(np.int64(size)):
                joined |= load8(load_parameter(block, 4 + plane) + U64(i)) << U64(8 * plane)
            if rotate == U1:
                joined = (joined >> U1) | (joined << ((size << U3) - U1))
            store_value(out, U64(i), size, joined)
    return np.int64(0)
