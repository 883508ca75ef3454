"""Canonical length-limited prefix codes over at most 256 symbols (spec 5.1, 5.2)."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .bits import BitReader, BitWriter
from .cursor import ByteCursor, encode_varint
from .errors import CorruptError, UnsupportedFeatureError

MAX_CODE_LENGTH = 13
MAX_ALPHABET = 256

_KIND_LENGTHS = 0
_KIND_SINGLE = 1
_START_LENGTH = 4
_MIN_LONG_RUN = 3


def limited_code_lengths(counts: np.ndarray, max_length: int) -> np.ndarray:
    """Return optimal code lengths of at most `max_length` bits by package-merge.

    Parameters
    ----------
    counts : ndarray of integers, shape (alphabet,), alphabet <= 256
        Symbols with count 0 get length 0 (no codeword). A single used symbol gets length 0 too.
    max_length : int
        At most :data:`MAX_CODE_LENGTH`; at least log2 of the number of used symbols.

    Returns
    -------
    ndarray of uint8, shape (alphabet,)

    Notes
    -----
    Source: Huffman 1952 where its code is short enough, else Larmore and Hirschberg 1990 with
    O(max_length * alphabet) package operations.
    """
    lengths = np.zeros(counts.size, dtype=np.uint8)
    used = np.flatnonzero(counts)
    if used.size <= 1:
        return lengths
    if used.size > 1 << max_length:
        raise ValueError(f"{used.size} symbols do not fit codewords of {max_length} bits")
    plain = _huffman_lengths([int(counts[s]) for s in used])
    if max(plain) <= max_length:
        lengths[used] = plain
        return lengths
    leaves = sorted((int(counts[s]), (int(s),)) for s in used)
    packages: list[tuple[int, tuple[int, ...]]] = []
    for _ in range(max_length):
        merged = sorted(leaves + packages, key=lambda item: item[0])
        packages = [
            (merged[i][0] + merged[i + 1][0], merged[i][1] + merged[i + 1][1])
            for i in range(0, len(merged) - 1, 2)
        ]
    for _, symbols in packages[: used.size - 1]:
        for symbol in symbols:
            lengths[symbol] += 1
    return lengths


def _huffman_lengths(counts: list[int]) -> list[int]:
    """Code lengths of an optimal code without a length limit; at least two positive counts."""
    n = len(counts)
    heap = [(count, i) for i, count in enumerate(counts)]
    heapq.heapify(heap)
    parents = [0] * (2 * n - 1)
    for node in range(n, 2 * n - 1):
        first, a = heapq.heappop(heap)
        second, b = heap[0]
        parents[a] = parents[b] = node
        heapq.heapreplace(heap, (first + second, node))
    depths = [0] * (2 * n - 1)
    for node in range(2 * n - 3, -1, -1):
        depths[node] = depths[parents[node]] + 1
    return depths[:n]


@dataclass(frozen=True)
class PrefixCode:
    """A complete canonical prefix code, or the code of a single symbol that takes no bits.

    Attributes
    ----------
    lengths : tuple of int
        Codeword length of each symbol, 0 for unused ones; the last symbol is used.
    single : int or None
        The only symbol of a zero-bit code; `lengths` is then empty.
    """

    lengths: tuple[int, ...]
    single: int | None = None

    @classmethod
    def from_counts(cls, counts: np.ndarray, max_length: int) -> PrefixCode:
        """Build the optimal code for symbol counts (at least one must be positive)."""
        used = np.flatnonzero(counts)
        if used.size == 0:
            raise ValueError("a code needs at least one symbol")
        if used.size == 1:
            return cls(lengths=(), single=int(used[0]))
        lengths = limited_code_lengths(counts, max_length)
        return cls(lengths=tuple(int(n) for n in lengths[: int(used[-1]) + 1]))

    @property
    def max_length(self) -> int:
        """Longest codeword in bits; 0 for a single symbol."""
        return max(self.lengths, default=0)

    @cached_property
    def codewords(self) -> tuple[np.ndarray, np.ndarray]:
        """Codewords as written (bit-reversed, LSB first) and their lengths.

        Returns
        -------
        (ndarray of uint16, ndarray of uint8), each of shape (256,)
        """
        codes = np.zeros(MAX_ALPHABET, dtype=np.uint16)
        lengths = np.zeros(MAX_ALPHABET, dtype=np.uint8)
        code = 0
        for length in range(1, self.max_length + 1):
            code <<= 1
            for symbol, n_bits in enumerate(self.lengths):
                if n_bits == length:
                    codes[symbol] = int(format(code, f"0{length}b")[::-1], 2)
                    lengths[symbol] = length
                    code += 1
        return codes, lengths

    @cached_property
    def decode_table(self) -> np.ndarray:
        """Look-up table: entry of the next `max_length` bits is ``symbol | length << 8``.

        Returns
        -------
        ndarray of uint16, shape (2**max_length,)
        """
        codes, lengths = self.codewords
        table = np.zeros(1 << self.max_length, dtype=np.uint16)
        for symbol in np.flatnonzero(lengths):
            table[int(codes[symbol]) :: 1 << int(lengths[symbol])] = int(symbol) | int(lengths[symbol]) << 8
        return table

    def payload_bits(self, counts: np.ndarray) -> int:
        """Bits that a stream with these symbol counts takes."""
        return sum(int(c) * n for c, n in zip(counts, self.lengths, strict=False))

    def to_bytes(self) -> bytes:
        """Serialize as the body of a table record (spec 5.2)."""
        if self.single is not None:
            return bytes([_KIND_SINGLE, self.single])
        return bytes([_KIND_LENGTHS]) + encode_varint(len(self.lengths)) + _write_lengths(self.lengths)

    @classmethod
    def read(cls, cursor: ByteCursor, kind: int | None = None) -> PrefixCode:
        """Parse a table record, or what follows its `kind`; the rest of the body is the bit string.

        Raises
        ------
        CorruptError
            If the code is not complete (Kraft sum other than 1) or a length exceeds 13.
        UnsupportedFeatureError
            If the table kind is unknown.
        """
        kind = cursor.u8() if kind is None else kind
        if kind == _KIND_SINGLE:
            code = cls(lengths=(), single=cursor.u8())
            cursor.finish()
            return code
        if kind != _KIND_LENGTHS:
            raise UnsupportedFeatureError(f"code table kind {kind} is unknown to this reader")
        n_lengths = cursor.varint()
        if not 2 <= n_lengths <= MAX_ALPHABET:
            raise cursor.corrupt(f"code table declares {n_lengths} lengths, allowed are 2 to {MAX_ALPHABET}")
        lengths = _read_lengths(cursor.take(cursor.remaining), n_lengths)
        kraft = sum(1 << (MAX_CODE_LENGTH - n) for n in lengths if n)
        if kraft != 1 << MAX_CODE_LENGTH:
            raise cursor.corrupt("code lengths do not form a complete prefix code")
        return cls(lengths=lengths)


def _write_lengths(lengths: tuple[int, ...]) -> bytes:
    """Code lengths as differences to the last used one (spec 5.2)."""
    writer = BitWriter()
    previous = _START_LENGTH
    steps = {0: "0", 1: "100", -1: "101", 2: "1101", -2: "1110"}
    symbol = 0
    while symbol < len(lengths):
        length = lengths[symbol]
        if length == 0:
            run = 1
            while lengths[symbol + run] == 0:
                run += 1
            if run >= _MIN_LONG_RUN:
                writer.put_text("11111")
                writer.put_exp_golomb(run - _MIN_LONG_RUN, 0)
            else:
                writer.put_text("1100" * run)
            symbol += run
            continue
        step = length - previous
        if step in steps:
            writer.put_text(steps[step])
        else:
            writer.put_text("11110")
            writer.put(length, 4)
        previous = length
        symbol += 1
    return writer.to_bytes()


def _read_lengths(buffer: bytes, n_lengths: int) -> tuple[int, ...]:
    """Undo :func:`_write_lengths`; CorruptError on lengths outside 1 to 13 or a wrong count."""
    reader = BitReader(buffer, "TABLE")
    lengths: list[int] = []
    previous = _START_LENGTH
    while len(lengths) < n_lengths:
        n_unused, previous = _read_step(reader, previous)
        if n_unused:
            lengths.extend([0] * min(n_unused, n_lengths))
        elif not 1 <= previous <= MAX_CODE_LENGTH:
            raise CorruptError(f"code length {previous} is outside 1 to {MAX_CODE_LENGTH}", section="TABLE")
        else:
            lengths.append(previous)
    if len(lengths) != n_lengths or lengths[-1] == 0:
        raise CorruptError("code lengths do not end with a used symbol", section="TABLE")
    reader.finish()
    return tuple(lengths)


def _read_step(reader: BitReader, previous: int) -> tuple[int, int]:
    """Read one item: (number of unused symbols, last used length)."""
    if not reader.get(1):
        return 0, previous
    if not reader.get(1):
        return 0, previous - 1 if reader.get(1) else previous + 1
    if not reader.get(1):
        return (0, previous + 2) if reader.get(1) else (1, previous)
    if not reader.get(1):
        return 0, previous - 2
    if not reader.get(1):
        return 0, reader.get(4)
    return _MIN_LONG_RUN + reader.get_exp_golomb(0), previous
