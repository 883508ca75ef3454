"""Kernels of the encoder: codewords and bits to bytes, and histograms."""

from __future__ import annotations

import numpy as np

from .memory import load8, load16, load32, load64, load_parameter, store32, store64
from .words import U0, U1, U2, U3, U4, U7, U8, U16, U32, U48, U56, U64, U255, helper, inlined

_LOW16 = np.uint64(0xFFFF)
_PAIR_SHIFT = np.uint64(26)
_PAIR_MASK = np.uint64((1 << 26) - 1)


@inlined
def _flush(out, buffer, n_buffered):  # type: ignore[no-untyped-def]
    """Store the buffered bits; returns what is left once whole bytes are written."""
    store64(out, buffer)
    return out + (n_buffered >> U3), buffer >> (n_buffered & U56), n_buffered & U7


@helper
def _pack_rest(symbols, i, n, codes, out, buffer, n_buffered):  # type: ignore[no-untyped-def]
    """Append the codewords of symbols i to n; returns the place after whole bytes and the bits beyond it.

    Four codewords and the bits before them fit a word: 7 + 4 * 13.
    """
    while i + U4 <= n:
        four = load32(symbols + i)
        a = load32(codes + ((four & U255) << U2))
        b = load32(codes + (((four >> U8) & U255) << U2))
        c = load32(codes + (((four >> U16) & U255) << U2))
        d = load32(codes + ((four >> U64(24)) << U2))
        n_a, n_c = a >> U16, c >> U16
        n_ab = n_a + (b >> U16)
        ab = (a & _LOW16) | ((b & _LOW16) << n_a)
        cd = (c & _LOW16) | ((d & _LOW16) << n_c)
        buffer |= (ab | (cd << n_ab)) << n_buffered
        out, buffer, n_buffered = _flush(out, buffer, n_buffered + n_ab + n_c + (d >> U16))
        i += U4
    while i < n:
        entry = load32(codes + (load8(symbols + i) << U2))
        buffer |= (entry & _LOW16) << n_buffered
        out, buffer, n_buffered = _flush(out, buffer, n_buffered + (entry >> U16))
        i += U1
    store64(out, buffer)
    return out, n_buffered


@helper
def pack_codes(block):  # type: ignore[no-untyped-def]
    """Concatenate the codewords of n symbols; returns bits. `out` has room for 13 bits each and 16 bytes."""
    symbols, n = load_parameter(block, 0), load_parameter(block, 1)
    codes, start = load_parameter(block, 2), load_parameter(block, 3)
    out, n_buffered = _pack_rest(symbols, U0, n, codes, start, U0, U0)
    return np.int64(((out - start) << U3) + n_buffered)


@helper
def join_pairs(block):  # type: ignore[no-untyped-def]
    """Fill the codewords of all pairs of used symbols: ``both | n_bits << 26`` at first + 256 * second.

    The table is zero before: pairs of symbols without a codeword take no bits.
    """
    codes, pairs = load_parameter(block, 0), load_parameter(block, 1)
    for second in range(256):
        high = load32(codes + (U64(second) << U2))
        if high >> U16 == U0:
            continue
        for first in range(256):
            low = load32(codes + (U64(first) << U2))
            n_low = low >> U16
            if n_low != U0:
                both = (low & _LOW16) | ((high & _LOW16) << n_low)
                n_bits = n_low + (high >> U16)
                store32(pairs + (U64(first + 256 * second) << U2), both | (n_bits << _PAIR_SHIFT))
    return np.int64(0)


@inlined
def _pack_eight(symbols, pairs, out, buffer, n_buffered):  # type: ignore[no-untyped-def]
    """Append the codewords of eight symbols, four at a time: at most 7 + 2 * 26 bits in a word."""
    word = load64(symbols)
    a = load32(pairs + ((word & _LOW16) << U2))
    b = load32(pairs + (((word >> U16) & _LOW16) << U2))
    n_a = a >> _PAIR_SHIFT
    buffer |= ((a & _PAIR_MASK) | ((b & _PAIR_MASK) << n_a)) << n_buffered
    out, buffer, n_buffered = _flush(out, buffer, n_buffered + n_a + (b >> _PAIR_SHIFT))
    c = load32(pairs + (((word >> U32) & _LOW16) << U2))
    d = load32(pairs + ((word >> U48) << U2))
    n_c = c >> _PAIR_SHIFT
    buffer |= ((c & _PAIR_MASK) | ((d & _PAIR_MASK) << n_c)) << n_buffered
    return _flush(out, buffer, n_buffered + n_c + (d >> _PAIR_SHIFT))


@helper
def pack_pairs(block):  # type: ignore[no-untyped-def]
    """Concatenate the codewords of four sub-streams by pairs; replaces their lengths by their bits.

    Each area for the output has room for 13 bits a symbol and 16 bytes.
    """
    pairs, codes = load_parameter(block, 0), load_parameter(block, 1)
    s0, s1 = load_parameter(block, 2), load_parameter(block, 3)
    s2, s3 = load_parameter(block, 4), load_parameter(block, 5)
    o0, o1 = load_parameter(block, 10), load_parameter(block, 11)
    o2, o3 = load_parameter(block, 12), load_parameter(block, 13)
    common = min(load_parameter(block, 6), load_parameter(block, 7))
    common = min(common, load_parameter(block, 8), load_parameter(block, 9))
    b0 = b1 = b2 = b3 = n0 = n1 = n2 = n3 = U0
    i = U0
    while i + U8 <= common:
        o0, b0, n0 = _pack_eight(s0 + i, pairs, o0, b0, n0)
        o1, b1, n1 = _pack_eight(s1 + i, pairs, o1, b1, n1)
        o2, b2, n2 = _pack_eight(s2 + i, pairs, o2, b2, n2)
        o3, b3, n3 = _pack_eight(s3 + i, pairs, o3, b3, n3)
        i += U8
    for part in range(4):
        if part == 0:
            symbols, out, buffer, n_buffered = s0, o0, b0, n0
        elif part == 1:
            symbols, out, buffer, n_buffered = s1, o1, b1, n1
        elif part == 2:
            symbols, out, buffer, n_buffered = s2, o2, b2, n2
        else:
            symbols, out, buffer, n_buffered = s3, o3, b3, n3
        length = load_parameter(block, 6 + part)
        out, n_buffered = _pack_rest(symbols, i, length, codes, out, buffer, n_buffered)
        n_bits = ((out - load_parameter(block, 10 + part)) << U3) + n_buffered
        store64(block + U64(8 * (6 + part)), n_bits)
    return np.int64(0)


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
            waiting |= (entry & _LOW16) << n_waiting
            n_waiting += entry >> U16
            i += U1
        store64(out, waiting)
        out += n_waiting >> U3
        waiting >>= n_waiting & U56
        n_waiting &= U7
    store64(out, waiting)
    return np.int64(((out - start) << U3) + n_waiting)
