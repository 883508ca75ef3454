"""A tensor's slice of a stream: its chunks, and how the compiled kernels are told of them (spec 4.4, 4.5)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np

from . import kernels
from .errors import CorruptError
from .escape import EscapeMapping
from .grouping import GroupMapping
from .hybrid import HybridMapping
from .kernels import blocks
from .kernels.objects import KernelLibrary
from .kernels.tables import DecodeTable, spread_table, stream_block, tans_decode_table
from .streams import ChunkEntry, Code, StreamRecord
from .tans import TansCode
from .workers import Workers

_TASK_NUMBERS = 1 << 21
_BUFFER_SLACK = 64


@dataclass(frozen=True, slots=True)
class Piece:
    """The part of a slice that one chunk holds.

    Attributes
    ----------
    number : int
        Number of the chunk in its stream.
    entry : ChunkEntry
    place : int
        Which part of the chunk.
    start, stop : int
        Range of the slice's numbers.
    alone : bool
        Whether the chunk holds nothing else.
    """

    number: int
    entry: ChunkEntry
    place: int
    start: int
    stop: int
    alone: bool


class ChunkSource(Protocol):
    """Where checked bytes and decoded shared chunks come from."""

    def checked(self, start_abs: int, n_bytes: int) -> memoryview:
        """Return bytes of the file whose pages have been checked."""

    def chunk_numbers(self, stream: int, piece: Piece) -> np.ndarray:
        """Return the decoded numbers of a piece: uint8, or int64 with hybrid mapping."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CodedSlice:
    """A tensor's slice of a stream, with all that decodes it.

    Attributes
    ----------
    name : str
        The tensor's name, for messages.
    stream : int
        Number of the stream.
    record : StreamRecord
    code : PrefixCode, TansCode or None
    pieces : list of Piece
        In order; together they hold the slice, or the range of it that is wanted.
    source : ChunkSource
    """

    name: str
    stream: int
    record: StreamRecord
    code: Code | None
    pieces: list[Piece]
    source: ChunkSource

    def numbers(self) -> Iterator[tuple[Piece, np.ndarray]]:
        """Decode piece by piece."""
        for piece in self.pieces:
            yield piece, self.source.chunk_numbers(self.stream, piece)

    @property
    def n_numbers(self) -> int:
        """Numbers of all pieces."""
        return sum(piece.stop - piece.start for piece in self.pieces)


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueTable:
    """Values of the numbers below ``values.size``, in the tensor's storage dtype.

    Attributes
    ----------
    values : ndarray
        Value of each number.
    legal : ndarray of bool
        Whether a number may occur; one that may not is corrupt.
    """

    values: np.ndarray
    legal: np.ndarray


def work_areas(workers: Workers, n_areas: int, *parts: CodedSlice) -> tuple[list[int], int]:
    """Addresses in this thread's memory: areas that hold the numbers of a chunk, and a tile of elements."""
    n_bytes = max(1 << part.record.chunk_log2 for part in parts) + _BUFFER_SLACK
    start = kernels.address(workers.scratch(n_areas * n_bytes + 8 * blocks.TILE_ELEMENTS))
    return [start + i * n_bytes for i in range(n_areas)], start + n_areas * n_bytes


