"""From tensor records to arrays: what a file's directory says of a tensor, carried out (spec 4 to 7)."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from .codebooks import decode_codebook
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
from .directory import Directory, StreamSlice
from .dtypes import DType
from .errors import CorruptError, LimitExceededError, UnsupportedFeatureError
from .grouping import GroupMapping
from .limits import Limits
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


class TensorDecoder:
    """Decodes tensors of one file.

    Parameters
    ----------
    directory : Directory
    bytes_at : callable
        Checked bytes of the file, by offset and length.
    limits : Limits
    workers : Workers
    """

    def __init__(
        self,
        directory: Directory,
        bytes_at: Callable[[int, int], memoryview],
        limits: Limits,
        workers: Workers,
    ) -> None:
        self._directory = directory
        self._bytes_at = bytes_at
        self._limits = limits
        self._workers = workers
        self._numbers = {record.name: i for i, record in enumerate(directory.tensors)}
        self._indexes: dict[int, list[ChunkEntry]] = {}
        self._pieces: dict[int, list[list[Piece]]] = {}
        self._last_chunk: dict[int, tuple[int, list[np.ndarray]]] = {}
        self._lock = threading.Lock()

    def forget_chunks(self) -> None:
        """Drop the chunks that are kept because several tensors share them."""
        with self._lock:
            self._last_chunk.clear()

    def decode(self, record: TensorRecord) -> np.ndarray:
        """Decode to the storage dtype (bfloat16 as uint16)."""
        fields = record.fields
        if fields is None or record.dtype is None:
            raise UnsupportedFeatureError(f"tensor {record.name!r}: {record.unsupported}")
        self.check_size(record)
        if isinstance(fields, PackedFields):
            return self._decode_packed(record, fields).reshape(record.shape)
        if isinstance(fields, ConstantFields):
            element = np.frombuffer(fields.element, dtype=record.dtype.storage_dtype)[0]
            return np.full(record.shape, element, dtype=record.dtype.storage_dtype)
        if isinstance(fields, ViewFields):
            return self._decode_view(record, fields)
        return self._decode_raw(record, record.dtype, fields)

    def check_size(self, record: TensorRecord, *, packed: bool = False) -> None:
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
        elif isinstance(fields, ViewFields):
            n_bytes += self._source_bytes(fields)
        if n_bytes > self._limits.materialised_bytes:
            raise LimitExceededError(
                f"tensor {record.name!r} of shape {record.shape} needs {n_bytes} bytes, "
                f"limit {self._limits.materialised_bytes}",
                section="TENSOR",
            )

    def _source_bytes(self, fields: ViewFields) -> int:
        """Bytes of the decoded sources of a view, all of which are held at a time."""
        sources = [self._directory.tensors[number] for number in {part.tensor for part in fields.parts}]
        return sum(s.n_elements * s.dtype.itemsize for s in sources if s.dtype is not None)

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
        decoded = {p.tensor: self.decode(tensors[p.tensor]) for p in fields.parts}
        rows = [decoded[p.tensor][p.start : p.start + p.n_rows] for p in fields.parts]
        joined = rows[0] if len(rows) == 1 else np.concatenate(rows, axis=0)
        return np.ascontiguousarray(joined.transpose(fields.permutation)).reshape(record.shape)

    def _decode_raw(self, record: TensorRecord, dtype: DType, fields: RawFields) -> np.ndarray:
        stored = self._bytes_at(record.payload_start_abs, record.payload_bytes)
        if not fields.coded_planes:
            if dtype is DType.BOOL and record.n_elements and np.frombuffer(stored, dtype=np.uint8).max() > 1:
                raise CorruptError(f"tensor {record.name!r} has a bool beyond 1", section="TENSOR")
            array = np.frombuffer(stored, dtype=dtype.storage_dtype).reshape(record.shape)
            return array.copy()
        planes = []
        offset = 0
        for plane in range(dtype.itemsize):
            if plane in fields.coded_planes:
                coded = self.slice_of(record, f"plane{plane}")
                plane_bytes = np.empty(record.n_elements, dtype=np.uint8)
                decode_bytes(self.coded(record.name, coded), plane_bytes, self._workers)
                planes.append(plane_bytes)
            else:
                planes.append(np.frombuffer(stored[offset : offset + record.n_elements], dtype=np.uint8))
                offset += record.n_elements
        bits = join_planes(planes, dtype)
        if dtype is DType.BOOL and bits.size and bits.view(np.uint8).max() > 1:
            raise CorruptError(f"tensor {record.name!r} has a bool beyond 1", section="TENSOR")
        return bits.reshape(record.shape)

    def slice_of(self, record: TensorRecord, role: str) -> StreamSlice:
        """Return a tensor's slice of a stream by its role, such as ``values``."""
        return self._directory.slices[self._numbers[record.name], role]

    def coded(self, name: str, part: StreamSlice, start: int = 0, stop: int | None = None) -> CodedSlice:
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
        return self._bytes_at(start_abs, n_bytes)

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
            return self.packed(record, fields).decode().reshape(-1)
        if record.layout is Layout.DENSE and columns is None:
            return self.dense_range(record, fields, 0, record.n_elements)
        values = self.coded(record.name, self.slice_of(record, "values"))
        table, values_of = self.value_rule(record, fields, values.record)
        if record.layout is Layout.DENSE:
            assert columns is not None
            out = np.empty(record.n_elements, dtype=record.dtype.storage_dtype)
            decode_columns(values, values_of, *columns, out)
            return out
        positions = self.coded(record.name, self.slice_of(record, "positions"))
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

    def dense_range(self, record: TensorRecord, fields: PackedFields, start: int, stop: int) -> np.ndarray:
        """Elements ``start:stop`` of a dense tensor in C order."""
        assert record.dtype is not None
        values = self.coded(record.name, self.slice_of(record, "values"), start, stop)
        table, values_of = self.value_rule(record, fields, values.record)
        first = values.pieces[0].start if values.pieces else start
        last = values.pieces[-1].stop if values.pieces else stop
        if (last - first) * record.dtype.itemsize > self._limits.materialised_bytes:
            raise LimitExceededError(f"rows of tensor {record.name!r} exceed the limit", section="TENSOR")
        out = np.empty(last - first, dtype=record.dtype.storage_dtype)
        decode_dense(values, table=table, values_of=values_of, out=out, base=first, workers=self._workers)
        if last - first == stop - start:
            return out
        return out[start - first : stop - first].copy()

    def value_rule(
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

    def packed(self, record: TensorRecord, fields: PackedFields) -> PackedTensor:
        """Undo the entropy coding of a quantized tensor."""
        assert record.dtype is not None and record.layout is not None
        self.check_size(record, packed=True)
        layout = record.layout
        positions: np.ndarray | None
        if fields.partition is not None:
            stored, positions = self._partition_numbers(record, fields, fields.partition)
            layout = Layout.DENSE if fields.n_stored == record.n_elements else Layout.SPARSE
            positions = None if layout is Layout.DENSE else positions
        else:
            stored = self.slice_numbers(record.name, self.slice_of(record, "values"))
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
            lambda role: self.slice_numbers(record.name, self.slice_of(record, role)),
            lambda role, n_elements, n_stored: self._coded_positions(record, role, n_elements, n_stored),
        )

    def _positions(self, record: TensorRecord, n_stored: int) -> np.ndarray | None:
        """Scan positions of the stored elements, ascending; None when dense."""
        if record.layout is Layout.DENSE:
            return None
        return self._coded_positions(record, "positions", record.n_elements, n_stored)

    def _coded_positions(self, record: TensorRecord, role: str, n_elements: int, n_stored: int) -> np.ndarray:
        """Ascending positions below `n_elements` from gaps or a mask."""
        coded = self.coded(record.name, self.slice_of(record, role))
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
        return decode_codebook(record, bytes(self._bytes_at(record.payload_start_abs, record.payload_bytes)))

    def slice_numbers(self, name: str, part: StreamSlice) -> np.ndarray:
        """All numbers of a slice: uint8, or int64 with hybrid mapping."""
        coded = self.coded(name, part)
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
            payload = self._bytes_at(record.payload_start_abs, record.payload_bytes)
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
        parts = decode_chunk(record, code, entry, self._bytes_at(base_abs, entry.n_bytes), base_abs)
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
