"""NumPy reference of every bitstream kernel: the oracle in tests and the path without Numba.

Bit order is least significant bit first throughout (spec 3.3). No function here allocates more than
about forty bytes for each bit of its input.
"""

from __future__ import annotations

import numpy as np


def pack_bits_reference(values: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Concatenate the `widths` low bits of each value into bytes, padded with zeros.

    Parameters
    ----------
    values : ndarray of uint64, shape (n,), value < 2**width
    widths : ndarray of uint8, shape (n,), each at most 56

    Returns
    -------
    ndarray of uint8, shape (ceil(sum(widths) / 8),)
    """
    ends = np.cumsum(widths, dtype=np.int64)
    n_bits = int(ends[-1]) if ends.size else 0
    bits = np.zeros((n_bits + 7) // 8 * 8, dtype=np.uint8)
    starts = ends - widths
    for place in range(int(widths.max(initial=0))):
        wide = widths > place
        bits[starts[wide] + place] = (values[wide] >> np.uint64(place)) & np.uint64(1)
    return np.packbits(bits, bitorder="little")


def unpack_bits_reference(buffer: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Undo :func:`pack_bits_reference`; `buffer` must hold at least ``sum(widths)`` bits.

    Returns
    -------
    ndarray of uint64, shape (n,)
    """
    ends = np.cumsum(widths, dtype=np.int64)
    starts = ends - widths
    padded = np.zeros(buffer.size + 8, dtype=np.uint8)
    padded[: buffer.size] = buffer
    words = np.zeros(starts.size, dtype=np.uint64)
    first = starts >> 3
    for byte in range(8):
        words |= padded[first + byte].astype(np.uint64) << np.uint64(8 * byte)
    mask = (np.uint64(1) << widths.astype(np.uint64)) - np.uint64(1)
    numbers: np.ndarray = (words >> (starts & 7).astype(np.uint64)) & mask
    return numbers


def decode_prefix_reference(buffer: np.ndarray, table: np.ndarray, max_length: int, out: np.ndarray) -> int:
    """Decode one bitstream into `out`; the length of `out` is the number of symbols.

    Parameters
    ----------
    buffer : ndarray of uint8
        The whole sub-stream and nothing else.
    table : ndarray of uint16, shape (2**max_length,)
        ``symbol | length << 8`` for each window of `max_length` bits.
    out : ndarray of uint8, shape (n_symbols,)

    Returns
    -------
    int
        0, or 1 if the symbols do not end in the last byte with zero padding.
    """
    n_bits = 8 * buffer.size
    bits = np.zeros(n_bits + max_length, dtype=np.uint8)
    bits[:n_bits] = np.unpackbits(buffer, bitorder="little")
    windows = np.zeros(n_bits, dtype=np.uint16)
    for place in range(max_length):
        windows |= bits[place : place + n_bits].astype(np.uint16) << np.uint16(place)
    entries = table[windows]
    symbol_at = (entries & 0xFF).astype(np.uint8).tobytes()
    length_at = (entries >> 8).astype(np.uint8).tobytes()
    position = 0
    symbols = bytearray()
    append = symbols.append
    for _ in range(out.size):
        if position >= n_bits:
            return 1
        append(symbol_at[position])
        position += length_at[position]
    if position > n_bits or n_bits - position >= 8 or bits[position:n_bits].any():
        return 1
    out[:] = np.frombuffer(symbols, dtype=np.uint8)
    return 0


def pack_codes_reference(symbols: np.ndarray, codes: np.ndarray, lengths: np.ndarray) -> bytes:
    """Concatenate the codewords of symbols; see :func:`pack_bits_reference`."""
    return pack_bits_reference(codes.astype(np.uint64)[symbols], lengths[symbols]).tobytes()


def count_symbols_reference(symbols: np.ndarray) -> np.ndarray:
    """Histogram of numbers below 256: int64, shape (256,)."""
    return np.bincount(symbols, minlength=256)


def join_hybrid_reference(
    symbols: np.ndarray, extra: np.ndarray, bases: np.ndarray, widths: np.ndarray
) -> np.ndarray | None:
    """Numbers of hybrid symbols and their extra bits (spec 4.3); None if damaged."""
    symbol_widths = widths[symbols]
    if symbol_widths.size and int(symbol_widths.max()) == 255:
        return None
    n_bits = int(symbol_widths.sum(dtype=np.int64))
    if extra.size != (n_bits + 7) // 8 or (n_bits % 8 and int(extra[-1]) >> (n_bits % 8)):
        return None
    numbers: np.ndarray = bases[symbols]
    if n_bits == 0:
        return numbers
    numbers = numbers + unpack_bits_reference(extra, symbol_widths).astype(np.int64)
    return numbers


def join_planes_reference(planes: list[np.ndarray], out: np.ndarray, *, rotate: bool) -> None:
    """Join byte planes, lowest first, into unsigned elements, turned right by one bit if `rotate`."""
    kind = out.dtype.type
    out[:] = 0
    for place, plane in enumerate(planes):
        out |= plane.astype(out.dtype) << kind(8 * place)
    if rotate:
        out[:] = (out >> kind(1)) | (out << kind(8 * out.itemsize - 1))
