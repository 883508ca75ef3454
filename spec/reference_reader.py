"""Reference reader of .nqz files, written from spec/nqz.md alone; numbers in brackets are its sections.

It shares no code with nqformat and is slow and obvious on purpose. It reads whole files and refuses
everything that the document says readers refuse. It needs Python 3.11 and NumPy; without ml_dtypes, bfloat16
arrays are uint16 bit patterns. ``python spec/reference_reader.py FILE`` lists the tensors of a file.

Each record is read by one function, which checks its fields and returns a function that decodes the payload.
Tables of such functions by number are where new kinds are added: TABLE_KINDS and MAPPINGS in
reference_codes.py, CODEBOOK_CODINGS in reference_values.py, LAYOUTS in reference_tensors.py. Streams are in
reference_streams.py. This module holds the file, its directory and its records.
"""

from __future__ import annotations

import json
import math
import os
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from reference_codes import (
    MAPPINGS,
    STORED,
    TABLE_KINDS,
    TANS,
    BadMagic,
    Corrupt,
    Fields,
    Item,
    LimitExceeded,
    Limits,
    NqzError,
    Table,
    Truncated,
    UnsupportedFeature,
    UnsupportedVersion,
    if_supported,
    known,
    limit,
    referred,
    require,
    supported,
)
from reference_deflate import inflate
from reference_streams import CLASSES, VALUES, Coding, Slice, Stream
from reference_tensors import LAYOUTS, Tensor
from reference_values import ELEMENTS, Array, Codebook, Decode, Head, read_codebook

__all__ = [
    "BadMagic",
    "Corrupt",
    "LimitExceeded",
    "Limits",
    "NqzError",
    "ReferenceFile",
    "Truncated",
    "UnsupportedFeature",
    "UnsupportedVersion",
    "read",
]

MAGIC = bytes.fromhex("894e515a0d0a1a0a")
MAJOR = 1
# The file (2, 3, 8) -----------------------------------------------------------------------------------------

METADATA, GRAPH, TABLE, CODEBOOK, STREAM, TENSOR, PADDING = 1, 2, 3, 4, 5, 6, 15
ANCILLARY = (METADATA, PADDING)


