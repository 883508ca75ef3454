"""Record fields of tensors that are made of others: views and hashed tensors (spec 7.6, 7.7)."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from .cursor import ByteCursor, encode_varint
from .dtypes import DType
from .errors import UnsupportedFeatureError
from .limits import MAX_RANK
from .raw_records import DirectoryCounts

_FLAG_SIGNS = 0x01


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewPart:
    """Rows of an earlier tensor, by its number."""

    tensor: int
    start: int
    n_rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewFields:
    """VIEW: rows of other tensors, permuted and reshaped."""

    parts: tuple[ViewPart, ...]
    permutation: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class HashedFields:
    """HASHED: elements of an earlier tensor at places that a hash function gives."""

    tensor: int
    seed: int
    signs: bool


def view_bytes(fields: ViewFields) -> bytes:
    """Serialize the fields of a view."""
    out = encode_varint(len(fields.parts))
    for part in fields.parts:
        out += encode_varint(part.tensor) + encode_varint(part.start) + encode_varint(part.n_rows)
    return out + bytes([len(fields.permutation), *fields.permutation])


def hashed_bytes(fields: HashedFields) -> bytes:
    """Serialize the fields of a hashed tensor."""
    options = _FLAG_SIGNS if fields.signs else 0
    return bytes([options]) + encode_varint(fields.tensor) + struct.pack("<I", fields.seed)


def read_view(cursor: ByteCursor, counts: DirectoryCounts) -> ViewFields:
    """Read the fields of a view."""
    n_parts = cursor.varint()
    if n_parts < 1:
        raise cursor.corrupt(f"view of {n_parts} parts")
    parts = []
    for _ in range(n_parts):
        part = ViewPart(tensor=cursor.varint(), start=cursor.varint(), n_rows=cursor.varint())
        if part.tensor >= counts.tensors:
            raise cursor.corrupt(f"view of tensor {part.tensor}, which does not stand before it")
        parts.append(part)
    rank = cursor.u8()
    permutation = tuple(cursor.take(rank))
    if not 1 <= rank <= MAX_RANK or sorted(permutation) != list(range(rank)):
        raise cursor.corrupt(f"view permutation {permutation}")
    return ViewFields(parts=tuple(parts), permutation=permutation)


def read_hashed(cursor: ByteCursor, dtype: DType, counts: DirectoryCounts) -> HashedFields:
    """Read the fields of a hashed tensor."""
    options = cursor.u8()
    if options & ~_FLAG_SIGNS:
        raise UnsupportedFeatureError(f"options {options:#04x} of a hashed tensor are unknown to this reader")
    signs = bool(options & _FLAG_SIGNS)
    if signs and not dtype.is_float:
        raise cursor.corrupt(f"hashed signs of {dtype.label} elements")
    tensor = cursor.varint()
    if tensor >= counts.tensors:
        raise cursor.corrupt(f"hashed tensor of tensor {tensor}, which does not stand before it")
    return HashedFields(tensor=tensor, seed=cursor.u32(), signs=signs)
