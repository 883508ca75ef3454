"""Codebook and affine tensors as the encoder plans them: numbers of each element under each plan (spec 6)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from .code_cost import Prefer
from .codebooks import MAX_ENTRIES, CodebookRecord, encode_codebook, padding_after
from .counting import count_numbers, looked_up
from .layout_choice import Plan, Subject, WholeMatrix, make_plans
from .raw_plans import plane_slices
from .tensor import (
    AffineTensor,
    Codebook,
    CodebookTensor,
    GroupedCodebook,
    GroupedTensor,
    Layout,
    RawTensor,
    Tensor,
    cast_values,
)
from .tensor_records import AffineOrder, AffineRule, CodebookValues, ValueRule

RANK_ORDER_UP_TO = 32
SCALES = "scales"
"""Role of the slices that hold byte planes of scales; the plane's number follows."""

_SAMPLE_FROM = 1 << 22
_SAMPLE_PIECES = 32
_MIN_SAMPLED_ROWS = 64
_COUNTED_AT_ONCE = 1 << 18

Quantized = CodebookTensor | AffineTensor | GroupedTensor
"""What has a number for each stored element, or for each unit of several."""


@dataclass(slots=True, kw_only=True)
class QuantizedTensor:
    """A tensor with its plans; its numbers are fetched when they are needed, and not kept.

    Attributes
    ----------
    tensors : mapping of str to Tensor
        That holds the tensor, in memory or elsewhere.
    name : str
    codebook : SharedCodebook or None
        None for affine tensors.
    plans : list of Plan
    """

    tensors: Mapping[str, Tensor]
    name: str
    codebook: SharedCodebook | None
    plans: list[Plan] = field(default_factory=list)

    @property
    def source(self) -> Quantized:
        """The tensor."""
        tensor = self.tensors[self.name]
        assert isinstance(tensor, CodebookTensor | AffineTensor | GroupedTensor)
        return tensor

    def nonzero(self) -> np.ndarray:
        """Elements (or units) that are not zero: bool, one-dimensional."""
        return nonzero_of(self.source)

    def numbering(self, plan: Plan, elements: np.ndarray | None) -> tuple[np.ndarray, int]:
        """Numbers of elements (None: all) under a plan, and the width of their alphabet."""
        return numbers_of(self.source, self.codebook, plan, elements)


def value_rule(source: Quantized, codebook: SharedCodebook | None, plan: Plan) -> ValueRule:
    """Return the value rule of a tensor's record."""
    if isinstance(source, AffineTensor):
        order, k_min = _affine_order(source.k, plan.layout)
        return AffineRule(step=source.step, offset=source.offset, order=order, k_min=k_min)
    assert codebook is not None
    if isinstance(source, CodebookTensor):
        return CodebookValues(codebook=codebook.number)
    book = source.codebook
    return CodebookValues(codebook=codebook.number, groups=book.groups, width=book.width, span=source.span)


def scans_columns(source: Quantized) -> bool:
    """Whether units of several elements go down the columns, whatever the plan."""
    return isinstance(source, GroupedTensor) and source.column_scan


def planned_shape(source: Quantized) -> tuple[int, ...]:
    """Return the shape in which numbers are laid out: units of several elements stand in one row."""
    if isinstance(source, GroupedTensor) and source.codebook.width > 1:
        return source.indices.shape
    return source.shape


def nonzero_of(source: Quantized, places: np.ndarray | None = None) -> np.ndarray:
    """Elements or units (None: all) that are not +0: bool, one-dimensional."""
    if isinstance(source, CodebookTensor):
        flat = source.indices.reshape(-1)
        kept = source.codebook.values.view(np.uint32) != 0
        return looked_up(kept, flat if places is None else looked_up(flat, places))
    if isinstance(source, GroupedTensor):
        indices = source.indices if places is None else source.indices[places]
        used: np.ndarray = (source.codebook.values.view(np.uint32) != 0).any(axis=2)
        grouped: np.ndarray = used[source.groups_of(places), indices]
        return grouped
    k = source.k.reshape(-1)
    k = k if places is None else looked_up(k, places)
    return k != 0 if source.offset == 0.0 else np.ones(k.size, dtype=bool)


