"""Record fields of raw elements and of scales, which are stored like these (spec 6.4, 7.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from .codebooks import CodebookRecord
from .cursor import ByteCursor, encode_varint
from .dtypes import DType
from .tensor import CODEBOOK_DTYPES


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectoryCounts:
    """The codebooks, and how many streams and tensors, that stand before a tensor record."""

    codebooks: Sequence[CodebookRecord | str]
    streams: int
    tensors: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RawFields:
    """RAW and RAW_SPARSE: byte planes of the stored elements.

    Attributes
    ----------
    coded_planes, streams : tuple of int
        Planes that are slices of streams, and these; the other planes lie in the payload.
    n_stored, position_stream : int or None
        RAW_SPARSE: elements stored, and the stream of their gaps. None: all elements.
    """

    coded_planes: tuple[int, ...] = ()
    streams: tuple[int, ...] = ()
    n_stored: int | None = None
    position_stream: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleFields:
    """Scales of a tensor (spec 6.4): a raw vector in the record's payload and streams.

    Attributes
    ----------
    stored_as : DType
    span, n_scales : int
    planes : RawFields
    """

    stored_as: DType
    span: int
    n_scales: int
    planes: RawFields = RawFields()

    @property
    def payload_bytes(self) -> int:
        """Bytes of the planes that are not slices of streams."""
        return self.n_scales * (self.stored_as.itemsize - len(self.planes.coded_planes))


def plane_bytes(fields: RawFields) -> bytes:
    """Serialize where the stored elements stand, if not everywhere, and which planes are in streams."""
    head = b""
    if fields.n_stored is not None:
        assert fields.position_stream is not None
        head = encode_varint(fields.n_stored) + encode_varint(fields.position_stream)
    mask = sum(1 << plane for plane in fields.coded_planes)
    return head + bytes([mask]) + b"".join(encode_varint(s) for s in fields.streams)


def read_stream(cursor: ByteCursor, counts: DirectoryCounts) -> int:
    """Read the number of a stream that stands before."""
    number = cursor.varint()
    if number >= counts.streams:
        raise cursor.corrupt(f"stream {number} does not exist")
    return number


def read_raw(cursor: ByteCursor, dtype: DType, counts: DirectoryCounts) -> RawFields:
    """Read which planes are slices of streams (spec 7.2)."""
    mask = cursor.u8()
    if mask >> dtype.itemsize:
        raise cursor.corrupt(f"plane mask {mask:#x} for elements of {dtype.itemsize} bytes")
    planes = tuple(i for i in range(dtype.itemsize) if mask >> i & 1)
    return RawFields(coded_planes=planes, streams=tuple(read_stream(cursor, counts) for _ in planes))


def read_raw_sparse(cursor: ByteCursor, dtype: DType, n_elements: int, counts: DirectoryCounts) -> RawFields:
    """Read the fields of a raw tensor that leaves out zeros (spec 7.2)."""
    n_stored = cursor.varint()
    if n_stored > n_elements:
        raise cursor.corrupt(f"{n_stored} nonzeros in {n_elements} elements")
    position_stream = read_stream(cursor, counts)
    planes = read_raw(cursor, dtype, counts)
    return replace(planes, n_stored=n_stored, position_stream=position_stream)


def read_scales(cursor: ByteCursor, dtype: DType, n_elements: int, counts: DirectoryCounts) -> ScaleFields:
    """Read the fields of a scale vector (spec 6.4)."""
    number = cursor.u8()
    if number not in CODEBOOK_DTYPES or not dtype.is_float:
        raise cursor.corrupt(f"scales of type {number} in a {dtype.label} tensor")
    stored_as = DType(number)
    span, n_scales = cursor.varint(), cursor.varint()
    most = max(1, n_elements)
    if not 1 <= span <= most or not 1 <= n_scales <= most:
        raise cursor.corrupt(f"{n_scales} scales of {span} elements for {n_elements} elements")
    planes = read_raw(cursor, stored_as, counts)
    return ScaleFields(stored_as=stored_as, span=span, n_scales=n_scales, planes=planes)
