"""Bitstream kernels: compiled by Numba where it pays, NumPy otherwise, with the same bits either way.

The environment variable ``NQFORMAT_KERNELS`` (``auto``, ``numba`` or ``numpy``) forces a path. ``auto`` takes
the compiled kernels if they are loaded already, loads them from the cache (some 50 ms of CPU) where the work
is worth that, and compiles them where it is worth seconds. Where Numba's ``NUMBA_DISABLE_JIT`` is set, and on
big-endian machines, NumPy does all.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from . import blocks
from .objects import DECODER, ENCODER, KernelLibrary, Part, is_loaded, kernel_library
from .reference import (
    count_symbols_reference,
    decode_prefix_reference,
    join_hybrid_reference,
    join_planes_reference,
    pack_bits_reference,
    pack_codes_reference,
)
from .tables import (
    MAX_LENGTH,
    MAX_TABLE_LOG2,
    DecodeTable,
    TansTables,
    build_decode_table,
    spread_table,
    stream_block,
    tans_decode_table,
)
from .tans_reference import decode_tans_reference, encode_tans_reference

if TYPE_CHECKING:
    from nqformat.prefix_code import PrefixCode

__all__ = [
    "SLOW_TANS",
    "TansTables",
    "compiled",
    "count_symbols",
    "decode_prefix_streams",
    "decode_table",
    "decode_tans_streams",
    "encode_tans_streams",
    "join_hybrid",
    "join_planes",
    "native",
    "pack_bits",
    "pack_codes",
    "use_numba",
]

SLOW_TANS = 4
"""How many times slower than other symbols tANS symbols are without compiled kernels."""

_WORTH_LOADING_SYMBOLS = 200_000
_WORTH_COMPILING_SYMBOLS = 20_000_000
_WORTH_NUMBA_SYMBOLS = 2_000_000

_asked_symbols: dict[Part, int] = {}
"""Symbols of all work so far: many tensors are worth loading and compiling kernels as one large one is."""


def _choice() -> str:
    """Path that the environment asks for; ValueError for one that does not exist."""
    choice = os.environ.get("NQFORMAT_KERNELS", "auto")
    if choice not in ("auto", "numba", "numpy"):
        raise ValueError(f"NQFORMAT_KERNELS must be auto, numba or numpy, not {choice!r}")
    if sys.byteorder != "little":  # kernels load words of the file as they lie
        return "numpy"
    return "numpy" if os.environ.get("NUMBA_DISABLE_JIT", "0") != "0" else choice


def native(n_symbols: int, part: Part = DECODER) -> KernelLibrary | None:
    """Return the compiled kernels of a part if work on `n_symbols` shall use them, else None."""
    asked = _asked_symbols[part] = _asked_symbols.get(part, 0) + n_symbols
    worth_loading = _WORTH_LOADING_SYMBOLS
    if "llvmlite.binding" in sys.modules:  # most of the time that loading takes
        worth_loading //= 10
    return compiled(part, asked, worth_loading=worth_loading, worth_compiling=_WORTH_COMPILING_SYMBOLS)


def compiled(part: Part, work: int, *, worth_loading: int, worth_compiling: int) -> KernelLibrary | None:
    """Return the compiled kernels of a part if so much work shall use them, else None.

    Parameters
    ----------
    work, worth_loading, worth_compiling : int
        In any unit; kernels in the cache are loaded from `worth_loading` on, missing ones are compiled from
        `worth_compiling` on. The environment variable overrides both.
    """
    choice = _choice()
    if choice == "numpy":
        return None
    if choice == "numba":
        return kernel_library(part, compile_missing=True)
    if work < worth_loading and not is_loaded(part):
        return None
    return kernel_library(part, compile_missing=work >= worth_compiling)


def use_numba(n_symbols: int) -> bool:
    """Decide whether work on `n_symbols` is worth Numba itself, for kernels that are not in the library."""
    choice = _choice()
    if choice == "numpy":
        return False
    if choice == "auto" and "numba" not in sys.modules and n_symbols < _WORTH_NUMBA_SYMBOLS:
        return False
    return importlib.util.find_spec("numba") is not None


def run(library: KernelLibrary, kernel: int, *parameters: int) -> int:
    """Run a kernel on a block of these parameters."""
    block = np.array(parameters, dtype=np.int64)
    return library.run(kernel, address(block))


def address(array: np.ndarray) -> int:
    """Address of an array's first element."""
    pointer: int = array.__array_interface__["data"][0]
    return pointer


