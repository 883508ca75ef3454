"""Bitstream kernels: Numba where it pays, NumPy otherwise, with the same bits either way.

The environment variable ``NQFORMAT_KERNELS`` (``auto``, ``numba`` or ``numpy``) forces a path. ``auto`` uses
Numba when it is already imported or when the work is worth its import (about half a second of CPU).
"""

from __future__ import annotations

import importlib.util
import os
import sys

import numpy as np

from .reference import decode_prefix_reference, pack_bits_reference, unpack_bits_reference
from .tans_reference import decode_tans_reference, encode_tans_reference

__all__ = [
    "decode_prefix_streams",
    "decode_tans_streams",
    "encode_tans",
    "pack_bits",
    "unpack_bits",
    "use_numba",
]

_WORTH_IMPORT_SYMBOLS = 2_000_000


def use_numba(n_symbols: int) -> bool:
    """Decide whether work on `n_symbols` runs in Numba kernels."""
    choice = os.environ.get("NQFORMAT_KERNELS", "auto")
    if choice not in ("auto", "numba", "numpy"):
        raise ValueError(f"NQFORMAT_KERNELS must be auto, numba or numpy, not {choice!r}")
    if choice == "numpy":
        return False
    if choice == "auto" and "numba" not in sys.modules and n_symbols < _WORTH_IMPORT_SYMBOLS:
        return False
    return importlib.util.find_spec("numba") is not None


def pack_bits(values: np.ndarray, widths: np.ndarray, *, numba: bool | None = None) -> bytes:
    """Concatenate the low `widths` bits of `values`, least significant bit first.

    Parameters
    ----------
    values : ndarray of uint64, shape (n,), value < 2**width
    widths : ndarray of uint8, shape (n,), each at most 56
    numba : bool or None
        Force or forbid the Numba kernel; None lets :func:`use_numba` decide.
    """
    if numba is None:
        numba = use_numba(values.size)
    if not numba:
        return pack_bits_reference(values, widths).tobytes()
    from . import bitstream

    out = np.empty((int(widths.sum(dtype=np.int64)) + 7) // 8, dtype=np.uint8)
    n_written = bitstream.pack_bits(values, widths, out)
    assert n_written == out.size
    return out.tobytes()


def unpack_bits(buffer: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Split a bit string into unsigned numbers of the given widths; see the reference for shapes."""
    return unpack_bits_reference(buffer, widths)


def decode_prefix_streams(
    buffer: np.ndarray,
    byte_bounds: list[int],
    table: np.ndarray,
    max_length: int,
    symbol_bounds: list[int],
    *,
    numba: bool | None = None,
) -> np.ndarray | None:
    """Decode adjacent sub-streams of one prefix code.

    Parameters
    ----------
    buffer : ndarray of uint8
    byte_bounds, symbol_bounds : list of int, length n_streams + 1
    table : ndarray of uint16, shape (2**max_length,)

    Returns
    -------
    ndarray of uint8, shape (symbol_bounds[-1],), or None
        None if a sub-stream is corrupt (wrong end or padding).
    """
    out = np.empty(symbol_bounds[-1], dtype=np.uint8)
    if numba is None:
        numba = use_numba(out.size)
    if numba:
        from . import bitstream

        bounds = (np.array(byte_bounds, dtype=np.int64), np.array(symbol_bounds, dtype=np.int64))
        status = bitstream.decode_prefix_streams(buffer, bounds[0], table, max_length, bounds[1], out)
        return out if status == 0 else None
    for i in range(len(byte_bounds) - 1):
        part = out[symbol_bounds[i] : symbol_bounds[i + 1]]
        if decode_prefix_reference(buffer[byte_bounds[i] : byte_bounds[i + 1]], table, max_length, part):
            return None
    return out


def encode_tans(
    symbols: np.ndarray,
    frequencies: np.ndarray,
    first_place: np.ndarray,
    states: np.ndarray,
    table_log2: int,
    *,
    numba: bool | None = None,
) -> bytes:
    """Encode one sub-stream; arrays as in :func:`.tans_reference.encode_tans_reference`."""
    if numba is None:
        numba = use_numba(symbols.size)
    if numba:
        from . import tans

        n = symbols.size + min(2, symbols.size)
        numbers, widths = np.empty(n, dtype=np.uint64), np.empty(n, dtype=np.uint8)
        status = tans.encode_tans(symbols, frequencies, first_place, states, table_log2, numbers, widths)
        assert status == 0
    else:
        numbers, widths = encode_tans_reference(symbols, frequencies, first_place, states, table_log2)
    return pack_bits(numbers, widths, numba=numba)


def decode_tans_streams(
    buffer: np.ndarray,
    byte_bounds: list[int],
    table: np.ndarray,
    table_log2: int,
    symbol_bounds: list[int],
    *,
    numba: bool | None = None,
) -> np.ndarray | None:
    """Decode adjacent sub-streams of one tANS code.

    Parameters
    ----------
    buffer : ndarray of uint8
    byte_bounds, symbol_bounds : list of int, length n_streams + 1
    table : ndarray of uint32, shape (2**table_log2,)

    Returns
    -------
    ndarray of uint8, shape (symbol_bounds[-1],), or None
        None if a sub-stream is corrupt (wrong end or padding).
    """
    out = np.empty(symbol_bounds[-1], dtype=np.uint8)
    if numba is None:
        numba = use_numba(out.size)
    if numba:
        from . import tans

        bounds = (np.array(byte_bounds, dtype=np.int64), np.array(symbol_bounds, dtype=np.int64))
        status = tans.decode_tans_streams(buffer, bounds[0], table, table_log2, bounds[1], out)
        return out if status == 0 else None
    for i in range(len(byte_bounds) - 1):
        part = out[symbol_bounds[i] : symbol_bounds[i + 1]]
        if decode_tans_reference(buffer[byte_bounds[i] : byte_bounds[i + 1]], table, table_log2, part):
            return None
    return out
