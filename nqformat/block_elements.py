"""Stored elements of a quantized tensor, cut into blocks: lines by class, places that are alive."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .tensor import Layout

__all__ = [
    "PLAIN",
    "BlockElements",
    "Lines",
    "blocks_of",
    "gaps_of",
    "place_dtype",
    "scan_mask",
    "scan_positions",
]

_AT_ONCE = 1 << 16


@dataclass(frozen=True, slots=True)
class Lines:
    """How the lines of a tensor's matrix are grouped.

    Attributes
    ----------
    classes : ndarray of uint8, shape (n_lines,), or None
        None: one block of all lines.
    alive : ndarray of bool, shape (n_cross,), or None
        None: all places.
    """

    classes: np.ndarray | None = None
    alive: np.ndarray | None = None

    @property
    def n_classes(self) -> int:
        """Number of blocks."""
        return 1 if self.classes is None else int(self.classes.max()) + 1

    @property
    def is_plain(self) -> bool:
        """Whether the tensor is one block of everything."""
        return self.classes is None and self.alive is None


PLAIN = Lines()


@dataclass(frozen=True, slots=True)
class BlockElements:
    """Stored elements of one block.

    Attributes
    ----------
    n_lines, n_elements : int
        Lines of the block, and elements with the unstored ones.
    elements : ndarray of int32 or int64, or None
        C-order positions of the stored elements in scan order; None: all, in C order.
    inside : ndarray of int32 or int64, or None
        Their positions in the block, in the layouts that do not store every element; else None.
    """

    n_lines: int
    n_elements: int
    elements: np.ndarray | None
    inside: np.ndarray | None

    @property
    def n_stored(self) -> int:
        """Number of stored elements."""
        return self.n_elements if self.elements is None else int(self.elements.size)


def scan_positions(shape: tuple[int, ...], nonzero: np.ndarray, column_scan: bool) -> np.ndarray:
    """Ascending positions of the nonzero elements in scan order: int32 where that holds them, else int64."""
    marked = (nonzero.reshape(shape[0], -1).T if column_scan else nonzero).reshape(-1)
    found = np.empty(np.count_nonzero(marked), dtype=place_dtype(nonzero.size))
    n_found = 0
    for start in range(0, marked.size, _AT_ONCE):
        inside = np.flatnonzero(marked[start : start + _AT_ONCE])
        found[n_found : n_found + inside.size] = inside + start
        n_found += inside.size
    return found


def place_dtype(n_elements: int) -> np.dtype[np.signedinteger[Any]]:
    """Return the dtype for positions of so many elements."""
    return np.dtype(np.int32 if n_elements < 1 << 31 else np.int64)


def blocks_of(
    layout: Layout,
    shape: tuple[int, ...],
    nonzero: np.ndarray,
    column_scan: bool,
    lines: Lines,
    *,
    positions: np.ndarray | None = None,
) -> list[BlockElements]:
    """Cut a tensor into blocks.

    Parameters
    ----------
    nonzero : ndarray of bool, shape (n_elements,), C order
    positions : ndarray of int32 or int64, or None
        What :func:`scan_positions` gives, if it is at hand; dense layouts need none.
    """
    if layout is Layout.DENSE:
        return _dense_blocks(shape, nonzero, column_scan, lines)
    if positions is None:
        positions = scan_positions(shape, nonzero, column_scan)
    n_rows = shape[0] if shape else 1
    n_columns = nonzero.size // max(n_rows, 1)
    if lines.is_plain:
        elements = _elements_by_column(positions, n_rows, n_columns) if column_scan else positions
        n_lines = n_columns if column_scan else n_rows
        return [BlockElements(n_lines, nonzero.size, elements, positions)]
    n_lines, n_cross = (n_columns, n_rows) if column_scan else (n_rows, n_columns)
    alive, classes = _alive_places(lines, n_cross), _classes_of(lines, n_lines)
    steps = (1, n_columns) if column_scan else (n_columns, 1)
    parts = _class_parts(positions, classes, lines.n_classes, alive, n_cross=n_cross, steps=steps)
    n_own = np.bincount(classes, minlength=lines.n_classes).tolist()
    return [BlockElements(n, n * int(alive.size), *part) for n, part in zip(n_own, parts, strict=True)]


def _elements_by_column(positions: np.ndarray, n_rows: int, n_columns: int) -> np.ndarray:
    """Positions in C order of positions in the scan by columns, without copies of all of them."""
    elements = np.empty_like(positions)
    for start in range(0, positions.size, _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        column, row = np.divmod(positions[part], n_rows)
        elements[part] = row * n_columns + column
    return elements


def _class_parts(
    positions: np.ndarray,
    classes: np.ndarray,
    n_classes: int,
    alive: np.ndarray,
    *,
    n_cross: int,
    steps: tuple[int, int],
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the positions of each class in C order and inside its block, without copies of all of them.

    Parameters
    ----------
    positions : ndarray of int32 or int64, ascending
        In scan order, in lines of `n_cross` places.
    classes : ndarray, shape (n_lines,)
    alive : ndarray of int64
        Places of a line that the block has.
    steps : (int, int)
        From line to line and from place to place in C order.
    """
    dtype = positions.dtype
    place_alive = np.zeros(n_cross, dtype=dtype)
    place_alive[alive] = np.arange(alive.size)
    first_place = np.empty(classes.size, dtype=dtype)
    for number in range(n_classes):
        own = np.flatnonzero(classes == number)
        first_place[own] = np.arange(own.size, dtype=dtype) * dtype.type(alive.size)
    bounds = np.searchsorted(positions, np.arange(1, classes.size + 1, dtype=dtype) * dtype.type(n_cross))
    n_stored = np.bincount(classes, weights=np.diff(bounds, prepend=0), minlength=n_classes).astype(np.int64)
    parts = [(np.empty(n, dtype), np.empty(n, dtype)) for n in n_stored.tolist()]
    done = [0] * n_classes
    for start in range(0, positions.size, _AT_ONCE):
        line, cross = np.divmod(positions[start : start + _AT_ONCE], n_cross)
        inside = first_place[line] + place_alive[cross]
        elements = line * dtype.type(steps[0]) + cross * dtype.type(steps[1])
        class_of = classes[line]
        for number, part in enumerate(parts):
            mine = np.flatnonzero(class_of == number)
            stretch = slice(done[number], done[number] + mine.size)
            part[0][stretch], part[1][stretch] = elements[mine], inside[mine]
            done[number] += mine.size
    return parts


