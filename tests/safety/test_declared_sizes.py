"""Small files that declare huge things are refused before anything of that size is allocated."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import nqformat
from fuzz.assembly import BYTES, GAPS, Coding, FileBuilder
from fuzz.container import Container, Record, varint
from nqformat import DType, Layout, Limits
from nqformat.deflate import deflate
from nqformat.directory import RecordKind
from nqformat.errors import FormatError
from nqformat.streams import StreamKind
from nqformat.tensor_records import (
    AffineOrder,
    AffineRule,
    CodebookValues,
    ConstantFields,
    PackedFields,
    RawFields,
    TensorRecord,
)

MOST_BYTES = 64 << 20
LIMITS = Limits(materialised_bytes=1 << 30)
RULE = AffineRule(step=1.0, offset=0.0, order=AffineOrder.ASCENDING)
COUNTS = (1 << 31, (1 << 32) + 1, (1 << 48) + 3, (1 << 59) + 1)


def peak_bytes(call: Callable[[], Any]) -> int:
    """Most bytes that Python and NumPy held at a time during the call."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def refused_bytes(call: Callable[[], Any]) -> int:
    """Most bytes held during a call that is refused."""

    def refused() -> None:
        with pytest.raises((FormatError, nqformat.UnsupportedFeatureError)):
            call()

    return peak_bytes(refused)


def record(shape: tuple[int, ...], layout: Layout, fields: Any, dtype: DType = DType.FLOAT32) -> TensorRecord:
    return TensorRecord(name="t", dtype=dtype, shape=shape, layout=layout, fields=fields)


def of_single_symbols(shape: tuple[int, ...], layout: Layout, n_stored: int, mapping: Any = BYTES) -> bytes:
    """A tensor whose streams take no bits at all, under indexes of thousands of empty chunks."""
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
        rule=RULE,
        column_scan=False,
        n_stored=n_stored,
        value_stream=values,
        position_stream=None if dense else positions,
    )
    builder.add_tensor(record(shape, layout, fields))
    return builder.container().to_bytes()


def constant(shape: tuple[int, ...]) -> bytes:
    builder = FileBuilder()
    builder.add_tensor(record(shape, Layout.CONSTANT, ConstantFields(element=b"\0\0\x80?")))
    return builder.container().to_bytes()


def raw(shape: tuple[int, ...], declared: int | None) -> bytes:
    builder = FileBuilder()
    builder.add_tensor(record(shape, Layout.RAW, RawFields(coded_planes=(), streams=())), b"1234")
    builder.tensors[0].declared_payload = declared
    return builder.container().to_bytes()


def planes(shape: tuple[int, ...]) -> bytes:
    builder = FileBuilder()
    streams = tuple(
        builder.add_stream(StreamKind.PLANE, Coding(chunk_log2=20), np.zeros(3, np.uint8)) for _ in range(4)
    )
    for stream in builder.streams:
        stream.payload = bytes(4000)
    builder.add_tensor(record(shape, Layout.RAW, RawFields(coded_planes=(0, 1, 2, 3), streams=streams)))
    return builder.container().to_bytes()


def blob(kind: RecordKind, plain_bytes: int) -> bytes:
    head = b"" if kind is RecordKind.METADATA else b"\1"
    body = head + b"\1" + varint(plain_bytes)
    payload = deflate(bytes(min(plain_bytes, 1 << 20)))
    return Container([Record(kind, body, payload, critical=kind is RecordKind.GRAPH)]).to_bytes()


def directory(plain_bytes: int, actual: bytes) -> bytes:
    made = Container([Record(RecordKind.PADDING, actual, critical=False)], deflated=True)
    made.declared_plain = plain_bytes
    return made.to_bytes()


def codebook(n_entries: int, coding: int) -> bytes:
    body = bytes([DType.FLOAT32 | coding << 4, 1]) + varint(n_entries) + b"\1"
    return with_codebook(body)


def with_codebook(body: bytes) -> bytes:
    builder = FileBuilder()
    stream = builder.add_stream(StreamKind.VALUES, Coding(), np.zeros(3, np.uint8))
    fields = PackedFields(rule=CodebookValues(codebook=0), column_scan=False, n_stored=3, value_stream=stream)
    builder.add_tensor(record((3,), Layout.DENSE, fields))
    builder.codebooks.append(Record(RecordKind.CODEBOOK, body, bytes(40)))
    return builder.container().to_bytes()


def codebook_groups(n_groups: int, n_dims: int) -> bytes:
    body = bytes([DType.FLOAT32]) + varint(n_groups) + b"\2" + varint(n_dims)
    return with_codebook(body)


def views_of_everything() -> bytes:
    """A view of no rows from each of many constants, each as large as the limit allows."""
    builder = FileBuilder()
    element = ConstantFields(element=b"\0\0\x80?")
    for i in range(40):
        head = TensorRecord(
            name=f"c{i}", dtype=DType.FLOAT32, shape=(1 << 22,), layout=Layout.CONSTANT, fields=element
        )
        builder.add_tensor(head)
    parts = b"".join(varint(i) + varint(0) + varint(i == 39) for i in range(40))
    name = bytes([0, 1]) + b"v"  # shares nothing with c39
    body = bytes([Layout.VIEW | 1 << 4, DType.FLOAT32]) + name + b"\1" + varint(40) + parts + bytes([1, 0])
    builder.tensors.append(Record(RecordKind.TENSOR, body))
    return builder.container().to_bytes()


