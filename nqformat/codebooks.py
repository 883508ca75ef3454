"""Codebooks as objects of their own (spec 6.1)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from .bits import BitReader, BitWriter
from .cursor import ByteCursor, encode_varint
from .dtypes import DType, bfloat16_to_float32
from .errors import CorruptError, LimitExceededError, UnsupportedFeatureError
from .tensor import CODEBOOK_DTYPES, Codebook, GroupedCodebook

MAX_ENTRIES = 1 << 20
MAX_NUMBERS = 1 << 24
MAX_DELTA_ENTRIES = 4096
MAX_DELTA_NUMBERS = 1 << 16


class CodebookCoding(IntEnum):
    """How the entries are stored (spec 6.1)."""

    PLAIN = 0
    SORTED_DELTA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class CodebookRecord:
    """Directory record of a codebook.

    Attributes
    ----------
    stored_as : DType
    coding : CodebookCoding
    n_entries : int
        Of each group.
    n_groups, width : int
        Codebooks, and elements of an entry.
    payload_start_abs, payload_bytes : int
    """

    stored_as: DType
    coding: CodebookCoding
    n_entries: int
    n_groups: int = 1
    width: int = 1
    payload_start_abs: int = 0
    payload_bytes: int = 0

    @property
    def shape(self) -> tuple[int, int, int]:
        """Groups, entries of each, elements of an entry."""
        return self.n_groups, self.n_entries, self.width

    def to_bytes(self) -> bytes:
        """Serialize the fixed fields of the record's body."""
        head = bytes([self.stored_as | self.coding << 4])
        return head + b"".join(encode_varint(size) for size in self.shape)

    @classmethod
    def read(cls, cursor: ByteCursor, payload_start_abs: int, payload_bytes: int) -> CodebookRecord:
        """Parse the fixed fields; UnsupportedFeatureError for an unknown coding."""
        head = cursor.u8()
        n_groups, n_entries, width = cursor.varint(), cursor.varint(), cursor.varint()
        if head >> 4 not in tuple(CodebookCoding):
            raise UnsupportedFeatureError(f"codebook coding {head >> 4} is unknown to this reader")
        stored_as = DType.from_number(head & 0x0F)
        if stored_as not in CODEBOOK_DTYPES:
            raise cursor.corrupt(f"codebook entries of {stored_as.label}")
        n_numbers = n_groups * n_entries * width
        if n_numbers < 1:
            raise cursor.corrupt(f"codebook of shape ({n_groups}, {n_entries}, {width})")
        coding = CodebookCoding(head >> 4)
        _check_limits(coding, n_entries, n_numbers)
        if coding is CodebookCoding.PLAIN and payload_bytes != n_numbers * stored_as.itemsize:
            raise cursor.corrupt(f"{n_numbers} {stored_as.label} numbers do not take {payload_bytes} bytes")
        if coding is CodebookCoding.SORTED_DELTA and width != 1:
            raise cursor.corrupt(f"delta-coded codebook of width {width}")
        return cls(
            stored_as=stored_as,
            coding=coding,
            n_entries=n_entries,
            n_groups=n_groups,
            width=width,
            payload_start_abs=payload_start_abs,
            payload_bytes=payload_bytes,
        )


def _check_limits(coding: CodebookCoding, n_entries: int, n_numbers: int) -> None:
    sorted_delta = coding is CodebookCoding.SORTED_DELTA
    most_entries, most_numbers = (
        (MAX_DELTA_ENTRIES, MAX_DELTA_NUMBERS) if sorted_delta else (MAX_ENTRIES, MAX_NUMBERS)
    )
    if n_entries > most_entries or n_numbers > most_numbers:
        raise LimitExceededError(
            f"codebook of {n_entries} entries and {n_numbers} numbers, "
            f"limits {most_entries} and {most_numbers}",
            section="CODEBOOK",
        )


def _deltas_allowed(n_groups: int, n_entries: int, width: int) -> bool:
    return width == 1 and n_entries <= MAX_DELTA_ENTRIES and n_groups * n_entries <= MAX_DELTA_NUMBERS


def _entry_bits(codebook: Codebook | GroupedCodebook) -> np.ndarray:
    """Entries as unsigned bits of their stored type: shape (groups, entries, width)."""
    values = np.ascontiguousarray(codebook.values)
    values = values.reshape(1, -1, 1) if values.ndim == 1 else values
    if codebook.stored_as is DType.FLOAT16:
        return values.astype(np.float16).view(np.uint16).astype(np.uint64)
    if codebook.stored_as is DType.BFLOAT16:
        return (values.view(np.uint32) >> np.uint32(16)).astype(np.uint64)
    return values.view(np.uint32).astype(np.uint64)


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


