"""Codebook and affine tensors as the encoder plans them: numbers of each element under each plan (spec 6)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from .code_cost import Prefer
from .codebooks import MAX_ENTRIES, CodebookRecord, encode_codebook
from .layout_choice import BlockElements, Plan, Subject, WholeMatrix, make_plans
from .tensor import AffineTensor, Codebook, CodebookTensor, Layout, Tensor
from .tensor_records import AffineOrder, AffineRule, CodebookValues, ValueRule

RANK_ORDER_UP_TO = 32
_SAMPLE_FROM = 1 << 22
_SAMPLE_PIECES = 32
_MIN_SAMPLED_ROWS = 64


@dataclass(slots=True, kw_only=True)
class QuantizedTensor:
    """A tensor with its plans.

    Attributes
    ----------
    source : CodebookTensor or AffineTensor
    codebook : SharedCodebook or None
        None for affine tensors.
    plans : list of Plan
    """

    source: CodebookTensor | AffineTensor
    codebook: SharedCodebook | None
    plans: list[Plan] = field(default_factory=list)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor."""
        return self.source.shape

    def nonzero(self) -> np.ndarray:
        """Elements that are not zero: bool, shape (n_elements,)."""
        return nonzero_of(self.source)

    def numbering(self, plan: Plan, elements: np.ndarray | None) -> tuple[np.ndarray, int]:
        """Numbers of elements (None: all) under a plan, and the width of their alphabet."""
        return numbers_of(self.source, self.codebook, plan, elements)

    def rule(self, plan: Plan, blocks: list[BlockElements]) -> ValueRule:
        """Return the value rule of the tensor's record."""
        if isinstance(self.source, CodebookTensor):
            assert self.codebook is not None
            return CodebookValues(codebook=self.codebook.number)
        order, k_min = _affine_order(self.source.k, plan.layout)
        return AffineRule(step=self.source.step, offset=self.source.offset, order=order, k_min=k_min)


def nonzero_of(source: CodebookTensor | AffineTensor) -> np.ndarray:
    """Elements that are not +0: bool, shape (n_elements,)."""
    if isinstance(source, CodebookTensor):
        kept: np.ndarray = (source.codebook.values.view("<u4") != 0)[source.indices.reshape(-1)]
        return kept
    k = source.k.reshape(-1)
    return k != 0 if source.offset == 0.0 else np.ones(k.size, dtype=bool)


def numbers_of(
    source: CodebookTensor | AffineTensor,
    codebook: SharedCodebook | None,
    plan: Plan,
    elements: np.ndarray | None,
) -> tuple[np.ndarray, int]:
    """Numbers of elements (None: all) of a tensor or of a sample of it."""
    if isinstance(source, CodebookTensor):
        assert codebook is not None
        order = codebook.order(plan)
        flat = source.indices.reshape(-1)
        rank = order.rank.astype(np.uint8 if order.kept.size <= 256 else np.int64)
        return rank[flat if elements is None else flat[elements]], int(order.kept.size)
    k = source.k.reshape(-1)
    return _affine_numbers(source.k, k if elements is None else k[elements], plan.layout)


@dataclass(frozen=True, slots=True)
class EntryOrder:
    """Which entries a codebook keeps and in what order.

    Attributes
    ----------
    kept : ndarray of int64
        Entries in file order.
    rank : ndarray of int64, shape (n_entries,)
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
    counts : ndarray of int64
        How often each entry is used.
    keeps_zero : bool or None
        Whether the entry +0 is kept; None while each plan decides (only with one member).
    by_value : bool or None
        Order of entries; None while each plan decides.
    """

    codebook: Codebook
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

    def _make_order(self, keeps_zero: bool, by_value: bool) -> EntryOrder:
        values = self.codebook.values
        is_zero = values.view("<u4") == 0
        kept = np.flatnonzero((self.counts > 0) & (keeps_zero | ~is_zero))
        if kept.size == 0:
            kept = np.zeros(1, dtype=np.int64)
        if kept.size > MAX_ENTRIES:
            raise ValueError(f"a codebook of {kept.size} entries, at most {MAX_ENTRIES} can be stored")
        if by_value or kept.size > RANK_ORDER_UP_TO:
            kept = kept[np.lexsort((np.signbit(values[kept]) == 0, values[kept]))]
        else:
            kept = kept[np.lexsort((values[kept], -self.counts[kept]))]
        rank = np.zeros(values.size, dtype=np.int64)
        rank[kept] = np.arange(kept.size)
        return EntryOrder(kept=kept, rank=rank)

    def encoded(self, plan: Plan) -> tuple[CodebookRecord, bytes]:
        """Record and payload under a plan."""
        kept = self.order(plan).kept
        return encode_codebook(Codebook(values=self.codebook.values[kept], stored_as=self.codebook.stored_as))