def chunk_rows(part: CodedSlice, pieces: list[Piece]) -> np.ndarray:
    """Rows of chunks for the kernels, with their offsets in the payload; each chunk holds one part only."""
    mapping = part.record.mapping
    group = mapping.group if isinstance(mapping, GroupMapping) else 1
    entries = [piece.entry for piece in pieces]
    rows = np.zeros((len(pieces), blocks.CODED), dtype=np.int64)
    rows[:, 0] = [entry.start_off for entry in entries]
    rows[:, 1:5] = [(*entry.substream_bytes, 0, 0, 0)[:4] for entry in entries]
    rows[:, 5] = [len(entry.substream_bytes) for entry in entries]
    rows[:, 8] = [entry.extra_bytes for entry in entries]
    rows[:, 9] = [piece.start for piece in pieces]
    rows[:, 7] = [piece.stop for piece in pieces]
    rows[:, 7] -= rows[:, 9]
    rows[:, 6] = -(-rows[:, 7] // group)
    rows[:, 10] = -1
    return rows


def run_rows(rows: np.ndarray, first: int, last: int) -> np.ndarray:
    """Rows of a run of chunks, with offsets in its bytes."""
    chosen = rows[first:last].copy()
    chosen[:, 0] -= chosen[0, 0]
    return chosen


def bytes_of(part: CodedSlice, pieces: list[Piece]) -> np.ndarray:
    """Bytes from the first to the last of adjacent chunks, checked."""
    start = pieces[0].entry.start_off
    stop = pieces[-1].entry.start_off + pieces[-1].entry.n_bytes
    checked = part.source.checked(part.record.payload_start_abs + start, stop - start)
    return np.frombuffer(checked, dtype=np.uint8)


def cut_runs(pieces: list[Piece], threads: int) -> list[tuple[int, int]]:
    """Cut adjacent pieces into runs of about equal length for `threads` workers: first and last + 1."""
    if threads == 1:
        return [(0, len(pieces))]
    total = pieces[-1].stop - pieces[0].start
    wanted = min(_TASK_NUMBERS, -(-total // (4 * threads)))
    bounds, room = [0], wanted
    for i, piece in enumerate(pieces):
        if room <= 0:
            bounds.append(i)
            room = wanted
        room -= piece.stop - piece.start
    return list(pairwise([*bounds, len(pieces)]))


def split_alone(pieces: list[Piece]) -> tuple[list[Piece], list[Piece]]:
    """Pieces of chunks of their own, which are adjacent, and the others."""
    return [p for p in pieces if p.alone], [p for p in pieces if not p.alone]


@dataclass(frozen=True, slots=True, kw_only=True)
class NativeCode:
    """How compiled kernels read the chunks of a slice; it keeps alive what its blocks point to."""

    group: int
    spread: np.ndarray
    table: DecodeTable | None
    single: int | None
    highest: int

    def block(self, source: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return the parameters of a stream."""
        return stream_block(
            source,
            rows,
            self.group,
            self.spread,
            table=self.table,
            highest=self.highest,
            single=self.single,
        )


def decoder_library(part: CodedSlice) -> KernelLibrary | None:
    """Compiled kernels, if the work is worth loading them."""
    cost = kernels.SLOW_TANS if isinstance(part.code, TansCode) else 1
    return kernels.native(cost * part.n_numbers)


def native_code(part: CodedSlice, legal: np.ndarray | None) -> NativeCode | None:
    """Kernel parameters of a slice, or None if the NumPy path must look at each number.

    Parameters
    ----------
    legal : ndarray of bool or None
        Whether each number may occur; None allows all.
    """
    mapping = part.record.mapping
    if isinstance(mapping, EscapeMapping):
        return None
    if isinstance(mapping, HybridMapping):
        group, width, highest_symbol = 1, 256, 255
    else:
        group, width = mapping.group, mapping.width
        highest_symbol = width**group - 1
    spread = spread_table(group, width)
    if legal is None and highest_symbol == 255:
        return _with_table(part, group, spread, highest_symbol)
    allowed = np.zeros(256, dtype=bool)
    allowed[: highest_symbol + 1] = True
    if legal is not None:
        padded = np.zeros(256, dtype=bool)
        padded[: min(legal.size, 256)] = legal[:256]
        for place in range(group):
            allowed &= padded[(spread >> np.uint64(8 * place)) & np.uint64(255)]
    highest = 0
    if part.code is None:
        forbidden = np.flatnonzero(~allowed)
        highest = int(forbidden[0]) - 1 if forbidden.size else 255
        if highest < 0 or allowed[highest + 1 :].any():
            return None
    elif isinstance(part.code, TansCode):
        if not allowed[: len(part.code.weights)][np.array(part.code.weights) >= 0].all():
            return None
    elif part.code.single is not None:
        if not allowed[part.code.single]:
            return None
    elif not allowed[: len(part.code.lengths)][np.array(part.code.lengths) > 0].all():
        return None
    return _with_table(part, group, spread, highest)


def _with_table(part: CodedSlice, group: int, spread: np.ndarray, highest: int) -> NativeCode:
    """Add the decode table of a code."""
    table = single = None
    if isinstance(part.code, TansCode):
        table = tans_decode_table(part.code.decode_table, part.code.table_log2)
    elif part.code is not None:
        single = part.code.single
        table = None if single is not None else kernels.decode_table(part.code.lengths)
    return NativeCode(group=group, spread=spread, table=table, single=single, highest=highest)


def damaged(part: CodedSlice) -> CorruptError:
    """Return the error of a slice whose chunks a kernel refused."""
    return CorruptError(
        f"the chunks of tensor {part.name!r} are damaged",
        section="STREAM",
        offset_abs=part.record.payload_start_abs,
    )
