"""Plans for a quantized tensor: layout, scan, line classes and alive places, with what each would cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from .block_elements import (
    PLAIN,
    BlockElements,
    Lines,
    blocks_of,
    gaps_of,
    scan_mask,
    scan_positions,
)
from .code_cost import Prefer
from .codings import Codings, byte_codings, class_codings, gap_codings, value_codings
from .line_classes import classify_lines, model_bytes, value_counts, value_edges
from .streams import StreamKind
from .tensor import Layout

RECORD_BYTES = 2.0
_MIN_CLASS_STORED = 600
_SPARSE_BELOW = 0.125
_MAX_LARGE_DENSITY = 0.97
_DENSE_PENALTY = 0.01
_CLASS_BYTES = 25.0
_COSTED_CLASSES = 2
_LARGE_CLASS_GAIN = 0.97
_ROWS_AT_ONCE_ELEMENTS = 1 << 22
_CLASS_COUNTS = (2, 3, 4, 6, 8, 12)
_KEPT_PLANS = 6
_PARTITIONED_PLANS = 4
_KEPT_WITHIN = 1.03
_KEPT_BYTES = 48.0
_KEPT_POSITIONS = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedSlice:
    """One slice of a plan: how it can be coded.

    Attributes
    ----------
    role : str
        As in the directory: ``values``, ``positions``, ``classes``, ``alive``, ``values0``, ``plane1``, ...
    own_bytes : float
        Estimate with a stream of its own.
    """

    role: str
    kind: StreamKind
    codings: Codings
    own_bytes: float


def planned_slice(role: str, kind: StreamKind, codings: Codings, prefer: Prefer) -> PlannedSlice:
    """Return a slice with the mappings that are worth keeping."""
    kept, own_bytes = codings.near_best(prefer)
    return PlannedSlice(role=role, kind=kind, codings=kept, own_bytes=own_bytes)


@dataclass(slots=True, kw_only=True)
class Plan:
    """One way to store a tensor.

    Attributes
    ----------
    by_value : bool
        Codebook entries in the order of their values, else of their frequency.
    fixed_bytes : float
        Record fields and codebook, as far as plans differ in them.
    own_bytes : float
        Estimate with a stream of its own for each slice.
    """

    layout: Layout
    column_scan: bool = False
    lines: Lines = PLAIN
    by_value: bool = False
    fixed_bytes: float = 0.0
    slices: list[PlannedSlice] = field(default_factory=list)
    own_bytes: float = 0.0

    @property
    def stores_all(self) -> bool:
        """Whether every element (of the alive ones) has a number."""
        return self.layout is Layout.DENSE


Numbering = Callable[[Plan, np.ndarray | None], tuple[np.ndarray, int]]
"""From a plan and the C-order positions of elements (None: all) to their numbers and the alphabet's width."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeMatrix:
    """A tensor of which only some rows are planned.

    Attributes
    ----------
    nonzero : ndarray of bool, shape (n_rows, n_columns)
    rows : ndarray of int64
        The sampled ones, ascending.
    numbering : function
        As for :class:`Subject`, with the positions of elements in the whole tensor.
    """

    nonzero: np.ndarray
    rows: np.ndarray
    numbering: Numbering

    def values(self, plan: Plan, edges: np.ndarray | None) -> np.ndarray:
        """Count the numbers of each row under a plan, some rows at a time: float64, shape (n_rows, width)."""
        n_rows, n_columns = self.nonzero.shape
        step = max(1, _ROWS_AT_ONCE_ELEMENTS // max(n_columns, 1))
        found = []
        for start in range(0, n_rows, step):
            part = self.nonzero[start : start + step]
            inside = np.arange(part.size) if plan.stores_all else np.flatnonzero(part)
            numbers, width = self.numbering(plan, inside + start * n_columns)
            found.append(value_counts(inside, n_columns, numbers, part.shape[0], width=width, edges=edges))
        return np.concatenate(found)

    def sampled(self, classes: np.ndarray) -> np.ndarray | None:
        """Classes of the sampled rows; None unless each class has stored elements there as in the whole."""
        drawn: np.ndarray = classes[self.rows]
        n_stored = np.count_nonzero(self.nonzero, axis=1)
        n_classes = int(classes.max()) + 1
        inside = np.bincount(drawn, weights=n_stored[self.rows], minlength=n_classes)
        everywhere = np.bincount(classes, weights=n_stored, minlength=n_classes)
        fits = ((inside > 0) == (everywhere > 0)).all() and np.bincount(drawn, minlength=n_classes).all()
        return drawn if fits else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What plans are made for.

    Attributes
    ----------
    shape : tuple of int
    nonzero : ndarray of bool, shape (n_elements,)
    numbering : function
        Numbers of elements under a plan.
    widths : tuple of int
        Alphabet widths of the other tensors.
    scale : float
        Elements of the tensor for each element here: more than 1 for a sample.
    whole : WholeMatrix or None
        The tensor that rows were sampled from, if its lines are to be classified.
    """

    shape: tuple[int, ...]
    nonzero: np.ndarray
    numbering: Numbering
    prefer: Prefer
    widths: tuple[int, ...] = ()
    scale: float = 1.0
    whole: WholeMatrix | None = None
    _positions: dict[bool, np.ndarray] = field(default_factory=dict)

    def positions(self, column_scan: bool) -> np.ndarray:
        """Nonzero elements in scan order; of large tensors only those of the last scan are kept."""
        if column_scan not in self._positions:
            if self.nonzero.size > _KEPT_POSITIONS:
                self._positions.clear()
            self._positions[column_scan] = scan_positions(self.shape, self.nonzero, column_scan)
        return self._positions[column_scan]

    def blocks(self, plan: Plan) -> list[BlockElements]:
        """Return the blocks of a plan."""
        positions = None if plan.stores_all else self.positions(plan.column_scan)
        return blocks_of(
            plan.layout, self.shape, self.nonzero, plan.column_scan, plan.lines, positions=positions
        )

    def costed(self, plan: Plan) -> Plan:
        """Fill in the slices of a plan and its estimate."""
        plan.slices = [planned_slice(*item, self.prefer) for item in self._slices(plan)]
        plan.own_bytes = plan.fixed_bytes + sum(s.own_bytes for s in plan.slices)
        return plan

    def _slices(self, plan: Plan) -> Iterator[tuple[str, StreamKind, Codings]]:
        lines = plan.lines
        blocks = self.blocks(plan)
        plan.fixed_bytes += RECORD_BYTES if lines.is_plain else 2.0 + 5.0 * len(blocks)
        if lines.classes is not None:
            codings = class_codings(lines.classes, lines.n_classes).scaled(self.scale)
            yield "classes", StreamKind.CLASSES, codings
        if lines.alive is not None:
            codings = class_codings(lines.alive.astype(np.uint8), 2)
            yield "alive", StreamKind.CLASSES, codings
        for i in range(len(blocks)):
            block = blocks.pop(0)
            suffix = "" if lines.is_plain else str(i)
            if block.n_stored == 0 and not lines.is_plain:
                continue
            numbers, width = self.numbering(plan, block.elements)
            codings = value_codings(numbers, width, self.widths, self.prefer).scaled(self.scale)
            inside, n_elements = block.inside, block.n_elements
            del block, numbers  # of a large tensor, as large as what follows
            yield f"values{suffix}", StreamKind.VALUES, codings
            if plan.layout is Layout.SPARSE:
                assert inside is not None
                codings = gap_codings(gaps_of(inside), self.prefer).scaled(self.scale)
                yield f"positions{suffix}", StreamKind.GAPS, codings
            elif plan.layout is Layout.MASK:
                assert inside is not None
                codings = byte_codings(scan_mask(inside, n_elements)).scaled(self.scale)
                yield f"positions{suffix}", StreamKind.MASK, codings


def make_plans(subject: Subject, *, dense_allowed: bool = True) -> list[Plan]:
    """Return the plans worth comparing once streams are shared, the best one first."""
    n_stored = int(np.count_nonzero(subject.nonzero))
    plans = []
    has_zeros = n_stored < subject.nonzero.size
    is_matrix = len(subject.shape) >= 2 and min(subject.shape[0], math.prod(subject.shape[1:])) >= 2
    scans = (False, True) if is_matrix and subject.scale == 1.0 else (False,)
    if dense_allowed or not has_zeros:
        for column_scan in scans if subject.prefer is Prefer.SIZE else (False,):
            plan = subject.costed(Plan(layout=Layout.DENSE, column_scan=column_scan))
            if n_stored < _SPARSE_BELOW * subject.nonzero.size:
                plan.fixed_bytes += _DENSE_PENALTY * plan.own_bytes
                plan.own_bytes *= 1 + _DENSE_PENALTY
            plans.append(plan)
    if has_zeros and not (plans and _zeros_are_few(n_stored, subject.nonzero.size)):
        for column_scan in scans:
            for layout in (Layout.SPARSE, Layout.MASK):
                plans.append(subject.costed(Plan(layout=layout, column_scan=column_scan)))
    if is_matrix and subject.prefer is Prefer.SIZE and subject.whole is not None:
        best = min(plans, key=lambda plan: plan.own_bytes)
        plans.extend(_classified_rows(subject, best, subject.whole))
    elif is_matrix and subject.prefer is Prefer.SIZE and subject.scale == 1.0:
        nearest = sorted(plans, key=lambda plan: plan.own_bytes)[:_PARTITIONED_PLANS]
        within = nearest[0].own_bytes * 1.06 + 64
        for plan in [p for p in nearest if p.own_bytes <= within]:
            plans.extend(_partitioned(subject, plan, n_stored))
    plans.sort(key=lambda plan: plan.own_bytes)
    limit = plans[0].own_bytes * _KEPT_WITHIN + _KEPT_BYTES
    return [plan for plan in plans[:_KEPT_PLANS] if plan.own_bytes <= limit]


def _zeros_are_few(n_stored: int, n_elements: int) -> bool:
    """Whether positions of a large tensor would take more than a symbol for its zeros, and much memory."""
    return n_elements > _KEPT_POSITIONS and n_stored > _MAX_LARGE_DENSITY * n_elements


def _partitioned(subject: Subject, plain: Plan, n_stored: int) -> Iterator[Plan]:
    """Yield variants of a plan with dead lines and places left out, and with line classes."""
    n_columns = subject.nonzero.size // subject.shape[0]
    matrix = subject.nonzero.reshape(subject.shape[0], n_columns)
    matrix = matrix.T if plain.column_scan else matrix
    n_by_line = np.count_nonzero(matrix, axis=1)
    alive: np.ndarray = np.asarray(matrix.any(axis=0))
    marks = None if alive.all() else alive
    dead_lines = n_by_line == 0
    if not plain.stores_all or dead_lines.any() or marks is not None:
        found = []
        if marks is not None:
            found.append(Lines(None, marks))
        if dead_lines.any() and not dead_lines.all():
            living = (~dead_lines).astype(np.uint8)
            found.append(Lines(living, None))
            if marks is not None:
                found.append(Lines(living, marks))
        for lines in found:
            yield subject.costed(_variant(plain, lines))
    if n_stored < _MIN_CLASS_STORED:
        return
    yield from _classified(subject, plain, n_by_line, marks)


def _classified(
    subject: Subject, plain: Plan, n_by_line: np.ndarray, marks: np.ndarray | None
) -> Iterator[Plan]:
    """Yield plans with the numbers of classes that a model of densities and values finds best."""
    block = subject.blocks(plain)[0]
    numbers, width = subject.numbering(plain, block.elements)
    n_places = subject.nonzero.size // max(n_by_line.size, 1)
    edges = value_edges(numbers, width)
    values = value_counts(block.inside, n_places, numbers, n_by_line.size, width=width, edges=edges)
    kept_marks = marks if marks is not None and np.count_nonzero(marks) < 0.9 * marks.size else None
    for classes in _classifications(n_by_line, n_places, values, dense=plain.stores_all):
        yield subject.costed(_variant(plain, Lines(classes, kept_marks)))


def _classified_rows(subject: Subject, plain: Plan, whole: WholeMatrix) -> Iterator[Plan]:
    """Yield plans whose classes are those of all rows, costed by the sampled ones."""
    numbers, width = subject.numbering(plain, subject.blocks(plain)[0].elements)
    n_by_line = np.count_nonzero(whole.nonzero, axis=1)
    values = whole.values(plain, value_edges(numbers, width))
    for classes in _classifications(n_by_line, whole.nonzero.shape[1], values, dense=plain.stores_all):
        drawn = whole.sampled(classes)
        if drawn is not None:
            plan = subject.costed(_variant(plain, Lines(drawn)))
            plan.lines = Lines(classes)
            if plan.own_bytes < _LARGE_CLASS_GAIN * plain.own_bytes:
                yield plan


def _classifications(
    n_by_line: np.ndarray, n_places: int, values: np.ndarray, *, dense: bool
) -> Iterator[np.ndarray]:
    """Yield the classes of lines that a model finds best, of the fewest and of better numbers of classes."""
    one_class = np.zeros(n_by_line.size, dtype=np.uint8)
    whole = model_bytes(n_by_line, n_places, values, one_class, dense=dense)
    found: list[tuple[float, np.ndarray]] = []
    for n_classes in _CLASS_COUNTS:
        if n_classes > n_by_line.size // 2:
            break
        classes = classify_lines(n_by_line, n_places, values, n_classes, dense=dense)
        gain = whole - model_bytes(n_by_line, n_places, values, classes, dense=dense)
        found.append((gain - _CLASS_BYTES * (int(classes.max()) + 1), classes))
        if len(found) > 1 and found[-1][0] < found[-2][0]:
            break
    fewest, more = found[:1], sorted(found[1:], key=lambda item: -item[0])
    for net_gain, classes in fewest + more[: _COSTED_CLASSES - 1]:
        if net_gain > 0 and int(classes.max()) > 0:
            yield classes


def _variant(plain: Plan, lines: Lines) -> Plan:
    return Plan(
        layout=plain.layout,
        column_scan=plain.column_scan,
        lines=lines,
        by_value=plain.by_value,
        fixed_bytes=plain.fixed_bytes - RECORD_BYTES,
    )
