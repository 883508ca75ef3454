"""From tensors to planned records: codebook order, layouts, slices, shared streams (spec 4 to 7)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from .codebooks import MAX_ENTRIES, CodebookRecord, encode_codebook
from .dtypes import DType
from .grouping import GroupMapping
from .hybrid import HybridMapping
from .layout_choice import (
    STREAM_OVERHEAD_BYTES,
    WRITER_CODE_LENGTH,
    CodedNumbers,
    LayoutChoice,
    best_gap_coding,
    best_value_coding,
    choose_layout,
    coded_bytes,
    histogram,
    scan_mask,
)
from .limits import MAX_NAME_BYTES, MAX_RANK
from .planes import split_planes
from .prefix_code import PrefixCode
from .stream_sharing import merge_slices
from .streams import Codec, StreamKind, StreamRecord, SymbolSlice, encode_stream, slice_symbols
from .tensor import (
    AffineTensor,
    Codebook,
    CodebookTensor,
    Layout,
    RawTensor,
    Tensor,
    ViewTensor,
)
from .tensor_records import (
    AffineOrder,
    AffineRule,
    CodebookValues,
    ConstantFields,
    PackedFields,
    RawFields,
    TensorRecord,
    ValueRule,
    ViewFields,
    ViewPart,
)

RANK_ORDER_UP_TO = 32
ALIGN_FROM_BYTES = 4096
_MIN_PLANE_GAIN = 0.03


@dataclass(slots=True, kw_only=True)
class _Slice:
    """Numbers of one tensor that still need a stream."""

    tensor: str
    role: str
    kind: StreamKind
    mapping: GroupMapping | HybridMapping
    symbols: SymbolSlice
    counts: np.ndarray
    stream: int = -1


@dataclass(slots=True, kw_only=True)
class EncodedFile:
    """Records with their payloads, in file order, ready to be framed."""

    tables: list[bytes] = field(default_factory=list)
    codebooks: list[tuple[CodebookRecord, bytes]] = field(default_factory=list)
    streams: list[tuple[StreamRecord, bytes]] = field(default_factory=list)
    tensors: list[tuple[TensorRecord, bytes]] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class _PlannedCodebook:
    """A codebook with the tensors that use it and what was decided for them."""

    codebook: Codebook
    members: list[str] = field(default_factory=list)
    choices: dict[str, LayoutChoice] = field(default_factory=dict)
    number: int = -1
    rank: np.ndarray | None = None
    n_entries: int = 0


def encode_tensors(tensors: Mapping[str, Tensor]) -> EncodedFile:
    """Plan and encode all tensors; views come after the tensors they refer to.

    Raises
    ------
    ValueError
        For a name, rank, view or codebook that the format cannot hold.
    """
    return _Encoder(tensors).run()


class _Encoder:
    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            _check_name(name)
            if len(tensor.shape) > MAX_RANK:
                raise ValueError(
                    f"tensor {name!r} has rank {len(tensor.shape)}, at most {MAX_RANK} can be stored"
                )
        views = {name: t for name, t in tensors.items() if isinstance(t, ViewTensor)}
        self._stored = {name: t for name, t in tensors.items() if name not in views}
        self._views = views
        self._slices: list[_Slice] = []
        self._codebooks: dict[bytes, _PlannedCodebook] = {}
        self._fields: dict[str, PackedFields | RawFields | ConstantFields] = {}
        self._layouts: dict[str, Layout] = {}
        self._payloads: dict[str, bytes] = {}
        self._file = EncodedFile()

    def run(self) -> EncodedFile:
        self._collect_codebooks()
        for planned in self._codebooks.values():
            self._plan_codebook(planned)
        for name, tensor in self._stored.items():
            if isinstance(tensor, CodebookTensor):
                self._plan_codebook_tensor(name, tensor)
            elif isinstance(tensor, AffineTensor):
                self._plan_affine(name, tensor)
            elif isinstance(tensor, RawTensor):
                self._plan_raw(name, tensor)
        self._build_streams()
        self._finish_raw()
        self._write_tensors()
        return self._file

    def _collect_codebooks(self) -> None:
        for name, tensor in self._stored.items():
            if isinstance(tensor, CodebookTensor):
                key = bytes([tensor.codebook.stored_as]) + tensor.codebook.values.tobytes()
                planned = self._codebooks.setdefault(key, _PlannedCodebook(codebook=tensor.codebook))
                planned.members.append(name)

    def _plan_codebook(self, planned: _PlannedCodebook) -> None:
        """Choose layouts of all members, then the order of the entries (spec 6.1)."""
        values = planned.codebook.values
        counts = np.zeros(values.size, dtype=np.int64)
        is_zero = values.view("<u4") == 0
        needs_zero = False
        for name in planned.members:
            tensor = self._stored[name]
            assert isinstance(tensor, CodebookTensor)
            flat = tensor.indices.reshape(-1)
            counts += np.bincount(flat, minlength=values.size)
            choice = choose_layout(tensor.shape, flat, ~is_zero[flat], values.size)
            planned.choices[name] = choice
            needs_zero |= choice.layout is Layout.DENSE and bool(is_zero[flat].any())
        kept = np.flatnonzero((counts > 0) & (needs_zero | ~is_zero))
        if kept.size == 0:
            kept = np.flatnonzero(counts >= 0)[:1]
        if kept.size > MAX_ENTRIES:
            raise ValueError(f"a codebook of {kept.size} entries, at most {MAX_ENTRIES} can be stored")
        if kept.size <= RANK_ORDER_UP_TO:
            kept = kept[np.lexsort((values[kept], -counts[kept]))]
        else:
            kept = kept[np.lexsort((np.signbit(values[kept]) == 0, values[kept]))]
        planned.rank = np.zeros(values.size, dtype=np.uint32)
        planned.rank[kept] = np.arange(kept.size, dtype=np.uint32)
        planned.n_entries = int(kept.size)
        planned.number = len(self._file.codebooks)
        self._file.codebooks.append(
            encode_codebook(Codebook(values=values[kept], stored_as=planned.codebook.stored_as))
        )
        for name in planned.members:
            self._layouts[name] = planned.choices[name].layout

    def _plan_codebook_tensor(self, name: str, tensor: CodebookTensor) -> None:
        key = bytes([tensor.codebook.stored_as]) + tensor.codebook.values.tobytes()
        planned = self._codebooks[key]
        assert planned.rank is not None
        choice = planned.choices[name]
        flat = planned.rank[tensor.indices.reshape(-1)]
        numbers = flat if choice.order is None else flat[choice.order]
        rule = CodebookValues(codebook=planned.number)
        self._add_packed(name, tensor.shape, rule, choice, best_value_coding(numbers, planned.n_entries))

    def _plan_affine(self, name: str, tensor: AffineTensor) -> None:
        k = tensor.k.reshape(-1)
        is_zero = (k == 0) & (tensor.offset == 0.0)
        ranked, width = _affine_numbers(k, None)[1:]
        choice = choose_layout(tensor.shape, ranked, ~is_zero, width)
        stored = k if choice.order is None else k[choice.order]
        order, numbers, width = _affine_numbers(stored, choice.layout)
        rule = AffineRule(
            step=tensor.step,
            offset=tensor.offset,
            order=order,
            k_min=int(stored.min()) if order is AffineOrder.ASCENDING and stored.size else 0,
        )
        self._layouts[name] = choice.layout
        self._add_packed(name, tensor.shape, rule, choice, best_value_coding(numbers, width))

    def _add_packed(
        self, name: str, shape: tuple[int, ...], rule: ValueRule, choice: LayoutChoice, values: CodedNumbers
    ) -> None:
        self._add_slice(name, "values", StreamKind.VALUES, values.mapping, SymbolSlice(values=values.numbers))
        if choice.scan_positions is not None:
            n_elements = int(np.prod(shape, dtype=np.int64))
            if choice.layout is Layout.SPARSE:
                gaps = best_gap_coding(choice.scan_positions)
                starts = choice.scan_positions - gaps.numbers
                symbols = SymbolSlice(values=gaps.numbers, starts=starts)
                self._add_slice(name, "positions", StreamKind.GAPS, gaps.mapping, symbols)
            else:
                mask = SymbolSlice(values=scan_mask(choice.scan_positions, n_elements))
                self._add_slice(name, "positions", StreamKind.MASK, GroupMapping(), mask)
        self._fields[name] = PackedFields(
            rule=rule,
            column_scan=choice.column_scan,
            n_stored=int(values.numbers.size),
            value_stream=-1,
            position_stream=None,
        )

    def _plan_raw(self, name: str, tensor: RawTensor) -> None:
        bits = np.ascontiguousarray(tensor.bits)
        content = bits.tobytes()
        itemsize = tensor.dtype.itemsize
        if bits.size and content == content[:itemsize] * bits.size:
            self._layouts[name] = Layout.CONSTANT
            self._fields[name] = ConstantFields(element=content[:itemsize])
            return
        self._layouts[name] = Layout.RAW
        self._fields[name] = RawFields()
        if bits.size == 0:
            return
        coded = {}
        saved = 0.0
        for number, plane in enumerate(split_planes(bits, tensor.dtype)):
            counts = histogram(plane)
            gain = (
                bits.size
                - coded_bytes(counts)
                + len(PrefixCode.from_counts(counts, WRITER_CODE_LENGTH).to_bytes())
            )
            if gain > _MIN_PLANE_GAIN * bits.size:
                coded[number] = plane
                saved += gain
        if saved <= _MIN_PLANE_GAIN * len(content):
            return
        for number, plane in coded.items():
            self._add_slice(
                name, f"plane{number}", StreamKind.PLANE, GroupMapping(), SymbolSlice(values=plane)
            )

    def _add_slice(
        self,
        tensor: str,
        role: str,
        kind: StreamKind,
        mapping: GroupMapping | HybridMapping,
        symbols: SymbolSlice,
    ) -> None:
        counts = histogram(slice_symbols(mapping, symbols.values))
        self._slices.append(
            _Slice(tensor=tensor, role=role, kind=kind, mapping=mapping, symbols=symbols, counts=counts)
        )

    def _build_streams(self) -> None:
        """Group slices of one kind and mapping, merge them, and encode each group as a stream."""
        alike: dict[tuple[StreamKind, GroupMapping | HybridMapping], list[_Slice]] = {}
        for item in self._slices:
            alike.setdefault((item.kind, item.mapping), []).append(item)
        tables: dict[bytes, int] = {}
        for (kind, mapping), items in alike.items():
            for group in merge_slices([item.counts for item in items]):
                members = [items[i] for i in group]
                self._add_stream(kind, mapping, members, tables)

    def _add_stream(
        self,
        kind: StreamKind,
        mapping: GroupMapping | HybridMapping,
        members: list[_Slice],
        tables: dict[bytes, int],
    ) -> None:
        counts = sum((item.counts for item in members), np.zeros(256, dtype=np.int64))
        n_symbols = int(counts.sum())
        code: PrefixCode | None = None
        if n_symbols:
            code = PrefixCode.from_counts(counts, WRITER_CODE_LENGTH)
            n_coded = -(-code.payload_bits(counts) // 8) + len(code.to_bytes())
            if kind is StreamKind.PLANE and n_coded + STREAM_OVERHEAD_BYTES >= n_symbols:
                return
            code = code if n_coded < n_symbols else None
        table = None
        if code is not None:
            table = tables.setdefault(code.to_bytes(), len(tables))
            if table == len(self._file.tables):
                self._file.tables.append(code.to_bytes())
        record = StreamRecord(
            kind=kind, codec=Codec.STORED if code is None else Codec.HUFFMAN, mapping=mapping, table=table
        )
        payload = encode_stream(record, code, [item.symbols for item in members])
        for item in members:
            item.stream = len(self._file.streams)
        self._file.streams.append((record, payload))

    def _finish_raw(self) -> None:
        """Set the streams of every tensor and lay out the planes that stay uncoded."""
        for item in self._slices:
            fields = self._fields[item.tensor]
            if isinstance(fields, PackedFields):
                if item.role == "values":
                    self._fields[item.tensor] = replace(fields, value_stream=item.stream)
                else:
                    self._fields[item.tensor] = replace(fields, position_stream=item.stream)
            elif isinstance(fields, RawFields) and item.stream >= 0:
                self._fields[item.tensor] = RawFields(
                    coded_planes=(*fields.coded_planes, int(item.role.removeprefix("plane"))),
                    streams=(*fields.streams, item.stream),
                )
        for name, tensor in self._stored.items():
            fields = self._fields[name]
            if isinstance(fields, RawFields):
                assert isinstance(tensor, RawTensor)
                self._payloads[name] = _stored_planes(tensor, fields)

    def _write_tensors(self) -> None:
        numbers = {name: i for i, name in enumerate(self._stored)}
        for name, tensor in self._stored.items():
            assert not isinstance(tensor, ViewTensor)
            payload = self._payloads.get(name, b"")
            record = TensorRecord(
                name=name,
                dtype=tensor.dtype,
                shape=tensor.shape,
                layout=self._layouts[name],
                fields=self._fields[name],
                payload_bytes=len(payload),
            )
            self._file.tensors.append((record, payload))
        for name, view in self._views.items():
            self._file.tensors.append((self._view_record(name, view, numbers), b""))

    def _view_record(self, name: str, view: ViewTensor, numbers: dict[str, int]) -> TensorRecord:
        parts = []
        dtype: DType | None = None
        for source in view.sources:
            if source.name not in numbers:
                raise ValueError(f"view {name!r} refers to {source.name!r}, which is no stored tensor")
            stored = self._stored[source.name]
            assert not isinstance(stored, ViewTensor)
            if not stored.shape or not 0 <= source.start <= source.stop <= stored.shape[0]:
                raise ValueError(f"view {name!r} takes rows {source.start}:{source.stop} of {source.name!r}")
            dtype = stored.dtype
            parts.append(
                ViewPart(tensor=numbers[source.name], start=source.start, n_rows=source.stop - source.start)
            )
        return TensorRecord(
            name=name,
            dtype=dtype,
            shape=view.shape,
            layout=Layout.VIEW,
            fields=ViewFields(parts=tuple(parts), permutation=view.permutation),
        )


def _check_name(name: str) -> None:
    encoded = name.encode("utf-8", errors="surrogatepass")
    if not 1 <= len(encoded) <= MAX_NAME_BYTES or "\0" in name:
        raise ValueError(
            f"tensor name {name[:40]!r} must have 1 to {MAX_NAME_BYTES} bytes and no NUL character"
        )
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"tensor name {name[:40]!r} is not valid Unicode") from None


def _affine_numbers(k: np.ndarray, layout: Layout | None) -> tuple[AffineOrder, np.ndarray, int]:
    """Order, stored numbers and their alphabet for integers k; zigzag where k has both signs."""
    if k.size == 0:
        return AffineOrder.ZIGZAG, np.zeros(0, dtype=np.uint32), 1
    wide = k.astype(np.int64)
    skip = 0 if layout in (None, Layout.DENSE) else 1
    zigzag = ((wide << 1) ^ (wide >> 63)) - skip
    zigzag_width, span = int(zigzag.max()) + 1, int(wide.max() - wide.min()) + 1
    if zigzag.min() >= 0 and zigzag_width <= 1.25 * span:
        return AffineOrder.ZIGZAG, zigzag.astype(np.uint32), zigzag_width
    return AffineOrder.ASCENDING, (wide - wide.min()).astype(np.uint32), span


def _stored_planes(tensor: RawTensor, fields: RawFields) -> bytes:
    """Payload of a raw tensor: all its bytes, or the planes that are not coded."""
    if not fields.coded_planes:
        return np.ascontiguousarray(tensor.bits).tobytes()
    planes = split_planes(tensor.bits, tensor.dtype)
    return b"".join(plane.tobytes() for i, plane in enumerate(planes) if i not in fields.coded_planes)
