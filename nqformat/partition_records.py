"""Record fields of line classes and alive lists (spec 7.5)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .cursor import ByteCursor, encode_varint
from .raw_records import DirectoryCounts, read_stream
from .tensor import Layout

MAX_CLASSES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Lines of one class, coded as a matrix of their own.

    Attributes
    ----------
    n_lines, n_stored : int
    value_stream, position_stream : int or None
        None for a block without stored elements, and for the positions of a DENSE tensor.
    """

    n_lines: int
    n_stored: int
    value_stream: int | None = None
    position_stream: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """A tensor's matrix of lines, cut into blocks (spec 7.5).

    Attributes
    ----------
    n_lines, n_cross : int
        Lines (rows, or columns with column scan) and places on a line.
    class_stream : int or None
        Class of every line; None: one block of all lines.
    alive_stream : int or None
        Which places of a line can hold stored elements; None: all.
    n_alive : int
        Number of those places.
    blocks : tuple of Block
        One for each class.
    """

    n_lines: int
    n_cross: int
    class_stream: int | None
    alive_stream: int | None
    n_alive: int
    blocks: tuple[Block, ...]


def partition_bytes(layout: Layout, partition: Partition) -> bytes:
    """Serialize a partition (spec 7.5)."""
    out = b""
    if partition.class_stream is not None:
        out += encode_varint(len(partition.blocks)) + encode_varint(partition.class_stream)
    if partition.alive_stream is not None:
        out += encode_varint(partition.n_alive) + encode_varint(partition.alive_stream)
    for block in partition.blocks:
        if partition.class_stream is not None:
            out += encode_varint(block.n_lines)
        out += encode_varint(block.n_stored)
        if block.n_stored:
            assert block.value_stream is not None
            out += encode_varint(block.value_stream)
            if layout is not Layout.DENSE:
                assert block.position_stream is not None
                out += encode_varint(block.position_stream)
    return out


def read_partition_fields(
    cursor: ByteCursor,
    layout: Layout,
    shape: tuple[int, ...],
    counts: DirectoryCounts,
    *,
    classes: bool,
    alive: bool,
) -> Partition:
    """Parse the partition of a tensor whose lines are the rows of `shape` (spec 7.5).

    Raises
    ------
    CorruptError
        If the blocks do not fit the matrix.
    """
    if len(shape) < 2:
        raise cursor.corrupt("line classes of a tensor with fewer than two dimensions")
    n_lines, n_cross = shape[0], math.prod(shape[1:])
    n_blocks, class_stream = 1, None
    if classes:
        n_blocks = cursor.varint()
        if not 2 <= n_blocks <= MAX_CLASSES:
            raise cursor.corrupt(f"{n_blocks} line classes, allowed are 2 to {MAX_CLASSES}")
        class_stream = read_stream(cursor, counts)
    n_alive, alive_stream = n_cross, None
    if alive:
        n_alive = cursor.varint()
        if n_alive > n_cross:
            raise cursor.corrupt(f"{n_alive} of {n_cross} places alive")
        alive_stream = read_stream(cursor, counts)
    blocks = []
    for _ in range(n_blocks):
        n_own = cursor.varint() if class_stream is not None else n_lines
        blocks.append(_read_block(cursor, layout, n_own, n_alive, counts))
    if sum(block.n_lines for block in blocks) != n_lines:
        raise cursor.corrupt(f"classes do not add up to {n_lines} lines")
    return Partition(
        n_lines=n_lines,
        n_cross=n_cross,
        class_stream=class_stream,
        alive_stream=alive_stream,
        n_alive=n_alive,
        blocks=tuple(blocks),
    )


def _read_block(
    cursor: ByteCursor, layout: Layout, n_lines: int, n_alive: int, counts: DirectoryCounts
) -> Block:
    n_stored = cursor.varint()
    if n_stored > n_lines * n_alive or (layout is Layout.DENSE and n_stored not in (0, n_lines * n_alive)):
        raise cursor.corrupt(f"{n_stored} elements stored of {n_lines} lines with {n_alive} places")
    if n_stored == 0:
        return Block(n_lines=n_lines, n_stored=0)
    return Block(
        n_lines=n_lines,
        n_stored=n_stored,
        value_stream=read_stream(cursor, counts),
        position_stream=None if layout is Layout.DENSE else read_stream(cursor, counts),
    )