def padding_after(value: np.float32, stored_as: DType, n: int) -> np.ndarray:
    """Return the `n` next larger numbers that `stored_as` holds, or copies of `value` where one overflows.

    They fill up the shorter codebooks of a group; ascending ones take a bit or two each when delta-coded.
    """
    width = 8 * stored_as.itemsize
    filler = Codebook(values=np.array([value], dtype=np.float32), stored_as=stored_as)
    key = int(_ordered(_entry_bits(filler).reshape(-1), width)[0])
    keys = np.arange(key + 1, key + 1 + n).astype(np.uint64)
    values = _floats(_unordered(keys, width), stored_as)
    return values if np.isfinite(values).all() else np.full(n, value, dtype=np.float32)


def encode_codebook(codebook: Codebook | GroupedCodebook) -> tuple[CodebookRecord, bytes]:
    """Choose the smaller coding; sorted deltas need strictly ascending entries in each group."""
    bits = _entry_bits(codebook)
    n_groups, n_entries, n_elements = bits.shape
    width = 8 * codebook.stored_as.itemsize
    best, coding = bits.astype(f"<u{codebook.stored_as.itemsize}").tobytes(), CodebookCoding.PLAIN
    if n_entries > 1 and _deltas_allowed(n_groups, n_entries, n_elements):
        keys = _ordered(bits[:, :, 0], width)
        if bool((keys[:, 1:] > keys[:, :-1]).all()):
            deltas = (np.diff(keys, axis=1) - np.uint64(1)).tolist()
            flat = [delta for group in deltas for delta in group]
            order = min(range(width), key=lambda k: _exp_golomb_bits(flat, k))
            delta = _write_deltas(keys[:, 0].tolist(), deltas, width, order)
            if len(delta) < len(best):
                best, coding = delta, CodebookCoding.SORTED_DELTA
    record = CodebookRecord(
        stored_as=codebook.stored_as,
        coding=coding,
        n_entries=n_entries,
        n_groups=n_groups,
        width=n_elements,
        payload_bytes=len(best),
    )
    return record, best


def _exp_golomb_bits(numbers: list[int], order: int) -> int:
    return sum(2 * (n + (1 << order)).bit_length() - 1 - order for n in numbers)


def _write_deltas(firsts: list[int], deltas: list[list[int]], width: int, order: int) -> bytes:
    writer = BitWriter()
    writer.put(order, 5)
    for first, own in zip(firsts, deltas, strict=True):
        writer.put(first, width)
        for delta in own:
            writer.put_exp_golomb(delta, order)
    return writer.to_bytes()


def decode_codebook(record: CodebookRecord, payload: bytes) -> np.ndarray:
    """Return the entries widened to float32, shape (n_groups, n_entries, width).

    Raises
    ------
    CorruptError
        If deltas are damaged or an entry is not finite.
    """
    width = 8 * record.stored_as.itemsize
    if record.coding is CodebookCoding.PLAIN:
        bits = np.frombuffer(payload, dtype=f"<u{record.stored_as.itemsize}").astype(np.uint64)
    else:
        bits = _unordered(_read_deltas(payload, record, width), width)
    values = _floats(bits, record.stored_as)
    if not np.isfinite(values).all():
        raise CorruptError(
            "codebook entry is not finite", section="CODEBOOK", offset_abs=record.payload_start_abs
        )
    return values.reshape(record.shape)


def _floats(bits: np.ndarray, stored_as: DType) -> np.ndarray:
    """Widen bits of a stored type to float32."""
    if stored_as is DType.FLOAT16:
        return bits.astype(np.uint16).view(np.float16).astype(np.float32)
    if stored_as is DType.BFLOAT16:
        return bfloat16_to_float32(bits.astype(np.uint16))
    return bits.astype(np.uint32).view(np.float32)


def _read_deltas(payload: bytes, record: CodebookRecord, width: int) -> np.ndarray:
    reader = BitReader(payload, "CODEBOOK")
    order = reader.get(5)
    keys = []
    for _ in range(record.n_groups):
        key = reader.get(width)
        keys.append(key)
        for _ in range(record.n_entries - 1):
            key += reader.get_exp_golomb(order) + 1
            keys.append(key)
        if key >= 1 << width:
            raise CorruptError("codebook deltas overflow", section="CODEBOOK")
    reader.finish()
    return np.array(keys, dtype=np.uint64)
