"""From tensors to planned records: codebook order, layouts, slices, shared streams (spec 4 to 7)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from .code_cost import Prefer, choose_code, refine_code
from .codebooks import CodebookRecord
from .codings import byte_codings, exact_counts, fitting, gap_codings
from .dtypes import DType
from .layout_choice import (
    BlockElements,
    Plan,
    PlannedSlice,
    blocks_of,
    gaps_of,
    planned_slice,
    scan_mask,
)
from .limits import MAX_NAME_BYTES, MAX_RANK
from .planes import split_planes
from .quantized_plans import QuantizedTensor, plan_quantized
from .stream_sharing import Group, Sharing
from .streams import StreamKind, StreamRecord, SymbolSlice, encode_stream
from .tensor import Layout, RawTensor, Tensor, ViewTensor
from .tensor_records import (
    Block,
    ConstantFields,
    Fields,
    PackedFields,
    Partition,
    RawFields,
    TensorRecord,
    ViewFields,
    ViewPart,
)

ALIGN_FROM_BYTES = 4096
_ONE_SUBSTREAM_BELOW = 1 << 15
_LARGE_FILE_ELEMENTS = 1 << 22
_MIN_PLANE_GAIN = 0.005
_PLANE_TABLE_BYTES = 48
_MAX_RAW_DENSITY = 0.97


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
        views = {name: t for name, t in tensors.items() if isinstance(t, ViewTensor)}
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
            self._file.tensors.append((self._view_record(name, view, numbers), b""))
        return self._file

    def _plans(self, name: str) -> list[Plan]:
        tensor = self._stored[name]
        return (
            _raw_plans(tensor, self._prefer) if isinstance(tensor, RawTensor) else self._quantized[name].plans
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
                positions = np.flatnonzero(_elements(source))
                return SymbolSlice(values=gaps_of(positions), starts=positions - gaps_of(positions))
            source = _stored_elements(source, plan)
            return SymbolSlice(values=split_planes(source.bits, source.dtype)[int(role[5:])])
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
        gaps = gaps_of(block.inside)
        return SymbolSlice(values=gaps, starts=block.inside - gaps)

    def _block(self, name: str, number: int) -> BlockElements:
        if name not in self._blocks:
            quantized, plan = self._quantized[name], self._chosen[name]
            self._blocks[name] = blocks_of(
                plan.layout, quantized.shape, quantized.nonzero(), plan.column_scan, plan.lines
            )
        return self._blocks[name][number]

    def _add_tensor(self, name: str) -> None:
        tensor, plan = self._stored[name], self._chosen[name]
        assert not isinstance(tensor, ViewTensor)
        payload = b""
        fields: Fields
        if isinstance(tensor, RawTensor):
            fields = self._raw_fields(name, tensor, plan)
            if isinstance(fields, RawFields):
                payload = _stored_planes(_stored_elements(tensor, plan), fields)
        else:
            fields = self._packed_fields(name, plan, self._quantized[name])
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
        planes = [i for i in range(tensor.dtype.itemsize) if (name, f"plane{i}") in self._streams]
        sparse = plan.layout is Layout.RAW_SPARSE
        return RawFields(
            coded_planes=tuple(planes),
            streams=tuple(self._streams[name, f"plane{i}"] for i in planes),
            n_stored=int(np.count_nonzero(_elements(tensor))) if sparse else None,
            position_stream=self._streams[name, "positions"] if sparse else None,
        )

    def _packed_fields(self, name: str, plan: Plan, quantized: QuantizedTensor) -> PackedFields:
        blocks = [self._block(name, i) for i in range(plan.lines.n_classes)]
        partition = None
        if not plan.lines.is_plain:
            partition = self._partition(name, plan, blocks)
        return PackedFields(
            rule=quantized.rule(plan, blocks),
            column_scan=plan.column_scan,
            n_stored=sum(block.n_stored for block in blocks),
            value_stream=self._streams.get((name, "values"), -1),
            position_stream=self._streams.get((name, "positions")),
            partition=partition,
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


def _elements(tensor: RawTensor) -> np.ndarray:
    """Bits of all elements as unsigned integers, C order."""
    return np.ascontiguousarray(tensor.bits).reshape(-1).view(f"<u{tensor.dtype.itemsize}")


def _stored_elements(tensor: RawTensor, plan: Plan) -> RawTensor:
    """Return the elements that a plan stores: those with nonzero bits, or all."""
    if plan.layout is not Layout.RAW_SPARSE:
        return tensor
    elements = _elements(tensor)
    kept = elements[np.flatnonzero(elements)].view(tensor.dtype.storage_dtype)
    return RawTensor(bits=kept, dtype=tensor.dtype)


def _raw_plans(tensor: RawTensor, prefer: Prefer) -> list[Plan]:
    """Return the plan for all elements and, if many are zero, one for the others; best first."""
    elements = _elements(tensor)
    if elements.size and bool((elements == elements[0]).all()):
        return [Plan(layout=Layout.CONSTANT)]
    plans = [_plane_plan(tensor, Plan(layout=Layout.RAW), prefer)]
    positions = np.flatnonzero(elements)
    if 0 < positions.size < _MAX_RAW_DENSITY * elements.size:
        plan = Plan(layout=Layout.RAW_SPARSE)
        codings = gap_codings(gaps_of(positions), prefer)
        plan.slices.append(planned_slice("positions", StreamKind.GAPS, codings, prefer))
        plan.own_bytes = plan.slices[0].own_bytes
        plans.append(_plane_plan(_stored_elements(tensor, plan), plan, prefer))
    return sorted(plans, key=lambda plan: plan.own_bytes)


def _plane_plan(tensor: RawTensor, plan: Plan, prefer: Prefer) -> Plan:
    """Add byte planes to a plan: those worth a code as slices, the bytes of the others to its cost."""
    n_bytes = tensor.bits.size
    for number, plane in enumerate(split_planes(tensor.bits, tensor.dtype)):
        codings = byte_codings(plane)
        item = planned_slice(f"plane{number}", StreamKind.PLANE, codings, prefer)
        coded = item.own_bytes < n_bytes + _PLANE_TABLE_BYTES
        if coded and codings.entropy_bytes() < (1 - _MIN_PLANE_GAIN) * n_bytes:
            plan.slices.append(item)
            plan.own_bytes += min(item.own_bytes, n_bytes)
        else:
            plan.fixed_bytes += n_bytes
            plan.own_bytes += n_bytes
    return plan


def _stored_planes(tensor: RawTensor, fields: RawFields) -> bytes:
    """Payload of a raw tensor: all its bytes, or the planes that are not coded."""
    if not fields.coded_planes:
        return np.ascontiguousarray(tensor.bits).tobytes()
    planes = split_planes(tensor.bits, tensor.dtype)
    return b"".join(plane.tobytes() for i, plane in enumerate(planes) if i not in fields.coded_planes)
