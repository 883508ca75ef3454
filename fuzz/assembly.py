"""Files of one quantized tensor under a chosen layout, codec, mapping and value rule.

The writer chooses what is smallest; here every combination can be had, however wasteful.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nqformat.codebooks import encode_codebook
from nqformat.directory import RecordKind
from nqformat.dtypes import DType
from nqformat.escape import EscapeMapping
from nqformat.grouping import GroupMapping
from nqformat.hybrid import HybridMapping
from nqformat.prefix_code import PrefixCode
from nqformat.reencoding import scan_starts
from nqformat.streams import Code, Codec, Mapping, StreamKind, StreamRecord, SymbolSlice, encode_stream
from nqformat.tans import TansCode
from nqformat.tensor import Codebook, Layout
from nqformat.tensor_records import AffineOrder, AffineRule, CodebookValues, PackedFields, TensorRecord

from .container import Container, Record

_CODE_LENGTH = 12
_TANS_LOG2 = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Coding:
    """How a stream is coded.

    Attributes
    ----------
    codec : Codec
    mapping : GroupMapping, HybridMapping or EscapeMapping
    chunk_log2 : int
    four_streams : bool
    """

    codec: Codec = Codec.HUFFMAN
    mapping: Mapping = GroupMapping(1, 256)  # noqa: RUF009 (frozen)
    chunk_log2: int = 16
    four_streams: bool = True


class FileBuilder:
    """Collects tables, codebooks, streams and tensors, each kind in order."""

    def __init__(self) -> None:
        self.tables: list[Record] = []
        self.codebooks: list[Record] = []
        self.streams: list[Record] = []
        self.tensors: list[Record] = []
        self._last_name = ""

    def container(self, *, deflated: bool = False) -> Container:
        """Return the file."""
        return Container(
            records=[*self.tables, *self.codebooks, *self.streams, *self.tensors], deflated=deflated
        )

    def add_codebook(self, codebook: Codebook) -> int:
        """Store a codebook; returns its number."""
        record, payload = encode_codebook(codebook)
        self.codebooks.append(Record(RecordKind.CODEBOOK, record.to_bytes(), payload))
        return len(self.codebooks) - 1

    def add_stream(self, kind: StreamKind, coding: Coding, numbers: np.ndarray) -> int:
        """Store numbers as a stream of one slice; returns its number."""
        slices = [
            SymbolSlice(values=numbers, starts=scan_starts(numbers) if kind is StreamKind.GAPS else None)
        ]
        table = None
        code = None
        if coding.codec is not Codec.STORED:
            code = _code(coding, numbers)
            table = len(self.tables)
            self.tables.append(Record(RecordKind.TABLE, code.to_bytes()))
        record = StreamRecord(
            kind=kind,
            codec=coding.codec,
            mapping=coding.mapping,
            table=table,
            chunk_log2=coding.chunk_log2,
            four_streams=coding.four_streams,
        )
        payload = encode_stream(record, code, slices)
        self.streams.append(Record(RecordKind.STREAM, record.to_bytes(), payload))
        return len(self.streams) - 1

    def add_tensor(self, record: TensorRecord, payload: bytes = b"") -> None:
        """Append a tensor."""
        self.tensors.append(Record(RecordKind.TENSOR, record.to_bytes(self._last_name), payload))
        self._last_name = record.name


def _code(coding: Coding, numbers: np.ndarray) -> Code:
    """Return a code for all symbols of the numbers; two symbols at least for tANS."""
    capacity = 1 << coding.chunk_log2
    counts = np.zeros(256, dtype=np.int64)
    for start in range(0, numbers.size, capacity):
        counts += np.bincount(_symbols(coding.mapping, numbers[start : start + capacity]), minlength=256)
    if coding.codec is Codec.TANS:
        counts[:2] += counts[:2] == 0
        return TansCode.from_counts(counts, 1, _TANS_LOG2)
    counts[0] += not counts.any()
    return PrefixCode.from_counts(counts, _CODE_LENGTH)


def _symbols(mapping: Mapping, numbers: np.ndarray) -> np.ndarray:
    if isinstance(mapping, GroupMapping):
        return mapping.join(numbers)
    if isinstance(mapping, EscapeMapping):
        return mapping.symbols(numbers)
    return mapping.split(numbers)[0]


def fits(mapping: Mapping, numbers: np.ndarray) -> bool:
    """Whether a mapping can hold the numbers."""
    most = int(numbers.max()) if numbers.size else 0
    if isinstance(mapping, GroupMapping):
        return most < mapping.width
    return most <= mapping.max_value


def quantized_file(
    k: np.ndarray,
    *,
    layout: Layout,
    values: Coding,
    positions: Coding | None = None,
    dtype: DType = DType.FLOAT32,
    codebook: Codebook | None = None,
    step: float = 1.0,
    offset: float = 0.0,
    column_scan: bool = False,
    name: str = "t",
) -> Container:
    """Return a file of one tensor.

    Parameters
    ----------
    k : ndarray of int64
        Numbers of all elements: indices into the codebook, or affine integers. With SPARSE and MASK zeros are
        not stored, and number 1 is stored as 0 (so that entry 0 of the codebook is that of number 1).
    layout : DENSE, SPARSE or MASK
    values, positions : Coding
        `positions` is needed unless DENSE.
    codebook : Codebook or None
        None: affine values ``step * k + offset``, k ascending from 0 (DENSE) or 1.
    """
    builder = FileBuilder()
    scan = np.moveaxis(k, 0, -1).reshape(-1) if column_scan else k.reshape(-1)
    stored = np.flatnonzero(scan) if layout is not Layout.DENSE else np.arange(scan.size)
    rule: AffineRule | CodebookValues
    first = 0 if layout is Layout.DENSE else 1
    if codebook is None:
        rule = AffineRule(step=step, offset=offset, order=AffineOrder.ASCENDING, k_min=first)
    else:
        rule = CodebookValues(codebook=builder.add_codebook(codebook))
    narrow = isinstance(values.mapping, GroupMapping)
    numbers = (scan[stored] - first).astype(np.uint8 if narrow else np.int64)
    value_stream = builder.add_stream(StreamKind.VALUES, values, numbers)
    position_stream = None
    if layout is not Layout.DENSE:
        assert positions is not None
        kind = StreamKind.GAPS if layout is Layout.SPARSE else StreamKind.MASK
        places = position_numbers(stored, scan.size, layout)
        if isinstance(positions.mapping, GroupMapping):
            places = places.astype(np.uint8)
        position_stream = builder.add_stream(kind, positions, places)
    fields = PackedFields(
        rule=rule,
        column_scan=column_scan,
        n_stored=stored.size,
        value_stream=value_stream,
        position_stream=position_stream,
    )
    builder.add_tensor(TensorRecord(name=name, dtype=dtype, shape=k.shape, layout=layout, fields=fields))
    return builder.container()


def position_numbers(stored: np.ndarray, n_elements: int, layout: Layout) -> np.ndarray:
    """Return gaps (SPARSE) or mask bytes (MASK) of ascending positions."""
    if layout is Layout.SPARSE:
        return np.diff(stored, prepend=-1).astype(np.int64) - 1
    marks = np.zeros(-(-n_elements // 8) * 8, dtype=np.uint8)
    marks[stored] = 1
    return np.packbits(marks, bitorder="little").astype(np.int64)


BYTES = GroupMapping(1, 256)
GAPS = HybridMapping(4, 1)
