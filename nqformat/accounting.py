"""Where the bytes of a file go: every byte on one account, and bits a weight beside their entropy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .codings import histogram
from .counting import distinct_counts, order0_entropy
from .directory import StreamSlice
from .escape import EscapeMapping
from .header import HEADER_BYTES
from .hybrid import HybridMapping
from .reader import NqzFile
from .streams import Codec, StreamRecord, slice_symbols
from .tensor import Layout
from .tensor_records import CodebookValues, PackedFields, TensorRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorBytes:
    """What one tensor takes in the file.

    Attributes
    ----------
    name : str
    layout : Layout or None
    codec : str
        Codecs of its streams, such as ``huffman``; ``stored`` without a stream.
    n_elements, plain_bytes : int
        Elements, and bytes when decoded.
    stored_bytes : float
        Its share of streams, codebook and payload. Bytes of a stream that several tensors use are divided
        by the coded bits of each; the code tables are on the account of the file.
    codebook_bytes : float
        The part of `stored_bytes` that is codebook.
    entropy_bits : float
        Order-0 entropy of its numbers (values and gaps or mask bytes, before grouping), in bits altogether.
    coded_bits : float
        Bits of its coded numbers.
    """

    name: str
    layout: Layout | None
    codec: str
    n_elements: int
    plain_bytes: int
    stored_bytes: float
    codebook_bytes: float
    entropy_bits: float
    coded_bits: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FileBytes:
    """All bytes of a file.

    Attributes
    ----------
    tensors : tuple of TensorBytes
    header, checksums, directory, tables, metadata, graph, padding : int
        `directory` is the stored (deflated) directory; `tables` are the plain bytes of the code tables in it.
    file_bytes : int
        Sum of all but `tables`, which are part of `directory`.
    """

    tensors: tuple[TensorBytes, ...]
    header: int
    checksums: int
    directory: int
    tables: int
    metadata: int
    graph: int
    padding: int
    file_bytes: int

    @property
    def overhead(self) -> int:
        """Bytes that are neither coded payload nor codebook nor raw value."""
        return self.file_bytes - round(sum(t.stored_bytes for t in self.tensors))


@dataclass(slots=True)
class _Share:
    coded_bits: float = 0.0
    entropy_bits: float = 0.0
    codecs: tuple[str, ...] = ()
    stream_bytes: float = 0.0


def account(file: NqzFile) -> FileBytes:
    """Measure an open file; decodes every stream once.

    Raises
    ------
    FormatError, UnsupportedFeatureError
        If a stream cannot be decoded.
    """
    directory = file.directory
    shares: dict[int, _Share] = {i: _Share() for i in range(len(directory.tensors))}
    slices: dict[int, list[tuple[int, StreamSlice]]] = {}
    for (tensor, _), part in directory.slices.items():
        slices.setdefault(part.stream, []).append((tensor, part))
    for number, stream in enumerate(directory.streams):
        if isinstance(stream, StreamRecord):
            _divide_stream(file, stream, slices.get(number, []), shares)
            file.release_pages()
    codebook_bytes = _divide_codebooks(file)
    tensors = tuple(
        _tensor_bytes(record, shares[i], codebook_bytes.get(i, 0.0))
        for i, record in enumerate(directory.tensors)
    )
    header = file.header
    checksums = 4 * header.n_pages
    graph = 0 if directory.graph is None else directory.graph.payload_bytes
    metadata = 0 if directory.metadata is None else directory.metadata.payload_bytes
    on_accounts = round(sum(t.stored_bytes for t in tensors)) + graph + metadata
    return FileBytes(
        tensors=tensors,
        header=HEADER_BYTES,
        checksums=checksums,
        directory=header.directory_bytes - checksums,
        tables=sum(len(t.to_bytes()) for t in directory.tables if not isinstance(t, str)),
        metadata=metadata,
        graph=graph,
        padding=header.file_bytes - header.body_start_abs - on_accounts,
        file_bytes=header.file_bytes,
    )


def _divide_stream(
    file: NqzFile,
    stream: StreamRecord,
    slices: list[tuple[int, StreamSlice]],
    shares: dict[int, _Share],
) -> None:
    """Give each tensor its part of a stream's payload, by the coded bits of its slice."""
    bits: list[tuple[_Share, float]] = []
    for tensor, coded_bits, entropy_bits in _slice_bits(file, stream, slices):
        share = shares[tensor]
        share.coded_bits += coded_bits
        share.entropy_bits += entropy_bits
        share.codecs = (*share.codecs, stream.codec.name.lower())
        bits.append((share, coded_bits))
    total = sum(coded for _, coded in bits)
    for share, coded in bits:
        part = coded / total if total else 1.0 / len(bits)
        share.stream_bytes += stream.payload_bytes * part


def _slice_bits(
    file: NqzFile, stream: StreamRecord, slices: list[tuple[int, StreamSlice]]
) -> Iterator[tuple[int, float, float]]:
    """Tensor, coded bits and entropy in bits of each slice of a stream."""
    code = None if stream.table is None else file.directory.tables[stream.table]
    for tensor, part in slices:
        numbers = file.slice_numbers(part)
        symbols = slice_symbols(stream.mapping, numbers)
        counts = histogram(symbols)
        if stream.codec is Codec.STORED or code is None or isinstance(code, str):
            coded_bits = 8.0 * symbols.size
        else:
            coded_bits = float(code.payload_bits(counts))
        if isinstance(stream.mapping, EscapeMapping):
            escaped = np.count_nonzero(numbers >= stream.mapping.window)
            coded_bits += float(stream.mapping.escape_bits * int(escaped))
        if isinstance(stream.mapping, HybridMapping):
            coded_bits += float(stream.mapping.symbol_widths[symbols].sum(dtype=np.int64))
        yield tensor, coded_bits, order0_bits(numbers)


def order0_bits(numbers: np.ndarray) -> float:
    """Return the order-0 entropy of a whole sequence, in bits."""
    return order0_entropy(distinct_counts(numbers)[1])


def _divide_codebooks(file: NqzFile) -> dict[int, float]:
    """Codebook bytes of each tensor; a shared codebook is divided evenly."""
    users: dict[int, list[int]] = {}
    for i, record in enumerate(file.directory.tensors):
        fields = record.fields
        if isinstance(fields, PackedFields) and isinstance(fields.rule, CodebookValues):
            users.setdefault(fields.rule.codebook, []).append(i)
    divided: dict[int, float] = {}
    for number, tensors in users.items():
        codebook = file.directory.codebooks[number]
        for i in tensors:
            divided[i] = 0.0 if isinstance(codebook, str) else codebook.payload_bytes / len(tensors)
    return divided


def _tensor_bytes(record: TensorRecord, share: _Share, codebook_bytes: float) -> TensorBytes:
    raw_bits = 8.0 * record.payload_bytes
    borrowed = record.layout in (Layout.VIEW, Layout.HASHED)
    return TensorBytes(
        name=record.name,
        layout=record.layout,
        codec="+".join(dict.fromkeys(share.codecs)) or ("" if borrowed else "stored"),
        n_elements=record.n_elements,
        plain_bytes=record.n_elements * (record.dtype.itemsize if record.dtype is not None else 0),
        stored_bytes=share.stream_bytes + codebook_bytes + record.payload_bytes,
        codebook_bytes=codebook_bytes,
        entropy_bits=share.entropy_bits + raw_bits,
        coded_bits=share.coded_bits + raw_bits,
    )
