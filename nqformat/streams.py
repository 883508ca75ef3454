"""Streams: symbols of many tensors under one prefix code, cut into chunks (spec 4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from . import kernels
from .chunks import (
    DEFAULT_CHUNK_LOG2,
    MAX_CHUNK_LOG2,
    MIN_CHUNK_LOG2,
    ChunkSpan,
    chunk_grid,
    n_substreams,
    substream_bounds,
)
from .cursor import ByteCursor, encode_varint, encode_zigzag
from .errors import CorruptError, FormatError, UnsupportedFeatureError
from .escape import EscapeMapping
from .grouping import GroupMapping
from .hybrid import HybridMapping
from .kernels.reference import unpack_bits_reference
from .prefix_code import PrefixCode
from .tans import TansCode

Mapping = GroupMapping | HybridMapping | EscapeMapping
Code = PrefixCode | TansCode


class StreamKind(IntEnum):
    """What a stream's numbers mean (spec 4.1)."""

    VALUES = 1
    GAPS = 2
    MASK = 3
    PLANE = 4
    CLASSES = 5


class Codec(IntEnum):
    """How a stream's symbols are coded (spec 4.1); CONTEXT is reserved."""

    STORED = 0
    HUFFMAN = 1
    TANS = 2
    CONTEXT = 3


_MAPPING_GROUP = 0
_MAPPING_HYBRID = 1
_MAPPING_ESCAPE = 2
_FLAG_FOUR_STREAMS = 0x10


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamRecord:
    """Directory record of a stream.

    Attributes
    ----------
    kind : StreamKind
    codec : Codec
        STORED, HUFFMAN or TANS.
    mapping : GroupMapping, HybridMapping or EscapeMapping
        From numbers to symbols.
    chunk_log2 : int
        Log2 of the elements of a full chunk.
    four_streams : bool
        Whether chunks of 4,096 symbols and more have four sub-streams.
    table : int or None
        Number of the code table; None when stored.
    payload_start_abs, payload_bytes : int
        Place of the chunk index and the chunks in the file.
    """

    kind: StreamKind
    codec: Codec
    mapping: Mapping
    table: int | None
    chunk_log2: int = DEFAULT_CHUNK_LOG2
    four_streams: bool = True
    payload_start_abs: int = 0
    payload_bytes: int = 0

    def to_bytes(self) -> bytes:
        """Serialize the fixed fields of the record's body (spec 4.1)."""
        out = bytearray([self.kind])
        if isinstance(self.mapping, GroupMapping):
            out += bytes([self.codec | _MAPPING_GROUP << 4])
            out += bytes([self.mapping.group, self.mapping.width - 1])
        elif isinstance(self.mapping, EscapeMapping):
            out += bytes([self.codec | _MAPPING_ESCAPE << 4])
            out += bytes([self.mapping.group, self.mapping.window, self.mapping.escape_bits])
        else:
            out += bytes([self.codec | _MAPPING_HYBRID << 4])
            out += bytes([self.mapping.split_log2 | self.mapping.mantissa_bits << 4])
        out.append((self.chunk_log2 - MIN_CHUNK_LOG2) | (_FLAG_FOUR_STREAMS if self.four_streams else 0))
        if self.table is not None:
            out += encode_varint(self.table)
        return bytes(out)

    @classmethod
    def read(
        cls, cursor: ByteCursor, n_tables: int, payload_start_abs: int, payload_bytes: int
    ) -> StreamRecord:
        """Parse the fixed fields.

        Raises
        ------
        UnsupportedFeatureError
            Unknown kind, codec, mapping or flag: the tensors that use the stream cannot be read.
        CorruptError
            Parameters outside their ranges.
        """
        kind_number, coding = cursor.u8(), cursor.u8()
        try:
            kind, codec = StreamKind(kind_number), Codec(coding & 0x0F)
        except ValueError:
            raise UnsupportedFeatureError(
                f"stream kind {kind_number} or codec {coding & 15} is unknown"
            ) from None
        if codec is Codec.CONTEXT:
            raise UnsupportedFeatureError(f"codec {codec.name.lower()} is not implemented by this reader")
        mapping = _read_mapping(cursor, coding >> 4)
        chunking = cursor.u8()
        if chunking & ~(_FLAG_FOUR_STREAMS | 0x0F):
            raise UnsupportedFeatureError(f"stream flags {chunking:#04x} are unknown to this reader")
        chunk_log2 = MIN_CHUNK_LOG2 + (chunking & 0x0F)
        if chunk_log2 > MAX_CHUNK_LOG2:
            raise cursor.corrupt(
                f"chunks of 2**{chunk_log2} elements, at most 2**{MAX_CHUNK_LOG2} are allowed"
            )
        table = None
        if codec is not Codec.STORED:
            table = cursor.varint()
            if table >= n_tables:
                raise cursor.corrupt(f"code table {table} does not exist")
        return cls(
            kind=kind,
            codec=codec,
            mapping=mapping,
            table=table,
            chunk_log2=chunk_log2,
            four_streams=bool(chunking & _FLAG_FOUR_STREAMS),
            payload_start_abs=payload_start_abs,
            payload_bytes=payload_bytes,
        )


