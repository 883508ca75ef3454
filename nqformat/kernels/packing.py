"""Kernels of the encoder: codewords and bits to bytes, and histograms."""

from __future__ import annotations

import numpy as np

from .memory import load8, load16, load32, load64, load_parameter, store32, store64
from .words import U0, U1, U2, U3, U4, U7, U8, U16, U32, U56, U64, U255, helper


@helper
def pack_codes(block):  # type: ignore[no-untyped-def]
    """Concatenate the codewords of n symbols; returns bits. `out` has room for 13 bits each and 16 bytes."""
    symbols, n = load_parameter(block, 0), load_parameter(block, 1)
    codes, out = load_parameter(block, 2), load_parameter(block, 3)
    start = out
    buffer = n_buffered = U0
    i = U0
    while i + U4 <= n:
        four = load32(symbols + i)
        a = load32(codes + ((four & U255) << U2))
        b = load32(codes + (((four >> U8) & U255) << U2))
        c = load32(codes + (((four >> U16) & U255) << U2))
        d = load32(codes + ((four >> U64(24)) << U2))
        n_a, n_c = a >> U16, c >> U16
        n_ab = n_a + (b >> U16)
        ab = (a & U64(0xFFFF)) | ((b & U64(0xFFFF)) << n_a)
        cd = (c & U64(0xFFFF)) | ((d & U64(0xFFFF)) << n_c)
        buffer |= (ab | (cd << n_ab)) << n_buffered
        n_buffered += n_ab + n_c + (d >> U16)
        store64(out, buffer)
        out += n_buffered >> U3
        buffer >>= n_buffered & U56
        n_buffered &= U7
        i += U4
    while i < n:
        entry = load32(codes + (load8(symbols + i) << U2))
        buffer |= (entry & U64(0xFFFF)) << n_buffered
        n_buffered += entry >> U16
        store64(out, buffer)
        out += n_buffered >> U3
        buffer >>= n_buffered & U56
        n_buffered &= U7
        i += U1
    store64(out, buffer)
    return np.int64(((out - start) << U3) + n_buffered)


@helper
def pack_bits(block):  # type: ignore[no-untyped-def]
    """Concatenate the low bits (at most 56) of n numbers; `out` has room for them and 16 bytes."""
    values, widths = load_parameter(block, 0), load_parameter(block, 1)
    n, out = load_parameter(block, 2), load_parameter(block, 3)
    buffer = n_buffered = U0
    for i in range(np.int64(n)):
        buffer |= load64(values + (U64(i) << U3)) << n_buffered
        n_buffered += load8(widths + U64(i))
        store64(out, buffer)
        out += n_buffered >> U3
        buffer >>= n_buffered & U56
        n_buffered &= U7
    store64(out, buffer)
    return np.int64(0)


@helper
def count_symbols(block):  # type: ignore[no-untyped-def]
    """Add the counts of n bytes to four zeroed tables of 256 uint64, which together are the histogram."""
    symbols, n, counts = load_parameter(block, 0), load_parameter(block, 1), load_parameter(block, 2)
    second, third, fourth = counts + U64(2048), counts + U64(4096), counts + U64(6144)
    for i in range(np.int64(n >> U3)):
        word = load64(symbols + (U64(i) << U3))
        for _ in range(2):
            place = counts + ((word & U255) << U3)
            store64(place, load64(place) + U1)
            place = second + (((word >> U8) & U255) << U3)
            store64(place, load64(place) + U1)
            place = third + (((word >> U16) & U255) << U3)
            store64(place, load64(place) + U1)
            place = fourth + (((word >> U64(24)) & U255) << U3)
            store64(place, load64(place) + U1)
            word >>= U32
    for i in range(np.int64(n & ~U7), np.int64(n)):
        place = counts + (load8(symbols + U64(i)) << U3)
        store64(place, load64(place) + U1)
    return np.int64(0)


@helper
def encode_tans(block):  # type: ignore[no-untyped-def]
    """Encode n symbols under a tANS code (spec 5.3); returns bits.

    The caller has checked that each symbol has a frequency, so that states and places stay in their tables.
    From the last symbol on, each one's bits go to the buffer, which is then packed from the first on; `out`
    has room for 12 bits a symbol, two more states and 16 bytes.
    """
    symbols, n = load_parameter(block, 0), load_parameter(block, 1)
    bit_counts, offsets = load_parameter(block, 2), load_parameter(block, 3)
    first_place, states = load_parameter(block, 4), load_parameter(block, 5)
    log2, buffer, out = load_parameter(block, 6), load_parameter(block, 7), load_parameter(block, 8)
    n_states = U1 << log2
    this_lane = other_lane = U0
    place = n
    while place > U0:
        place -= U1
        symbol = load8(symbols + place) << U3
        bits = U0
        if place + U2 >= n:
            next_place = load64(first_place + symbol)
        else:
            state = this_lane + n_states
            n_bits = (state + load64(bit_counts + symbol)) >> U16
            bits = (state & ((U1 << n_bits) - U1)) | (n_bits << U16)
            next_place = (state >> n_bits) + load64(offsets + symbol)
        store32(buffer + (place << U2), bits)
        this_lane, other_lane = other_lane, load16(states + (next_place << U1))
    start = out
    waiting, n_waiting = other_lane, log2 * min(n, U2)
    if n > U1:
        waiting |= this_lane << log2
    store64(out, waiting)
    out += n_waiting >> U3
    waiting >>= n_waiting & U56
    n_waiting &= U7
    i = U0
    while i < n:
        for _ in range(np.int64(min(n - i, U4))):
            entry = load32(buffer + (i << U2))
            waiting |= (entry & U64(0xFFFF)) << n_waiting
            n_waiting += entry >> U16
            i += U1
        store64(out, waiting)
        out += n_waiting >> U3
        waiting >>= n_waiting & U56
        n_waiting &= U7
    store64(out, waiting)
    return np.int64(((out - start) << U3) + n_waiting)