@lru_cache(maxsize=64)
def decode_table(lengths: tuple[int, ...]) -> DecodeTable | None:
    """Look-up tables of a complete code; None without compiled kernels.

    The tables of the last codes are kept: at most 64 of 20 to 80 KB.
    """
    library = kernel_library(DECODER, compile_missing=True)
    return None if library is None else build_decode_table(library, lengths)


def pack_bits(values: np.ndarray, widths: np.ndarray) -> bytes:
    """Concatenate the low `widths` bits of `values`, least significant bit first.

    Parameters
    ----------
    values : ndarray of uint64, shape (n,), value < 2**width
    widths : ndarray of uint8, shape (n,), each at most 56
    """
    library = native(values.size, ENCODER)
    if library is None:
        return pack_bits_reference(values, widths).tobytes()
    values = np.ascontiguousarray(values, dtype=np.uint64)
    widths = np.ascontiguousarray(widths, dtype=np.uint8)
    n_bytes = (int(widths.sum(dtype=np.int64)) + 7) // 8
    out = np.empty(n_bytes + 16, dtype=np.uint8)
    run(library, blocks.PACK_BITS, address(values), address(widths), values.size, address(out))
    return out[:n_bytes].tobytes()


def pack_codes(symbols: np.ndarray, bounds: list[int], codes: np.ndarray, lengths: np.ndarray) -> list[bytes]:
    """Concatenate the codewords of the symbols between each two bounds.

    Parameters
    ----------
    symbols : ndarray of uint8
    bounds : list of int, length n_parts + 1
    codes : ndarray of uint16, shape (256,)
        Codewords, first bit lowest.
    lengths : ndarray of uint8, shape (256,), each at most 13
    """
    library = native(symbols.size, ENCODER)
    if library is None:
        return [pack_codes_reference(symbols[a:b], codes, lengths) for a, b in pairwise(bounds)]
    symbols = np.ascontiguousarray(symbols, dtype=np.uint8)
    assert bounds[0] >= 0 and bounds[-1] <= symbols.size and int(lengths.max()) <= MAX_LENGTH
    table = codes.astype(np.uint32) | lengths.astype(np.uint32) << np.uint32(16)
    if len(bounds) == 5 and int(np.count_nonzero(lengths)) ** 2 <= symbols.size:
        return _pack_pairs(library, symbols, bounds, table)
    out = _packed_area(max(b - a for a, b in pairwise(bounds)))
    parts = []
    for a, b in pairwise(bounds):
        n_bits = run(library, blocks.PACK_CODES, address(symbols) + a, b - a, address(table), address(out))
        parts.append(out[: (n_bits + 7) // 8].tobytes())
    return parts


def _packed_area(n_symbols: int) -> np.ndarray:
    """Room for codewords, and the words that the kernels store beyond them."""
    return np.empty(n_symbols * MAX_LENGTH // 8 + 24, dtype=np.uint8)


def _pack_pairs(
    library: KernelLibrary, symbols: np.ndarray, bounds: list[int], table: np.ndarray
) -> list[bytes]:
    """Pack four sub-streams at once, two symbols a look-up."""
    pairs = _pair_table(library, table.tobytes())
    lengths = [b - a for a, b in pairwise(bounds)]
    areas = [_packed_area(n) for n in lengths]
    starts = [address(symbols) + a for a in bounds[:-1]]
    block = np.array(
        (address(pairs), address(table), *starts, *lengths, *map(address, areas)), dtype=np.int64
    )
    library.run(blocks.PACK_PAIRS, address(block))
    return [area[: (int(n) + 7) // 8].tobytes() for area, n in zip(areas, block[6:10], strict=True)]


@lru_cache(maxsize=8)
def _pair_table(library: KernelLibrary, codes: bytes) -> np.ndarray:
    """Codewords of all pairs of symbols: uint32, shape (65536,), 256 KB of which few pages are touched."""
    table = np.frombuffer(codes, dtype=np.uint32)
    pairs = np.zeros(1 << 16, dtype=np.uint32)
    run(library, blocks.JOIN_PAIRS, address(table), address(pairs))
    return pairs


def count_symbols(symbols: np.ndarray) -> np.ndarray:
    """Histogram of bytes: int64, shape (256,)."""
    library = native(symbols.size, ENCODER) if symbols.dtype == np.uint8 else None
    if library is None:
        return count_symbols_reference(symbols)
    symbols = np.ascontiguousarray(symbols)
    counts = np.zeros((4, 256), dtype=np.int64)
    run(library, blocks.COUNT, address(symbols), symbols.size, address(counts))
    total: np.ndarray = counts.sum(axis=0)
    return total


def join_hybrid(
    symbols: np.ndarray, extra: np.ndarray, bases: np.ndarray, widths: np.ndarray
) -> np.ndarray | None:
    """Numbers of hybrid symbols and their extra bits.

    Parameters
    ----------
    symbols, extra : ndarray of uint8
    bases : ndarray of int64, shape (256,)
    widths : ndarray of uint8, shape (256,)
        Extra bits of each symbol, 255 for one that stands for no number.

    Returns
    -------
    ndarray of int64, or None
        None if a symbol stands for no number or the extra bits do not have their exact length.
    """
    library = native(symbols.size)
    if library is None:
        return join_hybrid_reference(symbols, extra, bases, widths)
    symbols, extra = np.ascontiguousarray(symbols), np.ascontiguousarray(extra)
    entries = hybrid_entries(bases, widths)
    out = np.empty(symbols.size, dtype=np.int64)
    status = run(
        library,
        blocks.HYBRID,
        address(symbols),
        symbols.size,
        address(entries),
        address(extra),
        extra.size,
        address(out),
    )
    return out if status == 0 else None


NO_NUMBER = (1 << 56) - 1
"""Entry of a hybrid symbol that stands for no number: larger than any tensor's last position."""


def hybrid_entries(bases: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Smallest number of each symbol, and its extra bits from bit 56 on: uint64, shape (256,)."""
    entries = bases.astype(np.uint64) | widths.astype(np.uint64) << np.uint64(56)
    return np.where(widths == 255, np.uint64(NO_NUMBER), entries)


def join_planes(planes: list[np.ndarray], out: np.ndarray, *, rotate: bool) -> None:
    """Join byte planes, lowest first, into the elements of `out`.

    Parameters
    ----------
    planes : list of ndarray of uint8, each of shape (n,)
    out : ndarray of an unsigned integer dtype, shape (n,)
    rotate : bool
        Turn each element right by one bit.
    """
    library = native(out.size) if out.itemsize > 1 else None
    if library is None:
        join_planes_reference(planes, out, rotate=rotate)
        return
    planes = [np.ascontiguousarray(plane) for plane in planes]
    places = [address(plane) for plane in planes] + [0] * (8 - len(planes))
    run(library, blocks.PLANES, address(out), out.size, out.itemsize, int(rotate), *places)


def decode_prefix_streams(
    buffer: np.ndarray, byte_bounds: list[int], code: PrefixCode, symbol_bounds: list[int]
) -> np.ndarray | None:
    """Decode the adjacent sub-streams, one or four, of one prefix code.

    Parameters
    ----------
    buffer : ndarray of uint8
    byte_bounds, symbol_bounds : list of int, length n_streams + 1
    code : PrefixCode
        Of at least two symbols.

    Returns
    -------
    ndarray of uint8, shape (symbol_bounds[-1],), or None
        None if a sub-stream is corrupt (wrong end or padding).
    """
    library = native(symbol_bounds[-1])
    table = None if library is None else decode_table(code.lengths)
    if library is not None and table is not None:
        return _decode_streams(library, table, buffer, byte_bounds, symbol_bounds[-1])
    out = np.empty(symbol_bounds[-1], dtype=np.uint8)
    for i in range(len(byte_bounds) - 1):
        part = out[symbol_bounds[i] : symbol_bounds[i + 1]]
        stored = buffer[byte_bounds[i] : byte_bounds[i + 1]]
        if decode_prefix_reference(stored, code.decode_table, code.max_length, part):
            return None
    return out


def _decode_streams(
    library: KernelLibrary, table: DecodeTable, buffer: np.ndarray, byte_bounds: list[int], n_symbols: int
) -> np.ndarray | None:
    """Decode the sub-streams of a chunk; None if one is corrupt."""
    out = np.empty(n_symbols, dtype=np.uint8)
    row = np.zeros(blocks.CODED, dtype=np.int64)
    row[0] = byte_bounds[0]
    row[1 : len(byte_bounds)] = np.diff(byte_bounds)
    row[5:8] = len(byte_bounds) - 1, n_symbols, n_symbols
    stream = stream_block(buffer, row, 1, spread_table(1, 256), table=table)
    status = run(library, blocks.BYTES, address(stream), address(out), 0, 0, 0, 0, 0, 0, 1, n_symbols)
    return out if status == 0 else None


def encode_tans_streams(symbols: np.ndarray, bounds: list[int], tables: TansTables) -> list[bytes]:
    """Encode the symbols between each two bounds under a tANS code.

    Parameters
    ----------
    symbols : ndarray of uint8
        Each of a positive frequency.
    bounds : list of int, length n_parts + 1
    tables : TansTables

    Raises
    ------
    ValueError
        If a symbol has no frequency.
    """
    library = native(SLOW_TANS * symbols.size, ENCODER)
    if library is None:
        pairs = [encode_tans_reference(symbols[a:b], tables) for a, b in pairwise(bounds)]
        return [pack_bits(numbers, widths) for numbers, widths in pairs]
    symbols = np.ascontiguousarray(symbols, dtype=np.uint8)
    assert bounds[0] >= 0 and bounds[-1] <= symbols.size and tables.table_log2 <= MAX_TABLE_LOG2
    if count_symbols(symbols)[tables.frequencies == 0].any():
        raise ValueError("a symbol has no frequency in the tANS code")
    most = max(b - a for a, b in pairwise(bounds))
    bit_counts, offsets = tables.encoder_steps
    buffer = np.empty(most, dtype=np.uint32)
    out = np.empty((most + 2) * MAX_TABLE_LOG2 // 8 + 24, dtype=np.uint8)
    shared = (*map(address, (bit_counts, offsets, tables.first_place, tables.states)), tables.table_log2)
    parts = []
    for a, b in pairwise(bounds):
        places = (address(symbols) + a, b - a, *shared, address(buffer), address(out))
        n_bits = run(library, blocks.ENCODE_TANS, *places)
        parts.append(out[: (n_bits + 7) // 8].tobytes())
    return parts


def decode_tans_streams(
    buffer: np.ndarray, byte_bounds: list[int], table: np.ndarray, table_log2: int, symbol_bounds: list[int]
) -> np.ndarray | None:
    """Decode adjacent sub-streams, one or four, of one tANS code.

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
    library = native(SLOW_TANS * symbol_bounds[-1])
    if library is not None:
        decoder = tans_decode_table(table, table_log2)
        return _decode_streams(library, decoder, buffer, byte_bounds, symbol_bounds[-1])
    out = np.empty(symbol_bounds[-1], dtype=np.uint8)
    for i in range(len(byte_bounds) - 1):
        part = out[symbol_bounds[i] : symbol_bounds[i + 1]]
        if decode_tans_reference(buffer[byte_bounds[i] : byte_bounds[i + 1]], table, table_log2, part):
            return None
    return out
