"""Blocks of a partitioned tensor: lines of one class, places that are alive (spec 7.5)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from .errors import CorruptError
from .streams import StreamKind
from .tensor import Layout
from .tensor_records import Partition, TensorRecord

_SCATTERED_UP_TO = 16
"""Places for each stored number up to which sorting takes longer than marking all places."""


def partition_slices(
    record: TensorRecord, partition: Partition
) -> Iterator[tuple[str, int, StreamKind, int]]:
    """Role, stream, kind and length of each slice of a partitioned tensor, in the order of its fields."""
    if partition.class_stream is not None:
        yield "classes", partition.class_stream, StreamKind.CLASSES, partition.n_lines
    if partition.alive_stream is not None:
        yield "alive", partition.alive_stream, StreamKind.CLASSES, partition.n_cross
    for i, block in enumerate(partition.blocks):
        if block.value_stream is not None:
            yield f"values{i}", block.value_stream, StreamKind.VALUES, block.n_stored
        if block.position_stream is not None:
            if record.layout is Layout.SPARSE:
                yield f"positions{i}", block.position_stream, StreamKind.GAPS, block.n_stored
            else:
                n_mask = -(-block.n_lines * partition.n_alive // 8)
                yield f"positions{i}", block.position_stream, StreamKind.MASK, n_mask


def lines_of_classes(partition: Partition, classes: np.ndarray, where: str) -> list[np.ndarray]:
    """Line numbers of each block, ascending.

    Raises
    ------
    CorruptError
        If a class does not exist or has another number of lines than its block.
    """
    if classes.size and int(classes.max()) >= len(partition.blocks):
        raise CorruptError(f"{where} has a line of class {int(classes.max())}", section="TENSOR")
    counts = np.bincount(classes, minlength=len(partition.blocks)).tolist()
    if counts != [block.n_lines for block in partition.blocks]:
        raise CorruptError(f"{where} has other lines in its classes than declared", section="TENSOR")
    order = np.argsort(classes, kind="stable")
    return np.split(order, np.cumsum(counts)[:-1])


def alive_places(partition: Partition, marks: np.ndarray, where: str) -> np.ndarray:
    """Places of a line that can hold stored elements, ascending; CorruptError unless n_alive are marked."""
    alive = np.flatnonzero(marks)
    if (marks.size and int(marks.max()) > 1) or alive.size != partition.n_alive:
        raise CorruptError(f"{where} has other places alive than declared", section="TENSOR")
    return alive


def read_partition(
    record: TensorRecord,
    partition: Partition,
    column_scan: bool,
    numbers: Callable[[str], np.ndarray],
    block_positions: Callable[[str, int, int], np.ndarray],
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return stored numbers and their positions in C order (None: all elements are stored).

    Parameters
    ----------
    numbers : function of a role
        All numbers of that slice.
    block_positions : function of a role, elements of the block and its stored elements
        Ascending positions inside the block (not called for DENSE tensors).

    Raises
    ------
    CorruptError
        If classes or marks contradict the record.
    """
    where = f"tensor {record.name!r}"
    lines = [np.arange(partition.n_lines)]
    if partition.class_stream is not None:
        lines = lines_of_classes(partition, numbers("classes"), where)
    alive = np.arange(partition.n_cross)
    if partition.alive_stream is not None:
        alive = alive_places(partition, numbers("alive"), where)
    n_stored = sum(block.n_stored for block in partition.blocks)
    if record.layout is Layout.DENSE and n_stored == partition.n_lines * partition.n_cross:
        return _whole_lines(partition, column_scan, numbers, lines), None
    stored: list[np.ndarray] = [np.zeros(0, dtype=np.uint8)]
    positions: list[np.ndarray] = [np.zeros(0, dtype=np.int64)]
    for i, block in enumerate(partition.blocks):
        if block.n_stored == 0:
            continue
        stored.append(numbers(f"values{i}"))
        n_elements = block.n_lines * partition.n_alive
        inside = np.arange(n_elements)
        if record.layout is not Layout.DENSE:
            inside = block_positions(f"positions{i}", n_elements, block.n_stored)
        line, cross = np.divmod(inside, partition.n_alive)
        line, cross = lines[i][line], alive[cross]
        positions.append(
            cross * partition.n_lines + line if column_scan else line * partition.n_cross + cross
        )
    return _in_order(stored, positions, partition.n_lines * partition.n_cross)


def placing_bytes(partition: Partition, n_stored: int) -> int:
    """Bytes that bringing the numbers of all blocks into order takes beside these and their positions."""
    n_places = partition.n_lines * partition.n_cross
    return 9 * n_places if n_places <= _SCATTERED_UP_TO * n_stored else 0


def _whole_lines(
    partition: Partition,
    column_scan: bool,
    numbers: Callable[[str], np.ndarray],
    lines: list[np.ndarray],
) -> np.ndarray:
    """Numbers of all elements in C order, from blocks of whole lines."""
    blocks = [
        numbers(f"values{i}") if block.n_stored else np.zeros(0, dtype=np.uint8)
        for i, block in enumerate(partition.blocks)
    ]
    by_line = np.empty((partition.n_lines, partition.n_cross), dtype=np.result_type(*blocks))
    for block, places in zip(blocks, lines, strict=True):
        by_line[places] = block.reshape(places.size, partition.n_cross)
    return (by_line.T if column_scan else by_line).reshape(-1)


def _in_order(
    stored: list[np.ndarray], positions: list[np.ndarray], n_places: int
) -> tuple[np.ndarray, np.ndarray]:
    """Join numbers of several blocks by ascending position."""
    joined, values = np.concatenate(positions), np.concatenate(stored)
    if n_places > _SCATTERED_UP_TO * joined.size:
        order = np.argsort(joined, kind="stable")
        return values[order], joined[order]
    marks = np.zeros(n_places, dtype=bool)
    marks[joined] = True
    places = np.empty(n_places, dtype=values.dtype)
    places[joined] = values
    return places[marks], np.flatnonzero(marks)
