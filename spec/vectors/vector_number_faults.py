"""Invalid conformance files: each has a fault in a table, stream, codebook or value."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from vector_assembly import (
    CODEBOOK,
    DENSE,
    MASK,
    STREAM,
    TABLE,
    VALUES,
    Record,
    f32,
    prefix_table,
    record,
    signed,
    tans_table,
    varints,
)
from vector_faults import (
    CORRUPT,
    FILE,
    LIMIT,
    STREAM_OF_BYTES,
    TRUNCATED,
    UNSUPPORTED,
    Fault,
    added,
    alone,
    replaced,
    tensor,
)


def numbers_of(
    coding: bytes, payload: bytes, n_numbers: int, table: bytes | None = None, kind: int = VALUES
) -> bytes:
    """Return a file of a tensor of bytes whose numbers are one stream."""
    tables = [] if table is None else [record(TABLE, table)]
    stream = record(STREAM, bytes([kind]) + coding, payload)
    return alone(*tables, stream, tensor(DENSE, 6, (n_numbers,), b"\1" + f32(1, 0) + b"\0\0\0"))


def affine(*, step: float = 1, offset: float = 0, order: bytes = b"\0\0", element: int = 12) -> Record:
    """Return a dense tensor of affine values from stream 0."""
    return tensor(DENSE, element, (4,), b"\1" + f32(step, offset) + order + b"\0")


def scaled(fields: bytes, payload: bytes, element: int = 12) -> Record:
    """Return a dense tensor with scales."""
    return tensor(DENSE, element, (4,), b"\x11" + f32(1, 0) + b"\0\0" + fields + b"\0", payload)


def _stream_faults() -> dict[str, Fault]:
    faulty = ("faulty",)
    plain = bytes([0, 1, 255, 0])
    two = bytes([1, 1, 255, 0, 0])
    hybrid_plain = bytes([0x10, 0, 0])
    escape_plain = bytes([0x20, 1, 1, 1, 0])
    return {
        "table-cut": Fault(
            "TABLE without a body", "5.2", TRUNCATED, FILE, partial(replaced, 2, record(TABLE, b""))
        ),
        "table-payload": Fault(
            "TABLE with a payload", "5.2", CORRUPT, FILE, partial(replaced, 2, record(TABLE, b"\1\0", b"x"))
        ),
        "table-short": Fault(
            "lengths end early", "5.2", CORRUPT, FILE, partial(replaced, 2, record(TABLE, b"\0\x0c\xff"))
        ),
        "table-one": Fault(
            "table of one symbol", "5.2", CORRUPT, FILE, partial(replaced, 2, record(TABLE, b"\0\1\x08"))
        ),
        "code-oversubscribed": Fault(
            "three codewords of length 1",
            "5.1",
            CORRUPT,
            FILE,
            partial(replaced, 2, record(TABLE, prefix_table([1, 1, 1]))),
        ),
        "code-incomplete": Fault(
            "lengths 2 and 2", "5.1", CORRUPT, FILE, partial(replaced, 2, record(TABLE, prefix_table([2, 2])))
        ),
        "tans-bit": Fault(
            "bit 7 of the tANS parameters",
            "5.3",
            CORRUPT,
            FILE,
            partial(replaced, 2, record(TABLE, b"\2\x80\2\3")),
        ),
        "tans-one": Fault(
            "tANS code with one used symbol",
            "5.3",
            CORRUPT,
            FILE,
            partial(replaced, 2, record(TABLE, tans_table(5, {1: 0}))),
        ),
        "tans-codec": Fault(
            "Huffman stream with a tANS table",
            "4.1",
            CORRUPT,
            FILE,
            partial(numbers_of, two, b"\1\0", 2, tans_table(5, {0: 0, 1: 1})),
        ),
        "table-number": Fault(
            "table that does not exist", "3.5", CORRUPT, FILE, partial(numbers_of, two, b"\1\0", 2)
        ),
        "table-kind": Fault(
            "table of an unknown kind",
            "5.2",
            UNSUPPORTED,
            faulty,
            partial(numbers_of, two, b"\1\0", 2, b"\7"),
        ),
        "stream-codec": Fault(
            "codec 3", "4.1", UNSUPPORTED, faulty, partial(numbers_of, b"\3" + plain[1:], b"\2\0\0", 2)
        ),
        "stream-mapping": Fault(
            "mapping 3", "4.1", UNSUPPORTED, faulty, partial(numbers_of, b"\x30\0", b"\2\0\0", 2)
        ),
        "stream-kind": Fault(
            "stream of kind 6", "4.1", UNSUPPORTED, faulty, partial(numbers_of, plain, b"\2\0\0", 2, None, 6)
        ),
        "stream-other-kind": Fault(
            "values from a MASK stream",
            "4.1",
            CORRUPT,
            FILE,
            partial(numbers_of, plain, b"\2\0\0", 2, None, MASK),
        ),
        "chunk-log2": Fault(
            "chunks of 2^21", "4.1", CORRUPT, FILE, partial(numbers_of, b"\0\1\xff\7", b"\2\0\0", 2)
        ),
        "chunking": Fault(
            "reserved chunking bit",
            "4.1",
            UNSUPPORTED,
            faulty,
            partial(numbers_of, b"\0\1\xff\x20", b"\2\0\0", 2),
        ),
        "group-zero": Fault(
            "groups of no numbers", "4.2", CORRUPT, FILE, partial(numbers_of, b"\0\0\1\0", b"\1\0", 1)
        ),
        "group-wide": Fault(
            "groups beyond a byte", "4.2", CORRUPT, FILE, partial(numbers_of, b"\0\2\x10\0", b"\1\0", 2)
        ),
        "group-symbol": Fault(
            "symbol beyond the groups", "4.2", CORRUPT, faulty, partial(numbers_of, b"\0\2\2\0", b"\1\x09", 2)
        ),
        "group-filling": Fault(
            "filling of a group is not 0",
            "4.2",
            CORRUPT,
            faulty,
            partial(numbers_of, b"\0\2\2\0", b"\1\3", 1),
        ),
        "hybrid-mantissa": Fault(
            "more mantissa bits than split_log2",
            "4.3",
            CORRUPT,
            FILE,
            partial(numbers_of, b"\x10\x21\0", b"\1\0\0", 1),
        ),
        "hybrid-symbol": Fault(
            "symbol of 2^48",
            "4.3",
            CORRUPT,
            faulty,
            partial(numbers_of, hybrid_plain, bytes([1, 6, 49]) + bytes(6), 1),
        ),
        "hybrid-padding": Fault(
            "padding of extra bits is not 0",
            "4.5",
            CORRUPT,
            faulty,
            partial(numbers_of, hybrid_plain, b"\1\1\2\2", 1),
        ),
        "hybrid-short": Fault(
            "extra bits are missing", "4.5", CORRUPT, faulty, partial(numbers_of, hybrid_plain, b"\1\0\2", 1)
        ),
        "escape-window": Fault(
            "window 0", "4.6", CORRUPT, FILE, partial(numbers_of, b"\x20\1\0\1\0", b"\1\0\0", 1)
        ),
        "escape-extra": Fault(
            "bytes after the extra bits",
            "4.6",
            CORRUPT,
            faulty,
            partial(numbers_of, escape_plain, b"\1\1\0\0", 1),
        ),
        "stored-length": Fault(
            "STORED chunk with a symbol too many",
            "4.5",
            CORRUPT,
            faulty,
            partial(numbers_of, plain, b"\3\0\0\0", 2),
        ),
        "chunk-sizes": Fault(
            "chunks do not fill the payload",
            "4.5",
            CORRUPT,
            faulty,
            partial(numbers_of, plain, b"\2\0\0\0", 2),
        ),
        "no-index": Fault(
            "more chunks than payload bytes", "9", CORRUPT, faulty, partial(numbers_of, plain, b"", 2)
        ),
        "no-codeword-left": Fault(
            "bit string ends early",
            "4.5",
            CORRUPT,
            faulty,
            partial(numbers_of, two, b"\0", 2, prefix_table([1, 1])),
        ),
    }


def _value_faults() -> dict[str, Fault]:
    faulty = ("faulty",)

    def book(head: int, shape: tuple[int, int, int], payload: bytes = b"") -> Callable[[], bytes]:
        return partial(replaced, 3, record(CODEBOOK, bytes([head]) + varints(*shape), payload))

    users = ("sparse", "dense")
    four = record(STREAM, STREAM_OF_BYTES, b"\4\0\1\2\3")
    with_four = lambda each: partial(alone, four, each)  # noqa: E731
    return {
        "codebook-type": Fault("codebook of uint16", "6.1", CORRUPT, FILE, book(4, (1, 2, 1), bytes(4))),
        "codebook-nothing": Fault("codebook of no entries", "6.1", CORRUPT, FILE, book(10, (1, 0, 1))),
        "codebook-entries": Fault("4,097 ascending entries", "6.1", LIMIT, FILE, book(26, (1, 4097, 1))),
        "codebook-numbers": Fault("2^24 + 16 numbers", "6.1", LIMIT, FILE, book(10, (16, (1 << 20), 2))),
        "codebook-length": Fault(
            "payload of another length", "6.1", CORRUPT, FILE, book(10, (1, 2, 1), bytes(6))
        ),
        "codebook-vectors": Fault("ascending vectors", "6.1", CORRUPT, FILE, book(26, (1, 2, 2), b"\0")),
        "codebook-coding": Fault("coding 2", "6.1", UNSUPPORTED, users, book(42, (1, 2, 1), bytes(4))),
        "codebook-infinite": Fault(
            "entry that is infinite", "6.1", CORRUPT, users, book(10, (1, 2, 1), b"\0<\0|")
        ),
        "codebook-number": Fault(
            "codebook that does not exist",
            "3.5",
            CORRUPT,
            FILE,
            partial(added, tensor(DENSE, 12, (0,), varints(0, 1, 0))),
        ),
        "index": Fault(
            "index beyond the codebook",
            "7.4",
            CORRUPT,
            ("dense",),
            partial(replaced, 4, record(STREAM, STREAM_OF_BYTES, bytes([6, 0, 1, 0, 1, 1, 2]))),
        ),
        "codebook-of-integers": Fault(
            "codebook values of int8",
            "7.4",
            CORRUPT,
            FILE,
            partial(added, tensor(DENSE, 3, (0,), varints(0, 0, 0))),
        ),
        "span": Fault(
            "groups of span 0",
            "7.4",
            CORRUPT,
            FILE,
            partial(
                added,
                record(CODEBOOK, b"\x0a" + varints(2, 1, 1), b"\0<\0<"),
                tensor(DENSE, 12, (0,), varints(0, 1, 0, 0)),
            ),
        ),
        "vectors-classes": Fault(
            "line classes of vectors",
            "7.4",
            CORRUPT,
            FILE,
            partial(
                added,
                record(CODEBOOK, b"\x0a" + varints(1, 1, 2), b"\0<\0<"),
                tensor(DENSE, 12, (2, 2), varints(4, 1, 2, 0)),
            ),
        ),
        "affine-step": Fault("step that is NaN", "6.2", CORRUPT, FILE, with_four(affine(step=float("nan")))),
        "affine-order": Fault("order 2", "6.2", UNSUPPORTED, faulty, with_four(affine(order=b"\2\0"))),
        "affine-k-min": Fault(
            "k_min of 2^24", "6.2", CORRUPT, FILE, with_four(affine(order=b"\0" + signed(1 << 24)))
        ),
        "affine-k": Fault(
            "k of 2^24", "6.2", CORRUPT, faulty, with_four(affine(order=b"\0" + signed((1 << 24) - 3)))
        ),
        "affine-integers": Fault(
            "integers with step 2", "6.2", CORRUPT, FILE, with_four(affine(step=2, element=7))
        ),
        "affine-range": Fault(
            "int8 of 128", "6.2", CORRUPT, faulty, with_four(affine(order=b"\0" + signed(125), element=3))
        ),
        "affine-bool": Fault("affine bool", "6.2", CORRUPT, FILE, with_four(affine(element=1))),
        "scales-type": Fault(
            "scales of float64", "6.4", CORRUPT, FILE, with_four(scaled(b"\x0d\1\1\0", bytes(8)))
        ),
        "scales-span": Fault(
            "span beyond the elements", "6.4", CORRUPT, FILE, with_four(scaled(b"\x0c\5\1\0", f32(1)))
        ),
        "scales-count": Fault("no scales", "6.4", CORRUPT, FILE, with_four(scaled(b"\x0c\1\0\0", b""))),
        "scales-length": Fault(
            "payload of another length", "6.4", CORRUPT, FILE, with_four(scaled(b"\x0c\1\2\0", f32(1)))
        ),
        "scales-zero": Fault(
            "scale of 0", "6.4", CORRUPT, faulty, with_four(scaled(b"\x0c\1\2\0", f32(1, 0)))
        ),
        "scales-negative": Fault(
            "scale of -1", "6.4", CORRUPT, faulty, with_four(scaled(b"\x0c\1\1\0", f32(-1)))
        ),
        "scales-integers": Fault(
            "scales of int32", "6.4", CORRUPT, FILE, with_four(scaled(b"\x0c\1\1\0", f32(1), 7))
        ),
    }


NUMBER_FAULTS: dict[str, Fault] = _stream_faults() | _value_faults()