HUGE: dict[str, bytes] = {}
for n in COUNTS:
    HUGE[f"dense {n}"] = of_single_symbols((n,), Layout.DENSE, n)
    HUGE[f"sparse {n}"] = of_single_symbols((n,), Layout.SPARSE, n)
    HUGE[f"sparse of few {n}"] = of_single_symbols((n,), Layout.SPARSE, 3)
    HUGE[f"mask {n}"] = of_single_symbols((n,), Layout.MASK, n)
    HUGE[f"mask of few {n}"] = of_single_symbols((n,), Layout.MASK, 3)
    HUGE[f"constant {n}"] = constant((n,))
    HUGE[f"planes {n}"] = planes((n,))
    HUGE[f"raw {n}"] = raw((n,), None)
    HUGE[f"raw with its payload declared {n}"] = raw((n,), 4 * n)
HUGE |= {
    "dense beyond the limit, chunks there": of_single_symbols((1 << 29,), Layout.DENSE, 1 << 29),
    "dims that wrap to 4 in 64 bits": constant((1 << 31, 1 << 31, 4, 1 << 2, (1 << 60) + 1)),
    "dims that wrap to 0 in 64 bits": constant((1 << 32, 1 << 32)),
    "a dim of 2^63 - 1": constant(((1 << 63) - 1,)),
    "0 times 2^62": constant((0, 1 << 62)),
    "more stored than elements": of_single_symbols((10,), Layout.SPARSE, 1 << 40),
    "metadata of 2^40": blob(RecordKind.METADATA, 1 << 40),
    "graph of 2^40": blob(RecordKind.GRAPH, 1 << 40),
    "graph of 2^62": blob(RecordKind.GRAPH, 1 << 62),
    "directory of 2^40": directory(1 << 40, b"x"),
    "directory of 16 MiB + 1": directory((16 << 20) + 1, bytes(16 << 20)),
    "codebook of 2^40": codebook(1 << 40, 0),
    "codebook of 2^21 deltas": codebook(1 << 21, 1),
    "codebook of 2^62": codebook((1 << 62) + 5, 0),
    "codebook groups": codebook_groups(1 << 61, 8),
    "codebook dims": codebook_groups(8, 1 << 61),
}


def read(content: bytes) -> None:
    with nqformat.from_bytes(content, limits=LIMITS, threads=1) as file:
        file.metadata()
        file.graph()
        for name in file:
            for way in (
                file.get_tensor,
                file.get_packed,
                lambda name: file.get_slice(name, 0, min(file.info(name).shape[0], 1 << 29)),
            ):
                with pytest.raises((FormatError, nqformat.UnsupportedFeatureError)):
                    way(name)
            file.get_tensor(name)


@pytest.mark.parametrize("name", HUGE)
@pytest.mark.parametrize("kernels", ["numpy", "numba"])
def test_huge_declared_sizes_are_refused_without_allocating(
    name: str, kernels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NQFORMAT_KERNELS", kernels)
    assert len(HUGE[name]) < 100_000

    assert refused_bytes(lambda: read(HUGE[name])) < MOST_BYTES


def test_there_are_enough_of_them() -> None:
    assert len(HUGE) >= 30


def test_the_sources_of_a_view_count_towards_the_limit() -> None:
    content = views_of_everything()
    limits = Limits(materialised_bytes=1 << 25)
    with nqformat.from_bytes(content, limits=limits) as file:
        assert refused_bytes(lambda: file.get_tensor("v")) < 1 << 26


def test_many_tensors_are_read_in_linear_memory() -> None:
    n_tensors = 5_000
    content = nqformat.save({f"{i}": np.float32(i) for i in range(n_tensors)})
    assert peak_bytes(lambda: nqformat.from_bytes(content).close()) < 3000 * n_tensors
    with pytest.raises(nqformat.LimitExceededError):
        nqformat.from_bytes(content, limits=Limits(n_tensors=n_tensors - 1))


def test_deep_json_and_long_numbers_are_refused_with_little_memory() -> None:
    for text in (b'{"a":' + b"[" * 500_000, b'{"a":' * 100_000, b'{"a":' + b"9" * 100_000 + b"}"):
        stored = deflate(text)
        body = b"\1" + varint(len(text))
        content = Container([Record(RecordKind.METADATA, body, stored, critical=False)]).to_bytes()
        with nqformat.from_bytes(content) as file:
            assert refused_bytes(file.metadata) < MOST_BYTES


def test_streams_of_no_bits_take_no_more_than_their_elements() -> None:
    content = of_single_symbols((1 << 20,), Layout.DENSE, 1 << 20)
    with nqformat.from_bytes(content, threads=1) as file, pytest.raises(FormatError):
        file.get_tensor("t")  # 3,000 chunk entries for one chunk
