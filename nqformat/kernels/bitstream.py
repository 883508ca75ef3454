"""Numba kernels for prefix-coded bitstreams; imported on first use only.

Every kernel is pure: contiguous arrays in, preallocated output filled, an int32 status returned.
Shift counts and bit buffers are uint64 throughout.
"""

from __future__ import annotations

import numba
import numpy as np
from numba import types

_BYTES = types.Array(types.uint8, 1, "C", readonly=True)
_TABLE = types.Array(types.uint16, 1, "C", readonly=True)
_WORDS = types.Array(types.uint64, 1, "C", readonly=True)
_BOUNDS = types.Array(types.int64, 1, "C", readonly=True)
_OUT = types.Array(types.uint8, 1, "C")


@numba.njit(types.int64(_WORDS, _BYTES, _OUT), cache=True, nogil=True)
def pack_bits(values, widths, out):  # type: ignore[no-untyped-def]
    """Pack as the reference does; returns bytes written, -1 if `out` is short."""
    buffer = np.uint64(0)
    n_buffered = np.uint64(0)
    n_written = 0
    for i in range(values.size):
        buffer |= values[i] << n_buffered
        n_buffered += np.uint64(widths[i])
        while n_buffered >= np.uint64(8):
            if n_written >= out.size:
                return -1
            out[n_written] = np.uint8(buffer & np.uint64(0xFF))
            n_written += 1
            buffer >>= np.uint64(8)
            n_buffered -= np.uint64(8)
    if n_buffered > np.uint64(0):
        if n_written >= out.size:
            return -1
        out[n_written] = np.uint8(buffer & np.uint64(0xFF))
        n_written += 1
    return n_written


@numba.njit(inline="always")
def _load_word(buffer, start):  # type: ignore[no-untyped-def]
    """Eight bytes from `start`, little-endian; the caller has checked the bound."""
    word = np.uint64(0)
    for byte in range(8):
        word |= np.uint64(buffer[start + byte]) << np.uint64(8 * byte)
    return word


@numba.njit(inline="always")
def _load_tail(buffer, start, stop):  # type: ignore[no-untyped-def]
    """Up to eight bytes from `start`, zero beyond `stop`."""
    word = np.uint64(0)
    for byte in range(min(8, stop - start)):
        word |= np.uint64(buffer[start + byte]) << np.uint64(8 * byte)
    return word


@numba.njit(types.int32(_BYTES, _BOUNDS, _TABLE, types.int64, _BOUNDS, _OUT), cache=True, nogil=True)
def decode_prefix_streams(buffer, byte_bounds, table, max_length, symbol_bounds, out):  # type: ignore[no-untyped-def]
    """Decode adjacent sub-streams of one code.

    Parameters
    ----------
    buffer : uint8[n_bytes]
    byte_bounds : int64[n_streams + 1]
        Ascending; sub-stream i is ``buffer[byte_bounds[i]:byte_bounds[i + 1]]``.
    table : uint16[2**max_length]
        ``symbol | length << 8``, every length 1 to max_length.
    symbol_bounds : int64[n_streams + 1]
        Ascending; sub-stream i fills ``out[symbol_bounds[i]:symbol_bounds[i + 1]]``.

    Returns
    -------
    int32
        0, or 1 if a sub-stream does not end in its last byte with zero padding, 2 if the bounds are wrong.

    Notes
    -----
    Each round reads 8 bytes and takes 4 codewords: 7 + 4 * 13 = 59 bits at most. A round runs only while 8
    bytes lie ahead inside the sub-stream and 4 symbols are wanted, so no read or write passes a bound.
    """
    n_streams = byte_bounds.size - 1
    if symbol_bounds.size != byte_bounds.size or table.size != 1 << max_length or max_length > 13:
        return 2
    if byte_bounds[0] < 0 or byte_bounds[n_streams] > buffer.size:
        return 2
    if symbol_bounds[0] < 0 or symbol_bounds[n_streams] > out.size:
        return 2
    mask = np.uint64((1 << max_length) - 1)
    for stream in range(n_streams):
        start = byte_bounds[stream]
        stop = byte_bounds[stream + 1]
        place = symbol_bounds[stream]
        last = symbol_bounds[stream + 1]
        if stop < start or last < place:
            return 2
        n_bits = np.uint64(8 * (stop - start))
        position = np.uint64(0)
        while last - place >= 4 and np.int64(position >> np.uint64(3)) + 8 <= stop - start:
            word = _load_word(buffer, start + np.int64(position >> np.uint64(3))) >> (position & np.uint64(7))
            for _ in range(4):
                entry = np.uint64(table[word & mask])
                out[place] = np.uint8(entry & np.uint64(0xFF))
                place += 1
                n_code = entry >> np.uint64(8)
                word >>= n_code
                position += n_code
        while place < last:
            if position >= n_bits:
                return 1
            word = _load_tail(buffer, start + np.int64(position >> np.uint64(3)), stop) >> (
                position & np.uint64(7)
            )
            entry = np.uint64(table[word & mask])
            out[place] = np.uint8(entry & np.uint64(0xFF))
            place += 1
            position += entry >> np.uint64(8)
        if position > n_bits or n_bits - position >= np.uint64(8):
            return 1
        if position < n_bits and (buffer[stop - 1] >> np.uint8(position & np.uint64(7))) != 0:
            return 1
    return 0
