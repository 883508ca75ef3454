"""Directory records of tensors (spec 7)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .cursor import ByteCursor, encode_varint
from .dtypes import DType
from .errors import LimitExceededError, UnsupportedFeatureError
from .grouped import n_units
from .limits import MAX_ELEMENTS, MAX_NAME_BYTES, MAX_RANK
from .partition_records import MAX_CLASSES, Block, Partition, partition_bytes, read_partition_fields
from .raw_records import (
    DirectoryCounts,
    RawFields,
    ScaleFields,
    plane_bytes,
    read_raw,
    read_raw_sparse,
    read_scales,
    read_stream,
)
from .tensor import Layout
from .value_rules import (
    AffineOrder,
    AffineRule,
    CodebookValues,
    ValueRule,
    read_affine,
    read_codebook_rule,
    rule_bytes,
)
from .view_records import (
    HashedFields,
    ViewFields,
    ViewPart,
    hashed_bytes,
    read_hashed,
    read_view,
    view_bytes,
)

__all__ = [
    "MAX_CLASSES",
    "AffineOrder",
    "AffineRule",
    "Block",
    "CodebookValues",
    "ConstantFields",
    "DirectoryCounts",
    "Fields",
    "HashedFields",
    "PackedFields",
    "Partition",
    "RawFields",
    "ScaleFields",
    "TensorRecord",
    "ValueRule",
    "ViewFields",
    "ViewPart",
    "read_tensor_record",
]

_FLAG_AFFINE = 0x01
_FLAG_COLUMN_SCAN = 0x02
_FLAG_CLASSES = 0x04
_FLAG_ALIVE = 0x08
_FLAG_SCALES = 0x10
_FLAGS = _FLAG_AFFINE | _FLAG_COLUMN_SCAN | _FLAG_CLASSES | _FLAG_ALIVE | _FLAG_SCALES


@dataclass(frozen=True, slots=True, kw_only=True)
class ConstantFields:
    """CONSTANT: every element has these stored bits."""

    element: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedFields:
    """DENSE, SPARSE and MASK.

    Attributes
    ----------
    rule : CodebookValues or AffineRule
    column_scan : bool
        Elements are visited column by column of the (shape[0], rest) matrix.
    n_stored : int
        Elements (or units) with a symbol; all of them when dense without a partition.
    value_stream : int
        -1 with a partition, whose blocks have streams of their own.
    position_stream : int or None
        Gap stream (SPARSE) or mask stream (MASK).
    partition : Partition or None
    scales : ScaleFields or None
    """

    rule: ValueRule
    column_scan: bool
    n_stored: int
    value_stream: int
    position_stream: int | None = None
    partition: Partition | None = None
    scales: ScaleFields | None = None


Fields = RawFields | ConstantFields | PackedFields | ViewFields | HashedFields


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRecord:
    """One tensor of the directory.

    Attributes
    ----------
    name : str
    dtype : DType or None
        None if this reader does not know the type.
    shape : tuple of int
    layout : Layout or None
        None if this reader does not know the layout.
    fields : Fields or None
        None where `unsupported` says why the tensor cannot be read.
    unsupported : str
    payload_start_abs, payload_bytes : int
    """

    name: str
    dtype: DType | None
    shape: tuple[int, ...]
    layout: Layout | None
    fields: Fields | None
    unsupported: str = ""
    payload_start_abs: int = 0
    payload_bytes: int = 0

    @property
    def n_elements(self) -> int:
        """Product of the dimensions."""
        return math.prod(self.shape)

    @property
    def n_units(self) -> int:
        """Numbers of a dense layout: elements, or units of several (spec 6.1)."""
        fields = self.fields
        if isinstance(fields, PackedFields) and isinstance(fields.rule, CodebookValues):
            return n_units(self.n_elements, fields.rule.width)
        return self.n_elements

    @property
    def n_stored(self) -> int:
        """Elements or units with a number or bits of their own; all of them where nothing is left out."""
        own = self.fields.n_stored if isinstance(self.fields, PackedFields | RawFields) else None
        return self.n_units if own is None else own

    def to_bytes(self, previous_name: str) -> bytes:
        """Serialize the fixed fields of the record's body (spec 7.1)."""
        assert self.dtype is not None and self.layout is not None and self.fields is not None
        name, previous = self.name.encode(), previous_name.encode()
        shared = 0
        while shared < min(len(name), len(previous)) and name[shared] == previous[shared]:
            shared += 1
        out = bytearray([self.layout | len(self.shape) << 4, self.dtype])
        out += encode_varint(shared) + encode_varint(len(name) - shared) + name[shared:]
        for dim in self.shape:
            out += encode_varint(dim)
        return bytes(out) + _field_bytes(self.layout, self.fields)


