"""From tensor records to arrays: what a file's directory says of a tensor, carried out (spec 4 to 7)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

import numpy as np

from .codebooks import CodebookRecord, decode_codebook
from .coded_slice import CodedSlice, ValueTable
from .decoding import (
    count_mask,
    decode_bytes,
    decode_columns,
    decode_dense,
    decode_mask,
    decode_sparse,
    gap_positions,
)
from .directory import Directory
from .dtypes import DType, bfloat16_to_float32
from .errors import CorruptError, LimitExceededError, UnsupportedFeatureError
from .grouped import GroupedCodebook, GroupedTensor, groups_of, n_units
from .grouping import GroupMapping
from .hashing import hashed_elements
from .limits import Limits
from .partition import placing_bytes, read_partition
from .planes import join_planes
from .slice_reader import SliceReader
from .stored_numbers import affine_k, check_indices, index_dtype, legal_affine_k, row_order
from .streams import StreamRecord
from .tensor import Layout, PackedTensor, Scales, affine_values, are_scales, cast_values
from .tensor_records import (
    CodebookValues,
    ConstantFields,
    HashedFields,
    PackedFields,
    Partition,
    RawFields,
    TensorRecord,
    ViewFields,
)
from .workers import Workers

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
        self.slices = SliceReader(directory, bytes_at, workers)

    def decode(
        self, record: TensorRecord, sources: Mapping[int, np.ndarray] = MappingProxyType({})
    ) -> np.ndarray:
        """Decode to the storage dtype (bfloat16 as uint16).

        Parameters
        ----------
        sources : mapping of int to ndarray
            Tensors decoded before, by number; a view or hashed tensor takes its sources from them.
        """
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
            return self._decode_view(record, fields, sources)
        if isinstance(fields, HashedFields):
            return self.hashed_range(fields, 0, record.n_elements, sources).reshape(record.shape)
        return self._decode_raw(record, record.dtype, fields)

    def check_size(self, record: TensorRecord, *, packed: bool = False) -> None:
        """Refuse a tensor whose decoding takes more memory than the limit."""
        assert record.dtype is not None
        fields = record.fields
        n_bytes = record.n_elements * record.dtype.itemsize
        if isinstance(fields, PackedFields):
            if is_grouped(fields):
                n_bytes += _PACKED_BYTES_PER_ELEMENT * record.n_units + 8 * record.n_elements
            elif packed:
                n_bytes = _PACKED_BYTES_PER_ELEMENT * fields.n_stored
                n_bytes += record.n_elements if record.layout is Layout.MASK else 0
            elif record.layout is not Layout.DENSE and fields.partition is None:
                n_bytes += self._side_bytes(record, fields)
            elif fields.column_scan:
                n_bytes += record.n_elements
            if fields.partition is not None:
                n_bytes += _PACKED_BYTES_PER_ELEMENT * fields.n_stored
                n_bytes += placing_bytes(fields.partition, fields.n_stored)
                n_bytes += _PACKED_BYTES_PER_ELEMENT * (fields.partition.n_lines + fields.partition.n_cross)
            if fields.scales is not None:
                n_bytes += 4 * (record.n_elements + 2 * fields.scales.n_scales)
            n_bytes += min(n_bytes, _CHUNK_BUFFERS_BYTES)
        elif isinstance(fields, RawFields):
            n_bytes += record.n_stored * len(fields.coded_planes)
            if fields.position_stream is not None:
                n_bytes += _PACKED_BYTES_PER_ELEMENT * record.n_stored
        elif isinstance(fields, ViewFields | HashedFields):
            n_bytes += self._source_bytes(fields)
        if n_bytes > self._limits.materialised_bytes:
            raise LimitExceededError(
                f"tensor {record.name!r} of shape {record.shape} needs {n_bytes} bytes, "
                f"limit {self._limits.materialised_bytes}",
                section="TENSOR",
            )

    def _source_bytes(self, fields: ViewFields | HashedFields) -> int:
        """Bytes of the decoded sources of a tensor, all of which are held at a time."""
        sources = [self._directory.tensors[number] for number in fields.sources]
        return sum(s.n_elements * s.dtype.itemsize for s in sources if s.dtype is not None)

    def _side_bytes(self, record: TensorRecord, fields: PackedFields) -> int:
        """Bytes that a sparse or mask tensor needs beside its result."""
        stream = self._directory.streams[fields.value_stream]
        wide = isinstance(stream, StreamRecord) and not isinstance(stream.mapping, GroupMapping)
        n_bytes = fields.n_stored * (16 if wide else 1)
        if record.layout is Layout.MASK:
            n_bytes += -(-record.n_elements // 8)
        return n_bytes

    def _source(self, number: int, sources: Mapping[int, np.ndarray]) -> np.ndarray:
        return sources[number] if number in sources else self.decode(self._directory.tensors[number])

    def _decode_view(
        self, record: TensorRecord, fields: ViewFields, sources: Mapping[int, np.ndarray]
    ) -> np.ndarray:
        decoded = {number: self._source(number, sources) for number in fields.sources}
        rows = [decoded[p.tensor][p.start : p.start + p.n_rows] for p in fields.parts]
        joined = rows[0] if len(rows) == 1 else np.concatenate(rows, axis=0)
        elements = np.ascontiguousarray(joined.transpose(fields.permutation)).reshape(record.shape)
        # a source that is handed out itself shares no memory with the view
        return elements.copy() if sources and np.may_share_memory(elements, rows[0]) else elements

    def hashed_range(
        self,
        fields: HashedFields,
        start: int,
        stop: int,
        sources: Mapping[int, np.ndarray] = MappingProxyType({}),
    ) -> np.ndarray:
        """Elements ``start:stop`` of a hashed tensor (spec 7.7)."""
        record = self._directory.tensors[fields.tensor]
        assert record.dtype is not None
        if (stop - start) * record.dtype.itemsize > self._limits.materialised_bytes:
            raise LimitExceededError(f"{stop - start} hashed elements exceed the limit", section="TENSOR")
        source = self._source(fields.tensor, sources)
        return hashed_elements(source, fields.seed, start, stop, signs=fields.signs)

    def _decode_raw(self, record: TensorRecord, dtype: DType, fields: RawFields) -> np.ndarray:
        bits = self._raw_bits(record, dtype, fields, record.n_stored, "plane")
        if dtype is DType.BOOL and bits.size and bits.view(np.uint8).max() > 1:
            raise CorruptError(f"tensor {record.name!r} has a bool beyond 1", section="TENSOR")
        if fields.position_stream is None:
            return bits.reshape(record.shape)
        out = np.zeros(record.n_elements, dtype=dtype.storage_dtype)
        out[self._coded_positions(record, "positions", record.n_elements, record.n_stored)] = bits
        return out.reshape(record.shape)

    def _raw_bits(
        self, record: TensorRecord, dtype: DType, fields: RawFields, n_elements: int, role: str
    ) -> np.ndarray:
        """Join stored and coded byte planes: shape (n_elements,), in the storage dtype."""
        stored = self._bytes_at(record.payload_start_abs, record.payload_bytes)
        if not fields.coded_planes:
            # bytes, not elements: a bool beyond 1 must still be seen as such
            return np.frombuffer(stored, dtype=np.uint8).copy().view(dtype.storage_dtype)
        planes = []
        offset = 0
        for plane in range(dtype.itemsize):
            if plane in fields.coded_planes:
                coded = self.slices.of(record, f"{role}{plane}")
                plane_bytes = np.empty(n_elements, dtype=np.uint8)
                decode_bytes(coded, plane_bytes, self._workers)
                planes.append(plane_bytes)
            else:
                planes.append(np.frombuffer(stored[offset : offset + n_elements], dtype=np.uint8))
                offset += n_elements
        return join_planes(planes, dtype)

    def _scales(self, record: TensorRecord, fields: PackedFields) -> Scales | None:
        """Decode the scales of a tensor (spec 6.4)."""
        scales = fields.scales
        if scales is None:
            return None
        bits = self._raw_bits(record, scales.stored_as, scales.planes, scales.n_scales, "scales")
        values = bfloat16_to_float32(bits) if scales.stored_as is DType.BFLOAT16 else bits
        values = values.astype(np.float32, copy=False)
        if not are_scales(values):
            raise CorruptError(f"a scale of tensor {record.name!r} is not above zero", section="TENSOR")
        return Scales(values=values, span=scales.span, stored_as=scales.stored_as)

    def _decode_packed(self, record: TensorRecord, fields: PackedFields) -> np.ndarray:
        """Decode a quantized tensor into its elements, C order, shape (n_elements,)."""
        assert record.dtype is not None
        if is_grouped(fields):
            return self.grouped(record, fields).decode().reshape(-1)
        scales = self._scales(record, fields)
        if scales is not None:
            elements = self._decode_packed(*_without_scales(record, fields))
            scales.multiply(elements)
            return cast_values(elements, record.dtype)
        columns = (record.shape[0], math.prod(record.shape[1:])) if fields.column_scan else None
        if fields.partition is not None:
            return self.packed(record, fields).decode().reshape(-1)
        if record.layout is Layout.DENSE and columns is None:
            return self.dense_range(record, fields, 0, record.n_elements)
        values = self.slices.of(record, "values")
        table, values_of = self.value_rule(record, fields, values.record)
        if record.layout is Layout.DENSE:
            assert columns is not None
            out = np.empty(record.n_elements, dtype=record.dtype.storage_dtype)
            decode_columns(values, values_of, *columns, out=out, workers=self._workers)
            return out
        positions = self.slices.of(record, "positions")
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
        scales = self._scales(record, fields)
        if scales is not None:
            elements = self.dense_range(*_without_scales(record, fields), start, stop)
            scales.multiply(elements, start)
            return cast_values(elements, record.dtype)
        if isinstance(fields.rule, CodebookValues) and not fields.rule.is_plain:
            return self._grouped_range(record, fields.rule, start, stop)
        values = self.slices.of(record, "values", start, stop)
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
            entries = cast_values(self._codebook(rule.codebook).reshape(-1), dtype)

            def look_up(numbers: np.ndarray) -> np.ndarray:
                check_indices(record, numbers, entries.size)
                found: np.ndarray = entries[numbers]
                return found

            legal = np.ones(min(entries.size, 256), dtype=bool)
            return (ValueTable(values=entries[:256], legal=legal) if narrow else None), look_up

        def compute(numbers: np.ndarray) -> np.ndarray:
            k = affine_k(record, rule, numbers)
            return cast_values(affine_values(k, rule.step, rule.offset), dtype)

        if not narrow:
            return None, compute
        k, legal = legal_affine_k(record, rule, np.arange(256))
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
        stored, positions = self._stored_numbers(record, fields)
        layout = record.layout
        if fields.partition is not None:
            layout = Layout.DENSE if positions is None else Layout.SPARSE
        codebook, step, offset = None, 0.0, 0.0
        if isinstance(fields.rule, CodebookValues):
            codebook = self._codebook(fields.rule.codebook).reshape(-1)
            check_indices(record, stored, codebook.size)
            symbols = stored.astype(index_dtype(codebook.size), copy=False)
        else:
            symbols, step, offset = (
                affine_k(record, fields.rule, stored),
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
            scales=self._scales(record, fields),
        )

    def grouped(self, record: TensorRecord, fields: PackedFields) -> GroupedTensor:
        """Undo the entropy coding of a tensor with grouped or vector codebooks.

        Units without a number get an entry of zeros, the last.
        """
        assert record.dtype is not None and isinstance(fields.rule, CodebookValues)
        self.check_size(record, packed=True)
        rule, values = fields.rule, self._codebook(fields.rule.codebook)
        stored, units = self._stored_numbers(record, fields)
        check_indices(record, stored, values.shape[1])
        if units is not None:
            indices = np.full(record.n_units, values.shape[1], dtype=index_dtype(values.shape[1] + 1))
            indices[units] = stored
            values = np.concatenate([values, np.zeros((rule.groups, 1, rule.width), np.float32)], axis=1)
            stored = indices
        codebook = self._directory.codebooks[rule.codebook]
        assert isinstance(codebook, CodebookRecord)
        return GroupedTensor(
            indices=stored.astype(index_dtype(values.shape[1]), copy=False),
            shape=record.shape,
            codebook=GroupedCodebook(values=values, stored_as=codebook.stored_as),
            span=rule.span,
            column_scan=fields.column_scan and rule.width > 1,
            dtype=record.dtype,
            scales=self._scales(record, fields),
        )

    def _grouped_range(self, record: TensorRecord, rule: CodebookValues, start: int, stop: int) -> np.ndarray:
        """Elements ``start:stop`` of a dense tensor in C order whose codebooks are grouped."""
        assert record.dtype is not None
        first, last = start // rule.width, n_units(stop, rule.width)
        self.check_size(replace(record, shape=((last - first) * rule.width,)), packed=True)
        values = self._codebook(rule.codebook)
        numbers = np.zeros(last - first, dtype=np.int64)
        for piece, found in self.slices.of(record, "values", first, last).numbers():
            low, high = max(piece.start, first), min(piece.stop, last)
            numbers[low - first : high - first] = found[low - piece.start : high - piece.start]
        check_indices(record, numbers, values.shape[1])
        groups = groups_of(np.arange(first, last), last - first, rule.span, rule.groups)
        elements = values[groups, numbers].reshape(-1)
        return cast_values(elements[start - first * rule.width :][: stop - start], record.dtype)

    def _stored_numbers(
        self, record: TensorRecord, fields: PackedFields
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Return all numbers, and the places that have them (None: all).

        Places are elements in C order, or units of several elements in the scan.
        """
        if fields.partition is not None:
            stored, positions = self._partition_numbers(record, fields, fields.partition)
            return stored, None if fields.n_stored == record.n_elements else positions
        stored = self.slices.numbers(record.name, self.slices.slice_of(record, "values"))
        places = self._positions(record, fields.n_stored)
        if fields.column_scan and record.n_units == record.n_elements:
            return row_order(record.shape, stored, places)
        return stored, places

    def _partition_numbers(
        self, record: TensorRecord, fields: PackedFields, partition: Partition
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Return stored numbers and C-order positions (None: all) of a tensor in blocks (spec 7.5)."""
        return read_partition(
            record,
            partition,
            fields.column_scan,
            lambda role: self.slices.numbers(record.name, self.slices.slice_of(record, role)),
            lambda role, n_elements, n_stored: self._coded_positions(record, role, n_elements, n_stored),
        )

    def _positions(self, record: TensorRecord, n_stored: int) -> np.ndarray | None:
        """Scan positions of the stored elements, ascending; None when dense."""
        if record.layout is Layout.DENSE:
            return None
        return self._coded_positions(record, "positions", record.n_units, n_stored)

    def _coded_positions(self, record: TensorRecord, role: str, n_elements: int, n_stored: int) -> np.ndarray:
        """Ascending positions below `n_elements` from gaps or a mask."""
        coded = self.slices.of(record, role)
        if record.layout is Layout.MASK:
            mask = np.unpackbits(self._mask_bytes(record, coded, n_elements, n_stored), bitorder="little")
            return np.flatnonzero(mask)
        positions = np.empty(n_stored, dtype=np.int64)
        for piece, found in gap_positions(coded, n_elements):
            positions[piece.start : piece.stop] = found
        return positions

    def _codebook(self, number: int) -> np.ndarray:
        """Return the entries of a codebook: float32, shape (groups, entries, width)."""
        record = self._directory.codebooks[number]
        if isinstance(record, str):
            raise UnsupportedFeatureError(record)
        return decode_codebook(record, bytes(self._bytes_at(record.payload_start_abs, record.payload_bytes)))


def is_grouped(fields: PackedFields) -> bool:
    """Whether the codebook has several groups, or entries of several elements."""
    return isinstance(fields.rule, CodebookValues) and not fields.rule.is_plain


def _without_scales(record: TensorRecord, fields: PackedFields) -> tuple[TensorRecord, PackedFields]:
    """Return a tensor as it would be without scales: float32."""
    plain = replace(fields, scales=None)
    return replace(record, dtype=DType.FLOAT32, fields=plain), plain
