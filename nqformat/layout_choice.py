"""Choice of a quantized tensor's layout by the bytes it takes (rules in spec/rationale.md)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .grouping import MAX_GROUP, GroupMapping
from .hybrid import HybridMapping
from .prefix_code import PrefixCode
from .tensor import Layout

WRITER_CODE_LENGTH = 12
_GAP_MAPPINGS = (HybridMapping(4, 1), HybridMapping(5, 2), HybridMapping(6, 2))
_WIDE_MAPPINGS = (HybridMapping(4, 1), HybridMapping(6, 3), HybridMapping(7, 3))
STREAM_OVERHEAD_BYTES = 7


def coded_bytes(counts: np.ndarray) -> int:
    """Payload and code table of a stream of its own with these symbol counts: bytes."""
    if not counts.any():
        return 0
    code = PrefixCode.from_counts(counts, WRITER_CODE_LENGTH)
    coded = -(-code.payload_bits(counts) // 8) + len(code.to_bytes())
    return min(coded, int(counts.sum()))


def histogram(symbols: np.ndarray) -> np.ndarray:
    """Symbol counts: int64, shape (256,)."""
    return np.bincount(symbols, minlength=256)


def hybrid_bytes(mapping: HybridMapping, numbers: np.ndarray) -> int:
    """Bytes of numbers under a hybrid mapping, with their own table."""
    symbols, _, widths = mapping.split(numbers)
    return coded_bytes(histogram(symbols)) + -(-int(widths.sum(dtype=np.int64)) // 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class CodedNumbers:
    """Numbers with the mapping that codes them best, and the bytes that takes."""

    mapping: GroupMapping | HybridMapping
    numbers: np.ndarray
    n_bytes: int


def best_value_coding(numbers: np.ndarray, width: int) -> CodedNumbers:
    """Choose the grouping (or, above 256, the hybrid split) of indices below `width`."""
    if width > 256:
        wide = numbers.astype(np.int64)
        able = [mapping for mapping in _WIDE_MAPPINGS if mapping.max_value >= width - 1]
        best = min(able, key=lambda mapping: hybrid_bytes(mapping, wide))
        return CodedNumbers(mapping=best, numbers=wide, n_bytes=hybrid_bytes(best, wide))
    small = numbers.astype(np.uint8)
    choice = CodedNumbers(mapping=GroupMapping(), numbers=small, n_bytes=coded_bytes(histogram(small)))
    for group in range(2, MAX_GROUP + 1):
        if max(width, 2) ** group > 256:
            break
        mapping = GroupMapping(group, max(width, 2))
        n_bytes = coded_bytes(histogram(mapping.join(small)))
        if n_bytes < choice.n_bytes:
            choice = CodedNumbers(mapping=mapping, numbers=small, n_bytes=n_bytes)
    return choice


def best_gap_coding(positions: np.ndarray) -> CodedNumbers:
    """Choose the hybrid split of the gaps between ascending positions."""
    gaps = np.diff(positions, prepend=-1) - 1
    best = min(_GAP_MAPPINGS, key=lambda mapping: hybrid_bytes(mapping, gaps))
    return CodedNumbers(mapping=best, numbers=gaps, n_bytes=hybrid_bytes(best, gaps))


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutChoice:
    """A layout with its scan direction and the place of its stored elements.

    Attributes
    ----------
    layout : Layout
        DENSE, SPARSE or MASK.
    column_scan : bool
    order : ndarray of int64 or None
        C-order positions of the stored elements in scan order; None stands for all, in C order.
    scan_positions : ndarray of int64 or None
        Scan positions of the stored elements, ascending; None when dense.
    """

    layout: Layout
    column_scan: bool
    order: np.ndarray | None
    scan_positions: np.ndarray | None


def choose_layout(
    shape: tuple[int, ...], indices: np.ndarray, nonzero_indices: np.ndarray, width: int
) -> LayoutChoice:
    """Compare dense, sparse and mask layouts in both scan directions by exact coded bytes.

    Parameters
    ----------
    shape : tuple of int
    indices : ndarray of unsigned integers, shape (n_elements,)
        Index of every element, zero included as an entry, below `width`.
    nonzero_indices : ndarray of bool, shape (n_elements,)
        Which elements are not zero.
    width : int
        Entries, zero included.
    """
    dense = LayoutChoice(layout=Layout.DENSE, column_scan=False, order=None, scan_positions=None)
    n_nonzero = int(nonzero_indices.sum())
    if n_nonzero == indices.size:
        return dense
    best, best_bytes = dense, best_value_coding(indices, width).n_bytes
    for column_scan in (False, True):
        if column_scan and (len(shape) < 2 or min(shape[0], math.prod(shape[1:])) < 2):
            continue
        order, scan_positions = _scan(shape, nonzero_indices, column_scan)
        values_bytes = best_value_coding(indices[order], width).n_bytes + STREAM_OVERHEAD_BYTES
        gap_bytes = best_gap_coding(scan_positions).n_bytes
        mask_bytes = coded_bytes(histogram(scan_mask(scan_positions, indices.size)))
        for layout, position_bytes in ((Layout.SPARSE, gap_bytes), (Layout.MASK, mask_bytes)):
            if values_bytes + position_bytes < best_bytes:
                best_bytes = values_bytes + position_bytes
                best = LayoutChoice(
                    layout=layout, column_scan=column_scan, order=order, scan_positions=scan_positions
                )
    return best


def _scan(shape: tuple[int, ...], nonzero: np.ndarray, column_scan: bool) -> tuple[np.ndarray, np.ndarray]:
    """C-order and scan positions of the nonzeros, both in scan order."""
    if not column_scan:
        positions = np.flatnonzero(nonzero)
        return positions, positions
    n_rows = shape[0]
    scan_positions = np.flatnonzero(nonzero.reshape(n_rows, -1).T)
    n_columns = nonzero.size // n_rows
    return (scan_positions % n_rows) * n_columns + scan_positions // n_rows, scan_positions


def scan_mask(scan_positions: np.ndarray, n_elements: int) -> np.ndarray:
    """One bit for each element in scan order, lowest bit first: uint8, shape (ceil(n / 8),)."""
    mask = np.zeros(n_elements, dtype=np.uint8)
    mask[scan_positions] = 1
    return np.packbits(mask, bitorder="little")
