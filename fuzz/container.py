"""A .nqz file as records that can be changed at will and put together again under right checksums.

The writer of nqformat cannot produce malformed files; this module produces nothing else. It never judges
what it is given to assemble.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field, replace

from nqformat.checksums import page_checksums
from nqformat.cursor import ByteCursor
from nqformat.deflate import deflate, inflate
from nqformat.header import HEADER_BYTES, MAGIC, VERSION_MAJOR, VERSION_MINOR, Header

ALIGNMENT = 64
_MOST_BYTES = 1 << 26


def varint(number: int) -> bytes:
    """LEB128 of any number >= 0, beyond 63 bits too."""
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


@dataclass(slots=True)
class Record:
    """One directory record with its payload (spec 3.5).

    Attributes
    ----------
    kind : int
    critical, aligned : bool
    body, payload : bytes
    declared_body, declared_payload : int or None
        Lengths to declare in place of the real ones.
    """

    kind: int
    body: bytes
    payload: bytes = b""
    critical: bool = True
    aligned: bool = False
    declared_body: int | None = None
    declared_payload: int | None = None

    def copy(self) -> Record:
        """Return a copy with real lengths."""
        return Record(self.kind, self.body, self.payload, self.critical, self.aligned)

    def head(self) -> bytes:
        """Tag, lengths and body."""
        has_payload = bool(self.payload) or self.declared_payload is not None
        tag = self.kind << 3 | self.aligned << 2 | has_payload << 1 | self.critical
        out = varint(tag) + varint(len(self.body) if self.declared_body is None else self.declared_body)
        if has_payload:
            out += varint(len(self.payload) if self.declared_payload is None else self.declared_payload)
        return out + self.body


@dataclass(slots=True)
class Container:
    """A whole file in parts.

    Attributes
    ----------
    records : list of Record
    deflated : bool
        Whether the directory is stored deflated.
    page_log2 : int
    declared_plain : int or None
        Length of the inflated directory to declare in place of the real one.
    version : tuple of int
        Major and minor version.
    ancillary : int
        Ancillary flags of the header.
    """

    records: list[Record] = field(default_factory=list)
    deflated: bool = False
    page_log2: int = 16
    declared_plain: int | None = None
    version: tuple[int, int] = (VERSION_MAJOR, VERSION_MINOR)
    ancillary: int = 0

    def copy(self) -> Container:
        """Return a copy whose records can be changed alone."""
        return replace(self, records=[record.copy() for record in self.records])

    def to_bytes(self) -> bytes:
        """Assemble the file; every checksum is right, whatever the records say."""
        plain = b"".join(record.head() for record in self.records)
        return self.with_directory(plain)

    def with_directory(self, plain: bytes) -> bytes:
        """Assemble the file with other directory bytes before the same payloads."""
        stored = plain
        if self.deflated:
            stored = varint(len(plain) if self.declared_plain is None else self.declared_plain)
            stored += deflate(plain)
        flags = self.deflated | (self.page_log2 - 12) << 4
        # the number of pages, and with it the body's start, depends on padding before aligned payloads
        n_pages = 0
        while True:
            body = self._body(HEADER_BYTES + 4 * n_pages + len(stored))
            wanted = -(-len(body) >> self.page_log2)
            if wanted == n_pages:
                break
            n_pages = wanted
        area = struct.pack(f"<{n_pages}I", *page_checksums(body, self.page_log2)) + stored
        head = MAGIC + bytes([*self.version, flags & 0xFF, self.ancillary])
        head += struct.pack("<IQI", len(area), HEADER_BYTES + len(area) + len(body), zlib.crc32(area))
        return head + struct.pack("<I", zlib.crc32(head)) + area + body

    def _body(self, start_abs: int) -> bytes:
        out = bytearray()
        for record in self.records:
            if record.aligned and (record.payload or record.declared_payload is not None):
                out += bytes(-(start_abs + len(out)) % ALIGNMENT)
            out += record.payload
        return bytes(out)


def take_apart(content: bytes) -> Container:
    """Return the parts of a valid file.

    Raises
    ------
    FormatError, UnsupportedFeatureError, UnsupportedVersionError
        If header or framing are not those of a valid file.
    """
    header = Header.parse(content[:HEADER_BYTES], len(content))
    plain, start = plain_directory(content), header.body_start_abs
    cursor = ByteCursor(plain, "DIRECTORY")
    records = []
    while cursor.remaining:
        tag, n_body = cursor.varint(), cursor.varint()
        n_payload = cursor.varint() if tag & 2 else 0
        aligned = bool(tag & 4)
        if aligned:
            start = -(-start // ALIGNMENT) * ALIGNMENT
        body, payload = cursor.take(n_body), content[start : start + n_payload]
        records.append(Record(tag >> 3, body, payload, critical=bool(tag & 1), aligned=aligned))
        start += n_payload
    return Container(
        records=records,
        deflated=header.deflated,
        page_log2=header.page_log2,
        version=(header.major, header.minor),
    )


def plain_directory(content: bytes) -> bytes:
    """Return the inflated directory of a valid file."""
    header = Header.parse(content[:HEADER_BYTES], len(content))
    stored = content[HEADER_BYTES + 4 * header.n_pages : header.body_start_abs]
    if not header.deflated:
        return stored
    cursor = ByteCursor(stored, "DIRECTORY")
    plain_bytes = cursor.varint()
    return inflate(cursor.take(cursor.remaining), plain_bytes, _MOST_BYTES, "DIRECTORY")


def resealed(content: bytes) -> bytes:
    """Repair the checksums and the file length of a changed file; its header must say where things are."""
    fields = bytearray(content[:28].ljust(28, b"\0"))
    directory_bytes = struct.unpack_from("<I", fields, 12)[0]
    body = content[HEADER_BYTES + directory_bytes :]
    pages = page_checksums(body, (fields[10] >> 4) + 12)
    area = bytearray(content[HEADER_BYTES : HEADER_BYTES + directory_bytes])
    room = min(4 * len(pages), len(area))
    area[:room] = struct.pack(f"<{len(pages)}I", *pages)[:room]
    struct.pack_into("<Q", fields, 16, len(content))
    struct.pack_into("<I", fields, 24, zlib.crc32(area))
    return bytes(fields) + struct.pack("<I", zlib.crc32(fields)) + bytes(area) + body
