"""Files as flat byte strings without checksums, for fuzzers that only know how to change bytes.

An input is a byte of flags, then for each record its tag, body and payload, each behind a marker.
"""

from __future__ import annotations

from .container import Container, Record

_MARK = b"\xffNQ"


def to_input(container: Container) -> bytes:
    """Return the input that stands for a file."""
    out = bytes([container.deflated | 2 * (container.page_log2 - 12)])
    for record in container.records:
        tag = min(record.kind, 63) << 2 | record.aligned << 1 | record.critical
        out += _MARK + bytes([tag]) + _MARK + record.body + _MARK + record.payload
    return out


def from_input(content: bytes) -> bytes:
    """Return the file that an input stands for, with right checksums; any bytes stand for one."""
    head, *fields = content.split(_MARK)
    flags = head[0] if head else 0
    records = []
    for i in range(0, len(fields) - 2, 3):
        tag = fields[i][0] if fields[i] else 0
        records.append(
            Record(tag >> 2, fields[i + 1], fields[i + 2], critical=bool(tag & 1), aligned=bool(tag & 2))
        )
    return Container(records=records, deflated=bool(flags & 1), page_log2=12 + (flags >> 1) % 16).to_bytes()
