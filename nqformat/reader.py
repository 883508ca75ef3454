"""Reading .nqz files: whole, or tensor by tensor from a memory map (spec 2 to 9)."""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import threading
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any

import numpy as np

from .checksums import PageVerifier
from .codebooks import CodebookRecord, decode_codebook
from .cursor import ByteCursor
from .decoding import (
    CodedSlice,
    Piece,
    ValueTable,
    Workers,
    count_mask,
    decode_bytes,
    decode_columns,
    decode_dense,
    decode_mask,
    decode_sparse,
    gap_positions,
)
from .deflate import inflate
from .directory import BlobRecord, Directory, StreamSlice, parse_directory
from .dtypes import DType, bfloat16_array
from .errors import CorruptError, LimitExceededError, UnsupportedFeatureError
from .grouping import GroupMapping
from .header import HEADER_BYTES, Header
from .limits import Limits
from .metadata import decode_metadata
from .partition import read_partition
from .planes import join_planes
from .streams import ChunkEntry, Code, StreamRecord, decode_chunk, read_chunk_index
from .tensor import MAX_AFFINE_K, Layout, PackedTensor, affine_values, cast_values
from .tensor_records import (
    AffineOrder,
    AffineRule,
    CodebookValues,
    ConstantFields,
    PackedFields,
    Partition,
    RawFields,
    TensorRecord,
    ViewFields,
)

_PACKED_BYTES_PER_ELEMENT = 24
_CHUNK_BUFFERS_BYTES = 1 << 24
_CHECK_BYTES = 1 << 22


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """What the directory says of one tensor.

    Attributes
    ----------
    name : str
    dtype : DType or None
        None if this reader does not know the type.
    shape : tuple of int
    layout : Layout or None
        None if the tensor is not supported.
    n_stored : int
        Elements with a symbol of their own (nonzeros when sparse); all elements for other layouts.
    codebook_entries : int
        0 without a codebook.
    unsupported : str
        Why the tensor cannot be read, or an empty string.
    sources : tuple of str
        Names of the tensors that a view takes its elements from.
    """

    name: str
    dtype: DType | None
    shape: tuple[int, ...]
    layout: Layout | None
    n_stored: int
    codebook_entries: int
    unsupported: str
    sources: tuple[str, ...]

    @property
    def n_elements(self) -> int:
        """Product of the dimensions."""
        return math.prod(self.shape)

    @property
    def plain_bytes(self) -> int:
        """Bytes of the decoded tensor; 0 for an unknown dtype."""
        return self.n_elements * (self.dtype.itemsize if self.dtype is not None else 0)


