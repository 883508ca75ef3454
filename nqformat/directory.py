"""The directory: typed records in order, each naming the payload that belongs to it (spec 3)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import TypeVar

from .codebooks import CodebookRecord
from .cursor import ByteCursor, encode_varint
from .errors import CorruptError, LimitExceededError, UnsupportedFeatureError
from .limits import Limits
from .partition import partition_slices
from .prefix_code import PrefixCode
from .references import check_hashed, check_view
from .streams import Code, Codec, StreamKind, StreamRecord
from .tans import KIND_TANS, TansCode
from .tensor import Layout
from .tensor_records import (
    DirectoryCounts,
    PackedFields,
    RawFields,
    TensorRecord,
    read_tensor_record,
)

PAYLOAD_ALIGNMENT = 64

_Item = TypeVar("_Item")


class RecordKind(IntEnum):
    """What a record describes (spec 3.5)."""

    METADATA = 1
    GRAPH = 2
    TABLE = 3
    CODEBOOK = 4
    STREAM = 5
    TENSOR = 6
    PADDING = 15


_CRITICAL = 0x01
_HAS_PAYLOAD = 0x02
_ALIGNED = 0x04
_KIND_SHIFT = 3
_ANCILLARY = (RecordKind.METADATA, RecordKind.PADDING)

GRAPH_ONNX = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobRecord:
    """Metadata or graph bytes: stored plain, or deflated with `plain_bytes` as the inflated length.

    Attributes
    ----------
    deflated : bool
    plain_bytes : int
    payload_start_abs, payload_bytes : int
    unsupported : str
        Why this reader cannot read it, or an empty string.
    """

    deflated: bool
    plain_bytes: int
    payload_start_abs: int
    payload_bytes: int
    unsupported: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamSlice:
    """A tensor's share of a stream: slice number `index`, of `n_elements` numbers."""

    stream: int
    index: int
    n_elements: int