def numbers_of(
    source: Quantized, codebook: SharedCodebook | None, plan: Plan, elements: np.ndarray | None
) -> tuple[np.ndarray, int]:
    """Numbers of elements or units (None: all), and the width of their alphabet."""
    if isinstance(source, AffineTensor):
        k = source.k.reshape(-1)
        return _affine_numbers(source.k, k if elements is None else looked_up(k, elements), plan.layout)
    assert codebook is not None
    order = codebook.order(plan)
    n_kept = order.kept.shape[1]
    rank = order.rank.astype(np.uint8 if n_kept <= 256 else np.int64)
    flat = source.indices.reshape(-1)
    flat = flat if elements is None else looked_up(flat, elements)
    if rank.shape[0] == 1 or isinstance(source, CodebookTensor):
        return looked_up(rank[0], flat), n_kept
    return rank[source.groups_of(elements), flat], n_kept


@dataclass(frozen=True, slots=True)
class EntryOrder:
    """Which entries a codebook keeps and in what order.

    Attributes
    ----------
    kept : ndarray of int64, shape (groups, n_kept)
        Entries in file order; -1 where a group keeps fewer than another.
    rank : ndarray of int64, shape (groups, n_entries)
        Place of each entry in the file; 0 for those that are dropped.
    """

    kept: np.ndarray
    rank: np.ndarray


@dataclass(slots=True, kw_only=True)
class SharedCodebook:
    """A codebook with the tensors that use it.

    Attributes
    ----------
    members : list of str
    counts : ndarray of int64, shape (groups, n_entries)
        How often each entry is used.
    keeps_zero : bool or None
        Whether the entry +0 is kept; None while each plan decides (only with one member).
    by_value : bool or None
        Order of entries; None while each plan decides.
    """

    codebook: Codebook | GroupedCodebook
    members: list[str] = field(default_factory=list)
    counts: np.ndarray
    keeps_zero: bool | None = None
    by_value: bool | None = None
    number: int = -1
    _orders: dict[tuple[bool, bool], EntryOrder] = field(default_factory=dict)

    def order(self, plan: Plan) -> EntryOrder:
        """Return the entries and their order under a plan of a member."""
        keeps_zero = plan.stores_all if self.keeps_zero is None else self.keeps_zero
        by_value = plan.by_value if self.by_value is None else self.by_value
        if (keeps_zero, by_value) not in self._orders:
            self._orders[keeps_zero, by_value] = self._make_order(keeps_zero, by_value)
        return self._orders[keeps_zero, by_value]

    @property
    def values(self) -> np.ndarray:
        """Entries: float32, shape (groups, n_entries, width)."""
        values = self.codebook.values
        return values.reshape(1, -1, 1) if values.ndim == 1 else values

    @property
    def n_used(self) -> int:
        """Most entries of a group in use."""
        return int(np.count_nonzero(self.counts, axis=1).max())

    def _make_order(self, keeps_zero: bool, by_value: bool) -> EntryOrder:
        values = self.values
        is_zero = (values.view(np.uint32) == 0).all(axis=2)
        wanted = (self.counts > 0) & (keeps_zero | ~is_zero)
        n_kept = max(1, int(np.count_nonzero(wanted, axis=1).max()))
        if n_kept > MAX_ENTRIES:
            raise ValueError(f"a codebook of {n_kept} entries, at most {MAX_ENTRIES} can be stored")
        by_value = (by_value or n_kept > RANK_ORDER_UP_TO) and values.shape[2] == 1
        kept = np.full((values.shape[0], n_kept), -1, dtype=np.int64)
        rank = np.zeros(self.counts.shape, dtype=np.int64)
        for group in range(values.shape[0]):
            own = np.flatnonzero(wanted[group])
            own = own if own.size else np.zeros(1, dtype=np.int64)
            own = own[_entry_order(values[group, own, 0], self.counts[group, own], by_value)]
            kept[group, : own.size] = own
            rank[group, own] = np.arange(own.size)
        return EntryOrder(kept=kept, rank=rank)

    def encoded(self, plan: Plan) -> tuple[CodebookRecord, bytes]:
        """Record and payload under a plan."""
        kept = self.order(plan).kept
        values = np.take_along_axis(self.values, np.maximum(kept, 0)[:, :, None], axis=1)
        for group in np.flatnonzero(kept[:, -1] < 0):
            n_own = int(np.count_nonzero(kept[group] >= 0))
            values[group, n_own:] = values[group, n_own - 1]
            if values.shape[2] == 1:
                last = values[group, :n_own, 0].max()
                values[group, n_own:, 0] = padding_after(last, self.codebook.stored_as, kept.shape[1] - n_own)
        return encode_codebook(GroupedCodebook(values=values, stored_as=self.codebook.stored_as))


def _entry_order(values: np.ndarray, counts: np.ndarray, by_value: bool) -> np.ndarray:
    """Order of entries: ascending, or the most frequent first."""
    if by_value:
        return np.lexsort((np.signbit(values) == 0, values))
    return np.lexsort((values, -counts))


