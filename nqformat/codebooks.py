"""Codebooks as objects of their own (spec 6.1)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from .bits import BitReader, BitWriter
from .cursor import ByteCursor, encode_varint
from .dtypes import DType, bfloat16_to_float32
from .errors import CorruptError, LimitExceededError, UnsupportedFeatureError
from .tensor import Codebook

MAX_ENTRIES = 1 << 20
MAX_DELTA_ENTRIES = 4096


class CodebookCoding(IntEnum):
    """How the entries are stored (spec 6.1)."""

    PLAIN = 0
    SORTED_DELTA = 1


_STORED_AS = (DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16)


@dataclass(frozen=True, slots=True, kw_only=True)
class CodebookRecord:
    """Directory record of a codebook.

    Attributes
    ----------
    stored_as : DType
    coding : CodebookCoding
    n_entries : int
    payload_start_abs, payload_bytes : int
    """

    stored_as: DType
    coding: CodebookCoding
    n_entries: int
    payload_start_abs: int = 0
    payload_bytes: int = 0

    def to_bytes(self) -> bytes:
        """Serialize the fixed fields of the record's body."""
        head = bytes([self.stored_as | self.coding << 4])
        return head + encode_varint(1) + encode_varint(self.n_entries) + encode_varint(1)

    @classmethod
    def read(cls, cursor: ByteCursor, payload_start_abs: int, payload_bytes: int) -> CodebookRecord:
        """Parse the fixed fields; UnsupportedFeatureError for grouped or vector codebooks."""
        head = cursor.u8()
        n_groups, n_entries, n_dims = cursor.varint(), cursor.varint(), cursor.varint()
        if n_groups != 1 or n_dims != 1:
            raise UnsupportedFeatureError(
                f"codebook of shape ({n_groups}, {n_entries}, {n_dims}) is reserved"
            )
        if head >> 4 not in tuple(CodebookCoding):
            raise UnsupportedFeatureError(f"codebook coding {head >> 4} is unknown to this reader")
        stored_as = DType.from_number(head & 0x0F)
        if stored_as not in _STORED_AS:
            raise cursor.corrupt(f"codebook entries of {stored_as.label}")
        if n_entries < 1:
            raise cursor.corrupt("codebook without entries")
        coding = CodebookCoding(head >> 4)
        most = MAX_DELTA_ENTRIES if coding is CodebookCoding.SORTED_DELTA else MAX_ENTRIES
        if n_entries > most:
            raise LimitExceededError(f"codebook of {n_entries} entries, limit {most}", section="CODEBOOK")
        if coding is CodebookCoding.PLAIN and payload_bytes != n_entries * stored_as.itemsize:
            raise cursor.corrupt(f"{n_entries} {stored_as.label} entries do not take {payload_bytes} bytes")
        return cls(
            stored_as=stored_as,
            coding=coding,
            n_entries=n_entries,
            payload_start_abs=payload_start_abs,
            payload_bytes=payload_bytes,
        )


def _entry_bits(codebook: Codebook) -> np.ndarray:
    """Entries as unsigned bits of their stored type."""
    if codebook.stored_as is DType.FLOAT16:
        return codebook.values.astype("<f2").view("<u2").astype(np.uint64)
    if codebook.stored_as is DType.BFLOAT16:
        return (codebook.values.view("<u4") >> np.uint32(16)).astype(np.uint64)
    return codebook.values.view("<u4").astype(np.uint64)


def _ordered(bits: np.ndarray, width: int) -> np.ndarray:
    """Map float bits to unsigned integers in the order of the numbers (spec 6.1)."""
    sign = np.uint64(1 << (width - 1))
    mask = np.uint64((1 << width) - 1)
    return np.where(bits & sign, ~bits & mask, bits | sign)


def _unordered(keys: np.ndarray, width: int) -> np.ndarray:
    """Undo :func:`_ordered`."""
    sign = np.uint64(1 << (width - 1))
    mask = np.uint64((1 << width) - 1)
    return np.where(keys & sign, keys ^ sign, ~keys & mask)


def encode_codebook(codebook: Codebook) -> tuple[CodebookRecord, bytes]:
    """Choose the smaller coding; sorted deltas need strictly ascending entries."""
    bits = _entry_bits(codebook)
    width = 8 * codebook.stored_as.itemsize
    plain = bits.astype(f"<u{codebook.stored_as.itemsize}").tobytes()
    keys = _ordered(bits, width)
    best, coding = plain, CodebookCoding.PLAIN
    if 1 < keys.size <= MAX_DELTA_ENTRIES and bool((keys[1:] > keys[:-1]).all()):
        deltas = [int(d) - 1 for d in np.diff(keys)]
        order = min(range(width), key=lambda k: _exp_golomb_bits(deltas, k))
        delta = _write_deltas(int(keys[0]), deltas, width, order)
        if len(delta) < len(plain):
            best, coding = delta, CodebookCoding.SORTED_DELTA
    record = CodebookRecord(
        stored_as=codebook.stored_as, coding=coding, n_entries=codebook.values.size, payload_bytes=len(best)
    )
    return record, best


def _exp_golomb_bits(numbers: list[int], order: int) -> int:
    return sum(2 * (n + (1 << order)).bit_length() - 1 - order for n in numbers)


def _write_deltas(first: int, deltas: list[int], width: int, order: int) -> bytes:
    writer = BitWriter()
    writer.put(order, 5)
    writer.put(first, width)
    for delta in deltas:
        writer.put_exp_golomb(delta, order)
    return writer.to_bytes()


def decode_codebook(record: CodebookRecord, payload: bytes) -> np.ndarray:
    """Return the entries widened to float32, shape (n_entries,).

    Raises
    ------
    CorruptError
        If deltas are damaged or an entry is not finite.
    """
    width = 8 * record.stored_as.itemsize
    if record.coding is CodebookCoding.PLAIN:
        bits = np.frombuffer(payload, dtype=f"<u{record.stored_as.itemsize}").astype(np.uint64)
    else:
        bits = _unordered(_read_deltas(payload, record.n_entries, width), width)
    if record.stored_as is DType.FLOAT16:
        values = bits.astype(np.uint16).view("<f2").astype(np.float32)
    elif record.stored_as is DType.BFLOAT16:
        values = bfloat16_to_float32(bits.astype(np.uint16))
    else:
        values = bits.astype(np.uint32).view("<f4").astype(np.float32)
    if not np.isfinite(values).all():
        raise CorruptError(
            "codebook entry is not finite", section="CODEBOOK", offset_abs=record.payload_start_abs
        )
    return values


def _read_deltas(payload: bytes, n_entries: int, width: int) -> np.ndarray:
    reader = BitReader(payload, "CODEBOOK")
    order = reader.get(5)
    key = reader.get(width)
    keys = [key]
    for _ in range(n_entries - 1):
        key += reader.get_exp_golomb(order) + 1
        keys.append(key)
    if keys[-1] >= 1 << width:
        raise CorruptError("codebook deltas overflow", section="CODEBOOK")
    reader.finish()
    return np.array(keys, dtype=np.uint64)