@dataclass(slots=True, kw_only=True)
class Directory:
    """All records of a file, in file order.

    Attributes
    ----------
    codebooks : list of CodebookRecord or str, streams : list of StreamRecord or str, tables : list of
    PrefixCode, TansCode or str
        A string says why this reader does not support the item; tensors that use it cannot be read.
    slices : dict
        (tensor number, role) to StreamSlice; roles are ``values``, ``positions`` and ``plane0`` to
        ``plane7``; with a partition ``classes``, ``alive``, ``values0``, ``positions0``, ``values1``, ...; of
        scales ``scales0`` to ``scales3``.
    slice_lengths : list of list of int
        For each stream, the lengths of its slices in order.
    """

    metadata: BlobRecord | None = None
    graph: BlobRecord | None = None
    tables: list[Code | str] = field(default_factory=list)
    codebooks: list[CodebookRecord | str] = field(default_factory=list)
    streams: list[StreamRecord | str] = field(default_factory=list)
    tensors: list[TensorRecord] = field(default_factory=list)
    slices: dict[tuple[int, str], StreamSlice] = field(default_factory=dict)
    slice_lengths: list[list[int]] = field(default_factory=list)

    def add_slices(self, record: TensorRecord) -> None:
        """Give the tensor that is about to be appended its slices: the next of each stream it names."""
        fields = record.fields
        number = len(self.tensors)
        if isinstance(fields, PackedFields) and fields.scales is not None:
            planes = fields.scales.planes
            for plane, stream in zip(planes.coded_planes, planes.streams, strict=True):
                self._add_slice(number, f"scales{plane}", stream, fields.scales.n_scales)
        if isinstance(fields, PackedFields) and fields.partition is not None:
            for role, stream, _, n_numbers in partition_slices(record, fields.partition):
                self._add_slice(number, role, stream, n_numbers)
        elif isinstance(fields, PackedFields):
            self._add_slice(number, "values", fields.value_stream, fields.n_stored)
            if fields.position_stream is not None:
                n_positions = fields.n_stored if record.layout is Layout.SPARSE else -(-record.n_units // 8)
                self._add_slice(number, "positions", fields.position_stream, n_positions)
        elif isinstance(fields, RawFields):
            if fields.position_stream is not None:
                self._add_slice(number, "positions", fields.position_stream, record.n_stored)
            for plane, stream in zip(fields.coded_planes, fields.streams, strict=True):
                self._add_slice(number, f"plane{plane}", stream, record.n_stored)

    def _add_slice(self, tensor: int, role: str, stream: int, n_elements: int) -> None:
        lengths = self.slice_lengths[stream]
        self.slices[tensor, role] = StreamSlice(stream=stream, index=len(lengths), n_elements=n_elements)
        lengths.append(n_elements)


def record_bytes(
    kind: RecordKind, body: bytes, payload_bytes: int | None = None, *, aligned: bool = False
) -> bytes:
    """Frame a record: tag, body length, payload length if it has a payload, body (spec 3.5)."""
    tag = kind << _KIND_SHIFT | (0 if kind in _ANCILLARY else _CRITICAL)
    if payload_bytes is not None:
        tag |= _HAS_PAYLOAD | (_ALIGNED if aligned else 0)
    out = encode_varint(tag) + encode_varint(len(body))
    if payload_bytes is not None:
        out += encode_varint(payload_bytes)
    return out + body


@dataclass(frozen=True, slots=True, kw_only=True)
class _Frame:
    kind: int
    critical: bool
    body: ByteCursor
    payload_start_abs: int
    payload_bytes: int


def _frames(cursor: ByteCursor, body_start_abs: int, file_bytes: int) -> Iterator[_Frame]:
    """Walk the records; payloads lie back to back in record order and end with the file."""
    position = body_start_abs
    while cursor.remaining:
        tag = cursor.varint()
        n_body = cursor.varint()
        has_payload, aligned = bool(tag & _HAS_PAYLOAD), bool(tag & _ALIGNED)
        payload_bytes = cursor.varint() if has_payload else 0
        if aligned:
            if not has_payload:
                raise cursor.corrupt("a record without payload is aligned")
            position = -(-position // PAYLOAD_ALIGNMENT) * PAYLOAD_ALIGNMENT
        body = cursor.sub(n_body, "DIRECTORY")
        if position + payload_bytes > file_bytes:
            raise cursor.corrupt("payloads reach beyond the end of the file")
        yield _Frame(
            kind=tag >> _KIND_SHIFT,
            critical=bool(tag & _CRITICAL),
            body=body,
            payload_start_abs=position,
            payload_bytes=payload_bytes,
        )
        position += payload_bytes
    if position != file_bytes:
        raise CorruptError(
            f"payloads end at byte {position}, the file at {file_bytes}",
            section="DIRECTORY",
            offset_abs=position,
        )


def parse_directory(plain: bytes, body_start_abs: int, file_bytes: int, limits: Limits) -> Directory:
    """Parse all records and check them against each other.

    Parameters
    ----------
    plain : bytes
        The inflated directory.
    body_start_abs, file_bytes : int
        Where payloads start and end.

    Raises
    ------
    FormatError, UnsupportedFeatureError
    """
    directory = Directory()
    names: set[str] = set()
    stage = 0
    for frame in _frames(ByteCursor(plain, "DIRECTORY"), body_start_abs, file_bytes):
        if frame.kind not in tuple(RecordKind) and frame.critical:
            raise UnsupportedFeatureError(f"record kind {frame.kind} is unknown to this reader")
        if frame.kind not in tuple(RecordKind):
            continue
        if frame.critical != (frame.kind not in _ANCILLARY):
            raise frame.body.corrupt(f"record kind {frame.kind} has the wrong critical bit")
        if frame.kind < stage:
            raise frame.body.corrupt("records are out of order")
        stage = frame.kind
        if frame.kind != RecordKind.PADDING:
            _parse_record(directory, frame, names, limits)
    return directory


def _parse_record(directory: Directory, frame: _Frame, names: set[str], limits: Limits) -> None:
    kind = RecordKind(frame.kind)
    if kind is RecordKind.TENSOR:
        _parse_tensor(directory, frame, names, limits)
    elif kind is RecordKind.TABLE:
        directory.tables.append(_supported(lambda: _parse_table(frame)))
    elif kind is RecordKind.CODEBOOK:
        directory.codebooks.append(_supported(lambda: _parse_codebook(frame)))
    elif kind is RecordKind.STREAM:
        directory.streams.append(_supported(lambda: _parse_stream(frame, directory.tables)))
        directory.slice_lengths.append([])
    elif kind is RecordKind.METADATA:
        if directory.metadata is not None:
            raise frame.body.corrupt("second metadata record")
        directory.metadata = _parse_blob(frame, limits.metadata_bytes)
    else:
        if directory.graph is not None:
            raise frame.body.corrupt("second graph record")
        directory.graph = _parse_graph(frame, limits.graph_bytes)


def _supported(parse: Callable[[], _Item]) -> _Item | str:
    try:
        return parse()
    except UnsupportedFeatureError as error:
        return str(error)


def _finish(body: ByteCursor) -> None:
    """Skip extension fields; UnsupportedFeatureError on a critical one (spec 3.6)."""
    while body.remaining:
        tag = body.varint()
        body.take(body.varint())
        if tag & 1:
            raise UnsupportedFeatureError(f"field {tag >> 1} is unknown to this reader")


def _parse_table(frame: _Frame) -> Code:
    if frame.payload_bytes:
        raise frame.body.corrupt("a code table has no payload")
    kind = frame.body.u8()
    return TansCode.read(frame.body) if kind == KIND_TANS else PrefixCode.read(frame.body, kind)


def _parse_codebook(frame: _Frame) -> CodebookRecord:
    record = CodebookRecord.read(frame.body, frame.payload_start_abs, frame.payload_bytes)
    _finish(frame.body)
    return record


def _parse_stream(frame: _Frame, tables: list[Code | str]) -> StreamRecord:
    record = StreamRecord.read(frame.body, len(tables), frame.payload_start_abs, frame.payload_bytes)
    if record.table is not None:
        table = tables[record.table]
        if not isinstance(table, str) and isinstance(table, TansCode) != (record.codec is Codec.TANS):
            raise frame.body.corrupt(f"code table {record.table} is not of codec {record.codec.name.lower()}")
    _finish(frame.body)
    return record


def _parse_blob(frame: _Frame, limit_bytes: int) -> BlobRecord:
    encoding = frame.body.u8()
    unsupported = "" if encoding in (0, 1) else f"blob encoding {encoding} is unknown to this reader"
    plain_bytes = frame.body.varint() if encoding == 1 else frame.payload_bytes
    if plain_bytes > limit_bytes:
        raise LimitExceededError(f"{plain_bytes} bytes declared, limit {limit_bytes}", section="DIRECTORY")
    if not unsupported:
        try:
            _finish(frame.body)
        except UnsupportedFeatureError as error:
            unsupported = str(error)
    return BlobRecord(
        deflated=encoding == 1,
        plain_bytes=plain_bytes,
        payload_start_abs=frame.payload_start_abs,
        payload_bytes=frame.payload_bytes,
        unsupported=unsupported,
    )


def _parse_graph(frame: _Frame, limit_bytes: int) -> BlobRecord:
    graph_kind = frame.body.u8()
    if graph_kind != GRAPH_ONNX:
        return BlobRecord(
            deflated=False,
            plain_bytes=0,
            payload_start_abs=frame.payload_start_abs,
            payload_bytes=frame.payload_bytes,
            unsupported=f"graph kind {graph_kind} is unknown to this reader",
        )
    return _parse_blob(frame, limit_bytes)


def _parse_tensor(directory: Directory, frame: _Frame, names: set[str], limits: Limits) -> None:
    if len(directory.tensors) >= limits.n_tensors:
        raise LimitExceededError(f"more than {limits.n_tensors} tensors", section="TENSOR")
    counts = DirectoryCounts(
        codebooks=directory.codebooks, streams=len(directory.streams), tensors=len(directory.tensors)
    )
    previous = directory.tensors[-1].name if directory.tensors else ""
    record = read_tensor_record(frame.body, previous, counts, frame.payload_start_abs, frame.payload_bytes)
    if record.name in names:
        raise frame.body.corrupt(f"second tensor named {record.name!r}")
    names.add(record.name)
    if record.fields is not None:
        record = _without_unknown_fields(record, frame.body)
    if record.fields is not None:
        _check_streams(directory, record)
        if record.layout is Layout.VIEW:
            check_view(record, directory.tensors)
        elif record.layout is Layout.HASHED:
            check_hashed(record, directory.tensors)
        directory.add_slices(record)
    directory.tensors.append(record)


def _without_unknown_fields(record: TensorRecord, body: ByteCursor) -> TensorRecord:
    """Return the record, or one marked unsupported if a critical extension field follows."""
    try:
        _finish(body)
    except UnsupportedFeatureError as error:
        return replace(record, fields=None, layout=None, unsupported=str(error))
    return record


def _check_streams(directory: Directory, record: TensorRecord) -> None:
    """Require that the streams of a tensor are of the kind its layout needs."""
    fields = record.fields
    wanted: list[tuple[int, StreamKind]] = []
    if isinstance(fields, PackedFields) and fields.scales is not None:
        wanted.extend((stream, StreamKind.PLANE) for stream in fields.scales.planes.streams)
    if isinstance(fields, PackedFields) and fields.partition is not None:
        slices = partition_slices(record, fields.partition)
        wanted.extend((stream, kind) for _, stream, kind, _ in slices)
    elif isinstance(fields, PackedFields):
        wanted.append((fields.value_stream, StreamKind.VALUES))
        if fields.position_stream is not None:
            kind = StreamKind.GAPS if record.layout is Layout.SPARSE else StreamKind.MASK
            wanted.append((fields.position_stream, kind))
    elif isinstance(fields, RawFields):
        if fields.position_stream is not None:
            wanted.append((fields.position_stream, StreamKind.GAPS))
        wanted.extend((stream, StreamKind.PLANE) for stream in fields.streams)
    for number, kind in wanted:
        stream = directory.streams[number]
        if isinstance(stream, StreamRecord) and stream.kind is not kind:
            had = stream.kind.name.lower()
            raise CorruptError(
                f"tensor {record.name!r} takes {kind.name.lower()} from a stream of {had}", section="TENSOR"
            )
