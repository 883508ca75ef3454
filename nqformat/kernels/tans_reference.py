"""Reference of the tANS kernels: the oracle in tests and the path without Numba (spec 5.3)."""

from __future__ import annotations

import numpy as np

from .tables import TansTables


def encode_tans_reference(symbols: np.ndarray, tables: TansTables) -> tuple[np.ndarray, np.ndarray]:
    """Bits of one sub-stream in reading order.

    Parameters
    ----------
    symbols : ndarray of uint8, shape (n,)
        Each of a positive frequency.
    tables : TansTables

    Returns
    -------
    (ndarray of uint64, ndarray of uint8), each of shape (min(2, n) + n,)
        Numbers and their widths: the first states, then what is read after each symbol.
    """
    n = symbols.size
    n_lanes = min(2, n)
    numbers, widths = [0] * (n + n_lanes), [0] * (n + n_lanes)
    counts, places = tables.frequencies.tolist(), tables.first_place.tolist()
    after = tables.states.tolist()
    n_states = 1 << tables.table_log2
    lane_states = [-1, -1]
    text = symbols.tolist()
    for i in range(n - 1, -1, -1):
        symbol = text[i]
        state = lane_states[i & 1]
        if state < 0:
            lane_states[i & 1] = after[places[symbol]]
            continue
        whole = state + n_states
        count = counts[symbol]
        n_bits = whole.bit_length() - count.bit_length()
        if whole >> n_bits < count:
            n_bits -= 1
        numbers[n_lanes + i] = whole & ((1 << n_bits) - 1)
        widths[n_lanes + i] = n_bits
        lane_states[i & 1] = after[places[symbol] + (whole >> n_bits) - count]
    for lane in range(n_lanes):
        numbers[lane], widths[lane] = lane_states[lane], tables.table_log2
    return np.array(numbers, dtype=np.uint64), np.array(widths, dtype=np.uint8)


def decode_tans_reference(buffer: np.ndarray, table: np.ndarray, table_log2: int, out: np.ndarray) -> int:
    """Decode one sub-stream into `out`; the length of `out` is the number of symbols.

    Parameters
    ----------
    buffer : ndarray of uint8
        The whole sub-stream and nothing else.
    table : ndarray of uint32, shape (2**table_log2,)
        ``n_bits | symbol << 8 | next_state_base << 16``.
    out : ndarray of uint8, shape (n_symbols,)

    Returns
    -------
    int
        0, or 1 if the symbols do not end in the last byte with zero padding.
    """
    bits = int.from_bytes(buffer.tobytes(), "little")
    left = 8 * buffer.size
    n = out.size
    n_lanes = min(2, n)
    if left < n_lanes * table_log2:
        return 1
    states = [0, 0]
    words = memoryview(np.concatenate([buffer, np.zeros(8, dtype=np.uint8)]).tobytes())
    position = 0
    for lane in range(n_lanes):
        states[lane] = bits >> position & ((1 << table_log2) - 1)
        position += table_log2
    del bits
    entries = table.tolist()
    symbols = bytearray(n)
    for i in range(n):
        entry = entries[states[i & 1]]
        symbols[i] = entry >> 8 & 0xFF
        if i + 2 < n:
            n_bits = entry & 0xFF
            byte = position >> 3
            word = int.from_bytes(words[byte : byte + 3], "little") >> (position & 7)
            states[i & 1] = (entry >> 16) + (word & ((1 << n_bits) - 1))
            position += n_bits
            if position > left:
                return 1
    if left - position >= 8 or (position & 7 and int(buffer[-1]) >> (position & 7)):
        return 1
    out[:] = np.frombuffer(symbols, dtype=np.uint8)
    return 0
