"""One fault a file: each kind has its error class, and nothing but that fault is wrong with the file."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import nqformat
from fuzz.assembly import BYTES, GAPS, Coding, FileBuilder, quantized_file
from fuzz.container import Container, Record, resealed, varint
from fuzz.golden import golden_files, levels, skewed
from nqformat import DType, Layout
from nqformat.deflate import deflate
from nqformat.directory import RecordKind as K
from nqformat.errors import (
    BadMagicError,
    CorruptError,
    LimitExceededError,
    TruncatedError,
    UnsupportedFeatureError,
    UnsupportedVersionError,
)
from nqformat.grouping import GroupMapping
from nqformat.header import VERSION_MAJOR
from nqformat.streams import Codec

Change = Callable[[Container], Any]


def base() -> Container:
    """Metadata, graph, and a sparse tensor under a Huffman code: records 0 to 7."""
    made = quantized_file(
        skewed(np.random.default_rng(1), (10, 16), 6, 0.2),
        layout=Layout.SPARSE,
        values=Coding(mapping=GroupMapping(2, 6)),
        positions=Coding(mapping=GAPS),
        codebook=levels(6),
    )
    metadata = Record(K.METADATA, b"\0", b'{"a":1}', critical=False)
    graph = Record(K.GRAPH, b"\1\0", b"graph")
    made.records[:0] = [metadata, graph]
    return made


METADATA, GRAPH, VALUE_TABLE, GAP_TABLE, CODEBOOK, VALUES, GAP_STREAM, TENSOR = range(8)
CONSTANT_TAIL = b"\0\0\x80?"


def tensor_body(
    layout: int,
    name: bytes,
    dims: tuple[int, ...],
    rest: bytes,
    *,
    shared: int = 0,
    dtype: int = DType.FLOAT32,
) -> bytes:
    head = bytes([layout | len(dims) << 4, dtype]) + varint(shared) + varint(len(name)) + name
    return head + b"".join(map(varint, dims)) + rest


def constant(name: bytes = b"u", dims: tuple[int, ...] = (2,), **options: Any) -> Record:
    return Record(K.TENSOR, tensor_body(Layout.CONSTANT, name, dims, CONSTANT_TAIL, **options))


def add(*records: Record) -> Change:
    return lambda file: file.records.extend(records)


def body(at: int, content: bytes) -> Change:
    return lambda file: setattr(file.records[at], "body", content)


def payload(at: int, content: bytes) -> Change:
    return lambda file: setattr(file.records[at], "payload", content)


def spliced(at: int, start: int, stop: int, content: bytes) -> Change:
    def change(file: Container) -> None:
        old = file.records[at].body
        file.records[at].body = old[:start] + content + old[stop:]

    return change


def patched(at: int, place: int, value: int) -> Change:
    return spliced(at, place, place + 1, bytes([value]))


def attribute(name: str, value: Any, at: int | None = None) -> Change:
    return lambda file: setattr(file if at is None else file.records[at], name, value)


def reordered(*order: int) -> Change:
    return lambda file: setattr(file, "records", [file.records[i] for i in order])


def view(
    parts: list[tuple[int, int, int]], permutation: bytes, dims: tuple[int, ...], **options: Any
) -> Record:
    rest = varint(len(parts)) + b"".join(varint(n) for part in parts for n in part)
    rest += bytes([len(permutation)]) + permutation
    return Record(K.TENSOR, tensor_body(Layout.VIEW, b"v", dims, rest, **options))


def raw(dims: tuple[int, ...], content: bytes, mask: int = 0, dtype: int = DType.FLOAT32) -> Record:
    return Record(K.TENSOR, tensor_body(Layout.RAW, b"r", dims, bytes([mask]), dtype=dtype), content)


def bytes_of(change: Change) -> bytes:
    file = base()
    change(file)
    return file.to_bytes()


def header(place: int, value: int) -> bytes:
    content = bytearray(base().to_bytes())
    content[place] = value
    return resealed(bytes(content))


def lengths(directory_bytes: int | None = None, file_bytes: int | None = None) -> bytes:
    import zlib

    content = bytearray(base().to_bytes())
    if directory_bytes is not None:
        struct.pack_into("<I", content, 12, directory_bytes)
    if file_bytes is not None:
        struct.pack_into("<Q", content, 16, file_bytes)
    struct.pack_into("<I", content, 28, zlib.crc32(content[:28]))
    return bytes(content)


SIZE = len(base().to_bytes())
GOOD = base().to_bytes()
FILE_FAULTS: dict[str, tuple[bytes, type[Exception]]] = {
    # polyglots
    "a zip file": (b"PK\x03\x04" + bytes(60), BadMagicError),
    "a file behind a zip": (b"PK\x05\x06" + bytes(18) + GOOD, BadMagicError),
    "a zip behind the file": (GOOD + b"PK\x05\x06" + bytes(18), CorruptError),
    "a pickle": (b"\x80\x04\x95" + bytes(60), BadMagicError),
    "a pickle behind the file": (GOOD + b"\x80\x04N.", CorruptError),
    "GGUF": (b"GGUF\x03\0\0\0" + bytes(40), BadMagicError),
    "safetensors": (struct.pack("<Q", 2) + b"{}" + bytes(40), BadMagicError),
    "an ONNX model": (b"\x08\x08\x3a" + bytes(40), BadMagicError),
    "a file with Windows line ends undone": (GOOD.replace(b"\r\n", b"\n"), BadMagicError),
    "a file sent as seven bits": (bytes(byte & 127 for byte in GOOD), BadMagicError),
    "two files": (GOOD + GOOD, CorruptError),
    "a byte too many": (GOOD + b"\0", CorruptError),
    "nothing": (b"", TruncatedError),
    "a header alone": (GOOD[:32], TruncatedError),
    # versions
    "major version 1 above": (header(8, VERSION_MAJOR + 1), UnsupportedVersionError),
    "a draft": (header(8, 0), UnsupportedVersionError),
    "version 255.255": (header(8, 255), UnsupportedVersionError),
    "reserved flag 1": (header(10, GOOD[10] | 2), UnsupportedFeatureError),
    "reserved flag 2": (header(10, GOOD[10] | 4), UnsupportedFeatureError),
    "reserved flag 3": (header(10, GOOD[10] | 8), UnsupportedFeatureError),
    # lengths of the header
    "directory longer than the file": (lengths(directory_bytes=SIZE), CorruptError),
    "directory of 4 GiB": (lengths(directory_bytes=(1 << 32) - 1), CorruptError),
    "directory shorter than the page checksums": (lengths(directory_bytes=3), CorruptError),
    "no directory": (lengths(directory_bytes=0), CorruptError),
    "file shorter than it is": (lengths(file_bytes=SIZE - 1), CorruptError),
    "file of 2^64 - 1 bytes": (lengths(file_bytes=(1 << 64) - 1), TruncatedError),
    "file of 0 bytes": (lengths(file_bytes=0), CorruptError),
    # records
    "payloads that end early": (
        bytes_of(add(Record(K.PADDING, b"", b"x" * 9, critical=False, declared_payload=8))),
        CorruptError,
    ),
    "payloads that reach beyond the end": (
        bytes_of(attribute("declared_payload", 1 << 40, TENSOR)),
        CorruptError,
    ),
    "payload of 2^63 - 1 bytes": (
        bytes_of(attribute("declared_payload", (1 << 63) - 1, VALUES)),
        CorruptError,
    ),
    "payload of 2^63 bytes": (bytes_of(attribute("declared_payload", 1 << 63, VALUES)), CorruptError),
    "body beyond the directory": (bytes_of(attribute("declared_body", 1 << 30, TENSOR)), TruncatedError),
    "a hole between payloads": (bytes_of(attribute("declared_payload", 3, GRAPH)), CorruptError),
    "alignment without payload": (bytes_of(attribute("aligned", True, TENSOR)), CorruptError),
    "a tag of ten bytes": (
        base().with_directory(base().records[0].head() + b"\x80" * 9 + b"\1"),
        CorruptError,
    ),
    "a tag that is not minimal": (base().with_directory(b"\x8a\0\1\7\0"), CorruptError),
    "records out of order": (bytes_of(reordered(0, 1, 2, 3, 5, 4, 6, 7)), CorruptError),
    "tensor before its streams": (bytes_of(reordered(0, 1, 2, 3, 4, 7, 5, 6)), CorruptError),
    "two metadata records": (bytes_of(reordered(0, 0, 1, 2, 3, 4, 5, 6, 7)), CorruptError),
    "two graphs": (bytes_of(reordered(0, 1, 1, 2, 3, 4, 5, 6, 7)), CorruptError),
    "a table that is not critical": (bytes_of(attribute("critical", False, VALUE_TABLE)), CorruptError),
    "metadata that is critical": (bytes_of(attribute("critical", True, METADATA)), CorruptError),
    "an unknown critical record": (bytes_of(add(Record(14, b""))), UnsupportedFeatureError),
    "deflated directory longer than declared": (
        bytes_of(lambda c: (attribute("deflated", True)(c), attribute("declared_plain", 20)(c))),
        CorruptError,
    ),
    "deflated directory shorter than declared": (
        bytes_of(lambda c: (attribute("deflated", True)(c), attribute("declared_plain", 2000)(c))),
        CorruptError,
    ),
    # tables
    "a table with a payload": (bytes_of(payload(VALUE_TABLE, b"x")), CorruptError),
    "a table of one symbol": (bytes_of(body(VALUE_TABLE, b"\0\1\0")), CorruptError),
    "a table of 257 symbols": (bytes_of(body(VALUE_TABLE, b"\0" + varint(257) + bytes(40))), CorruptError),
    "an incomplete code": (bytes_of(body(VALUE_TABLE, b"\0\2" + bytes([0b11]))), CorruptError),
    "an oversubscribed code": (bytes_of(body(VALUE_TABLE, b"\0\x20" + bytes(4))), CorruptError),
    "a table with a byte too many": (bytes_of(body(VALUE_TABLE, b"\1\0\0")), CorruptError),
    "a tANS table of one symbol": (bytes_of(body(VALUE_TABLE, b"\2\0\1\0")), CorruptError),
    # codebooks
    "codebook of no entries": (bytes_of(patched(CODEBOOK, 2, 0)), CorruptError),
    "codebook payload too short": (
        bytes_of(
            lambda f: (body(CODEBOOK, bytes([DType.FLOAT16, 1, 6, 1]))(f), payload(CODEBOOK, bytes(11))(f))
        ),
        CorruptError,
    ),
    "codebook of integers": (bytes_of(patched(CODEBOOK, 0, DType.INT8)), CorruptError),
    # streams
    "stream of a missing table": (bytes_of(patched(VALUES, 5, 9)), CorruptError),
    "huge chunks": (bytes_of(patched(VALUES, 4, 0x1F)), CorruptError),
    "groups wider than a byte": (bytes_of(patched(VALUES, 3, 200)), CorruptError),
    "groups of nothing": (bytes_of(patched(VALUES, 2, 0)), CorruptError),
    "hybrid split beyond 7": (bytes_of(patched(GAP_STREAM, 2, 0x0F)), CorruptError),
    "tANS stream of a Huffman table": (bytes_of(patched(VALUES, 1, Codec.TANS)), CorruptError),
    # tensors
    "two tensors of one name": (bytes_of(add(constant(b"", shared=1))), CorruptError),
    "a name that shares less than it could": (bytes_of(add(constant(b"tt"))), CorruptError),
    "a name that shares more than there is": (bytes_of(add(constant(b"u", shared=9))), CorruptError),
    "an empty name": (bytes_of(add(constant(b""))), CorruptError),
    "a name of 1,025 bytes": (bytes_of(add(constant(b"u" * 1025))), CorruptError),
    "a name that is not UTF-8": (bytes_of(add(constant(b"\xff\xfe"))), CorruptError),
    "a name with a surrogate": (
        bytes_of(add(constant("\ud800".encode("utf-8", "surrogatepass")))),
        CorruptError,
    ),
    "a name with NUL": (bytes_of(add(constant(b"u\0"))), CorruptError),
    "rank 9": (bytes_of(add(constant(dims=(1,) * 9))), LimitExceededError),
    "2^60 elements": (bytes_of(add(constant(dims=(1 << 30, 1 << 30)))), LimitExceededError),
    "0 x 2^60 elements": (bytes_of(add(raw((0, 1 << 60), b""))), LimitExceededError),
    "a constant of nothing": (bytes_of(add(constant(dims=(0,)))), CorruptError),
    "a bool of 2": (
        bytes_of(add(Record(K.TENSOR, tensor_body(1, b"u", (1,), b"\2", dtype=DType.BOOL)))),
        CorruptError,
    ),
    "raw payload too short": (bytes_of(add(raw((2,), bytes(7)))), CorruptError),
    "raw payload too long": (bytes_of(add(raw((2,), bytes(9)))), CorruptError),
    "raw tensor of nothing with a payload": (bytes_of(add(raw((0,), b"x"))), CorruptError),
    "a plane beyond the element": (bytes_of(add(raw((2,), bytes(4), mask=0x10))), CorruptError),
    "a plane in a stream of values": (
        bytes_of(add(Record(K.TENSOR, tensor_body(0, b"r", (2,), b"\1\0"), bytes(6)))),
        CorruptError,
    ),
    "a quantized tensor with a payload": (bytes_of(payload(TENSOR, b"x")), CorruptError),
    "more nonzeros than elements": (bytes_of(spliced(TENSOR, 9, 10, varint(161))), CorruptError),
    "a view of itself": (bytes_of(add(view([(1, 0, 1)], b"\0", (1,)))), CorruptError),
    "a view of a view": (
        bytes_of(add(view([(0, 0, 10)], b"\0\1", (10, 16)), view([(1, 0, 10)], b"\0\1", (10, 16), shared=1))),
        CorruptError,
    ),
    "a view of no part": (bytes_of(add(view([], b"\0", (1,)))), CorruptError),
    "a view beyond its source": (bytes_of(add(view([(0, 1, 10)], b"\0\1", (10, 16)))), CorruptError),
    "a view whose rows wrap": (
        bytes_of(add(view([(0, (1 << 63) - 1, 10)], b"\0\1", (10, 16)))),
        CorruptError,
    ),
    "a view of another size": (bytes_of(add(view([(0, 0, 10)], b"\0\1", (10, 15)))), CorruptError),
    "a view of another type": (
        bytes_of(add(view([(0, 0, 10)], b"\0\1", (10, 16), dtype=DType.FLOAT16))),
        CorruptError,
    ),
    "a view with an axis twice": (bytes_of(add(view([(0, 0, 10)], b"\0\0", (10, 16)))), CorruptError),
}
ITEM_FAULTS: dict[str, tuple[bytes, type[Exception]]] = {
    "a key twice": (bytes_of(payload(METADATA, b'{"a":1,"a":2}')), CorruptError),
    "metadata that is a list": (bytes_of(payload(METADATA, b"[1]")), CorruptError),
    "metadata with NaN": (bytes_of(payload(METADATA, b'{"a":NaN}')), CorruptError),
    "metadata that is not UTF-8": (bytes_of(payload(METADATA, b'{"a":"\xff"}')), CorruptError),
    "no metadata at all": (bytes_of(payload(METADATA, b"")), CorruptError),
    "metadata longer than declared": (
        bytes_of(lambda f: (body(METADATA, b"\1\3")(f), payload(METADATA, deflate(b"{}  "))(f))),
        CorruptError,
    ),
    "metadata in an unknown encoding": (bytes_of(body(METADATA, b"\7")), UnsupportedFeatureError),
    "a graph of an unknown kind": (bytes_of(body(GRAPH, b"\2\0")), UnsupportedFeatureError),
    "a graph with a critical field": (bytes_of(body(GRAPH, b"\1\0\3\0")), UnsupportedFeatureError),
    "codebook with an infinite entry": (
        bytes_of(
            lambda f: (
                payload(CODEBOOK, b"\0\x7c" * 6)(f) or body(CODEBOOK, bytes([DType.FLOAT16, 1, 6, 1]))(f)
            )
        ),
        CorruptError,
    ),
    "codebook smaller than an index": (
        bytes_of(
            lambda f: payload(CODEBOOK, b"\0<")(f) or body(CODEBOOK, bytes([DType.FLOAT16, 1, 1, 1]))(f)
        ),
        CorruptError,
    ),
    "values cut short": (
        bytes_of(lambda f: payload(VALUES, f.records[VALUES].payload[:-1])(f)),
        CorruptError,
    ),
    "values with a byte too many": (
        bytes_of(lambda f: payload(VALUES, f.records[VALUES].payload + b"\0")(f)),
        CorruptError,
    ),
    "no values": (bytes_of(payload(VALUES, b"")), CorruptError),
    "gaps that lead beyond the end": (bytes_of(patched(TENSOR, 5, 3)), CorruptError),
    "an unknown layout": (bytes_of(patched(TENSOR, 0, 0x2F)), UnsupportedFeatureError),
    "an unknown element type": (bytes_of(patched(TENSOR, 1, 99)), UnsupportedFeatureError),
    "an unknown table": (bytes_of(patched(VALUE_TABLE, 0, 99)), UnsupportedFeatureError),
    "an unknown codec": (bytes_of(patched(VALUES, 1, 0x0E)), UnsupportedFeatureError),
    "an unknown mapping": (bytes_of(patched(VALUES, 1, 0xE1)), UnsupportedFeatureError),
    "an unknown stream kind": (bytes_of(patched(VALUES, 0, 99)), UnsupportedFeatureError),
    "a critical field of a tensor": (
        bytes_of(lambda f: body(TENSOR, f.records[TENSOR].body + b"\3\0")(f)),
        UnsupportedFeatureError,
    ),
}
HARMLESS: dict[str, bytes] = {
    "ancillary flags": header(11, 255),
    "an unknown ancillary record": bytes_of(add(Record(14, b"abc", critical=False))),
    "padding": bytes_of(add(Record(K.PADDING, b"x", b"yy", critical=False))),
    "an unknown ancillary field": bytes_of(lambda f: body(TENSOR, f.records[TENSOR].body + b"\2\1x")(f)),
    "pages of 4 KiB": bytes_of(attribute("page_log2", 12)),
    "pages of 128 MiB": bytes_of(attribute("page_log2", 27)),
}


def read_all(content: bytes) -> dict[str, bytes]:
    with nqformat.from_bytes(content, threads=1) as file:
        file.metadata()
        file.graph()
        return {name: file.get_tensor(name).tobytes() for name in file}


@pytest.mark.parametrize("name", FILE_FAULTS)
def test_a_fault_of_the_file_has_its_error(name: str) -> None:
    content, error = FILE_FAULTS[name]
    with pytest.raises(error) as caught:
        nqformat.from_bytes(content)
    assert type(caught.value) is error and str(caught.value)
    with pytest.raises(error):
        nqformat.load(content)


@pytest.mark.parametrize("kernels", ["numpy", "numba"])
@pytest.mark.parametrize("name", ITEM_FAULTS)
def test_a_fault_of_an_item_has_its_error_when_it_is_read(
    name: str, kernels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NQFORMAT_KERNELS", kernels)
    content, error = ITEM_FAULTS[name]
    with pytest.raises(error) as caught:
        read_all(content)
    assert type(caught.value) is error and str(caught.value)


@pytest.mark.parametrize("name", HARMLESS)
def test_what_is_harmless_is_read(name: str) -> None:
    assert read_all(HARMLESS[name]) == read_all(GOOD)


def test_there_are_enough_kinds() -> None:
    assert len(FILE_FAULTS) + len(ITEM_FAULTS) >= 100
    contents = [content for content, _ in (*FILE_FAULTS.values(), *ITEM_FAULTS.values())]
    assert len(set(contents)) == len(contents)


def test_the_golden_files_are_no_polyglots() -> None:
    for content in golden_files().values():
        assert content[:4] not in (b"PK\x03\x04", b"GGUF") and content[0] == 0x89


def test_tensors_of_nothing_share_no_payload() -> None:
    builder = FileBuilder()
    builder.tensors += [raw((0,), b""), Record(K.TENSOR, tensor_body(0, b"z", (0, 3), b"\0"))]
    tensors = nqformat.load(builder.container().to_bytes())
    assert [array.shape for array in tensors.values()] == [(0,), (0, 3)]
    assert BYTES.width == 256
