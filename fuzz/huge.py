"""Small files that declare huge things: sizes, counts and lengths far beyond what is there."""

from __future__ import annotations

from typing import Any

import numpy as np

from nqformat import DType, Layout
from nqformat.deflate import deflate
from nqformat.directory import RecordKind
from nqformat.streams import StreamKind
from nqformat.tensor_records import (
    AffineOrder,
    AffineRule,
    CodebookValues,
    ConstantFields,
    PackedFields,
    RawFields,
    TensorRecord,
    ViewFields,
)
from nqformat.view_records import ViewPart

from .assembly import BYTES, GAPS, Coding, FileBuilder
from .container import Container, Record, varint

_RULE = AffineRule(step=1.0, offset=0.0, order=AffineOrder.ASCENDING)
_COUNTS = (1 << 31, (1 << 32) + 1, (1 << 48) + 3, (1 << 59) + 1)
_ELEMENT = ConstantFields(element=b"\0\0\x80?")


def huge_files() -> dict[str, bytes]:
    """Return small files that declare huge things, by what they declare."""
    found: dict[str, bytes] = {}
    for n in _COUNTS:
        found[f"dense {n}"] = of_single_symbols((n,), Layout.DENSE, n)
        found[f"sparse {n}"] = of_single_symbols((n,), Layout.SPARSE, n)
        found[f"sparse of few {n}"] = of_single_symbols((n,), Layout.SPARSE, 3)
        found[f"mask {n}"] = of_single_symbols((n,), Layout.MASK, n)
        found[f"mask of few {n}"] = of_single_symbols((n,), Layout.MASK, 3)
        found[f"constant {n}"] = _constant((n,))
        found[f"planes {n}"] = _planes((n,))
        found[f"raw {n}"] = _raw((n,), None)
        found[f"raw with its payload declared {n}"] = _raw((n,), 4 * n)
    found |= {
        "dense beyond the limit, chunks there": of_single_symbols((1 << 29,), Layout.DENSE, 1 << 29),
        "dims that wrap to 4 in 64 bits": _constant((1 << 31, 1 << 31, 4, 1 << 2, (1 << 60) + 1)),
        "dims that wrap to 0 in 64 bits": _constant((1 << 32, 1 << 32)),
        "a dim of 2^63 - 1": _constant(((1 << 63) - 1,)),
        "0 times 2^62": _constant((0, 1 << 62)),
        "more stored than elements": of_single_symbols((10,), Layout.SPARSE, 1 << 40),
        "metadata of 2^40": _blob(RecordKind.METADATA, 1 << 40),
        "graph of 2^40": _blob(RecordKind.GRAPH, 1 << 40),
        "graph of 2^62": _blob(RecordKind.GRAPH, 1 << 62),
        "directory of 2^40": _directory(1 << 40, b"x"),
        "directory of 16 MiB + 1": _directory((16 << 20) + 1, bytes(16 << 20)),
        "codebook of 2^40": _codebook(1 << 40, 0),
        "codebook of 2^21 deltas": _codebook(1 << 21, 1),
        "codebook of 2^62": _codebook((1 << 62) + 5, 0),
        "codebook groups": _codebook_groups(1 << 61, 8),
        "codebook dims": _codebook_groups(8, 1 << 61),
    }
    return found


def views_of_everything() -> bytes:
    """Return a view of one row, and no rows of 39 other constants of 16 MiB each."""
    builder = FileBuilder()
    for i in range(40):
        builder.add_tensor(record((1 << 22,), Layout.CONSTANT, _ELEMENT, name=f"c{i}"))
    parts = tuple(ViewPart(tensor=i, start=0, n_rows=int(i == 39)) for i in range(40))
    builder.add_tensor(record((1,), Layout.VIEW, ViewFields(parts=parts, permutation=(0,)), name="v"))
    return builder.container().to_bytes()


def many_views(n_views: int) -> bytes:
    """Return views of one element each of one constant."""
    builder = FileBuilder()
    builder.add_tensor(record((1 << 20,), Layout.CONSTANT, _ELEMENT))
    for i in range(n_views):
        part = ViewPart(tensor=0, start=i, n_rows=1)
        builder.add_tensor(
            record((1,), Layout.VIEW, ViewFields(parts=(part,), permutation=(0,)), name=f"v{i}")
        )
    return builder.container().to_bytes()


