"""From tensors to planned records: codebook order, layouts, slices, shared streams (spec 4 to 7)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from .block_elements import BlockElements, blocks_of, gaps_of, scan_mask
from .code_cost import Prefer, choose_code, refine_code
from .codebooks import CodebookRecord
from .codings import exact_counts, fitting
from .dtypes import DType
from .hashing import MAX_BUCKETS, check_signs
from .layout_choice import Plan, PlannedSlice
from .limits import MAX_NAME_BYTES, MAX_RANK
from .planes import byte_plane
from .quantized_plans import (
    SCALES,
    Quantized,
    nonzero_of,
    plan_quantized,
    planned_shape,
    scale_bits,
    scans_columns,
    value_rule,
)
from .raw_plans import raw_elements, raw_plans, stored_elements
from .spool import Payload, Spool
from .stream_sharing import Group, Sharing
from .streams import StreamKind, StreamRecord, SymbolSlice, write_stream
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
_KEPT_BLOCK_ELEMENTS = 1 << 20
_KEPT_SLICE_ELEMENTS = 1 << 21


@dataclass(slots=True, kw_only=True)
class EncodedFile:
    """Records with their payloads, in file order, ready to be framed."""

    tables: list[bytes] = field(default_factory=list)
    codebooks: list[tuple[CodebookRecord, bytes]] = field(default_factory=list)
    streams: list[tuple[StreamRecord, Payload]] = field(default_factory=list)
    tensors: list[tuple[TensorRecord, Payload]] = field(default_factory=list)


def encode_tensors(tensors: Mapping[str, Tensor], prefer: Prefer, spool: Spool) -> EncodedFile:
    """Plan and encode all tensors; views come after the tensors they refer to.

    Tensors are fetched from the mapping one at a time, each several times, and none is kept; large payloads
    go to `spool`.

    Raises
    ------
    ValueError
        For a name, rank, view or codebook that the format cannot hold.
    """
    return _Encoder(tensors, prefer, spool).run()


class _Encoder:
    def __init__(self, tensors: Mapping[str, Tensor], prefer: Prefer, spool: Spool) -> None:
        self._tensors = tensors
        self._views: dict[str, ViewTensor | HashedTensor] = {}
        self._names: list[str] = []
        n_elements = 0
        for name, tensor in tensors.items():
            _check_name(name)
            if len(tensor.shape) > MAX_RANK:
                raise ValueError(
                    f"tensor {name!r} has rank {len(tensor.shape)}, at most {MAX_RANK} can be stored"
                )
            if isinstance(tensor, ViewTensor | HashedTensor):
                self._views[name] = tensor
            else:
                self._names.append(name)
                n_elements += math.prod(tensor.shape)
        self._prefer = prefer
        self._spool = spool
        self._is_large = n_elements >= _LARGE_FILE_ELEMENTS
        self._file = EncodedFile()
        self._streams: dict[tuple[str, str], int] = {}
        self._blocks: dict[str, list[BlockElements]] = {}

    def run(self) -> EncodedFile:
        self._quantized, codebooks = plan_quantized(_Stored(self._tensors, self._names), self._prefer)
        sharing = Sharing([self._plans(name) for name in self._names], self._prefer)
        sharing.run()
        self._chosen = dict(zip(self._names, sharing.chosen, strict=True))
        self._file.codebooks = codebooks.records(self._chosen)
        for group in sorted(sharing.groups, key=lambda g: g.members[0]):
            self._add_stream(group)
        for name in self._names:
            self._add_tensor(name)
        numbers = {name: i for i, name in enumerate(self._names)}
        for name, view in self._views.items():
            if isinstance(view, HashedTensor):
                record = self._hashed_record(name, view, numbers)
            else:
                record = self._view_record(name, view, numbers)
            self._file.tensors.append((record, b""))
        return self._file

    def _stored(self, name: str) -> StoredTensor:
        tensor = self._tensors[name]
        assert not isinstance(tensor, ViewTensor | HashedTensor)
        return tensor

    def _plans(self, name: str) -> list[Plan]:
        if name in self._quantized:
            return self._quantized[name].plans
        tensor = self._stored(name)
        assert isinstance(tensor, RawTensor)
        return raw_plans(tensor, self._prefer)

    def _add_stream(self, group: Group) -> None:
        """Encode the slices of a group; planes that do not get smaller stay in their tensors."""
        slices = _Slices([partial(self._symbols, tensor, number) for tensor, number in group.members])
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
        start = self._spool.n_bytes
        index = write_stream(record, chosen.code, slices, self._spool.append)
        self._file.streams.append((record, self._spool.since(start, index)))

    def _plan_slice(self, tensor: int, number: int) -> PlannedSlice:
        return self._chosen[self._names[tensor]].slices[number]

    def _symbols(self, tensor: int, number: int) -> SymbolSlice:
        """All numbers of a planned slice."""
        name = self._names[tensor]
        plan, role = self._chosen[name], self._plan_slice(tensor, number).role
        source = self._stored(name)
        if isinstance(source, RawTensor):
            if role == "positions":
                return _gap_slice(np.flatnonzero(raw_elements(source)))
            source = stored_elements(source, plan)
            return SymbolSlice(values=byte_plane(source.bits, source.dtype, int(role[5:])))
        if role.startswith(SCALES):
            raw = scale_bits(source)
            return SymbolSlice(values=byte_plane(raw.bits, raw.dtype, int(role[len(SCALES) :])))
        if role in ("classes", "alive"):
            marks = plan.lines.classes if role == "classes" else plan.lines.alive
            assert marks is not None
            return SymbolSlice(values=marks.astype(np.uint8))
        block = self._blocks_of(name, source)[int(role.lstrip("valuespotin") or 0)]
        if role.startswith("values"):
            return SymbolSlice(values=self._quantized[name].numbering(plan, block.elements)[0])
        assert block.inside is not None
        if plan.layout is Layout.MASK:
            return SymbolSlice(values=scan_mask(block.inside, block.n_elements))
        return _gap_slice(block.inside)

    def _blocks_of(self, name: str, source: Quantized) -> list[BlockElements]:
        """Return the blocks of a tensor: those of small tensors are kept, of large ones the last."""
        if name not in self._blocks:
            if math.prod(source.shape) > _KEPT_BLOCK_ELEMENTS:
                self._blocks.clear()
            plan = self._chosen[name]
            self._blocks[name] = blocks_of(
                plan.layout, planned_shape(source), nonzero_of(source), plan.column_scan, plan.lines
            )
        return self._blocks[name]

    def _add_tensor(self, name: str) -> None:
        tensor, plan = self._stored(name), self._chosen[name]
        payload: Payload = b""
        fields: Fields
        if isinstance(tensor, RawTensor):
            fields = self._raw_fields(name, tensor, plan)
            if isinstance(fields, RawFields):
                payload = self._stored_planes(stored_elements(tensor, plan), fields)
        else:
            fields = self._packed_fields(name, plan, tensor)
            if fields.scales is not None:
                payload = self._stored_planes(scale_bits(tensor), fields.scales.planes)
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

    def _stored_planes(self, tensor: RawTensor, fields: RawFields) -> Payload:
        """Payload of raw elements: all their bytes, or the planes that are not coded."""
        start = self._spool.n_bytes
        if not fields.coded_planes:
            self._spool.append(np.ascontiguousarray(tensor.bits).reshape(-1).view(np.uint8))
        for number in range(tensor.dtype.itemsize) if fields.coded_planes else ():
            if number not in fields.coded_planes:
                self._spool.append(byte_plane(tensor.bits, tensor.dtype, number))
        return self._spool.since(start)

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

    def _packed_fields(self, name: str, plan: Plan, source: Quantized) -> PackedFields:
        blocks = self._blocks_of(name, source)
        partition = None
        if not plan.lines.is_plain:
            partition = self._partition(name, source.shape, plan, blocks)
        return PackedFields(
            rule=value_rule(source, self._quantized[name].codebook, plan),
            column_scan=plan.column_scan or scans_columns(source),
            n_stored=sum(block.n_stored for block in blocks),
            value_stream=self._streams.get((name, "values"), -1),
            position_stream=self._streams.get((name, "positions")),
            partition=partition,
            scales=self._scale_fields(name, source.scales),
        )

    def _partition(
        self, name: str, shape: tuple[int, ...], plan: Plan, blocks: list[BlockElements]
    ) -> Partition:
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
        if source not in numbers:
            raise ValueError(f"{name!r} refers to {source!r}, which is no stored tensor")
        return self._stored(source)

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


class _Stored(Mapping[str, Tensor]):
    """Tensors of some names out of a mapping."""

    def __init__(self, tensors: Mapping[str, Tensor], names: list[str]) -> None:
        self._tensors = tensors
        self._names = dict.fromkeys(names)

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class _Slices(Sequence[SymbolSlice]):
    """Slices of a stream, made again each time they are wanted unless they are small."""

    def __init__(self, makers: list[Callable[[], SymbolSlice]]) -> None:
        self._makers = makers
        self._kept: dict[int, SymbolSlice] = {}
        self._n_kept = 0

    def __getitem__(self, number: Any) -> Any:
        if number in self._kept:
            return self._kept[number]
        made = self._makers[number]()
        if self._n_kept + made.values.size <= _KEPT_SLICE_ELEMENTS:
            self._kept[number] = made
            self._n_kept += made.values.size
        return made

    def __len__(self) -> int:
        return len(self._makers)


def _gap_slice(positions: np.ndarray) -> SymbolSlice:
    """Gaps before ascending positions, and the scan position that each starts from."""
    gaps = gaps_of(positions)
    starts = positions - gaps
    return SymbolSlice(values=gaps.astype(np.int64), starts=starts)


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