class Codebooks:
    """All codebooks of a file, in the order of their first member."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._shared: dict[bytes, SharedCodebook] = {}
        self._of: dict[str, SharedCodebook] = {}
        for name, tensor in tensors.items():
            if isinstance(tensor, CodebookTensor | GroupedTensor):
                shared = self._of[name] = self._shared_codebook(tensor.codebook)
                shared.members.append(name)
                shared.counts += entry_counts(tensor)

    def _shared_codebook(self, book: Codebook | GroupedCodebook) -> SharedCodebook:
        key = repr((int(book.stored_as), book.values.shape)).encode() + book.values.tobytes()
        if key not in self._shared:
            groups, entries = book.values.shape[:2] if book.values.ndim == 3 else (1, book.values.size)
            zeros = np.zeros((groups, entries), dtype=np.int64)
            self._shared[key] = SharedCodebook(codebook=book, counts=zeros, number=len(self._shared))
        return self._shared[key]

    def of(self, name: str) -> SharedCodebook | None:
        """Return the codebook of a tensor."""
        return self._of.get(name)

    def shared_by_several(self) -> Iterable[SharedCodebook]:
        """Codebooks of two or more tensors."""
        return [shared for shared in self._shared.values() if len(shared.members) > 1]

    def records(self, chosen: Mapping[str, Plan]) -> list[tuple[CodebookRecord, bytes]]:
        """All records under the plans chosen."""
        return [shared.encoded(chosen[shared.members[0]]) for shared in self._shared.values()]


def entry_counts(tensor: CodebookTensor | GroupedTensor) -> np.ndarray:
    """How often each entry occurs: int64, shape (groups, n_entries)."""
    grouped = tensor if isinstance(tensor, GroupedTensor) else None
    groups = 1 if grouped is None else grouped.codebook.groups
    entries = tensor.codebook.values.size if grouped is None else grouped.codebook.entries
    flat = tensor.indices.reshape(-1)
    if grouped is None or groups == 1:
        return count_numbers(flat, groups * entries).reshape(groups, entries)
    counts = np.zeros(groups * entries, dtype=np.int64)
    for start in range(0, flat.size, _COUNTED_AT_ONCE):
        part = flat[start : start + _COUNTED_AT_ONCE]
        part = part + entries * grouped.groups_of(np.arange(start, start + part.size))
        counts += np.bincount(part, minlength=counts.size)
    return counts.reshape(groups, entries)


def plan_quantized(
    tensors: Mapping[str, Tensor], prefer: Prefer
) -> tuple[dict[str, QuantizedTensor], Codebooks]:
    """Plan every codebook and affine tensor.

    Where several tensors share a codebook, its entries are settled first: zero is kept if the best plan of a
    member needs it.
    """
    codebooks = Codebooks(tensors)
    planned = {
        name: QuantizedTensor(tensors=tensors, name=name, codebook=codebooks.of(name))
        for name, tensor in tensors.items()
        if isinstance(tensor, CodebookTensor | AffineTensor | GroupedTensor)
    }
    widths = _common_widths(planned)
    for shared in codebooks.shared_by_several():
        shared.by_value = False
        first = [_plans_of(planned[name], prefer, widths)[0] for name in shared.members]
        needs = [
            plan.stores_all and not planned[name].nonzero().all()
            for name, plan in zip(shared.members, first, strict=True)
        ]
        shared.keeps_zero = any(needs)
    for item in planned.values():
        item.plans = _plans_of(item, prefer, widths)
        source = item.source
        if source.scales is not None:
            slices, _ = plane_slices(scale_bits(source), SCALES, prefer)
            for plan in item.plans:
                plan.slices = [*slices, *plan.slices]
    return planned, codebooks


def scale_bits(source: Quantized) -> RawTensor:
    """Return the scales of a tensor as stored elements."""
    assert source.scales is not None
    bits = cast_values(source.scales.values, source.scales.stored_as)
    return RawTensor(bits=bits, dtype=source.scales.stored_as)


def _common_widths(planned: Mapping[str, QuantizedTensor]) -> tuple[int, ...]:
    """Small alphabets that tensors may widen to, so as to share a stream: at most four."""
    found: dict[int, int] = {}
    for item in planned.values():
        if item.codebook is not None:
            width = item.codebook.n_used
            for one in (width, width - 1):
                found[one] = found.get(one, 0) + 1
    often = sorted((w for w, n in found.items() if 2 <= w <= 16 and n > 1), key=lambda w: -found[w])
    return tuple(sorted(often[:4]))


def _plans_of(item: QuantizedTensor, prefer: Prefer, widths: tuple[int, ...]) -> list[Plan]:
    source, codebook = item.source, item.codebook
    sample = _sampled(source)
    shape, places, rows = sample.shape, sample.places, sample.rows

    def numbering(plan: Plan, elements: np.ndarray | None) -> tuple[np.ndarray, int]:
        if places is not None:
            elements = places if elements is None else places[elements]
        return numbers_of(source, codebook, plan, elements)

    whole = None
    if rows is not None:
        whole = WholeMatrix(
            nonzero=nonzero_of(source).reshape(planned_shape(source)[0], -1),
            rows=rows,
            numbering=lambda plan, elements: numbers_of(source, codebook, plan, elements),
        )
    subject = Subject(
        shape=shape,
        nonzero=nonzero_of(source, places),
        numbering=numbering,
        prefer=prefer,
        widths=widths,
        scale=sample.scale,
        whole=whole,
    )
    dense_allowed = codebook is None or codebook.keeps_zero is not False
    plans = make_plans(subject, dense_allowed=dense_allowed)
    if codebook is None or codebook.by_value is not None or not 2 < codebook.counts.shape[1] <= 33:
        return plans
    for plan in plans:
        plan.fixed_bytes += len(codebook.encoded(plan)[1])
    for plan in plans[:2]:
        if whole is not None and not plan.lines.is_plain:
            continue
        other = Plan(layout=plan.layout, column_scan=plan.column_scan, lines=plan.lines, by_value=True)
        n_codebook = len(codebook.encoded(other)[1])
        if n_codebook < len(codebook.encoded(plan)[1]):
            plans.append(subject.costed(other))
            plans[-1].fixed_bytes += n_codebook
    return plans


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sample:
    """What a tensor is planned on.

    Attributes
    ----------
    shape : tuple of int
        Shape of the sample.
    places : ndarray of int64, or None
        Elements or units of the sample; None: all.
    rows : ndarray of int64, or None
        The rows sampled; None: not by rows.
    scale : float
        How many times larger the tensor is.
    """

    shape: tuple[int, ...]
    places: np.ndarray | None = None
    rows: np.ndarray | None = None
    scale: float = 1.0


def _sampled(source: Quantized) -> _Sample:
    """Take a tensor, or 1 Mi elements of a large one: evenly spaced rows, or pieces as a matrix."""
    shape = planned_shape(source)
    n_places = math.prod(shape)
    if n_places <= _SAMPLE_FROM:
        return _Sample(shape=shape)
    n_wanted = _SAMPLE_FROM // 4
    n_sampled, rows = n_wanted * shape[0] // n_places, None
    if len(shape) >= 2 and n_sampled >= _MIN_SAMPLED_ROWS:
        rows = np.unique(np.linspace(0, shape[0] - 1, n_sampled).astype(np.int64))
        starts, piece = rows * (n_places // shape[0]), n_places // shape[0]
    else:
        piece = n_wanted // _SAMPLE_PIECES
        starts = np.linspace(0, n_places - piece, _SAMPLE_PIECES).astype(np.int64)
    places = (starts[:, None] + np.arange(piece)).reshape(-1)
    return _Sample(shape=(starts.size, piece), places=places, rows=rows, scale=n_places / places.size)


def _affine_order(k: np.ndarray, layout: Layout) -> tuple[AffineOrder, int]:
    """Order of stored integers, and the least: zigzag where k has both signs."""
    if k.size == 0:
        return AffineOrder.ZIGZAG, 0
    low, high = int(k.min()), int(k.max())
    zigzag_width = max(2 * high, -2 * low - 1) + 1
    if zigzag_width <= 1.25 * (high - low + 1):
        return AffineOrder.ZIGZAG, 0
    return AffineOrder.ASCENDING, low


def _affine_numbers(whole: np.ndarray, k: np.ndarray, layout: Layout) -> tuple[np.ndarray, int]:
    """Return stored numbers of integers k out of `whole`, and the width of their alphabet."""
    order, low = _affine_order(whole, layout)
    if order is AffineOrder.ASCENDING:
        numbers = k - np.int32(low)
        width = int(whole.max()) - low + 1
    else:
        numbers = ((k << 1) ^ (k >> 31)) - np.int32(0 if layout is Layout.DENSE else 1)
        width = int(max(2 * int(whole.max(initial=0)), -2 * int(whole.min(initial=0)) - 1)) + 1
        width -= 0 if layout is Layout.DENSE else 1
    width = max(width, 1)
    return numbers.astype(np.uint8 if width <= 256 else np.int64), width