class Codebooks:
    """All codebooks of a file, in the order of their first member."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._shared: dict[bytes, SharedCodebook] = {}
        self._of: dict[str, SharedCodebook] = {}
        for name, tensor in tensors.items():
            if isinstance(tensor, CodebookTensor):
                book = tensor.codebook
                key = bytes([book.stored_as]) + book.values.tobytes()
                if key not in self._shared:
                    zeros = np.zeros(book.values.size, dtype=np.int64)
                    self._shared[key] = SharedCodebook(codebook=book, counts=zeros, number=len(self._shared))
                shared = self._of[name] = self._shared[key]
                shared.members.append(name)
                shared.counts += index_counts(tensor.indices, book.values.size)

    def of(self, name: str) -> SharedCodebook | None:
        """Return the codebook of a tensor."""
        return self._of.get(name)

    def shared_by_several(self) -> Iterable[SharedCodebook]:
        """Codebooks of two or more tensors."""
        return [shared for shared in self._shared.values() if len(shared.members) > 1]

    def records(self, chosen: Mapping[str, Plan]) -> list[tuple[CodebookRecord, bytes]]:
        """All records under the plans chosen."""
        return [shared.encoded(chosen[shared.members[0]]) for shared in self._shared.values()]


def index_counts(indices: np.ndarray, n_entries: int) -> np.ndarray:
    """How often each index occurs, a million at a time: int64, shape (n_entries,)."""
    counts = np.zeros(n_entries, dtype=np.int64)
    flat = indices.reshape(-1)
    for start in range(0, flat.size, 1 << 20):
        counts += np.bincount(flat[start : start + (1 << 20)], minlength=n_entries)
    return counts


def plan_quantized(
    tensors: Mapping[str, Tensor], prefer: Prefer
) -> tuple[dict[str, QuantizedTensor], Codebooks]:
    """Plan every codebook and affine tensor.

    Where several tensors share a codebook, its entries are settled first: zero is kept if the best plan of a
    member needs it.
    """
    codebooks = Codebooks(tensors)
    planned = {
        name: QuantizedTensor(source=tensor, codebook=codebooks.of(name))
        for name, tensor in tensors.items()
        if isinstance(tensor, CodebookTensor | AffineTensor)
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
    return planned, codebooks


def _common_widths(planned: Mapping[str, QuantizedTensor]) -> tuple[int, ...]:
    """Small alphabets that tensors may widen to, so as to share a stream: at most four."""
    found: dict[int, int] = {}
    for item in planned.values():
        if item.codebook is not None:
            width = int(np.count_nonzero(item.codebook.counts))
            for one in (width, width - 1):
                found[one] = found.get(one, 0) + 1
    often = sorted((w for w, n in found.items() if 2 <= w <= 16 and n > 1), key=lambda w: -found[w])
    return tuple(sorted(often[:4]))


def _plans_of(item: QuantizedTensor, prefer: Prefer, widths: tuple[int, ...]) -> list[Plan]:
    source, codebook = item.source, item.codebook
    sample, scale, rows = _sampled(source)
    whole = None
    if rows is not None:
        whole = WholeMatrix(
            nonzero=item.nonzero().reshape(source.shape[0], -1), rows=rows, numbering=item.numbering
        )
    subject = Subject(
        shape=sample.shape,
        nonzero=nonzero_of(sample),
        numbering=lambda plan, elements: numbers_of(sample, codebook, plan, elements),
        prefer=prefer,
        widths=widths,
        scale=scale,
        whole=whole,
    )
    dense_allowed = codebook is None or codebook.keeps_zero is not False
    plans = make_plans(subject, dense_allowed=dense_allowed)
    if codebook is None or codebook.by_value is not None or not 2 < codebook.codebook.values.size <= 33:
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


def _sampled(
    source: CodebookTensor | AffineTensor,
) -> tuple[CodebookTensor | AffineTensor, float, np.ndarray | None]:
    """Take a tensor, or a quarter of 4 Mi elements of a large one: evenly spaced rows, or pieces as a matrix.

    Returns
    -------
    The tensor or its sample, how many times larger the tensor is, and the rows sampled (None: not by rows).
    """
    numbers = source.indices if isinstance(source, CodebookTensor) else source.k
    if numbers.size <= _SAMPLE_FROM:
        return source, 1.0, None
    n_wanted = _SAMPLE_FROM // 4
    n_rows, rows = numbers.shape[0], None
    n_sampled = n_wanted * n_rows // numbers.size
    if numbers.ndim >= 2 and n_sampled >= _MIN_SAMPLED_ROWS:
        rows = np.unique(np.linspace(0, n_rows - 1, n_sampled).astype(np.int64))
        pieces = numbers.reshape(n_rows, -1)[rows]
    else:
        flat = numbers.reshape(-1)
        piece = n_wanted // _SAMPLE_PIECES
        starts = np.linspace(0, flat.size - piece, _SAMPLE_PIECES).astype(np.int64)
        pieces = np.stack([flat[start : start + piece] for start in starts])
    scale = numbers.size / pieces.size
    if isinstance(source, CodebookTensor):
        return CodebookTensor(indices=pieces, codebook=source.codebook, dtype=source.dtype), scale, rows
    return AffineTensor(k=pieces, step=source.step, offset=source.offset, dtype=source.dtype), scale, rows


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
    wide = k.astype(np.int64)
    if order is AffineOrder.ASCENDING:
        numbers = wide - low
        width = int(whole.max()) - low + 1
    else:
        numbers = ((wide << 1) ^ (wide >> 63)) - (0 if layout is Layout.DENSE else 1)
        width = int(max(2 * int(whole.max(initial=0)), -2 * int(whole.min(initial=0)) - 1)) + 1
        width -= 0 if layout is Layout.DENSE else 1
    width = max(width, 1)
    return numbers.astype(np.uint8 if width <= 256 else np.int64), width
