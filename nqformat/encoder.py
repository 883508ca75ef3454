"""From tensors to planned records: codebook order, layouts, slices, shared streams (spec 4 to 7)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from .code_cost import Prefer, choose_code, refine_code
from .codebooks import CodebookRecord
from .codings import exact_counts, fitting
from .dtypes import DType
from .hashing import MAX_BUCKETS, check_signs
from .layout_choice import (
    BlockElements,
    Plan,
    PlannedSlice,
    blocks_of,
    gaps_of,
    scan_mask,
)
from .limits import MAX_NAME_BYTES, MAX_RANK
from .planes import split_planes
from .quantized_plans import SCALES, Quantized, QuantizedTensor, plan_quantized, scale_bits
from .raw_plans import raw_elements, raw_plans, stored_elements
from .stream_sharing import Group, Sharing
from .streams import StreamKind, StreamRecord, SymbolSlice, encode_stream
from .tensor import HashedTensor, Layout, RawTensor, Scales, Tensor, ViewTensor
from .tensor_records import (
    Block,
    ConstantFields,
    Fields,
    HashedFields,
    PackedFields,
    Partition,
    RawFields,
    ScaleFields,
    TensorRecord,
    ViewFields,
    ViewPart,
)

StoredTensor = RawTensor | Quantized

ALIGN_FROM_BYTES = 4096
_ONE_SUBSTREAM_BELOW = 1 << 15
_LARGE_FILE_ELEMENTS = 1 << 22


@dataclass(slots=True, kw_only=True)
class EncodedFile:
    """Records with their payloads, in file order, ready to be framed."""

    tables: list[bytes] = field(default_factory=list)
    codebooks: list[tuple[CodebookRecord, bytes]] = field(default_factory=list)
    streams: list[tuple[StreamRecord, bytes]] = field(default_factory=list)
    tensors: list[tuple[TensorRecord, bytes]] = field(default_factory=list)


def encode_tensors(tensors: Mapping[str, Tensor], prefer: Prefer = Prefer.SIZE) -> EncodedFile:
    """Plan and encode all tensors; views come after the tensors they refer to.

    Raises
    ------
    ValueError
        For a name, rank, view or codebook that the format cannot hold.
    """
    return _Encoder(tensors, prefer).run()


class _Encoder:
    def __init__(self, tensors: Mapping[str, Tensor], prefer: Prefer) -> None:
        for name, tensor in tensors.items():
            _check_name(name)
            if len(tensor.shape) > MAX_RANK:
                raise ValueError(
                    f"tensor {name!r} has rank {len(tensor.shape)}, at most {MAX_RANK} can be stored"
                )
        views = {name: t for name, t in tensors.items() if isinstance(t, ViewTensor | HashedTensor)}
        self._stored = {name: t for name, t in tensors.items() if name not in views}
        self._views = views
        self._prefer = prefer
        self._is_large = sum(math.prod(t.shape) for t in self._stored.values()) >= _LARGE_FILE_ELEMENTS
        self._file = EncodedFile()
        self._streams: dict[tuple[str, str], int] = {}
        self._blocks: dict[str, list[BlockElements]] = {}

    def run(self) -> EncodedFile:
        self._names = list(self._stored)
        self._quantized, codebooks = plan_quantized(self._stored, self._prefer)
        sharing = Sharing([self._plans(name) for name in self._names], self._prefer)
        sharing.run()
        self._chosen = dict(zip(self._names, sharing.chosen, strict=True))
        self._file.codebooks = codebooks.records(self._chosen)
        for group in sorted(sharing.groups, key=lambda g: g.members[0]):
            self._add_stream(group)
        for name in self._names:
            self._add_tensor(name)
        numbers = {name: i for i, name in enumerate(self._stored)}
        for name, view in self._views.items():
            if isinstance(view, HashedTensor):
                record = self._hashed_record(name, view, numbers)
            else:
                record = self._view_record(name, view, numbers)
            self._file.tensors.append((record, b""))
        return self._file

    def _plans(self, name: str) -> list[Plan]:
        tensor = self._stored[name]
        return (
            raw_plans(tensor, self._prefer) if isinstance(tensor, RawTensor) else self._quantized[name].plans
        )

    def _add_stream(self, group: Group) -> None:
        """Encode the slices of a group; planes that do not get smaller stay in their tensors."""
        slices = [self._symbols(tensor, number) for tensor, number in group.members]
        largest = max((int(item.values.max(initial=0)) for item in slices), default=0)
        mapping = fitting(group.best_mapping(self._prefer), largest)
        counts, extra_bits = np.zeros(256, dtype=np.int64), 0.0
        for item in slices:
            found = exact_counts(mapping, item.values)
            counts, extra_bits = counts + found[0], extra_bits + found[1]
        n_symbols = int(counts.sum())
        chosen = choose_code(counts, self._prefer, large_file=self._is_large)
        chosen = refine_code(counts, chosen, self._prefer, large_file=self._is_large)
        if group.kind is StreamKind.PLANE and chosen.n_bytes + 7 >= n_symbols:
            return
        table = None
        if chosen.code is not None:
            body = chosen.code.to_bytes()
            if body not in self._file.tables:
                self._file.tables.append(body)
            table = self._file.tables.index(body)
        one = self._prefer is Prefer.SIZE and n_symbols < _ONE_SUBSTREAM_BELOW
        record = StreamRecord(
            kind=group.kind, codec=chosen.codec, mapping=mapping, table=table, four_streams=not one
        )
        for tensor, number in group.members:
            role = self._plan_slice(tensor, number).role
            self._streams[self._names[tensor], role] = len(self._file.streams)
        self._file.streams.append((record, encode_stream(record, chosen.code, slices)))

    def _plan_slice(self, tensor: int, number: int) -> PlannedSlice:
        return self._chosen[self._names[tensor]].slices[number]

    def _symbols(self, tensor: int, number: int) -> SymbolSlice:
        """All numbers of a planned slice."""
        name = self._names[tensor]
        plan, role = self._chosen[name], self._plan_slice(tensor, number).role
        source = self._stored[name]
        if isinstance(source, RawTensor):
            if role == "positions":
                return _gap_slice(np.flatnonzero(raw_elements(source)))
            source = stored_elements(source, plan)
            return SymbolSlice(values=split_planes(source.bits, source.dtype)[int(role[5:])])
        if role.startswith(SCALES):
            raw = scale_bits(self._quantized[name].source)
            return SymbolSlice(values=split_planes(raw.bits, raw.dtype)[int(role[len(SCALES) :])])
        if role in ("classes", "alive"):
            marks = plan.lines.classes if role == "classes" else plan.lines.alive
            assert marks is not None
            return SymbolSlice(values=marks.astype(np.uint8))
        block = self._block(name, int(role.lstrip("valuespotin") or 0))
        if role.startswith("values"):
            return SymbolSlice(values=self._quantized[name].numbering(plan, block.elements)[0])
        assert block.inside is not None
        if plan.layout is Layout.MASK:
            return SymbolSlice(values=scan_mask(block.inside, block.n_elements))
        return _gap_slice(block.inside)

    def _block(self, name: str, number: int) -> BlockElements:
        if name not in self._blocks:
            quantized, plan = self._quantized[name], self._chosen[name]
            self._blocks[name] = blocks_of(
                plan.layout, quantized.shape, quantized.nonzero(), plan.column_scan, plan.lines
            )
        return self._blocks[name][number]

    def _add_tensor(self, name: str) -> None:
        tensor, plan = self._stored[name], self._chosen[name]
        assert not isinstance(tensor, ViewTensor | HashedTensor)
        payload = b""
        fields: Fields
        if isinstance(tensor, RawTensor):
            fields = self._raw_fields(name, tensor, plan)
            if isinstance(fields, RawFields):
                payload = _stored_planes(stored_elements(tensor, plan), fields)
        else:
            fields = self._packed_fields(name, plan, self._quantized[name])
            if fields.scales is not None:
                assert not isinstance(tensor, RawTensor)
                payload = _stored_planes(scale_bits(tensor), fields.scales.planes)
        record = TensorRecord(
            name=name,
            dtype=tensor.dtype,
            shape=tensor.shape,
            layout=plan.layout,
            fields=fields,
            payload_bytes=len(payload),
        )
        self._file.tensors.append((record, payload))
        self._blocks.pop(name, None)

    def _raw_fields(self, name: str, tensor: RawTensor, plan: Plan) -> RawFields | ConstantFields:
        if plan.layout is Layout.CONSTANT:
            element = np.ascontiguousarray(tensor.bits).reshape(-1)[:1].tobytes()
            return ConstantFields(element=element)
        planes = self._coded_planes(name, "plane", tensor.dtype)
        if plan.layout is not Layout.RAW_SPARSE:
            return planes
        return replace(
            planes,
            n_stored=int(np.count_nonzero(raw_elements(tensor))),
            position_stream=self._streams[name, "positions"],
        )

    def _coded_planes(self, name: str, role: str, dtype: DType) -> RawFields:
        """Return the planes that became slices of streams."""
        planes = [i for i in range(dtype.itemsize) if (name, f"{role}{i}") in self._streams]
        return RawFields(
            coded_planes=tuple(planes), streams=tuple(self._streams[name, f"{role}{i}"] for i in planes)
        )

    def _scale_fields(self, name: str, scales: Scales | None) -> ScaleFields | None:
        if scales is None:
            return None
        planes = self._coded_planes(name, SCALES, scales.stored_as)
        return ScaleFields(
            stored_as=scales.stored_as, span=scales.span, n_scales=scales.values.size, planes=planes
        )

    def _packed_fields(self, name: str, plan: Plan, quantized: QuantizedTensor) -> PackedFields:
        blocks = [self._block(name, i) for i in range(plan.lines.n_classes)]
        partition = None
        if not plan.lines.is_plain:
            partition = self._partition(name, plan, blocks)
        return PackedFields(
            rule=quantized.rule(plan, blocks),
            column_scan=plan.column_scan or quantized.scans_columns,
            n_stored=sum(block.n_stored for block in blocks),
            value_stream=self._streams.get((name, "values"), -1),
            position_stream=self._streams.get((name, "positions")),
            partition=partition,
            scales=self._scale_fields(name, quantized.source.scales),
        )

    def _partition(self, name: str, plan: Plan, blocks: list[BlockElements]) -> Partition:
        shape = self._stored[name].shape
        n_lines, n_cross = shape[0], int(np.prod(shape[1:], dtype=np.int64))
        if plan.column_scan:
            n_lines, n_cross = n_cross, n_lines
        alive = plan.lines.alive
        return Partition(
            n_lines=n_lines,
            n_cross=n_cross,
            class_stream=self._streams.get((name, "classes")),
            alive_stream=self._streams.get((name, "alive")),
            n_alive=n_cross if alive is None else int(np.count_nonzero(alive)),
            blocks=tuple(
                Block(
                    n_lines=block.n_lines,
                    n_stored=block.n_stored,
                    value_stream=self._streams.get((name, f"values{i}")),
                    position_stream=self._streams.get((name, f"positions{i}")),
                )
                for i, block in enumerate(blocks)
            ),
        )

    def _source_of(self, name: str, source: str, numbers: dict[str, int]) -> StoredTensor:
        stored = self._stored.get(source)
        if stored is None or source not in numbers:
            raise ValueError(f"{name!r} refers to {source!r}, which is no stored tensor")
        assert not isinstance(stored, ViewTensor | HashedTensor)
        return stored

    def _hashed_record(self, name: str, hashed: HashedTensor, numbers: dict[str, int]) -> TensorRecord:
        stored = self._source_of(name, hashed.source, numbers)
        n_values = math.prod(stored.shape)
        if not 1 <= n_values <= MAX_BUCKETS:
            raise ValueError(f"{name!r} takes its values from {hashed.source!r}, which has {n_values}")
        check_signs(hashed.signs, stored.dtype)
        return TensorRecord(
            name=name,
            dtype=stored.dtype,
            shape=hashed.shape,
            layout=Layout.HASHED,
            fields=HashedFields(tensor=numbers[hashed.source], seed=hashed.seed, signs=hashed.signs),
        )

    def _view_record(self, name: str, view: ViewTensor, numbers: dict[str, int]) -> TensorRecord:
        parts = []
        dtype: DType | None = None
        for source in view.sources:
            stored = self._source_of(name, source.name, numbers)
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


def _gap_slice(positions: np.ndarray) -> SymbolSlice:
    """Gaps before ascending positions, and the scan position that each starts from."""
    gaps = gaps_of(positions)
    return SymbolSlice(values=gaps, starts=positions - gaps)


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


def _stored_planes(tensor: RawTensor, fields: RawFields) -> bytes:
    """Payload of raw elements: all their bytes, or the planes that are not coded."""
    if not fields.coded_planes:
        return np.ascontiguousarray(tensor.bits).tobytes()
    planes = split_planes(tensor.bits, tensor.dtype)
    return b"".join(plane.tobytes() for i, plane in enumerate(planes) if i not in fields.coded_planes)