def _field_bytes(layout: Layout, fields: Fields) -> bytes:
    if isinstance(fields, RawFields):
        return plane_bytes(fields)
    if isinstance(fields, ConstantFields):
        return fields.element
    if isinstance(fields, ViewFields):
        return view_bytes(fields)
    if isinstance(fields, HashedFields):
        return hashed_bytes(fields)
    return _packed_bytes(layout, fields)


def _packed_bytes(layout: Layout, fields: PackedFields) -> bytes:
    flags = (_FLAG_COLUMN_SCAN if fields.column_scan else 0) | (
        _FLAG_AFFINE if isinstance(fields.rule, AffineRule) else 0
    )
    out = rule_bytes(fields.rule)
    if fields.scales is not None:
        flags |= _FLAG_SCALES
        out += bytes([fields.scales.stored_as]) + encode_varint(fields.scales.span)
        out += encode_varint(fields.scales.n_scales) + plane_bytes(fields.scales.planes)
    if fields.partition is not None:
        flags |= _FLAG_CLASSES if fields.partition.class_stream is not None else 0
        flags |= _FLAG_ALIVE if fields.partition.alive_stream is not None else 0
        return bytes([flags]) + out + partition_bytes(layout, fields.partition)
    out = bytes([flags]) + out
    if layout is not Layout.DENSE:
        out += encode_varint(fields.n_stored)
    out += encode_varint(fields.value_stream)
    if fields.position_stream is not None:
        out += encode_varint(fields.position_stream)
    return out


def read_tensor_record(
    cursor: ByteCursor,
    previous_name: str,
    counts: DirectoryCounts,
    payload_start_abs: int,
    payload_bytes: int,
) -> TensorRecord:
    """Parse the fixed fields of a tensor record.

    An unknown dtype, layout or option gives a record with `unsupported` set, so that the other tensors stay
    readable.

    Raises
    ------
    CorruptError, LimitExceededError
        If a field contradicts the rest of the directory or exceeds a fixed limit.
    """
    head, dtype_number = cursor.u8(), cursor.u8()
    name = _read_name(cursor, previous_name)
    rank = head >> 4
    if rank > MAX_RANK:
        raise LimitExceededError(f"tensor {name!r} has rank {rank}, limit {MAX_RANK}", section="TENSOR")
    shape = tuple(cursor.varint() for _ in range(rank))
    if math.prod(filter(None, shape)) >= MAX_ELEMENTS:
        raise LimitExceededError(f"tensor {name!r} has dims {shape} beyond 2**60", section="TENSOR")
    try:
        dtype, layout = DType.from_number(dtype_number), _layout(head & 0x0F)
        fields = _read_fields(cursor, layout, dtype, shape, counts)
    except UnsupportedFeatureError as error:
        return TensorRecord(
            name=name,
            dtype=DType(dtype_number) if dtype_number in tuple(DType) else None,
            shape=shape,
            layout=Layout(head & 0x0F) if head & 0x0F in tuple(Layout) else None,
            fields=None,
            unsupported=str(error),
            payload_start_abs=payload_start_abs,
            payload_bytes=payload_bytes,
        )
    record = TensorRecord(
        name=name,
        dtype=dtype,
        shape=shape,
        layout=layout,
        fields=fields,
        payload_start_abs=payload_start_abs,
        payload_bytes=payload_bytes,
    )
    if payload_bytes != _expected_payload(record):
        raise cursor.corrupt(
            f"tensor {name!r} needs {_expected_payload(record)} payload bytes, has {payload_bytes}"
        )
    return record


def _layout(number: int) -> Layout:
    if number not in tuple(Layout):
        raise UnsupportedFeatureError(f"layout {number} is unknown to this reader")
    return Layout(number)


