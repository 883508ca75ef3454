"""From coded chunks to elements: tensor by tensor, chunk by chunk, in parallel (spec 4.5, 6, 7.4).

Each function fills a preallocated result and holds a few chunks besides. Chunks that belong to one tensor
go through compiled kernels where these are in use, several chunks a call; shared chunks, wide numbers and
everything without compiled kernels take the NumPy path, with the same bits.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
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

_TASK_NUMBERS = 1 << 21
_PARALLEL_FROM_NUMBERS = 1 << 18
_MASK_TILE_BYTES = 1 << 13
_BUFFER_SLACK = 64
_PAST_CACHE_FROM_BYTES = 1 << 22
"""Results from this size on are written past the cache, which they would only displace."""


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


class Workers:
    """Runs tasks in threads; the pool starts with the first work that is large enough.

    Parameters
    ----------
    threads : int or None
        Threads to use; None for one on each processor that this process may use.
    """

    def __init__(self, threads: int | None) -> None:
        if threads is not None and threads < 1:
            raise ValueError(f"threads must be at least 1, not {threads}")
        self.threads = threads if threads is not None else _n_processors()
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()

    def run(self, tasks: Sequence[Callable[[], None]], n_numbers: int) -> None:
        """Run all tasks; the first error in their order is raised once all have ended."""
        if self.threads == 1 or len(tasks) < 2 or n_numbers < _PARALLEL_FROM_NUMBERS:
            for task in tasks:
                task()
            return
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="nqformat")
            futures = [self._pool.submit(task) for task in tasks]
        errors = [error for error in (future.exception() for future in futures) if error is not None]
        if errors:
            raise errors[0]

    def close(self) -> None:
        """End the threads."""
        with self._lock:
            if self._pool is not None:
                self._pool.shutdown(wait=True)
                self._pool = None


def _n_processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _buffers(n_areas: int, *parts: CodedSlice) -> np.ndarray:
    """Working memory of one task: each row holds the numbers of a chunk."""
    n_bytes = max(1 << part.record.chunk_log2 for part in parts) + _BUFFER_SLACK
    return np.empty((n_areas, n_bytes), dtype=np.uint8)


def _tile(out: np.ndarray) -> np.ndarray:
    """Elements that a task computes in cache before they go to the result."""
    return np.empty(blocks.TILE_ELEMENTS, dtype=out.dtype)


def _rows(part: CodedSlice, pieces: list[Piece]) -> np.ndarray:
    """Rows of chunks for the kernels; each chunk holds one part only."""
    mapping = part.record.mapping
    group = mapping.group if isinstance(mapping, GroupMapping) else 1
    first = pieces[0].entry.start_off
    rows = []
    for piece in pieces:
        entry, n = piece.entry, piece.stop - piece.start
        sizes = entry.substream_bytes
        four = (*sizes, 0, 0, 0)[:4]
        rows.append(
            (
                entry.start_off - first,
                *four,
                len(sizes),
                -(-n // group),
                n,
                entry.extra_bytes,
                piece.start,
                -1,
            )
        )
    return np.array(rows, dtype=np.int64)


def _bytes_of(part: CodedSlice, pieces: list[Piece]) -> np.ndarray:
    """Bytes from the first to the last of adjacent chunks, checked."""
    start = pieces[0].entry.start_off
    stop = pieces[-1].entry.start_off + pieces[-1].entry.n_bytes
    checked = part.source.checked(part.record.payload_start_abs + start, stop - start)
    return np.frombuffer(checked, dtype=np.uint8)


def _tasks(pieces: list[Piece], threads: int) -> list[list[Piece]]:
    """Cut adjacent pieces into runs of about equal length for `threads` workers."""
    if threads == 1:
        return [pieces]
    total = pieces[-1].stop - pieces[0].start
    wanted = min(_TASK_NUMBERS, -(-total // (4 * threads)))
    runs: list[list[Piece]] = [[]]
    room = wanted
    for piece in pieces:
        if room <= 0 and runs[-1]:
            runs.append([])
            room = wanted
        runs[-1].append(piece)
        room -= piece.stop - piece.start
    return [run for run in runs if run]


def _split_alone(pieces: list[Piece]) -> tuple[list[Piece], list[Piece]]:
    """Pieces of chunks of their own, which are adjacent, and the others."""
    return [p for p in pieces if p.alone], [p for p in pieces if not p.alone]


@dataclass(frozen=True, slots=True, kw_only=True)
class _NativeCode:
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


def _library(part: CodedSlice) -> KernelLibrary | None:
    """Compiled kernels, if the work is worth loading them."""
    cost = kernels.SLOW_TANS if isinstance(part.code, TansCode) else 1
    return kernels.native(cost * part.n_numbers)


def _native_code(part: CodedSlice, legal: np.ndarray | None) -> _NativeCode | None:
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


def _with_table(part: CodedSlice, group: int, spread: np.ndarray, highest: int) -> _NativeCode:
    """Add the decode table of a code."""
    table = single = None
    if isinstance(part.code, TansCode):
        table = tans_decode_table(part.code.decode_table, part.code.table_log2)
    elif part.code is not None:
        single = part.code.single
        table = None if single is not None else kernels.decode_table(part.code.lengths)
    return _NativeCode(group=group, spread=spread, table=table, single=single, highest=highest)


def _damaged(part: CodedSlice) -> CorruptError:
    return CorruptError(
        f"the chunks of tensor {part.name!r} are damaged",
        section="STREAM",
        offset_abs=part.record.payload_start_abs,
    )


def decode_bytes(part: CodedSlice, out: np.ndarray, workers: Workers) -> None:
    """Decode numbers below 256 (values, mask bytes, planes) as they are.

    Parameters
    ----------
    out : ndarray of uint8
        Number i of the slice goes to ``out[i]``.
    """
    library = _library(part)
    native = None if library is None else _native_code(part, None)
    rest = part.pieces
    if library is not None and native is not None:
        alone, rest = _split_alone(part.pieces)
        _run_dense(library, native, part, alone, out=out, base=0, table=None, workers=workers)
    for piece in rest:
        out[piece.start : piece.stop] = part.source.chunk_numbers(part.stream, piece)


def _run_dense(
    library: KernelLibrary,
    native: _NativeCode,
    part: CodedSlice,
    pieces: list[Piece],
    *,
    out: np.ndarray,
    base: int,
    table: ValueTable | None,
    workers: Workers,
) -> None:
    """Decode chunks of one tensor by the kernel: numbers, or their values if there is a table.

    Number ``base + i`` of the slice goes to ``out[i]``.
    """
    if not pieces:
        return
    words = pairs = None
    if table is not None:
        words, pairs = _value_words(table.values, native.group, native.spread)

    def decode(run: list[Piece]) -> None:
        rows = _rows(part, run)
        rows[:, 9] -= base
        source = _bytes_of(part, run)
        block = native.block(source, rows)
        buffers, tile = _buffers(2, part), _tile(out)
        status = kernels.run(
            library,
            blocks.DENSE,
            kernels.address(block),
            kernels.address(out),
            0 if table is None else table.values.itemsize,
            0 if words is None else kernels.address(words),
            0 if pairs is None else kernels.address(pairs),
            *map(kernels.address, buffers),
            0,
            len(run),
            out.size,
            kernels.address(tile),
            table is not None and out.nbytes >= _PAST_CACHE_FROM_BYTES,
        )
        if status != 0:
            raise _damaged(part)

    tasks = [partial(decode, run) for run in _tasks(pieces, workers.threads)]
    workers.run(tasks, sum(p.stop - p.start for p in pieces))


def _value_words(values: np.ndarray, group: int, spread: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Value bits of all bytes as uint64, and joined values of several numbers.

    With groups these are rows of whole words, one for each symbol. With groups of one they are the values of
    two numbers below 16, where there are no others, for each byte that joins these.
    """
    bits = values.view(f"<u{values.itemsize}").astype(np.uint64)
    words = np.zeros(256, dtype=np.uint64)
    words[: min(bits.size, 256)] = bits[:256]
    if group > 1:
        places = np.arange(group, dtype=np.uint64) * np.uint64(8)
        numbers = (spread[:, None] >> places) & np.uint64(255)
        row_bytes = group * values.itemsize
        joined = np.zeros((256, -(-row_bytes // 8) * 8), dtype=np.uint8)
        members = words[numbers].astype(f"<u{values.itemsize}")
        joined[:, :row_bytes] = members.view(np.uint8).reshape(256, row_bytes)
        return words, joined
    if values.size > 16 or values.itemsize not in (2, 4):
        return words, None
    both = np.arange(256)
    return words, words[both & 15] | words[both >> 4] << np.uint64(8 * values.itemsize)


def decode_dense(
    part: CodedSlice,
    *,
    table: ValueTable | None,
    values_of: Callable[[np.ndarray], np.ndarray],
    out: np.ndarray,
    base: int,
    workers: Workers,
) -> None:
    """Fill the elements of a dense tensor in C order.

    Parameters
    ----------
    table : ValueTable or None
        Values of numbers below 256; None for wider numbers.
    values_of : callable
        Values of any numbers, checked.
    out : ndarray of the storage dtype
        Number ``base + i`` of the slice goes to ``out[i]``; all pieces lie inside.
    """
    library = _library(part)
    native = None
    if library is not None and table is not None and isinstance(part.record.mapping, GroupMapping):
        native = _native_code(part, table.legal)
    rest = part.pieces
    if library is not None and native is not None:
        alone, rest = _split_alone(part.pieces)
        _run_dense(library, native, part, alone, out=out, base=base, table=table, workers=workers)

    def place(piece: Piece) -> None:
        numbers = part.source.chunk_numbers(part.stream, piece)
        out[piece.start - base : piece.stop - base] = values_of(numbers)

    workers.run([partial(place, piece) for piece in rest], sum(p.stop - p.start for p in rest))


def decode_columns(
    part: CodedSlice,
    values_of: Callable[[np.ndarray], np.ndarray],
    n_rows: int,
    n_columns: int,
    out: np.ndarray,
) -> None:
    """Fill a dense tensor whose numbers stand in the order of a column scan."""
    for piece, numbers in part.numbers():
        scan = np.arange(piece.start, piece.stop)
        out[(scan % n_rows) * n_columns + scan // n_rows] = values_of(numbers)


def gap_positions(gaps: CodedSlice, n_elements: int) -> Iterator[tuple[Piece, np.ndarray]]:
    """Scan positions of the stored elements, piece by piece; each chunk must continue the one before.

    Raises
    ------
    CorruptError
        If chunks do not join or a position lies beyond the elements.
    """
    position = 0
    for piece, numbers in gaps.numbers():
        if piece.start > 0 and piece.entry.scan_start != position:
            raise CorruptError(f"chunks of tensor {gaps.name!r} do not join", section="STREAM")
        if numbers.size and int(numbers.max()) > n_elements:
            raise CorruptError(f"a gap of tensor {gaps.name!r} leads beyond its end", section="TENSOR")
        positions = np.cumsum(numbers, dtype=np.int64)
        positions += np.arange(position, position + positions.size)
        position = int(positions[-1]) + 1
        if position > n_elements:
            raise CorruptError(f"a gap of tensor {gaps.name!r} leads beyond its end", section="TENSOR")
        yield piece, positions


def decode_sparse(
    part: CodedSlice,
    gaps: CodedSlice,
    *,
    table: ValueTable | None,
    values_of: Callable[[np.ndarray], np.ndarray],
    out: np.ndarray,
    columns: tuple[int, int] | None,
    workers: Workers,
) -> None:
    """Fill a sparse tensor: its stored elements, and zeros.

    Parameters
    ----------
    out : ndarray of the storage dtype
    columns : (n_rows, n_columns) or None
        Shape of the matrix whose columns are scanned; None for C order.
    """
    bounds = [(p.start, p.stop) for p in part.pieces]
    gap_bounds = [(p.start, p.stop) for p in gaps.pieces]
    if bounds == gap_bounds and _decode_sparse_native(
        part, gaps, table=table, out=out, columns=columns, workers=workers
    ):
        return
    out.fill(0)
    stored = None
    if bounds != gap_bounds:
        pieces = [numbers for _, numbers in part.numbers()]
        stored = np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.uint8)
    for i, (piece, positions) in enumerate(gap_positions(gaps, out.size)):
        if stored is None:
            numbers = part.source.chunk_numbers(part.stream, part.pieces[i])
        else:
            numbers = stored[piece.start : piece.stop]
        if columns is not None:
            positions = (positions % columns[0]) * columns[1] + positions // columns[0]
        out[positions] = values_of(numbers)


def _decode_sparse_native(
    part: CodedSlice,
    gaps: CodedSlice,
    *,
    table: ValueTable | None,
    out: np.ndarray,
    columns: tuple[int, int] | None,
    workers: Workers,
) -> bool:
    """Decode by the kernel if it can; False if nothing was done."""
    mapping = gaps.record.mapping
    library = _library(part)
    if library is None or table is None or not isinstance(part.record.mapping, GroupMapping):
        return False
    if not all(p.alone for p in part.pieces) or not all(p.alone for p in gaps.pieces):
        return False
    native, gap_native = _native_code(part, table.legal), _native_code(gaps, None)
    if native is None or gap_native is None:
        return False
    if isinstance(mapping, HybridMapping):
        entries = kernels.hybrid_entries(mapping.symbol_bases, mapping.symbol_widths)
    else:
        entries = np.arange(256, dtype=np.uint64)
    words, _ = _value_words(table.values, 1, native.spread)
    if columns is not None or not part.pieces:
        out.fill(0)
    ends = [piece.entry.scan_start for piece in gaps.pieces[1:]] + [-1]
    n_before = 0

    def decode(first: int, last: int) -> None:
        rows, gap_rows = _rows(part, part.pieces[first:last]), _rows(gaps, gaps.pieces[first:last])
        gap_rows[:, 9] = [p.entry.scan_start if p.start else 0 for p in gaps.pieces[first:last]]
        gap_rows[:, 10] = ends[first:last]
        source, gap_source = (
            _bytes_of(part, part.pieces[first:last]),
            _bytes_of(gaps, gaps.pieces[first:last]),
        )
        block, gap_block = native.block(source, rows), gap_native.block(gap_source, gap_rows)
        buffers, tile = _buffers(3, part, gaps), _tile(out)
        status = kernels.run(
            library,
            blocks.SPARSE,
            kernels.address(block),
            kernels.address(out),
            out.itemsize,
            kernels.address(words),
            0,
            kernels.address(buffers[0]),
            kernels.address(buffers[1]),
            0,
            last - first,
            out.size,
            kernels.address(tile),
            out.nbytes >= _PAST_CACHE_FROM_BYTES,
            kernels.address(entries),
            0 if columns is None else columns[0],
            0 if columns is None else columns[1],
            kernels.address(gap_block),
            kernels.address(buffers[2]),
        )
        if status < 0:
            raise _damaged(part)
        if last == len(part.pieces) and columns is None:
            out[status:] = 0

    tasks = []
    for run in _tasks(part.pieces, workers.threads):
        tasks.append(partial(decode, n_before, n_before + len(run)))
        n_before += len(run)
    workers.run(tasks, part.n_numbers)
    return True


def decode_mask(
    part: CodedSlice,
    mask: np.ndarray,
    *,
    table: ValueTable | None,
    values_of: Callable[[np.ndarray], np.ndarray],
    out: np.ndarray,
    columns: tuple[int, int] | None,
    workers: Workers,
) -> None:
    """Fill a tensor from its mask bytes and the values of the set bits.

    Parameters
    ----------
    mask : ndarray of uint8, shape (ceil(n_elements / 8),)
        As many bits are set as the slice has numbers, none beyond the elements: checked by the caller.
    out : ndarray of the storage dtype, all zero
    """
    wide = not isinstance(part.record.mapping, GroupMapping)
    numbers = np.zeros(part.n_numbers + 1, dtype=np.int64 if wide else np.uint8)
    if wide:
        for piece, piece_numbers in part.numbers():
            numbers[piece.start : piece.stop] = piece_numbers
    else:
        decode_bytes(part, numbers, workers)
    library = kernels.native(out.size)
    if library is not None and table is not None and not wide and columns is None:
        highest = int(numbers.max())
        if highest >= table.legal.size or not (table.legal[numbers[:-1]].all()):
            values_of(numbers[:-1])
        _expand_native(library, mask, numbers, table=table, out=out, workers=workers)
        return
    used = 0
    for start in range(0, mask.size, _MASK_TILE_BYTES):
        positions = np.flatnonzero(
            np.unpackbits(mask[start : start + _MASK_TILE_BYTES], bitorder="little")
        ) + (8 * start)
        if columns is not None:
            positions = (positions % columns[0]) * columns[1] + positions // columns[0]
        out[positions] = values_of(numbers[used : used + positions.size])
        used += positions.size


def _expand_native(
    library: KernelLibrary,
    mask: np.ndarray,
    numbers: np.ndarray,
    *,
    table: ValueTable,
    out: np.ndarray,
    workers: Workers,
) -> None:
    words, _ = _value_words(table.values, 1, spread_table(1, 256))
    tile = max(_MASK_TILE_BYTES, -(-mask.size // (4 * workers.threads)))
    tasks = []
    used = 0

    def expand(start: int, stop: int, first: int) -> None:
        kernels.run(
            library,
            blocks.MASK,
            kernels.address(mask) + start,
            min(8 * stop, out.size) - 8 * start,
            kernels.address(numbers) + first,
            kernels.address(words),
            out.itemsize,
            kernels.address(out) + 8 * start * out.itemsize,
        )

    for start in range(0, mask.size, tile):
        stop = min(start + tile, mask.size)
        tasks.append(partial(expand, start, stop, used))
        used += count_mask(mask[start:stop])
    workers.run(tasks, out.size)


def count_mask(mask: np.ndarray) -> int:
    """Set bits of a contiguous mask."""
    library = kernels.native(8 * mask.size)
    if library is not None:
        return kernels.run(library, blocks.POPCOUNT, kernels.address(mask), mask.size)
    return sum(
        int(np.unpackbits(mask[i : i + (1 << 16)]).sum(dtype=np.int64)) for i in range(0, mask.size, 1 << 16)
    )
