"""Mutators: random changes of bytes, and changes of the structure under repaired checksums."""

from __future__ import annotations

import struct
import zlib
from random import Random

from nqformat.cursor import ByteCursor
from nqformat.deflate import deflate, inflate
from nqformat.directory import RecordKind
from nqformat.errors import FormatError
from nqformat.header import HEADER_BYTES

from .container import Container, Record, plain_directory, varint

_NUMBERS = (
    *(0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 63, 64, 100, 127, 128, 255, 256, 257, 4095, 4096, 4097),
    *(16383, 16384, 65535, 65536, 65537, 1 << 20, (1 << 24) - 1, 1 << 24, (1 << 31) - 1, 1 << 31),
    *((1 << 32) - 1, 1 << 32, (1 << 32) + 1, 1 << 40, 1 << 47, 1 << 60, (1 << 61) - 1, 1 << 62),
    *((1 << 63) - 1, 1 << 63, (1 << 64) - 1, 1 << 64, 1 << 70),
)
_FIELD_BYTES = 6
_MOST_BLOB_BYTES = 1 << 16
_BLOBS = (RecordKind.METADATA, RecordKind.GRAPH)


def random_mutant(rng: Random, content: bytes) -> bytes:
    """Change 1 to 8 bytes anywhere; the result differs from `content`."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, 8)):
        changed[rng.randrange(len(changed))] ^= rng.randrange(1, 256)
    if changed == content:
        changed[rng.randrange(len(changed))] ^= rng.randrange(1, 256)
    return bytes(changed)


def structured_mutant(rng: Random, container: Container, others: list[Container]) -> bytes:
    """Change the structure of a file and repair every checksum.

    Parameters
    ----------
    container : Container
        Parts of the file; not changed.
    others : list of Container
        Files that records may be taken from.
    """
    choice = rng.random()
    if choice < 0.04:
        return _header_change(rng, container.to_bytes())
    copy = container.copy()
    if rng.random() < 0.1:
        copy.deflated = not copy.deflated
    if choice < 0.14:
        return copy.with_directory(_changed_bytes(rng, plain_directory(copy.to_bytes())))
    if choice < 0.16:
        copy.deflated, copy.declared_plain = True, rng.choice(_NUMBERS)
        return copy.to_bytes()
    for _ in range(1 if rng.random() < 0.7 else rng.randint(2, 4)):
        _change_records(rng, copy.records, others)
    return copy.to_bytes()


def _header_change(rng: Random, content: bytes) -> bytes:
    """Change header fields, repair the checksum of the header only."""
    fields = bytearray(content[:28])
    place = rng.randrange(8, 28)
    if rng.random() < 0.3:
        struct.pack_into("<I", fields, 12, rng.choice(_NUMBERS) & 0xFFFFFFFF)
    elif rng.random() < 0.3:
        struct.pack_into("<Q", fields, 16, rng.choice(_NUMBERS) & 0xFFFFFFFFFFFFFFFF)
    else:
        fields[place] ^= rng.randrange(1, 256)
    return bytes(fields) + struct.pack("<I", zlib.crc32(fields)) + content[HEADER_BYTES:]


def _change_records(rng: Random, records: list[Record], others: list[Container]) -> None:
    """Apply one change to one record, or to their order."""
    if not records:
        return
    at = rng.randrange(len(records))
    record = records[at]
    choice = rng.random()
    if choice < 0.42:
        record.body = _changed_bytes(rng, record.body)
    elif choice < 0.62:
        record.payload = (
            _changed_blob(rng, record) if record.kind in _BLOBS else _changed_bytes(rng, record.payload)
        )
    elif choice < 0.68:
        record.body += varint(rng.randrange(8)) + varint(rng.randrange(4)) + rng.randbytes(rng.randrange(4))
    elif choice < 0.74:
        _change_frame(rng, record)
    elif choice < 0.78:
        del records[at]
    elif choice < 0.82:
        records.insert(rng.randrange(len(records) + 1), record.copy())
    elif choice < 0.86:
        records[at] = records[swap := rng.randrange(len(records))]
        records[swap] = record
    elif choice < 0.93:
        _take_from(rng, record, rng.choice(records))
    else:
        donor = rng.choice(others).records
        if donor:
            records.insert(at, rng.choice(donor).copy())


def _take_from(rng: Random, record: Record, other: Record) -> None:
    """Give a record the body or the payload of another."""
    if rng.random() < 0.5:
        record.payload = other.payload
    else:
        record.body = other.body


def _change_frame(rng: Random, record: Record) -> None:
    choice = rng.randrange(5)
    if choice == 0:
        record.kind = rng.choice([*RecordKind, 0, 7, 14, 16, 1 << 20, 1 << 61])
    elif choice == 1:
        record.critical = not record.critical
    elif choice == 2:
        record.aligned = not record.aligned
    elif choice == 3:
        record.declared_body = rng.choice(
            [len(record.body) + 1, max(len(record.body) - 1, 0), rng.choice(_NUMBERS)]
        )
    else:
        n_bytes = len(record.payload)
        record.declared_payload = rng.choice([n_bytes + 1, max(n_bytes - 1, 0), rng.choice(_NUMBERS)])


def _changed_blob(rng: Random, record: Record) -> bytes:
    """Change a blob; half of the time what it inflates to, so that the parser behind it is reached."""
    head = 1 if record.kind == RecordKind.METADATA else 2
    if rng.random() < 0.5 or len(record.body) < head or record.body[head - 1] != 1:
        return _changed_bytes(rng, record.payload)
    try:
        plain_bytes = ByteCursor(record.body[head:], "BLOB").varint()
        plain = inflate(record.payload, plain_bytes, _MOST_BLOB_BYTES, "BLOB")
    except FormatError:
        return _changed_bytes(rng, record.payload)
    plain = _changed_bytes(rng, plain)
    record.body = record.body[:head] + varint(len(plain))
    return deflate(plain)


def _changed_bytes(rng: Random, content: bytes) -> bytes:
    """Flip bits, set bytes, put interesting numbers, leave out, repeat or insert a few bytes."""
    if not content:
        return rng.randbytes(rng.randint(1, 4))
    changed = bytearray(content)
    # fields that decide what follows stand at the start
    reach = min(len(changed), _FIELD_BYTES) if rng.random() < 0.4 else len(changed)
    at = rng.randrange(reach)
    choice = rng.random()
    if choice < 0.3:
        for _ in range(rng.randint(1, 3)):
            changed[rng.randrange(reach)] ^= 1 << rng.randrange(8)
    elif choice < 0.45:
        changed[at] = rng.randrange(256)
    elif choice < 0.55:
        changed[at] = (changed[at] + rng.choice((-1, 1))) & 255
    elif choice < 0.75:
        changed[at : at + rng.randint(0, 2)] = varint(rng.choice(_NUMBERS))
    elif choice < 0.8:
        changed[at:at] = b"\x80" * rng.randint(1, 10)
    elif choice < 0.86:
        del changed[at : at + rng.randint(1, 4)]
    elif choice < 0.92:
        changed[at:at] = rng.randbytes(rng.randint(1, 4))
    elif choice < 0.96:
        changed[at:at] = changed[at : at + rng.randint(1, 16)]
    else:
        del changed[at:]
    return bytes(changed)