class Body:
    """The part of a file after the directory; pages are checked before their bytes are used (2.2)."""

    def __init__(self, data: bytes, start: int, page_bytes: int, checksums: list[int]) -> None:
        self.data, self.start, self.page_bytes, self.checksums = data, start, page_bytes, checksums

    def read(self, start: int, count: int) -> bytes:
        """Return count bytes from an offset in the file."""
        first, last = start - self.start, start - self.start + count - 1
        for page in range(first // self.page_bytes, last // self.page_bytes + 1) if count else ():
            at = self.start + page * self.page_bytes
            crc32 = zlib.crc32(self.data[at : at + self.page_bytes])
            require(crc32 == self.checksums[page], f"checksum of page {page} differs")
        return self.data[start : start + count]


class Payload(NamedTuple):
    """Where the payload of a record lies (3.5)."""

    body: Body
    start: int
    n_bytes: int

    def read(self) -> bytes:
        """Return the checked bytes."""
        return self.body.read(self.start, self.n_bytes)


class Record(NamedTuple):
    """A record of the directory (3.5)."""

    kind: int
    critical: bool
    body: Fields
    payload: Payload


def read_header(data: bytes) -> tuple[int, int, bool]:
    """Check the header (2.1); return body start, bytes of a page, and whether the directory is deflated."""
    if data[:8] != MAGIC[: len(data)]:
        raise BadMagic("not a .nqz file")
    if len(data) < 32:
        raise Truncated("the header ends early")
    fields = struct.unpack("<8sBBBBIQII", data[:32])
    _, major, minor, flags, _, directory_bytes, file_bytes, directory_crc32, header_crc32 = fields
    require(zlib.crc32(data[:28]) == header_crc32, "header_crc32 differs")
    if major != MAJOR:
        raise UnsupportedVersion(f"version {major}.{minor}")
    if flags & 0b1110:
        raise UnsupportedFeature(f"critical flags {flags:#x}")
    if len(data) < file_bytes:
        raise Truncated("the file is shorter than file_bytes")
    require(len(data) == file_bytes, "the file is longer than file_bytes")
    body_start, page_bytes = 32 + directory_bytes, 2 ** (12 + (flags >> 4))
    n_pages = -(-(file_bytes - body_start) // page_bytes)
    require(
        body_start <= file_bytes and directory_bytes >= 4 * n_pages, "the directory does not fit the file"
    )
    require(zlib.crc32(data[32:body_start]) == directory_crc32, "directory_crc32 differs")
    return body_start, page_bytes, bool(flags & 1)


def read_directory(data: bytes, limits: Limits) -> tuple[Fields, Body]:
    """Return the plain directory (3) and the body."""
    body_start, page_bytes, deflated = read_header(data)
    stored = Fields(data[32:body_start])
    pages = range(body_start, len(data), page_bytes)
    body = Body(data, body_start, page_bytes, [int.from_bytes(stored.take(4), "little") for _ in pages])
    limit(len(stored.left), limits.directory_bytes, "bytes of the directory")
    if deflated:
        plain_bytes = stored.varint()
        limit(plain_bytes, limits.directory_bytes, "bytes of the directory")
        stored = Fields(inflate(stored.left, plain_bytes))
    return stored, body


def read_records(directory: Fields, body: Body) -> Iterator[Record]:
    """Cut the directory into records and give them their payloads (3.5)."""
    end, file_bytes = body.start, len(body.data)
    while directory.left:
        tag, body_bytes = directory.varint(), directory.varint()
        payload_bytes = directory.varint() if tag & 2 else 0
        require(tag & 6 != 4, "a record without payload is aligned")
        start = -(-end // 64) * 64 if tag & 4 else end
        end = start + payload_bytes
        fields = Fields(directory.take(body_bytes))
        require(end <= file_bytes, "payload beyond the end of the file")
        yield Record(tag >> 3, bool(tag & 1), fields, Payload(body, start, payload_bytes))
    require(end == file_bytes, "payloads do not end at file_bytes")


def end_of_body(body: Fields) -> None:
    """Skip extension fields and refuse critical ones (3.6)."""
    while body.left:
        tag = body.varint()
        body.take(body.varint())
        if tag & 1:
            raise UnsupportedFeature(f"critical extension field {tag >> 1}")


def read_blob(body: Fields, payload: Payload, most: int) -> Callable[[], bytes]:
    """Read a blob (3.4); return the function that gives its plain bytes."""
    encoding = body.u8()
    if encoding > 1:
        raise UnsupportedFeature(f"blob encoding {encoding}")
    plain_bytes = body.varint() if encoding == 1 else payload.n_bytes
    limit(plain_bytes, most, "plain bytes of a blob")
    end_of_body(body)
    return lambda: inflate(payload.read(), plain_bytes) if encoding == 1 else payload.read()


def parse_json(plain: bytes) -> dict[str, Any]:
    """Parse metadata (8.2)."""

    def members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        require(len(dict(pairs)) == len(pairs), "duplicate key")
        return dict(pairs)

    def constant(name: str) -> None:
        raise Corrupt(name)

    try:
        value = json.loads(plain.decode("utf-8"), object_pairs_hook=members, parse_constant=constant)
    except (ValueError, RecursionError) as error:
        raise Corrupt(f"metadata: {error}") from error
    if not isinstance(value, dict):
        raise Corrupt("metadata is no object")
    return value


class NqzFile:
    """A file whose directory is read and checked; payloads are decoded on demand."""

    def __init__(self, data: bytes, limits: Limits) -> None:
        self.limits = limits
        self.tables: list[Table | UnsupportedFeature] = []
        self.codebooks: list[Codebook | UnsupportedFeature] = []
        self.streams: list[Stream] = []
        self.tensors: list[Tensor] = []
        self.blobs: dict[int, Callable[[], bytes] | UnsupportedFeature] = {}
        self.names: set[bytes] = set()
        self.last_name = b""
        self.checks: list[Callable[[], None]] = []
        self.arrays: dict[str, Array] = {}
        self.array_bytes = 0
        directory, self.body = read_directory(data, limits)
        last = 0
        for record in read_records(directory, self.body):
            if record.kind not in (*range(METADATA, TENSOR + 1), PADDING):
                if record.critical:
                    raise UnsupportedFeature(f"critical record of kind {record.kind}")
                continue
            require(record.critical == (record.kind not in ANCILLARY), "critical bit of a record")
            require(record.kind >= last, "records out of order")
            last = record.kind
            self.add(record.kind, record.body, record.payload)

    def add(self, kind: int, body: Fields, payload: Payload) -> None:
        """Read a record of a known kind (3.5)."""
        if kind in (METADATA, GRAPH):
            require(kind not in self.blobs, "two records of one kind")
            self.blobs[kind] = if_supported(lambda: self.read_blob_record(kind, body, payload))
        elif kind == TABLE:
            require(payload.n_bytes == 0, "TABLE with a payload")
            self.tables.append(if_supported(lambda: known(TABLE_KINDS, body.u8(), "table kind")(body)))
        elif kind == CODEBOOK:
            self.codebooks.append(if_supported(lambda: self.read_codebook_record(body, payload)))
        elif kind == STREAM:
            self.streams.append(Stream(if_supported(lambda: self.read_coding(body)), payload))
        elif kind == TENSOR:
            limit(len(self.tensors) + 1, self.limits.tensors, "tensors")
            head = self.read_head(body)
            self.tensors.append(Tensor(head, if_supported(lambda: self.read_layout(head, body, payload))))

    def read_blob_record(self, kind: int, body: Fields, payload: Payload) -> Callable[[], bytes]:
        """Read a METADATA (8.2) or GRAPH (8.1) record."""
        if kind == GRAPH:
            graph_kind = body.u8()
            if graph_kind != 1:
                raise UnsupportedFeature(f"graph kind {graph_kind}")
        return read_blob(
            body, payload, self.limits.graph_bytes if kind == GRAPH else self.limits.metadata_bytes
        )

    def read_codebook_record(self, body: Fields, payload: Payload) -> Codebook:
        """Read a CODEBOOK record to its end (6.1, 3.6)."""
        codebook = read_codebook(body, payload)
        end_of_body(body)
        return codebook

    def read_coding(self, body: Fields) -> Coding:
        """Read a STREAM record (4.1)."""
        kind, coding = body.u8(), body.u8()
        codec = coding % 16
        if not VALUES <= kind <= CLASSES or codec > TANS:
            raise UnsupportedFeature(f"stream kind {kind}, codec {codec}")
        mapping = known(MAPPINGS, coding >> 4, "mapping")(body)
        chunking = body.u8()
        if chunking > 31:
            raise UnsupportedFeature(f"chunking {chunking:#x}")
        require(chunking % 16 <= 6, "chunk_log2 beyond 20")
        table = referred(self.tables, body) if codec != STORED else None
        require(not isinstance(table, Table) or table.codec == codec, "table of another codec")
        end_of_body(body)
        return Coding(kind, mapping, 2 ** (14 + chunking % 16), bool(chunking & 16), table)

    def read_head(self, body: Fields) -> Head:
        """Read the common fields of a tensor (7.1)."""
        head, element_number, shared, rest_bytes = body.u8(), body.u8(), body.varint(), body.varint()
        previous = self.last_name
        require(shared <= len(previous) and 1 <= shared + rest_bytes <= 1024, "length of a name")
        name = previous[:shared] + body.take(rest_bytes)
        as_large = shared == min(len(previous), len(name)) or previous[shared] != name[shared]
        require(as_large, "shared is not as large as it can be")
        require(0 not in name and name not in self.names, "name with NUL, or of an earlier tensor")
        self.names.add(name)
        self.last_name = name
        try:
            text = name.decode("utf-8")
        except UnicodeDecodeError as error:
            raise Corrupt(f"name: {error}") from error
        limit(head >> 4, 8, "rank")
        dims = tuple(body.varint() for _ in range(head >> 4))
        limit(math.prod(dim for dim in dims if dim), 2**60 - 1, "elements, dims of 0 left out")
        return Head(head % 16, element_number, text, dims)

    def read_layout(self, head: Head, body: Fields, payload: Payload) -> Decode:
        """Read the layout fields of a tensor (7.1); it takes slices only if the record is supported."""
        known(ELEMENTS, head.element_number, "element type")
        self.checks = []
        decode = known(LAYOUTS, head.layout, "layout")(body, head, payload, self)
        end_of_body(body)
        for check in self.checks:
            check()
        return decode

    def slice(self, body: Fields, kind: int, count: int) -> Slice:
        """Read the number of a stream, of which a tensor takes a slice of count numbers (4.1)."""
        part = Slice(referred(self.streams, body), kind, count)
        self.checks.append(part.join)
        return part

    def charge(self, n_bytes: int) -> None:
        """Count bytes of arrays (9)."""
        self.array_bytes += n_bytes
        limit(self.array_bytes, self.limits.array_bytes, "bytes of arrays")

    def decode(self, tensor: Tensor) -> Array:
        """Return a tensor as an array of its dims."""
        head = tensor.head
        if head.name not in self.arrays:
            decode = supported(tensor.decode)
            self.charge(head.elements * head.element.n_bytes)
            self.arrays[head.name] = decode().reshape(head.dims)
        return self.arrays[head.name]

    def graph(self) -> bytes | None:
        """Return the plain bytes of the graph (8.1)."""
        return supported(self.blobs[GRAPH])() if GRAPH in self.blobs else None

    def metadata(self) -> dict[str, Any]:
        """Return the metadata, empty if there is none (8.2)."""
        return parse_json(supported(self.blobs[METADATA])()) if METADATA in self.blobs else {}


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceFile:
    """What a file holds; `unsupported` says why tensors, /graph and /metadata need a newer reader."""

    tensors: dict[str, Array]
    graph: bytes | None
    metadata: dict[str, Any]
    unsupported: dict[str, UnsupportedFeature]


def read(path_or_bytes: str | os.PathLike[str] | bytes, limits: Limits | None = None) -> ReferenceFile:
    """Read a whole file, or raise one of the error classes (1).

    What only an unknown critical item keeps from being read is left out and named in `unsupported`.
    """
    data = path_or_bytes if isinstance(path_or_bytes, bytes) else Path(path_or_bytes).read_bytes()
    file = NqzFile(data, limits or Limits())
    file.body.read(file.body.start, len(data) - file.body.start)
    unsupported: dict[str, UnsupportedFeature] = {}

    def kept(name: str, item: Item | UnsupportedFeature) -> Item | None:
        if isinstance(item, UnsupportedFeature):
            unsupported[name] = item
            return None
        return item

    tensors = {}
    for tensor in file.tensors:
        array = kept(tensor.head.name, if_supported(partial(file.decode, tensor)))
        if array is not None:
            tensors[tensor.head.name] = array
    graph = kept("/graph", if_supported(file.graph))
    metadata = kept("/metadata", if_supported(file.metadata)) or {}
    return ReferenceFile(tensors=tensors, graph=graph, metadata=metadata, unsupported=unsupported)


def main() -> int:
    """List the tensors of the file named on the command line."""
    if len(sys.argv) != 2:
        print("usage: reference_reader.py FILE", file=sys.stderr)
        return 2
    try:
        file = read(sys.argv[1])
    except (NqzError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    for name, array in file.tensors.items():
        print(f"{name}  {list(array.shape)}  {array.dtype}  {zlib.crc32(array.tobytes()):08x}")
    for name, reason in file.unsupported.items():
        print(f"{name}  UnsupportedFeature: {reason}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