def record(shape: tuple[int, ...], layout: Layout, fields: Any, *, name: str = "t") -> TensorRecord:
    """Return a float32 tensor record."""
    return TensorRecord(name=name, dtype=DType.FLOAT32, shape=shape, layout=layout, fields=fields)


def of_single_symbols(shape: tuple[int, ...], layout: Layout, n_stored: int, mapping: Any = BYTES) -> bytes:
    """Return a tensor whose streams take no bits at all, under indexes of thousands of empty chunks."""
    builder = FileBuilder()
    values = builder.add_stream(
        StreamKind.VALUES, Coding(chunk_log2=20, mapping=mapping), np.zeros(3, np.uint8)
    )
    kind = StreamKind.GAPS if layout is Layout.SPARSE else StreamKind.MASK
    coding = Coding(chunk_log2=20, mapping=GAPS if layout is Layout.SPARSE else BYTES)
    positions = builder.add_stream(kind, coding, np.zeros(3, np.int64))
    n_chunks = 3000
    for stream in builder.streams:
        stream.payload = bytes(n_chunks * 8)
    dense = layout is Layout.DENSE
    fields = PackedFields(
        rule=_RULE,
        column_scan=False,
        n_stored=n_stored,
        value_stream=values,
        position_stream=None if dense else positions,
    )
    builder.add_tensor(record(shape, layout, fields))
    return builder.container().to_bytes()


def _constant(shape: tuple[int, ...]) -> bytes:
    builder = FileBuilder()
    builder.add_tensor(record(shape, Layout.CONSTANT, _ELEMENT))
    return builder.container().to_bytes()


def _raw(shape: tuple[int, ...], declared: int | None) -> bytes:
    builder = FileBuilder()
    builder.add_tensor(record(shape, Layout.RAW, RawFields(coded_planes=(), streams=())), b"1234")
    builder.tensors[0].declared_payload = declared
    return builder.container().to_bytes()


def _planes(shape: tuple[int, ...]) -> bytes:
    builder = FileBuilder()
    streams = tuple(
        builder.add_stream(StreamKind.PLANE, Coding(chunk_log2=20), np.zeros(3, np.uint8)) for _ in range(4)
    )
    for stream in builder.streams:
        stream.payload = bytes(4000)
    builder.add_tensor(record(shape, Layout.RAW, RawFields(coded_planes=(0, 1, 2, 3), streams=streams)))
    return builder.container().to_bytes()


def _blob(kind: RecordKind, plain_bytes: int) -> bytes:
    head = b"" if kind is RecordKind.METADATA else b"\1"
    body = head + b"\1" + varint(plain_bytes)
    payload = deflate(bytes(min(plain_bytes, 1 << 20)))
    return Container([Record(kind, body, payload, critical=kind is RecordKind.GRAPH)]).to_bytes()


def _directory(plain_bytes: int, actual: bytes) -> bytes:
    made = Container([Record(RecordKind.PADDING, actual, critical=False)], deflated=True)
    made.declared_plain = plain_bytes
    return made.to_bytes()


def _codebook(n_entries: int, coding: int) -> bytes:
    body = bytes([DType.FLOAT32 | coding << 4, 1]) + varint(n_entries) + b"\1"
    return _with_codebook(body)


def _with_codebook(body: bytes) -> bytes:
    builder = FileBuilder()
    stream = builder.add_stream(StreamKind.VALUES, Coding(), np.zeros(3, np.uint8))
    fields = PackedFields(rule=CodebookValues(codebook=0), column_scan=False, n_stored=3, value_stream=stream)
    builder.add_tensor(record((3,), Layout.DENSE, fields))
    builder.codebooks.append(Record(RecordKind.CODEBOOK, body, bytes(40)))
    return builder.container().to_bytes()


def _codebook_groups(n_groups: int, n_dims: int) -> bytes:
    body = bytes([DType.FLOAT32]) + varint(n_groups) + b"\2" + varint(n_dims)
    return _with_codebook(body)
