"""Invalid conformance files: each has a single fault, or a single item of a later version."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from vector_assembly import (
    CODEBOOK,
    DENSE,
    GAPS,
    GRAPH,
    METADATA,
    PADDING,
    RAW,
    SPARSE,
    STREAM,
    TABLE,
    TENSOR,
    VALUES,
    VIEW,
    Record,
    assembled,
    deflated,
    f32,
    record,
    sealed,
    tensor_body,
    varint,
    varints,
    with_header_crc,
)


class Fault(NamedTuple):
    """An invalid file: what is wrong, sections, error class, what is refused, and what makes it."""

    tests: str
    section: str
    error: str
    concerns: tuple[str, ...]
    make: Callable[[], bytes]


FILE = ("file",)
CORRUPT, TRUNCATED, LIMIT, UNSUPPORTED = "Corrupt", "Truncated", "LimitExceeded", "UnsupportedFeature"
STREAM_OF_BYTES = bytes([VALUES, 0, 1, 255, 0])


def base() -> list[Record]:
    """Return the records of a valid file of a tensor of each kind that faults are put into."""
    return [
        record(METADATA, b"\0", b"{}"),
        record(GRAPH, b"\1\0", b"\x08\x08"),
        record(TABLE, bytes([1, 0])),
        record(CODEBOOK, b"\x0a" + varints(1, 2, 1), b"\0<\0@"),
        record(STREAM, bytes([VALUES, 0x00, 2, 1, 0]), bytes([3, 1, 2, 3])),
        record(STREAM, bytes([GAPS, 0x10, 0x02, 0]), bytes([2, 0, 0, 1])),
        record(TENSOR, tensor_body(SPARSE, 12, "sparse", (2, 3)) + varints(0, 0, 2, 0, 1)),
        record(TENSOR, tensor_body(DENSE, 12, "dense", (4,)) + varints(0, 0, 0)),
        record(TENSOR, tensor_body(RAW, 12, "raw", (2,)) + b"\0", f32(1, 2)),
        record(TENSOR, tensor_body(VIEW, 12, "view", (2,)) + varints(1, 2, 0, 2) + b"\1\0"),
    ]


def replaced(at: int, changed: Record) -> bytes:
    """Return the base file with one record changed."""
    records = base()
    records[at] = changed
    return assembled(records)


def added(*more: Record) -> bytes:
    """Return the base file with records before its tensors that belong there, and tensors at its end."""
    merged = [*base(), *more]
    return assembled(sorted(merged, key=lambda each: each.tag >> 3))


def alone(*records: Record) -> bytes:
    """Return a file of these records."""
    return assembled(records)


def tensor(layout: int, element: int, dims: Sequence[int], fields: bytes, payload: bytes = b"") -> Record:
    """Return a tensor named faulty."""
    return record(TENSOR, tensor_body(layout, element, "faulty", dims) + fields, payload)


def with_header(change: Callable[[bytearray], None]) -> bytes:
    """Return the base file with the first 28 bytes changed and their checksum repaired."""
    content = assembled(base())
    head = bytearray(content[:28])
    change(head)
    return with_header_crc(bytes(head)) + content[32:]


def put(at: int, value: int) -> Callable[[bytearray], None]:
    """Return the change of one byte."""

    def change(head: bytearray) -> None:
        head[at] = value

    return change


def flipped(at: int) -> bytes:
    """Return the base file with one bit of a byte flipped and no checksum repaired."""
    content = bytearray(assembled(base()))
    content[at] ^= 1
    return bytes(content)


def cut(n_bytes: int) -> bytes:
    """Return the first bytes of the base file, all but -n_bytes if negative."""
    return assembled(base())[:n_bytes]


def directory(stored: bytes, flags: int = 0x80, body: bytes = b"") -> bytes:
    """Return a file of a stored directory."""
    return sealed(stored, body, flags)


def _head_faults() -> dict[str, Fault]:
    huge = (1 << 40).to_bytes(8, "little")

    def long_file(head: bytearray) -> None:
        head[16:24] = huge

    def long_directory(head: bytearray) -> None:
        head[12:16] = b"\xff\xff\0\0"

    return {
        "magic": Fault("another first byte", "2.1", "BadMagic", FILE, partial(flipped, 0)),
        "no-bytes": Fault("no byte at all", "2.1", TRUNCATED, FILE, bytes),
        "header-cut": Fault("31 bytes", "2.1", TRUNCATED, FILE, partial(cut, 31)),
        "body-cut": Fault("the last byte is missing", "2.1", TRUNCATED, FILE, partial(cut, -1)),
        "byte-after": Fault("a byte after the file", "2.1", CORRUPT, FILE, lambda: assembled(base()) + b"\0"),
        "header-crc": Fault("header_crc32 differs", "2.1", CORRUPT, FILE, partial(flipped, 28)),
        "directory-crc": Fault("directory_crc32 differs", "2.1", CORRUPT, FILE, partial(flipped, 40)),
        "page-crc": Fault(
            "checksum of a page differs",
            "2.2",
            CORRUPT,
            ("graph", "metadata", "sparse", "dense", "raw", "view"),
            partial(flipped, -1),
        ),
        "major": Fault("version 2.0", "2.1", "UnsupportedVersion", FILE, lambda: with_header(put(8, 2))),
        "draft": Fault("version 0.0", "2.1", "UnsupportedVersion", FILE, lambda: with_header(put(8, 0))),
        "flag": Fault("reserved critical flag", "2.1", UNSUPPORTED, FILE, lambda: with_header(put(10, 0x82))),
        "file-bytes": Fault("file_bytes of 2^40", "2.1", TRUNCATED, FILE, lambda: with_header(long_file)),
        "directory-bytes": Fault(
            "directory_bytes beyond the file", "2.1", CORRUPT, FILE, lambda: with_header(long_directory)
        ),
        "no-page-sums": Fault(
            "directory too short for the page checksums",
            "2.1",
            CORRUPT,
            FILE,
            lambda: with_header(lambda head: head.__setitem__(slice(12, 16), bytes(4))),
        ),
    }


def _directory_faults() -> dict[str, Fault]:
    wide = deflated(bytes([PADDING << 3, 0]))
    return {
        "deflate-longer": Fault(
            "directory inflates to more", "3.7", CORRUPT, FILE, partial(directory, b"\1" + wide, 0x81)
        ),
        "deflate-shorter": Fault(
            "directory inflates to less", "3.7", CORRUPT, FILE, partial(directory, b"\3" + wide, 0x81)
        ),
        "deflate-cut": Fault(
            "deflated directory ends early", "3.7", CORRUPT, FILE, partial(directory, b"\2" + wide[:-1], 0x81)
        ),
        "deflate-after": Fault(
            "bytes after the deflated directory",
            "3",
            CORRUPT,
            FILE,
            partial(directory, b"\2" + wide + b"x", 0x81),
        ),
        "deflate-bomb": Fault(
            "directory of 2^40 plain bytes",
            "9",
            LIMIT,
            FILE,
            partial(directory, varint(1 << 40) + wide, 0x81),
        ),
        "varint-long": Fault(
            "varint of ten bytes", "3.2", CORRUPT, FILE, partial(directory, b"\xff" * 9 + b"\1")
        ),
        "varint-not-minimal": Fault(
            "varint 0x80 0x00", "3.2", CORRUPT, FILE, partial(directory, b"\x80\0\0")
        ),
        "record-cut": Fault(
            "body of a record ends early", "3.5", TRUNCATED, FILE, partial(directory, b"\x78\5ab")
        ),
        "payload-beyond": Fault(
            "payload beyond the file", "3.5", CORRUPT, FILE, partial(directory, b"\x7a\0\5", 0x80, b"1234")
        ),
        "payload-hole": Fault(
            "bytes after the last payload",
            "3.5",
            CORRUPT,
            FILE,
            partial(directory, b"\x7a\0\3", 0x80, b"1234"),
        ),
        "payload-huge": Fault(
            "payloads whose sum exceeds 2^63",
            "3.5",
            CORRUPT,
            FILE,
            partial(directory, (b"\x7a\0" + varint((1 << 63) - 1)) * 3, 0x80, b"1234"),
        ),
        "aligned-none": Fault(
            "aligned record without a payload",
            "3.5",
            CORRUPT,
            FILE,
            partial(replaced, 2, Record(TABLE << 3 | 5, b"\1\0")),
        ),
        "padding-critical": Fault(
            "critical PADDING",
            "3.5",
            CORRUPT,
            FILE,
            lambda: assembled([*base(), Record(PADDING << 3 | 1, b"")]),
        ),
        "table-ancillary": Fault(
            "TABLE that is not critical",
            "3.5",
            CORRUPT,
            FILE,
            partial(replaced, 2, Record(TABLE << 3, b"\1\0")),
        ),
        "order": Fault(
            "tensor before a stream",
            "3.5",
            CORRUPT,
            FILE,
            lambda: assembled([*base(), record(STREAM, STREAM_OF_BYTES)]),
        ),
        "two-graphs": Fault("two GRAPH records", "3.5", CORRUPT, FILE, partial(added, base()[1])),
        "unknown-record": Fault(
            "critical record of an unknown kind",
            "3.5",
            UNSUPPORTED,
            FILE,
            partial(added, Record(9 << 3 | 1, b"")),
        ),
        "graph-kind": Fault(
            "graph of another kind",
            "8.1",
            UNSUPPORTED,
            ("graph",),
            partial(replaced, 1, record(GRAPH, b"\2\0", b"g")),
        ),
        "blob-encoding": Fault(
            "metadata of an unknown encoding",
            "3.4",
            UNSUPPORTED,
            ("metadata",),
            partial(replaced, 0, record(METADATA, b"\2", b"{}")),
        ),
        "blob-bomb": Fault(
            "graph of 2^40 plain bytes",
            "9",
            LIMIT,
            FILE,
            partial(replaced, 1, record(GRAPH, b"\1\1" + varint(1 << 40), deflated(b"graph"))),
        ),
        "blob-length": Fault(
            "graph inflates to another length",
            "3.4",
            CORRUPT,
            ("graph",),
            partial(replaced, 1, record(GRAPH, b"\1\1\4", deflated(b"graph"))),
        ),
        "json-twice": Fault(
            "metadata with a key twice",
            "8.2",
            CORRUPT,
            ("metadata",),
            partial(replaced, 0, record(METADATA, b"\0", b'{"a":1,"a":2}')),
        ),
        "json-nan": Fault(
            "metadata with NaN",
            "8.2",
            CORRUPT,
            ("metadata",),
            partial(replaced, 0, record(METADATA, b"\0", b'{"a":NaN}')),
        ),
        "json-list": Fault(
            "metadata that is a list",
            "8.2",
            CORRUPT,
            ("metadata",),
            partial(replaced, 0, record(METADATA, b"\0", b"[]")),
        ),
        "json-latin": Fault(
            "metadata that is not UTF-8",
            "8.2",
            CORRUPT,
            ("metadata",),
            partial(replaced, 0, record(METADATA, b"\0", b'{"a":"\xe9"}')),
        ),
        "extension": Fault(
            "critical extension field of a tensor",
            "3.6",
            UNSUPPORTED,
            ("raw", "view"),
            partial(replaced, 8, record(TENSOR, tensor_body(RAW, 12, "raw", (2,)) + b"\0\1\0", f32(1, 2))),
        ),
    }


CONTAINER_FAULTS: dict[str, Fault] = _head_faults() | _directory_faults()