def _read_mapping(cursor: ByteCursor, number: int) -> Mapping:
    try:
        if number == _MAPPING_GROUP:
            return GroupMapping(group=cursor.u8(), width=cursor.u8() + 1)
        if number == _MAPPING_HYBRID:
            packed = cursor.u8()
            return HybridMapping(split_log2=packed & 0x0F, mantissa_bits=packed >> 4)
        if number == _MAPPING_ESCAPE:
            return EscapeMapping(group=cursor.u8(), window=cursor.u8(), escape_bits=cursor.u8())
    except FormatError:
        raise
    except ValueError as error:
        raise cursor.corrupt(str(error)) from None
    raise UnsupportedFeatureError(f"stream mapping {number} is unknown to this reader")


@dataclass(frozen=True, slots=True, kw_only=True)
class SymbolSlice:
    """Numbers of one tensor as symbols, ready to be coded.

    Attributes
    ----------
    values : ndarray of uint8 (grouped) or int64 (hybrid), shape (n_elements,)
    starts : ndarray of int64 or None
        For gap slices: ``starts[i]`` is the scan position before element i, used where a chunk begins
        inside the slice.
    """

    values: np.ndarray
    starts: np.ndarray | None = None


def slice_symbols(mapping: Mapping, values: np.ndarray, chunk_log2: int = DEFAULT_CHUNK_LOG2) -> np.ndarray:
    """Symbols of the numbers of a slice: uint8. Groups end with their chunk (spec 4.2, 4.4)."""
    if isinstance(mapping, GroupMapping):
        return _join_by_chunk(mapping.join, mapping.group, values, chunk_log2)
    if isinstance(mapping, EscapeMapping):
        return _join_by_chunk(mapping.symbols, mapping.group, values, chunk_log2)
    return mapping.split(values)[0]


def _join_by_chunk(
    join: Callable[[np.ndarray], np.ndarray], group: int, values: np.ndarray, chunk_log2: int
) -> np.ndarray:
    """Join groups that end with each full chunk of a slice."""
    capacity = 1 << chunk_log2
    if values.size <= capacity or capacity % group == 0:
        return join(values)
    return np.concatenate([join(values[i : i + capacity]) for i in range(0, values.size, capacity)])


def encode_stream(record: StreamRecord, code: Code | None, slices: list[SymbolSlice]) -> bytes:
    """Encode slices into a stream's payload: chunk index, then chunks (spec 4.5).

    Parameters
    ----------
    record : StreamRecord
        Its payload place is ignored.
    code : PrefixCode or None
        Required unless the codec is STORED; covers every symbol.
    """
    body: list[bytes] = []
    index = write_stream(record, code, slices, body.append)
    return index + b"".join(body)