def _expected_payload(record: TensorRecord) -> int:
    if isinstance(record.fields, PackedFields) and record.fields.scales is not None:
        return record.fields.scales.payload_bytes
    if not isinstance(record.fields, RawFields):
        return 0
    assert record.dtype is not None
    return record.n_stored * (record.dtype.itemsize - len(record.fields.coded_planes))


def _read_name(cursor: ByteCursor, previous_name: str) -> str:
    previous = previous_name.encode()
    shared, n_rest = cursor.varint(), cursor.varint()
    if shared > len(previous) or not 1 <= shared + n_rest <= MAX_NAME_BYTES:
        raise cursor.corrupt(f"tensor name of {shared} shared and {n_rest} own bytes")
    raw = previous[:shared] + cursor.take(n_rest)
    if previous[shared : shared + 1] and previous[shared : shared + 1] == raw[shared : shared + 1]:
        raise cursor.corrupt("tensor name shares more bytes than it says")
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise cursor.corrupt("tensor name is not UTF-8") from None
    if "\0" in name:
        raise cursor.corrupt("tensor name holds a NUL character")
    return name


def _read_fields(
    cursor: ByteCursor, layout: Layout, dtype: DType, shape: tuple[int, ...], counts: DirectoryCounts
) -> Fields:
    if layout is Layout.RAW:
        return read_raw(cursor, dtype, counts)
    if layout is Layout.RAW_SPARSE:
        return read_raw_sparse(cursor, dtype, math.prod(shape), counts)
    if layout is Layout.CONSTANT:
        if 0 in shape:
            raise cursor.corrupt("an empty tensor has no constant")
        element = cursor.take(dtype.itemsize)
        if dtype is DType.BOOL and element not in (b"\0", b"\1"):
            raise cursor.corrupt("a bool is 0 or 1")
        return ConstantFields(element=element)
    if layout is Layout.VIEW:
        return read_view(cursor, counts)
    if layout is Layout.HASHED:
        return read_hashed(cursor, dtype, counts)
    return _read_packed(cursor, layout, dtype, shape, counts)


def _read_packed(
    cursor: ByteCursor, layout: Layout, dtype: DType, shape: tuple[int, ...], counts: DirectoryCounts
) -> PackedFields:
    flags = cursor.u8()
    if flags & ~_FLAGS:
        raise UnsupportedFeatureError(f"tensor options {flags:#04x} are unknown to this reader")
    column_scan = bool(flags & _FLAG_COLUMN_SCAN)
    if column_scan and len(shape) < 2:
        raise cursor.corrupt("column scan of a tensor with fewer than two dimensions")
    rule = read_affine(cursor, dtype) if flags & _FLAG_AFFINE else read_codebook_rule(cursor, dtype, counts)
    scales = read_scales(cursor, dtype, math.prod(shape), counts) if flags & _FLAG_SCALES else None
    width = rule.width if isinstance(rule, CodebookValues) else 1
    if flags & (_FLAG_CLASSES | _FLAG_ALIVE):
        if width > 1:
            raise cursor.corrupt("line classes of a tensor with entries of several elements")
        partition = read_partition_fields(
            cursor,
            layout,
            shape if not column_scan else (math.prod(shape[1:]), shape[0]),
            counts,
            classes=bool(flags & _FLAG_CLASSES),
            alive=bool(flags & _FLAG_ALIVE),
        )
        return PackedFields(
            rule=rule,
            column_scan=column_scan,
            n_stored=sum(block.n_stored for block in partition.blocks),
            value_stream=-1,
            partition=partition,
            scales=scales,
        )
    n_places = n_stored = n_units(math.prod(shape), width)
    if layout is not Layout.DENSE:
        n_stored = cursor.varint()
        if n_stored > n_places:
            raise cursor.corrupt(f"{n_stored} nonzeros in {n_places} places")
    value_stream = read_stream(cursor, counts)
    position_stream = None if layout is Layout.DENSE else read_stream(cursor, counts)
    return PackedFields(
        rule=rule,
        column_scan=column_scan,
        n_stored=n_stored,
        value_stream=value_stream,
        position_stream=position_stream,
        scales=scales,
    )
