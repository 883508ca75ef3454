"""From coded chunks to elements: tensor by tensor, chunk by chunk, in parallel (spec 4.5, 6, 7.4).

Each function fills a preallocated result and holds a few chunks besides. Chunks that belong to one tensor
go through compiled kernels where these are in use, several chunks a call; shared chunks, wide numbers and
everything without compiled kernels take the NumPy path, with the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from . import kernels
from .coded_slice import (
    CodedSlice,
    NativeCode,
    Piece,
    ValueTable,
    bytes_of,
    chunk_rows,
    cut_runs,
    damaged,
    decoder_library,
    native_code,
    run_rows,
    split_alone,
    work_areas,
)
from .errors import CorruptError
from .grouping import GroupMapping
from .hybrid import HybridMapping
from .kernels import blocks
from .kernels.objects import KernelLibrary
from .kernels.tables import spread_table
from .workers import Workers

_MASK_TILE_BYTES = 1 << 13
_TURNED_ROWS = 64
_PAST_CACHE_FROM_BYTES = 1 << 22
"""Results from this size on are written past the cache, which they would only displace."""


def decode_bytes(part: CodedSlice, out: np.ndarray, workers: Workers) -> None:
    """Decode numbers below 256 (values, mask bytes, planes) as they are.

    Parameters
    ----------
    out : ndarray of uint8
        Number i of the slice goes to ``out[i]``.
    """
    library = decoder_library(part)
    native = None if library is None else native_code(part, None)
    rest = part.pieces
    if library is not None and native is not None:
        alone, rest = split_alone(part.pieces)
        _run_dense(library, native, part, alone, out=out, base=0, table=None, workers=workers)
    for piece in rest:
        out[piece.start : piece.stop] = part.source.chunk_numbers(part.stream, piece)


def _run_dense(
    library: KernelLibrary,
    native: NativeCode,
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

    rows = chunk_rows(part, pieces)
    rows[:, 9] -= base

    def decode(first: int, last: int) -> None:
        mine = run_rows(rows, first, last)
        source = bytes_of(part, pieces[first:last])
        block = native.block(source, mine)
        areas, tile = work_areas(workers, 2, part)
        status = kernels.run(
            library,
            blocks.DENSE,
            kernels.address(block),
            kernels.address(out),
            0 if table is None else table.values.itemsize,
            0 if words is None else kernels.address(words),
            0 if pairs is None else kernels.address(pairs),
            *areas,
            0,
            last - first,
            out.size,
            tile,
            table is not None and out.nbytes >= _PAST_CACHE_FROM_BYTES,
        )
        if status != 0:
            raise damaged(part)

    tasks = [partial(decode, *bounds) for bounds in cut_runs(pieces, workers.threads)]
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
    library = decoder_library(part)
    native = None
    if library is not None and table is not None and isinstance(part.record.mapping, GroupMapping):
        native = native_code(part, table.legal)
    rest = part.pieces
    if library is not None and native is not None:
        alone, rest = split_alone(part.pieces)
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
    *,
    out: np.ndarray,
    workers: Workers,
) -> None:
    """Fill a dense tensor whose numbers stand in the order of a column scan.

    Numbers below 256 are decoded first, in a byte each, and then looked up row by row.
    """
    if not isinstance(part.record.mapping, GroupMapping):
        for piece, numbers in part.numbers():
            scan = np.arange(piece.start, piece.stop)
            out[(scan % n_rows) * n_columns + scan // n_rows] = values_of(numbers)
        return
    narrow = np.empty(out.size, dtype=np.uint8)
    decode_bytes(part, narrow, workers)
    by_column = narrow.reshape(n_columns, n_rows)
    rows = out.reshape(n_rows, n_columns)

    def look_up(first: int) -> None:
        block = np.ascontiguousarray(by_column[:, first : first + _TURNED_ROWS].T)
        rows[first : first + _TURNED_ROWS] = values_of(block)

    workers.run([partial(look_up, first) for first in range(0, n_rows, _TURNED_ROWS)], out.size)


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
    library = decoder_library(part)
    if library is None or table is None or not isinstance(part.record.mapping, GroupMapping):
        return False
    if not all(p.alone for p in part.pieces) or not all(p.alone for p in gaps.pieces):
        return False
    native, gap_native = native_code(part, table.legal), native_code(gaps, None)
    if native is None or gap_native is None:
        return False
    if isinstance(mapping, HybridMapping):
        entries = kernels.hybrid_entries(mapping.symbol_bases, mapping.symbol_widths)
    else:
        entries = np.arange(256, dtype=np.uint64)
    words, _ = _value_words(table.values, 1, native.spread)
    if columns is not None or not part.pieces:
        out.fill(0)
    if not part.pieces:
        return True
    ends = [piece.entry.scan_start for piece in gaps.pieces[1:]] + [-1]
    rows, gap_rows = chunk_rows(part, part.pieces), chunk_rows(gaps, gaps.pieces)
    gap_rows[:, 9] = [p.entry.scan_start if p.start else 0 for p in gaps.pieces]
    gap_rows[:, 10] = ends

    def decode(first: int, last: int) -> None:
        mine, my_gaps = run_rows(rows, first, last), run_rows(gap_rows, first, last)
        source, gap_source = (
            bytes_of(part, part.pieces[first:last]),
            bytes_of(gaps, gaps.pieces[first:last]),
        )
        block, gap_block = native.block(source, mine), gap_native.block(gap_source, my_gaps)
        areas, tile = work_areas(workers, 3, part, gaps)
        status = kernels.run(
            library,
            blocks.SPARSE,
            kernels.address(block),
            kernels.address(out),
            out.itemsize,
            kernels.address(words),
            0,
            areas[0],
            areas[1],
            0,
            last - first,
            out.size,
            tile,
            out.nbytes >= _PAST_CACHE_FROM_BYTES,
            kernels.address(entries),
            0 if columns is None else columns[0],
            0 if columns is None else columns[1],
            kernels.address(gap_block),
            areas[2],
        )
        if status < 0:
            raise damaged(part)
        if last == len(part.pieces) and columns is None:
            out[status:] = 0

    tasks = [partial(decode, *bounds) for bounds in cut_runs(part.pieces, workers.threads)]
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