def _dense_blocks(
    shape: tuple[int, ...], nonzero: np.ndarray, column_scan: bool, lines: Lines
) -> list[BlockElements]:
    """Cut a tensor of which every element is stored, but for lines and places that are left out."""
    n_rows = shape[0] if shape else 1
    n_columns = nonzero.size // n_rows if n_rows else 0
    if lines.is_plain and not column_scan:
        return [BlockElements(n_rows, nonzero.size, None, None)]
    n_lines, n_cross = (n_columns, n_rows) if column_scan else (n_rows, n_columns)
    alive = _alive_places(lines, n_cross)
    classes = _classes_of(lines, n_lines)
    dtype = place_dtype(nonzero.size)
    matrix = nonzero.reshape(n_rows, -1) if nonzero.size else nonzero.reshape(n_rows, n_columns)
    living: np.ndarray = np.asarray(matrix.any(axis=0 if column_scan else 1))
    blocks = []
    for number in range(lines.n_classes):
        own = np.flatnonzero(classes == number)
        stored = own if lines.is_plain or living[own].any() else own[:0]
        cross_step, line_step = (n_columns, 1) if column_scan else (1, n_columns)
        elements = (stored * line_step).astype(dtype)[:, None] + (alive * cross_step).astype(dtype)
        n_elements = int(own.size) * int(alive.size)
        blocks.append(BlockElements(int(own.size), n_elements, elements.reshape(-1), None))
    return blocks


def _alive_places(lines: Lines, n_cross: int) -> np.ndarray:
    return np.arange(n_cross) if lines.alive is None else np.flatnonzero(lines.alive)


def _classes_of(lines: Lines, n_lines: int) -> np.ndarray:
    return np.zeros(n_lines, dtype=np.uint8) if lines.classes is None else lines.classes


def scan_mask(inside: np.ndarray, n_elements: int) -> np.ndarray:
    """One bit for each element in scan order, lowest bit first: uint8, shape (ceil(n / 8),)."""
    mask = np.zeros(n_elements, dtype=np.uint8)
    mask[inside] = 1
    return np.packbits(mask, bitorder="little")


def gaps_of(inside: np.ndarray) -> np.ndarray:
    """Zeros before each of some ascending positions, in their dtype."""
    gaps = np.empty_like(inside)
    np.subtract(inside[1:], inside[:-1], out=gaps[1:])
    gaps[:1] = inside[:1] + 1
    gaps -= 1
    return gaps