class NqzFile:
    """An open .nqz file; use :func:`safe_open` or :func:`from_bytes`.

    Methods may be called from several threads. Each page of the file is checked against its checksum before
    its first use.
    """

    def __init__(
        self,
        buffer: bytes | mmap.mmap,
        *,
        limits: Limits | None = None,
        verify: bool = True,
        bfloat16: str = "ml_dtypes",
        threads: int | None = None,
    ) -> None:
        self._workers = Workers(threads)
        self._limits = limits or Limits()
        self._bfloat16 = bfloat16
        self._owner = buffer
        self._view = memoryview(buffer)
        try:
            self.header = Header.parse(bytes(self._view[:HEADER_BYTES]), len(self._view))
            self._directory = self._read_directory(verify)
        except BaseException:
            self._view.release()
            raise
        self._numbers = {record.name: i for i, record in enumerate(self._directory.tensors)}
        self._indexes: dict[int, list[ChunkEntry]] = {}
        self._pieces: dict[int, list[list[Piece]]] = {}
        self._last_chunk: dict[int, tuple[int, list[np.ndarray]]] = {}
        self._lock = threading.Lock()

    def _read_directory(self, verify: bool) -> Directory:
        header = self.header
        stored = bytes(self._view[HEADER_BYTES : header.body_start_abs])
        if zlib.crc32(stored) != header.directory_crc32:
            raise CorruptError("directory checksum differs", section="DIRECTORY", offset_abs=HEADER_BYTES)
        n_checksums = 4 * header.n_pages
        checksums = np.frombuffer(stored, dtype="<u4", count=header.n_pages).tolist()
        self._verifier = PageVerifier(
            self._view, header.body_start_abs, checksums, header.page_log2, enabled=verify
        )
        plain = stored[n_checksums:]
        if len(plain) > self._limits.directory_bytes:
            raise LimitExceededError(
                f"directory of {len(plain)} bytes", section="DIRECTORY", offset_abs=HEADER_BYTES
            )
        if header.deflated:
            cursor = ByteCursor(plain, "DIRECTORY", HEADER_BYTES + n_checksums)
            plain_bytes = cursor.varint()
            plain = inflate(
                cursor.take(cursor.remaining), plain_bytes, self._limits.directory_bytes, "DIRECTORY"
            )
        return parse_directory(plain, header.body_start_abs, header.file_bytes, self._limits)

    def __enter__(self) -> NqzFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the memory map; arrays handed out stay valid."""
        self._workers.close()
        with self._lock:
            self._last_chunk.clear()
        self._view.release()
        if isinstance(self._owner, mmap.mmap):
            # the frames of an error that is being raised may still refer to the map; it then goes with them
            with contextlib.suppress(BufferError):
                self._owner.close()

    @property
    def directory(self) -> Directory:
        """The parsed directory, for tools that inspect files."""
        return self._directory

    def keys(self) -> list[str]:
        """Tensor names in file order."""
        return list(self._numbers)

    def __contains__(self, name: object) -> bool:
        return name in self._numbers

    def __iter__(self) -> Iterator[str]:
        return iter(self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)

    def metadata(self) -> dict[str, Any]:
        """Return the metadata object; empty if the file has none."""
        blob = self._directory.metadata
        return (
            {}
            if blob is None
            else decode_metadata(self._read_blob(blob, self._limits.metadata_bytes, "METADATA"))
        )

    def graph(self) -> bytes | None:
        """Return the slim ONNX ModelProto, or None if the file has no graph."""
        blob = self._directory.graph
        return None if blob is None else self._read_blob(blob, self._limits.graph_bytes, "GRAPH")

    def _read_blob(self, blob: BlobRecord, limit_bytes: int, section: str) -> bytes:
        if blob.unsupported:
            raise UnsupportedFeatureError(blob.unsupported)
        stored = self._bytes(blob.payload_start_abs, blob.payload_bytes)
        if not blob.deflated:
            return bytes(stored)
        return inflate(stored, blob.plain_bytes, limit_bytes, section)

    def _bytes(self, start_abs: int, n_bytes: int) -> memoryview:
        """Return checked bytes of the file."""
        self._verifier.check(start_abs, start_abs + n_bytes)
        return self._view[start_abs : start_abs + n_bytes]

    def verify_checksums(self) -> None:
        """Check every page; CorruptError names the first that differs."""
        start, stop = self.header.body_start_abs, self.header.file_bytes
        self._workers.run(
            [
                partial(self._verifier.check, i, min(i + _CHECK_BYTES, stop))
                for i in range(start, stop, _CHECK_BYTES)
            ],
            stop - start,
        )

    def info(self, name: str) -> TensorInfo:
        """Describe a tensor without decoding it; KeyError if there is none of that name."""
        record = self._record(name)
        fields = record.fields
        entries = 0
        if isinstance(fields, PackedFields) and isinstance(fields.rule, CodebookValues):
            codebook = self._directory.codebooks[fields.rule.codebook]
            entries = codebook.n_entries if isinstance(codebook, CodebookRecord) else 0
        sources: tuple[str, ...] = ()
        if isinstance(fields, ViewFields):
            sources = tuple(self._directory.tensors[p.tensor].name for p in fields.parts)
        return TensorInfo(
            name=name,
            dtype=record.dtype,
            shape=record.shape,
            layout=record.layout,
            n_stored=fields.n_stored if isinstance(fields, PackedFields) else record.n_elements,
            codebook_entries=entries,
            unsupported=record.unsupported,
            sources=sources,
        )

    def _record(self, name: str) -> TensorRecord:
        try:
            return self._directory.tensors[self._numbers[name]]
        except KeyError:
            raise KeyError(f"the file has no tensor named {name!r}") from None

    def get_tensor(self, name: str) -> np.ndarray:
        """Decode one tensor.

        Raises
        ------
        KeyError
            If the file has no such tensor.
        FormatError, UnsupportedFeatureError
            If its bytes are damaged or newer than this reader.
        """
        record = self._record(name)
        bits = self._decode_bits(record)
        return bfloat16_array(bits, self._bfloat16) if record.dtype is DType.BFLOAT16 else bits

    def get_packed(self, name: str) -> PackedTensor | np.ndarray:
        """Undo a tensor's entropy coding only.

        Returns
        -------
        PackedTensor for the layouts DENSE, SPARSE and MASK; otherwise the decoded array, as
        :meth:`get_tensor` gives it.
        """
        record = self._record(name)
        if isinstance(record.fields, PackedFields):
            return self._packed(record, record.fields)
        return self.get_tensor(name)

    def get_slice(self, name: str, start: int, stop: int) -> np.ndarray:
        """Decode rows ``start:stop`` of axis 0; dense tensors read only the chunks that hold them.

        Raises
        ------
        ValueError
            If the tensor is a scalar or the range leaves it.
        """
        record = self._record(name)
        if not record.shape or not 0 <= start <= stop <= record.shape[0]:
            raise ValueError(f"rows {start}:{stop} of tensor {name!r} with shape {record.shape}")
        fields = record.fields
        if (
            isinstance(fields, PackedFields)
            and record.layout is Layout.DENSE
            and not fields.column_scan
            and fields.partition is None
        ):
            row = math.prod(record.shape[1:])
            bits = self._dense_range(record, fields, start * row, stop * row)
            bits = bits.reshape(stop - start, *record.shape[1:])
            return bfloat16_array(bits, self._bfloat16) if record.dtype is DType.BFLOAT16 else bits
        return self.get_tensor(name)[start:stop]

    def slice_numbers(self, part: StreamSlice) -> np.ndarray:
        """Return all numbers of one slice of a stream, for tools that inspect files."""
        if 8 * part.n_elements > self._limits.materialised_bytes:
            raise LimitExceededError(f"{part.n_elements} numbers exceed the limit", section="STREAM")
        return self._slice_numbers("", part)

    def _decode_bits(self, record: TensorRecord) -> np.ndarray:
        """Decode to the storage dtype (bfloat16 as uint16)."""
        fields = record.fields
        if fields is None or record.dtype is None:
            raise UnsupportedFeatureError(f"tensor {record.name!r}: {record.unsupported}")
        self._check_size(record)
        if isinstance(fields, PackedFields):
            return self._decode_packed(record, fields).reshape(record.shape)
        if isinstance(fields, ConstantFields):
            element = np.frombuffer(fields.element, dtype=record.dtype.storage_dtype)[0]
            return np.full(record.shape, element, dtype=record.dtype.storage_dtype)
        if isinstance(fields, ViewFields):
            return self._decode_view(record, fields)
        return self._decode_raw(record, record.dtype, fields)

    def _check_size(self, record: TensorRecord, *, packed: bool = False) -> None:
        """Refuse a tensor whose decoding takes more memory than the limit."""
        assert record.dtype is not None
        fields = record.fields
        n_bytes = record.n_elements * record.dtype.itemsize
        if isinstance(fields, PackedFields):
            if packed:
                n_bytes = _PACKED_BYTES_PER_ELEMENT * fields.n_stored
                n_bytes += record.n_elements if record.layout is Layout.MASK else 0
            elif record.layout is not Layout.DENSE and fields.partition is None:
                n_bytes += self._side_bytes(record, fields)
            if fields.partition is not None:
                n_bytes += _PACKED_BYTES_PER_ELEMENT * fields.n_stored
                n_bytes += _PACKED_BYTES_PER_ELEMENT * (fields.partition.n_lines + fields.partition.n_cross)
            n_bytes += min(n_bytes, _CHUNK_BUFFERS_BYTES)
        elif isinstance(fields, RawFields) and fields.coded_planes:
            n_bytes += record.n_elements * len(fields.coded_planes)
        if n_bytes > self._limits.materialised_bytes:
            raise LimitExceededError(
                f"tensor {record.name!r} of shape {record.shape} needs {n_bytes} bytes, "
                f"limit {self._limits.materialised_bytes}",
                section="TENSOR",
            )

    def _side_bytes(self, record: TensorRecord, fields: PackedFields) -> int:
        """Bytes that a sparse or mask tensor needs beside its result."""
        stream = self._directory.streams[fields.value_stream]
        wide = isinstance(stream, StreamRecord) and not isinstance(stream.mapping, GroupMapping)
        n_bytes = fields.n_stored * (16 if wide else 1)
        if record.layout is Layout.MASK:
            n_bytes += -(-record.n_elements // 8)
        return n_bytes

    def _decode_view(self, record: TensorRecord, fields: ViewFields) -> np.ndarray:
        tensors = self._directory.tensors
        decoded = {p.tensor: self._decode_bits(tensors[p.tensor]) for p in fields.parts}
        rows = [decoded[p.tensor][p.start : p.start + p.n_rows] for p in fields.parts]
        joined = rows[0] if len(rows) == 1 else np.concatenate(rows, axis=0)
        return np.ascontiguousarray(joined.transpose(fields.permutation)).reshape(record.shape)

    def _decode_raw(self, record: TensorRecord, dtype: DType, fields: RawFields) -> np.ndarray:
        stored = self._bytes(record.payload_start_abs, record.payload_bytes)
        if not fields.coded_planes:
            if dtype is DType.BOOL and record.n_elements and np.frombuffer(stored, dtype=np.uint8).max() > 1:
                raise CorruptError(f"tensor {record.name!r} has a bool beyond 1", section="TENSOR")
            array = np.frombuffer(stored, dtype=dtype.storage_dtype).reshape(record.shape)
            return array.copy()
        planes = []
        offset = 0
        for plane in range(dtype.itemsize):
            if plane in fields.coded_planes:
                coded = self._slice(record, f"plane{plane}")
                plane_bytes = np.empty(record.n_elements, dtype=np.uint8)
                decode_bytes(self._coded(record.name, coded), plane_bytes, self._workers)
                planes.append(plane_bytes)
            else:
                planes.append(np.frombuffer(stored[offset : offset + record.n_elements], dtype=np.uint8))
                offset += record.n_elements
        bits = join_planes(planes, dtype)
        if dtype is DType.BOOL and bits.size and bits.view(np.uint8).max() > 1:
            raise CorruptError(f"tensor {record.name!r} has a bool beyond 1", section="TENSOR")
        return bits.reshape(record.shape)

    def _slice(self, record: TensorRecord, role: str) -> StreamSlice:
        return self._directory.slices[self._numbers[record.name], role]

    def _coded(self, name: str, part: StreamSlice, start: int = 0, stop: int | None = None) -> CodedSlice:
        """Return what decodes numbers ``start:stop`` of a slice: all chunks that hold some of them."""
        stop = part.n_elements if stop is None else stop
        stream = self._directory.streams[part.stream]
        if isinstance(stream, str):
            raise UnsupportedFeatureError(stream)
        code: Code | str | None = None if stream.table is None else self._directory.tables[stream.table]
        if isinstance(code, str):
            raise UnsupportedFeatureError(code)
        pieces = []
        if stop > start:
            for piece in self._slice_pieces(part, stream):
                if piece.start < stop and piece.stop > start:
                    pieces.append(piece)
        return CodedSlice(name=name, stream=part.stream, record=stream, code=code, pieces=pieces, source=self)

    def checked(self, start_abs: int, n_bytes: int) -> memoryview:
        """Return bytes of the file after checking their pages."""
        return self._bytes(start_abs, n_bytes)

    def chunk_numbers(self, stream: int, piece: Piece) -> np.ndarray:
        """Return the decoded numbers of one slice in one chunk."""
        record = self._directory.streams[stream]
        assert isinstance(record, StreamRecord)
        code = None if record.table is None else self._directory.tables[record.table]
        assert not isinstance(code, str)
        return self._chunk(stream, piece.number, record, code, piece.entry)[piece.place]

    def _decode_packed(self, record: TensorRecord, fields: PackedFields) -> np.ndarray:
        """Decode a quantized tensor into its elements, C order, shape (n_elements,)."""
        assert record.dtype is not None
        columns = (record.shape[0], math.prod(record.shape[1:])) if fields.column_scan else None
        if fields.partition is not None:
            return self._packed(record, fields).decode().reshape(-1)
        if record.layout is Layout.DENSE and columns is None:
            return self._dense_range(record, fields, 0, record.n_elements)
        values = self._coded(record.name, self._slice(record, "values"))
        table, values_of = self._value_rule(record, fields, values.record)
        if record.layout is Layout.DENSE:
            assert columns is not None
            out = np.empty(record.n_elements, dtype=record.dtype.storage_dtype)
            decode_columns(values, values_of, *columns, out)
            return out
        positions = self._coded(record.name, self._slice(record, "positions"))
        mask = None
        if record.layout is Layout.MASK:
            mask = self._mask_bytes(record, positions, record.n_elements, fields.n_stored)
        if mask is None:
            out = np.empty(record.n_elements, dtype=record.dtype.storage_dtype)
            decode_sparse(
                values,
                positions,
                table=table,
                values_of=values_of,
                out=out,
                columns=columns,
                workers=self._workers,
            )
        else:
            out = np.zeros(record.n_elements, dtype=record.dtype.storage_dtype)
            decode_mask(
                values,
                mask,
                table=table,
                values_of=values_of,
                out=out,
                columns=columns,
                workers=self._workers,
            )
        return out

    def _dense_range(self, record: TensorRecord, fields: PackedFields, start: int, stop: int) -> np.ndarray:
        """Elements ``start:stop`` of a dense tensor in C order."""
        assert record.dtype is not None
        values = self._coded(record.name, self._slice(record, "values"), start, stop)
        table, values_of = self._value_rule(record, fields, values.record)
        first = values.pieces[0].start if values.pieces else start
        last = values.pieces[-1].stop if values.pieces else stop
        if (last - first) * record.dtype.itemsize > self._limits.materialised_bytes:
            raise LimitExceededError(f"rows of tensor {record.name!r} exceed the limit", section="TENSOR")
        out = np.empty(last - first, dtype=record.dtype.storage_dtype)
        decode_dense(values, table=table, values_of=values_of, out=out, base=first, workers=self._workers)
        if last - first == stop - start:
            return out
        return out[start - first : stop - first].copy()

    def _value_rule(
        self, record: TensorRecord, fields: PackedFields, stream: StreamRecord
    ) -> tuple[ValueTable | None, Callable[[np.ndarray], np.ndarray]]:
        """Return the values of all one-byte numbers, and a function for any numbers that checks them."""
        dtype, rule = record.dtype, fields.rule
        assert dtype is not None
        narrow = isinstance(stream.mapping, GroupMapping)
        if isinstance(rule, CodebookValues):
            entries = cast_values(self._codebook(rule.codebook), dtype)

            def look_up(numbers: np.ndarray) -> np.ndarray:
                if numbers.size and int(numbers.max()) >= entries.size:
                    raise CorruptError(
                        f"tensor {record.name!r} has an index beyond its codebook of {entries.size} entries",
                        section="TENSOR",
                    )
                found: np.ndarray = entries[numbers]
                return found

            legal = np.ones(min(entries.size, 256), dtype=bool)
            return (ValueTable(values=entries[:256], legal=legal) if narrow else None), look_up

        def compute(numbers: np.ndarray) -> np.ndarray:
            k = _affine_k(record, rule, numbers)
            return cast_values(affine_values(k, rule.step, rule.offset), dtype)

        if not narrow:
            return None, compute
        k, legal = _legal_affine_k(record, rule, np.arange(256))
        values = cast_values(affine_values(np.where(legal, k, 0), rule.step, rule.offset), dtype)
        return ValueTable(values=values, legal=legal), compute

    def _mask_bytes(
        self, record: TensorRecord, positions: CodedSlice, n_elements: int, n_stored: int
    ) -> np.ndarray:
        """Return a mask; its set bits are as many as the numbers, and none lies beyond the elements."""
        mask = np.zeros(-(-n_elements // 8), dtype=np.uint8)
        decode_bytes(positions, mask, self._workers)
        beyond = n_elements % 8 and int(mask[-1]) >> (n_elements % 8)
        if beyond or count_mask(mask) != n_stored:
            raise CorruptError(f"mask of tensor {record.name!r} does not fit its nonzeros", section="TENSOR")
        return mask

    def _packed(self, record: TensorRecord, fields: PackedFields) -> PackedTensor:
        assert record.dtype is not None and record.layout is not None
        self._check_size(record, packed=True)
        layout = record.layout
        positions: np.ndarray | None
        if fields.partition is not None:
            stored, positions = self._partition_numbers(record, fields, fields.partition)
            layout = Layout.DENSE if fields.n_stored == record.n_elements else Layout.SPARSE
            positions = None if layout is Layout.DENSE else positions
        else:
            stored = self._slice_numbers(record.name, self._slice(record, "values"))
            positions = self._positions(record, fields.n_stored)
            if fields.column_scan:
                stored, positions = _row_order(record.shape, stored, positions)
        codebook, step, offset = None, 0.0, 0.0
        if isinstance(fields.rule, CodebookValues):
            codebook = self._codebook(fields.rule.codebook)
            if stored.size and int(stored.max()) >= codebook.size:
                raise CorruptError(
                    f"tensor {record.name!r} has an index beyond its codebook of {codebook.size} entries",
                    section="TENSOR",
                )
            symbols = stored.astype(_index_dtype(codebook.size), copy=False)
        else:
            symbols, step, offset = (
                _affine_k(record, fields.rule, stored),
                fields.rule.step,
                fields.rule.offset,
            )
        return PackedTensor(
            name=record.name,
            dtype=record.dtype,
            shape=record.shape,
            layout=layout,
            symbols=symbols,
            positions=positions,
            codebook=codebook,
            step=step,
            offset=offset,
        )

    def _partition_numbers(
        self, record: TensorRecord, fields: PackedFields, partition: Partition
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return stored numbers and C-order positions of a tensor in blocks (spec 7.5)."""
        return read_partition(
            record,
            partition,
            fields.column_scan,
            lambda role: self._slice_numbers(record.name, self._slice(record, role)),
            lambda role, n_elements, n_stored: self._coded_positions(record, role, n_elements, n_stored),
        )

    def _positions(self, record: TensorRecord, n_stored: int) -> np.ndarray | None:
        """Scan positions of the stored elements, ascending; None when dense."""
        if record.layout is Layout.DENSE:
            return None
        return self._coded_positions(record, "positions", record.n_elements, n_stored)

    def _coded_positions(self, record: TensorRecord, role: str, n_elements: int, n_stored: int) -> np.ndarray:
        """Ascending positions below `n_elements` from gaps or a mask."""
        coded = self._coded(record.name, self._slice(record, role))
        if record.layout is Layout.MASK:
            mask = np.unpackbits(self._mask_bytes(record, coded, n_elements, n_stored), bitorder="little")
            return np.flatnonzero(mask)
        positions = np.empty(n_stored, dtype=np.int64)
        for piece, found in gap_positions(coded, n_elements):
            positions[piece.start : piece.stop] = found
        return positions

    def _codebook(self, number: int) -> np.ndarray:
        record = self._directory.codebooks[number]
        if isinstance(record, str):
            raise UnsupportedFeatureError(record)
        return decode_codebook(record, bytes(self._bytes(record.payload_start_abs, record.payload_bytes)))

    def _slice_numbers(self, name: str, part: StreamSlice) -> np.ndarray:
        """All numbers of a slice: uint8, or int64 with hybrid mapping."""
        coded = self._coded(name, part)
        if isinstance(coded.record.mapping, GroupMapping):
            narrow = np.empty(part.n_elements, dtype=np.uint8)
            decode_bytes(coded, narrow, self._workers)
            return narrow
        numbers = np.empty(part.n_elements, dtype=np.int64)
        for piece, found in coded.numbers():
            numbers[piece.start : piece.stop] = found
        return numbers

    def _slice_pieces(self, part: StreamSlice, record: StreamRecord) -> list[Piece]:
        """Pieces of a slice, in order."""
        with self._lock:
            pieces = self._pieces.get(part.stream)
        if pieces is None:
            pieces = [[] for _ in self._directory.slice_lengths[part.stream]]
            for number, entry in enumerate(self._chunk_index(part.stream, record)):
                for place, span in enumerate(entry.span.parts):
                    alone = len(entry.span.parts) == 1
                    pieces[span.slice_index].append(Piece(number, entry, place, span.start, span.stop, alone))
            with self._lock:
                self._pieces[part.stream] = pieces
        return pieces[part.index]

    def _chunk_index(self, stream: int, record: StreamRecord) -> list[ChunkEntry]:
        entries = self._indexes.get(stream)
        if entries is None:
            lengths = self._directory.slice_lengths[stream]
            if sum(length >> record.chunk_log2 for length in lengths) > record.payload_bytes:
                raise CorruptError(
                    "more chunks than bytes", section="STREAM", offset_abs=record.payload_start_abs
                )
            payload = self._bytes(record.payload_start_abs, record.payload_bytes)
            entries = self._indexes[stream] = read_chunk_index(record, payload, lengths)
        return entries

    def _chunk(
        self, stream: int, number: int, record: StreamRecord, code: Code | None, entry: ChunkEntry
    ) -> list[np.ndarray]:
        """Decode a chunk; one that several tensors share is kept until another of its stream is wanted."""
        with self._lock:
            kept = self._last_chunk.get(stream)
        if kept is not None and kept[0] == number:
            return kept[1]
        base_abs = record.payload_start_abs + entry.start_off
        parts = decode_chunk(record, code, entry, self._bytes(base_abs, entry.n_bytes), base_abs)
        if len(entry.span.parts) > 1:
            with self._lock:
                self._last_chunk[stream] = (number, parts)
        return parts


