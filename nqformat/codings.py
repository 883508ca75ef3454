"""Ways to turn the numbers of a slice into symbols, each with the counts that it gives."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from . import kernels
from .chunks import DEFAULT_CHUNK_LOG2
from .code_cost import Prefer, estimate_bytes, exact_bytes
from .counting import distinct_counts
from .escape import MAX_ESCAPE_BITS, EscapeMapping
from .grouping import MAX_GROUP, GroupMapping
from .hybrid import HybridMapping
from .streams import Mapping, slice_symbols

_GAP_MAPPINGS = tuple(
    HybridMapping(s, m) for s, m in ((3, 1), (4, 1), (4, 2), (5, 1), (5, 2), (6, 2), (7, 2))
)
_FAST_GAP_MAPPINGS = (HybridMapping(4, 1), HybridMapping(5, 2), HybridMapping(6, 2))
_WIDE_MAPPINGS = (HybridMapping(4, 1), HybridMapping(6, 3), HybridMapping(7, 3))
_WINDOWS = ((2, 15), (3, 5), (4, 3), (5, 2), (8, 1))
_GAP_ESCAPE_BELOW = 24.0
_COUNT_AT_ONCE = 1 << 20
_FAST_GROUP_GAIN = 0.03
_NEAR_BEST = 1.04
_NEAR_BEST_BYTES = 48.0


@dataclass(frozen=True, slots=True)
class Codings:
    """Candidate mappings of one slice.

    Attributes
    ----------
    mappings : tuple of mappings
    counts : ndarray of float64, shape (n_mappings, 256)
    extra_bits : ndarray of float64, shape (n_mappings,)
    """

    mappings: tuple[Mapping, ...]
    counts: np.ndarray
    extra_bits: np.ndarray

    def scaled(self, factor: float) -> Codings:
        """Return counts of a sample as those of the whole."""
        return Codings(self.mappings, self.counts * factor, self.extra_bits * factor)

    def best_bytes(self, prefer: Prefer) -> float:
        """Estimated bytes as a stream of its own under the best mapping."""
        if prefer is Prefer.SPEED:
            pairs = zip(self.counts, self.extra_bits.tolist(), strict=True)
            return min(exact_bytes(counts, extra_bits) for counts, extra_bits in pairs)
        return float(estimate_bytes(self.counts, self.extra_bits, prefer).min())

    def near_best(self, prefer: Prefer) -> tuple[Codings, float]:
        """Return the mappings that may still win once streams are shared, and :meth:`best_bytes`."""
        if prefer is Prefer.SPEED:
            return self, self.best_bytes(prefer)
        costs = estimate_bytes(self.counts, self.extra_bits, prefer)
        best = float(costs.min())
        kept = np.flatnonzero(costs <= best * _NEAR_BEST + _NEAR_BEST_BYTES)
        if kept.size == len(self.mappings):
            return self, best
        mappings = tuple(self.mappings[i] for i in kept)
        return Codings(mappings, self.counts[kept], self.extra_bits[kept]), best

    def entropy_bytes(self) -> float:
        """Order-0 entropy under the first mapping, in bytes."""
        counts = self.counts[0][self.counts[0] > 0]
        total = counts.sum()
        return float((counts * (np.log2(max(total, 1.0)) - np.log2(counts))).sum() / 8)


def histogram(symbols: np.ndarray) -> np.ndarray:
    """Symbol counts: int64, shape (256,)."""
    return kernels.count_symbols(symbols)


def _collect(found: list[tuple[Mapping, np.ndarray, float]]) -> Codings:
    return Codings(
        tuple(mapping for mapping, _, _ in found),
        np.stack([counts for _, counts, _ in found]).astype(np.float64),
        np.array([bits for _, _, bits in found]),
    )


def value_codings(numbers: np.ndarray, width: int, widths: tuple[int, ...], prefer: Prefer) -> Codings:
    """Try groups, groups with an escape, or (above 256) hybrid integers for indices below `width`.

    Parameters
    ----------
    numbers : ndarray of uint8 (width <= 256) or int64
    widths : tuple of int
        Other widths in use: a slice may take a wider one to share its neighbours' stream.
    """
    if width > 256:
        return wide_codings(numbers, width)
    found: list[tuple[Mapping, np.ndarray, float]] = [(GroupMapping(), histogram(numbers), 0.0)]
    for shared in sorted({max(width, 2), *(w for w in widths if w > width)}):
        for group in range(2, MAX_GROUP + 1):
            if shared**group <= 256:
                mapping = GroupMapping(group, shared)
                found.append((mapping, histogram(mapping.join(numbers)), 0.0))
    if prefer is Prefer.SIZE:
        found.extend(_escape_codings(numbers, width))
    else:
        found = found[:1] + [item for item in found[1:] if _pays(item[1], found[0][1])]
    return _collect(found)


def _pays(grouped: np.ndarray, single: np.ndarray) -> bool:
    """Whether groups save enough: single symbols decode several a look-up too."""
    return exact_bytes(grouped, 0.0) < (1.0 - _FAST_GROUP_GAIN) * exact_bytes(single, 0.0)


def _escape_codings(numbers: np.ndarray, width: int) -> list[tuple[Mapping, np.ndarray, float]]:
    found: list[tuple[Mapping, np.ndarray, float]] = []
    for group, window in _WINDOWS:
        if width <= window + 1:
            continue
        escape_bits = max(1, (width - window - 1).bit_length())
        n_escaped = int(np.count_nonzero(numbers >= window))
        if n_escaped > numbers.size // 8 or escape_bits > MAX_ESCAPE_BITS:
            continue
        mapping = EscapeMapping(group, window, escape_bits)
        found.append((mapping, histogram(mapping.symbols(numbers)), float(n_escaped * escape_bits)))
    return found


def wide_codings(numbers: np.ndarray, width: int) -> Codings:
    """Hybrid integers for numbers below `width`."""
    able = [mapping for mapping in _WIDE_MAPPINGS if mapping.max_value >= width - 1]
    return _hybrid_codings(numbers, tuple(able))


def gap_codings(gaps: np.ndarray, prefer: Prefer) -> Codings:
    """Hybrid integers for sparse gaps, and groups with an escape where gaps are short."""
    coded = _hybrid_codings(gaps, _GAP_MAPPINGS if prefer is Prefer.SIZE else _FAST_GAP_MAPPINGS)
    if prefer is Prefer.SIZE and gaps.size and float(gaps.mean()) < _GAP_ESCAPE_BELOW:
        found = _escape_codings(gaps, int(gaps.max()) + 1)
        if found:
            extra = _collect(found)
            return Codings(
                coded.mappings + extra.mappings,
                np.concatenate([coded.counts, extra.counts]),
                np.concatenate([coded.extra_bits, extra.extra_bits]),
            )
    return coded


def _hybrid_codings(numbers: np.ndarray, mappings: tuple[HybridMapping, ...]) -> Codings:
    """Count symbols under each mapping from one pass over the numbers."""
    distinct, repeats = distinct_counts(numbers)
    found: list[tuple[Mapping, np.ndarray, float]] = []
    for mapping in mappings:
        symbols, _, widths = mapping.split(distinct.astype(np.int64, copy=False))
        counts = np.bincount(symbols, weights=repeats, minlength=256)
        found.append((mapping, counts, float((widths * repeats).sum())))
    return _collect(found)


def byte_codings(numbers: np.ndarray) -> Codings:
    """One symbol for each number: mask bytes and byte planes."""
    return _collect([(GroupMapping(), histogram(numbers), 0.0)])


def class_codings(numbers: np.ndarray, n_classes: int) -> Codings:
    """Try groups for line classes and marks."""
    found: list[tuple[Mapping, np.ndarray, float]] = []
    for group in range(1, MAX_GROUP + 1):
        if max(n_classes, 2) ** group <= 256:
            mapping = GroupMapping(group, max(n_classes, 2))
            found.append((mapping, histogram(mapping.join(numbers)), 0.0))
    return _collect(found)


def fitting(mapping: Mapping, largest: int) -> Mapping:
    """Return the mapping, or one like it that holds numbers up to `largest`.

    A mapping that was found on a sample of a large tensor may be too narrow for the whole.
    """
    if isinstance(mapping, GroupMapping):
        group = mapping.group
        while group > 1 and (largest + 1) ** group > 256:
            group -= 1
        if largest < mapping.width:
            return mapping
        return GroupMapping(group, largest + 1) if largest < 256 else HybridMapping(7, 3)
    if largest <= mapping.max_value:
        return mapping
    if isinstance(mapping, EscapeMapping):
        escape_bits = (largest - mapping.window).bit_length()
        if escape_bits <= MAX_ESCAPE_BITS:
            return EscapeMapping(mapping.group, mapping.window, escape_bits)
    return HybridMapping(6, 2)


def exact_counts(mapping: Mapping, numbers: np.ndarray) -> tuple[np.ndarray, float]:
    """Symbol counts and extra bits of all numbers of a slice; groups start anew in each chunk."""
    counts = np.zeros(256, dtype=np.int64)
    extra_bits = 0.0
    aligned = not isinstance(mapping, HybridMapping) and (1 << DEFAULT_CHUNK_LOG2) % mapping.group == 0
    step = _COUNT_AT_ONCE if aligned else 1 << DEFAULT_CHUNK_LOG2
    for start in range(0, numbers.size, step):
        part = numbers[start : start + step]
        counts += histogram(slice_symbols(mapping, part))
        if isinstance(mapping, EscapeMapping):
            extra_bits += mapping.escape_bits * int(np.count_nonzero(part >= mapping.window))
        elif isinstance(mapping, HybridMapping):
            extra_bits += float(mapping.symbol_widths[mapping.split(part)[0]].sum(dtype=np.int64))
    return counts, extra_bits