def write_stream(
    record: StreamRecord,
    code: Code | None,
    slices: Sequence[SymbolSlice],
    write: Callable[[bytes], None],
) -> bytes:
    """Encode as :func:`encode_stream`: chunks go to `write` in turn, their index is returned.

    Parameters
    ----------
    slices : sequence of SymbolSlice
        Gone through once for the lengths and once more in order; one that makes its slices when they are
        wanted need not hold them all.
    """
    index = bytearray()
    previous_start = 0
    at_hand: dict[int, SymbolSlice] = {}
    for chunk in chunk_grid([s.values.size for s in slices], record.chunk_log2):
        wanted = [p.slice_index for p in chunk.parts]
        at_hand = {i: at_hand[i] if i in at_hand else slices[i] for i in wanted}
        parts = [at_hand[p.slice_index].values[p.start : p.stop] for p in chunk.parts]
        coded, extra = _encode_chunk(record, code, parts)
        n_coded = sum(map(len, coded))
        index += encode_varint(n_coded)
        if len(coded) > 1:
            for substream in coded[:-1]:
                index += encode_zigzag(len(substream) - n_coded // 4)
        if not isinstance(record.mapping, GroupMapping):
            index += encode_varint(len(extra))
        first = chunk.parts[0]
        starts = at_hand[first.slice_index].starts
        if record.kind is StreamKind.GAPS and starts is not None:
            start = int(starts[first.start]) if chunk.continues_slice else 0
            if chunk.continues_slice:
                index += encode_varint(start - previous_start)
            previous_start = start
        for content in (*coded, extra):
            write(content)
    return bytes(index)


def _encode_chunk(
    record: StreamRecord, code: Code | None, parts: list[np.ndarray]
) -> tuple[list[bytes], bytes]:
    """Return the sub-streams and the extra bits of one chunk."""
    extra = b""
    if isinstance(record.mapping, GroupMapping):
        symbols = np.concatenate([record.mapping.join(p) for p in parts])
    elif isinstance(record.mapping, EscapeMapping):
        symbols = np.concatenate([record.mapping.symbols(p) for p in parts])
        escaped = np.concatenate([record.mapping.extra(p) for p in parts])
        extra = kernels.pack_bits(escaped, np.full(escaped.size, record.mapping.escape_bits, dtype=np.uint8))
    else:
        symbols, low_bits, widths = record.mapping.split(np.concatenate(parts))
        extra = kernels.pack_bits(low_bits, widths)
    if record.codec is Codec.STORED:
        return [symbols.tobytes()], extra
    assert code is not None
    bounds = substream_bounds(symbols.size, n_substreams(symbols.size, record.four_streams))
    if isinstance(code, TansCode):
        return kernels.encode_tans_streams(symbols, bounds, code.encode_tables), extra
    if code.single is not None:
        return [b""] * (len(bounds) - 1), extra
    codes, lengths = code.codewords
    return kernels.pack_codes(symbols, bounds, codes, lengths), extra


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkEntry:
    """Place and size of one chunk, read from the chunk index.

    Attributes
    ----------
    span : ChunkSpan
    start_off : int
        Offset of the chunk in the stream's payload.
    substream_bytes : tuple of int
    extra_bytes : int
    scan_start : int
        Scan position before the first element, where the chunk begins inside a gap slice; else 0.
    """

    span: ChunkSpan
    start_off: int
    substream_bytes: tuple[int, ...]
    extra_bytes: int
    scan_start: int

    @property
    def n_bytes(self) -> int:
        """Bytes of the whole chunk."""
        return sum(self.substream_bytes) + self.extra_bytes


def chunk_symbols(mapping: Mapping, span: ChunkSpan) -> int:
    """Symbols of a chunk: each part is padded to whole groups."""
    if not isinstance(mapping, HybridMapping):
        return sum(mapping.n_symbols(p.n_elements) for p in span.parts)
    return sum(p.n_elements for p in span.parts)


def read_chunk_index(record: StreamRecord, payload: memoryview, slice_lengths: list[int]) -> list[ChunkEntry]:
    """Parse the chunk index at the start of a stream's payload (spec 4.5).

    Raises
    ------
    CorruptError
        If sizes do not add up to the payload.
    """
    cursor = ByteCursor(payload, "STREAM", record.payload_start_abs)
    sizes: list[tuple[tuple[int, ...], int, int]] = []
    spans = chunk_grid(slice_lengths, record.chunk_log2)
    if len(spans) > record.payload_bytes:
        raise cursor.corrupt(f"{len(spans)} chunks in {record.payload_bytes} bytes")
    scan_start = 0
    for span in spans:
        n_coded = cursor.varint()
        n_streams = 1
        if record.codec is not Codec.STORED:
            n_streams = n_substreams(chunk_symbols(record.mapping, span), record.four_streams)
        substreams = [n_coded]
        if n_streams == 4:
            first = [n_coded // 4 + cursor.zigzag() for _ in range(3)]
            substreams = [*first, n_coded - sum(first)]
            if min(substreams) < 0:
                raise cursor.corrupt("a sub-stream has a negative length")
        extra_bytes = 0 if isinstance(record.mapping, GroupMapping) else cursor.varint()
        if record.kind is StreamKind.GAPS:
            scan_start = scan_start + cursor.varint() if span.continues_slice else 0
        sizes.append((tuple(substreams), extra_bytes, scan_start))
    entries = []
    offset = record.payload_bytes - cursor.remaining
    for span, (substream_bytes, extra_bytes, start) in zip(spans, sizes, strict=True):
        entry = ChunkEntry(
            span=span,
            start_off=offset,
            substream_bytes=substream_bytes,
            extra_bytes=extra_bytes,
            scan_start=start,
        )
        entries.append(entry)
        offset += entry.n_bytes
    if offset != record.payload_bytes:
        raise CorruptError(
            f"chunks take {offset} bytes, the stream has {record.payload_bytes}",
            section="STREAM",
            offset_abs=record.payload_start_abs,
        )
    return entries


def decode_chunk(
    record: StreamRecord, code: Code | None, entry: ChunkEntry, chunk: memoryview, base_abs: int
) -> list[np.ndarray]:
    """Decode one chunk into the numbers of its parts.

    Parameters
    ----------
    chunk : memoryview
        The chunk's bytes; their file offset is `base_abs`.

    Returns
    -------
    list of ndarray
        uint8 (grouped) or int64 (hybrid), one array for each part.

    Raises
    ------
    CorruptError
        If a codeword, a padding bit, a group or an extra-bit length is wrong.
    """
    n_symbols = chunk_symbols(record.mapping, entry.span)
    symbols = _decode_symbols(record, code, entry, chunk, n_symbols)
    if symbols is None:
        raise CorruptError(
            "bitstream does not end with its last symbol", section="STREAM", offset_abs=base_abs
        )
    if isinstance(record.mapping, GroupMapping):
        return _split_groups(record.mapping, entry, symbols, base_abs)
    if isinstance(record.mapping, EscapeMapping):
        extra = chunk[sum(entry.substream_bytes) :]
        return _join_escaped(record.mapping, entry, symbols, extra, base_abs)
    values = _join_hybrid(record.mapping, symbols, chunk[sum(entry.substream_bytes) :], base_abs)
    bounds = np.cumsum([p.n_elements for p in entry.span.parts])[:-1]
    return [np.asarray(part) for part in np.split(values, bounds)]


def _decode_symbols(
    record: StreamRecord, code: Code | None, entry: ChunkEntry, chunk: memoryview, n_symbols: int
) -> np.ndarray | None:
    coded = np.frombuffer(chunk[: sum(entry.substream_bytes)], dtype=np.uint8)
    if record.codec is Codec.STORED:
        return coded.copy() if coded.size == n_symbols else None
    assert code is not None
    if isinstance(code, PrefixCode) and code.single is not None:
        return np.full(n_symbols, code.single, dtype=np.uint8) if coded.size == 0 else None
    byte_bounds = [0]
    for n_bytes in entry.substream_bytes:
        byte_bounds.append(byte_bounds[-1] + n_bytes)
    symbol_bounds = substream_bounds(n_symbols, len(entry.substream_bytes))
    if isinstance(code, TansCode):
        return kernels.decode_tans_streams(
            coded, byte_bounds, code.decode_table, code.table_log2, symbol_bounds
        )
    return kernels.decode_prefix_streams(coded, byte_bounds, code, symbol_bounds)


def _split_groups(
    mapping: GroupMapping, entry: ChunkEntry, symbols: np.ndarray, base_abs: int
) -> list[np.ndarray]:
    parts = []
    start = 0
    for part in entry.span.parts:
        stop = start + mapping.n_symbols(part.n_elements)
        values = mapping.split(symbols[start:stop], part.n_elements)
        if values is None:
            raise CorruptError("a group of values is out of range", section="STREAM", offset_abs=base_abs)
        parts.append(values)
        start = stop
    return parts


def _join_escaped(
    mapping: EscapeMapping, entry: ChunkEntry, symbols: np.ndarray, extra: memoryview, base_abs: int
) -> list[np.ndarray]:
    digits = _split_groups(mapping.digits, entry, symbols, base_abs)
    places = [np.flatnonzero(part == mapping.window) for part in digits]
    widths = np.full(sum(p.size for p in places), mapping.escape_bits, dtype=np.uint8)
    rest = _extra_numbers(widths, extra, base_abs).astype(np.int64)
    small = mapping.max_value < 256
    parts = []
    for part, escaped in zip(digits, places, strict=True):
        values = part.copy() if small else part.astype(np.int64)
        values[escaped] = mapping.window + rest[: escaped.size]
        rest = rest[escaped.size :]
        parts.append(values)
    return parts


def _join_hybrid(mapping: HybridMapping, symbols: np.ndarray, extra: memoryview, base_abs: int) -> np.ndarray:
    packed = np.frombuffer(extra, dtype=np.uint8)
    numbers = kernels.join_hybrid(symbols, packed, mapping.symbol_bases, mapping.symbol_widths)
    if numbers is None:
        raise CorruptError(
            "a symbol stands for no integer, or extra bits do not have their exact length",
            section="STREAM",
            offset_abs=base_abs,
        )
    return numbers


def _extra_numbers(widths: np.ndarray, extra: memoryview, base_abs: int) -> np.ndarray:
    """Numbers of a chunk's extra bits: uint64; CorruptError unless they fill them exactly."""
    n_bits = int(widths.sum(dtype=np.int64))
    packed = np.frombuffer(extra, dtype=np.uint8)
    if packed.size != (n_bits + 7) // 8 or (n_bits % 8 and int(packed[-1]) >> (n_bits % 8)):
        raise CorruptError("extra bits do not have their exact length", section="STREAM", offset_abs=base_abs)
    if n_bits == 0:
        packed = np.zeros(8, dtype=np.uint8)
    return unpack_bits_reference(packed, widths)