def _index_dtype(n_entries: int) -> type[np.unsignedinteger[Any]]:
    """Smallest unsigned dtype for indices of `n_entries` entries."""
    if n_entries <= 1 << 8:
        return np.uint8
    return np.uint16 if n_entries <= 1 << 16 else np.uint32


def _affine_k(record: TensorRecord, rule: AffineRule, stored: np.ndarray) -> np.ndarray:
    """Integers k of stored numbers: int32."""
    k, legal = _legal_affine_k(record, rule, stored)
    if not legal.all():
        raise CorruptError(
            f"tensor {record.name!r} has an affine integer beyond 2**24 or its element type", section="TENSOR"
        )
    return k


def _legal_affine_k(
    record: TensorRecord, rule: AffineRule, stored: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Integers k of stored numbers as int32, and whether each is allowed (spec 6.2)."""
    k = stored.astype(np.int64)
    if rule.order is AffineOrder.ASCENDING:
        k += rule.k_min
    else:
        if record.layout is not Layout.DENSE:
            k += 1
        k = (k >> 1) ^ -(k & 1)
    legal = np.abs(k) < MAX_AFFINE_K
    if record.dtype is not None and not record.dtype.is_float:
        info = np.iinfo(record.dtype.storage_dtype.name)
        legal &= (k >= info.min) & (k <= info.max)
    return k.astype(np.int32), legal


def _row_order(
    shape: tuple[int, ...], stored: np.ndarray, positions: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Turn a column scan of the (shape[0], rest) matrix into C order (spec 7.4)."""
    n_rows, n_columns = shape[0], math.prod(shape[1:])
    if positions is None:
        return np.ascontiguousarray(stored.reshape(n_columns, n_rows).T).reshape(-1), None
    row_major = (positions % n_rows) * n_columns + positions // n_rows if positions.size else positions
    order = np.argsort(row_major, kind="stable")
    return stored[order], row_major[order]


def safe_open(
    path: str | os.PathLike[str],
    *,
    limits: Limits | None = None,
    verify: bool = True,
    bfloat16: str = "ml_dtypes",
    threads: int | None = None,
) -> NqzFile:
    """Open a file for random access by tensor name, through a memory map.

    Parameters
    ----------
    path : path-like
    limits : Limits, optional
    verify : bool
        Check the CRC-32 of every page before its first use.
    bfloat16 : {"ml_dtypes", "uint16", "float32"}
        How bfloat16 tensors are handed out.
    threads : int, optional
        Threads that decode large tensors; by default one for each processor that this process may use. The
        result does not depend on it.

    Raises
    ------
    OSError
        If the file cannot be opened.
    FormatError, UnsupportedVersionError, UnsupportedFeatureError
        If it is not a readable .nqz file.

    Examples
    --------
    >>> import numpy as np, tempfile, os
    >>> path = os.path.join(tempfile.mkdtemp(), "m.nqz")
    >>> save_path = __import__("nqformat").save_file({"w": np.ones((2, 3), np.float32)}, path)
    >>> with safe_open(path) as f:
    ...     f.get_tensor("w").shape
    (2, 3)
    """
    with open(path, "rb") as stream:
        if os.fstat(stream.fileno()).st_size == 0:
            return NqzFile(b"", limits=limits)
        mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    try:
        return NqzFile(mapped, limits=limits, verify=verify, bfloat16=bfloat16, threads=threads)
    except BaseException:
        mapped.close()
        raise


def from_bytes(
    content: bytes,
    *,
    limits: Limits | None = None,
    verify: bool = True,
    bfloat16: str = "ml_dtypes",
    threads: int | None = None,
) -> NqzFile:
    """Open a file that is already in memory; see :func:`safe_open`."""
    return NqzFile(content, limits=limits, verify=verify, bfloat16=bfloat16, threads=threads)


def load(
    content: bytes,
    *,
    limits: Limits | None = None,
    bfloat16: str = "ml_dtypes",
    threads: int | None = None,
) -> dict[str, np.ndarray]:
    """Decode every tensor of a file in memory; see :func:`load_file`."""
    chosen = limits or Limits()
    with from_bytes(content, limits=chosen, bfloat16=bfloat16, threads=threads) as file:
        total = sum(file.info(name).plain_bytes for name in file)
        if total > chosen.materialised_bytes:
            raise LimitExceededError(f"tensors take {total} bytes decoded, limit {chosen.materialised_bytes}")
        file.verify_checksums()
        return {name: file.get_tensor(name) for name in file}


def load_file(
    path: str | os.PathLike[str],
    *,
    limits: Limits | None = None,
    bfloat16: str = "ml_dtypes",
    threads: int | None = None,
) -> dict[str, np.ndarray]:
    """Read and decode every tensor of a file; the whole file is checked first.

    Parameters
    ----------
    path : path-like
    limits, bfloat16, threads
        As for :func:`safe_open`.

    Returns
    -------
    dict of str to ndarray
        In file order.

    Raises
    ------
    OSError, FormatError, UnsupportedVersionError, UnsupportedFeatureError
    """
    with open(path, "rb") as stream:
        return load(stream.read(), limits=limits, bfloat16=bfloat16, threads=threads)
