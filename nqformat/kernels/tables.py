"""Look-up tables of the compiled decoder: several symbols for each window of bits."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from . import blocks
from .objects import KernelLibrary

MAX_LENGTH = 13
MAX_TABLE_LOG2 = 12
_WIDE_WINDOW = 12
_NARROW_WINDOW = 13
_WIDE_UP_TO_BITS = 3.8


@lru_cache(maxsize=64)
def spread_table(group: int, width: int) -> np.ndarray:
    """Numbers of each symbol, the first in the lowest byte: uint64, shape (256,) (spec 4.2)."""
    rest = np.arange(256, dtype=np.uint64)
    spread = np.zeros(256, dtype=np.uint64)
    for place in range(group):
        spread |= (rest % np.uint64(width)) << np.uint64(8 * place)
        rest //= np.uint64(width)
    return spread


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeTable:
    """Tables of one code.

    Attributes
    ----------
    kind : int
        WIDE: uint64 entries of up to six symbols; NARROW: uint32 entries of up to three; TANS: uint32 entries
        of the states.
    window : int
        Bits that index the tables.
    entries : ndarray, shape (2**window,)
        Length in bits 0-5, then the count and the symbols.
    singles : ndarray of uint16, shape (2**window,)
        ``symbol | length << 8``.
    most : int
        Most symbols of one entry.
    """

    kind: int
    window: int
    entries: np.ndarray
    singles: np.ndarray
    most: int


def stream_block(
    source: np.ndarray,
    rows: np.ndarray,
    group: int,
    spread: np.ndarray,
    *,
    table: DecodeTable | None = None,
    highest: int = 0,
    single: int | None = None,
) -> np.ndarray:
    """Parameters of a stream: coded with `table`, of one symbol `single`, or stored, symbols to `highest`.

    Parameters
    ----------
    source : ndarray of uint8
        Every byte may be read.
    rows : ndarray of int64, shape (n, blocks.CODED)
    """
    coded = (blocks.STORED, 0, 0, 0, 0)
    if table is not None:
        coded = (table.kind, _address(table.entries), _address(table.singles), table.window, table.most)
    elif single is not None:
        coded = (blocks.SINGLE, 0, 0, 0, 0)
    places = (_address(source), source.size, *coded, group, _address(spread), highest, single or 0)
    return np.array((*places, _address(rows)), dtype=np.int64)


def _address(array: np.ndarray) -> int:
    pointer: int = array.__array_interface__["data"][0]
    return pointer


@dataclass(frozen=True, kw_only=True)
class TansTables:
    """What encodes under a tANS code (spec 5.3).

    Attributes
    ----------
    frequencies, first_place : ndarray of int64, shape (256,)
        States of each symbol, and where they begin in `states`.
    states : ndarray of uint16, shape (2**table_log2,)
        In the order of (symbol, state).
    table_log2 : int
    """

    frequencies: np.ndarray
    first_place: np.ndarray
    states: np.ndarray
    table_log2: int

    @cached_property
    def encoder_steps(self) -> tuple[np.ndarray, np.ndarray]:
        """Bit counts (uint64) and state offsets (int64) of the symbols.

        A symbol in state s takes ``(s + 2**table_log2 + bit_count) >> 16`` bits, and the rest of the state
        and the offset are the place of the next state: Collet's FSE.
        """
        counts = np.maximum(self.frequencies, 1)
        most = self.table_log2 - np.frexp((counts - 1).astype(np.float64))[1] + 1
        most[counts == 1] = self.table_log2
        bit_counts = (most << 16) - (counts << most)
        return bit_counts.astype(np.uint64), (self.first_place - self.frequencies).astype(np.int64)


def tans_decode_table(entries: np.ndarray, table_log2: int) -> DecodeTable:
    """Wrap the table of a tANS code: ``n_bits | symbol << 8 | next_state_base << 16`` for each state."""
    assert entries.shape == (1 << table_log2,) and table_log2 <= MAX_TABLE_LOG2
    entries = np.ascontiguousarray(entries, dtype=np.uint32)
    return DecodeTable(kind=blocks.TANS, window=table_log2, entries=entries, singles=entries, most=1)


def build_decode_table(library: KernelLibrary, lengths: tuple[int, ...]) -> DecodeTable:
    """Build the tables of a complete code.

    Raises
    ------
    ValueError
        If the lengths do not form a complete code of at most 13 bits: the kernel relies on it.
    """
    used = [n for n in lengths if n]
    if not used or max(used) > MAX_LENGTH or sum(1 << (MAX_LENGTH - n) for n in used) != 1 << MAX_LENGTH:
        raise ValueError("code lengths do not form a complete prefix code")
    wide = sum(n / (1 << n) for n in used) <= _WIDE_UP_TO_BITS
    window = max(_WIDE_WINDOW if wide else _NARROW_WINDOW, *used)
    kind = blocks.WIDE if wide else blocks.NARROW
    padded = np.zeros(256, dtype=np.uint8)
    padded[: len(lengths)] = lengths
    entries = np.empty(1 << window, dtype=np.uint64 if wide else np.uint32)
    singles = np.empty(1 << window, dtype=np.uint16)
    places = [_address(padded), window, kind, _address(entries), _address(singles)]
    block = np.array(places, dtype=np.int64)
    most = library.run(blocks.TABLE, _address(block))
    return DecodeTable(kind=kind, window=window, entries=entries, singles=singles, most=most)
