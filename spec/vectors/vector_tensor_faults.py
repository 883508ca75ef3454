"""Invalid conformance files: each has a fault in a tensor."""

from __future__ import annotations

from functools import partial

from vector_assembly import (
    CLASSES,
    CODEBOOK,
    CONSTANT,
    DENSE,
    GAPS,
    HASHED,
    MASK,
    MASKED,
    PLANE,
    RAW,
    RAW_SPARSE,
    SPARSE,
    STREAM,
    TENSOR,
    VIEW,
    Record,
    assembled,
    record,
    tensor_body,
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
    base,
    tensor,
)


def classed(fields: bytes, classes: bytes, options: int = 4) -> bytes:
    """Return a file of a 3 x 2 matrix with classes or an alive list."""
    return alone(
        record(CODEBOOK, b"\x0a" + varints(1, 2, 1), b"\0<\0@"),
        record(STREAM, STREAM_OF_BYTES, b"\2\0\1"),
        record(STREAM, bytes([CLASSES, 0, 1, 255, 0]), classes),
        tensor(DENSE, 12, (3, 2), varints(options, 0) + fields),
    )


def hash_of(fields: bytes, element: int = 12, *sources: Record) -> bytes:
    """Return a file of a hashed tensor after others."""
    return added(*sources, tensor(HASHED, element, (2,), fields))


def _tensor_faults() -> dict[str, Fault]:
    faulty = ("faulty",)
    add = lambda *records: partial(added, *records)  # noqa: E731
    gaps = lambda numbers: record(STREAM, bytes([GAPS, 0, 1, 255, 0]), bytes([len(numbers), *numbers]))  # noqa: E731
    masks = lambda number: record(STREAM, bytes([MASK, 0, 1, 255, 0]), bytes([1, number]))  # noqa: E731
    plane = record(STREAM, bytes([PLANE, 0x10, 0x07, 0]), b"\1\1\x81\0")
    named = lambda head, name: record(TENSOR, head + name + b"\1\7")  # noqa: E731
    sparse = lambda rule: tensor(SPARSE, 12, (2, 3), rule)  # noqa: E731
    hashed = lambda number, signs=0: bytes([signs, number]) + bytes(4)  # noqa: E731
    view = lambda *fields: tensor(VIEW, 12, (2,), bytes(fields))  # noqa: E731
    long = bytes([CONSTANT | 16, 2])
    pair = tensor_body(CONSTANT, 2, "pair", (1,)) + b"\1"
    return {
        "name-empty": Fault("empty name", "7.1", CORRUPT, FILE, partial(alone, named(long + b"\0\0", b""))),
        "name-nul": Fault(
            "name with NUL", "7.1", CORRUPT, FILE, partial(alone, named(long + b"\0\2", b"a\0"))
        ),
        "name-utf8": Fault(
            "name that is not UTF-8", "7.1", CORRUPT, FILE, partial(alone, named(long + b"\0\1", b"\xff"))
        ),
        "name-long": Fault(
            "name of 1,025 bytes",
            "7.1",
            CORRUPT,
            FILE,
            partial(alone, named(long + b"\0\x81\x08", b"n" * 1025)),
        ),
        "name-shared": Fault(
            "shares more than the name before has",
            "7.1",
            CORRUPT,
            FILE,
            partial(alone, named(long + b"\1\1", b"a")),
        ),
        "name-not-shared": Fault(
            "shares less than it can",
            "7.1",
            CORRUPT,
            FILE,
            partial(alone, record(TENSOR, pair), named(long + b"\0\2", b"pa")),
        ),
        "name-twice": Fault(
            "second tensor of a name",
            "7.1",
            CORRUPT,
            FILE,
            partial(alone, record(TENSOR, pair), named(long + b"\4\0", b"")),
        ),
        "rank": Fault("rank 9", "7.1", LIMIT, FILE, partial(alone, tensor(CONSTANT, 2, (1,) * 9, b"\1"))),
        "elements": Fault(
            "2^63 elements",
            "7.1",
            LIMIT,
            FILE,
            partial(alone, tensor(CONSTANT, 2, (1 << 32, 1 << 31), b"\1")),
        ),
        "elements-empty": Fault(
            "no elements, dims of 2^60",
            "7.1",
            LIMIT,
            FILE,
            partial(alone, tensor(RAW, 2, (0, 1 << 60), b"\0")),
        ),
        "too-large": Fault(
            "2^50 bytes of one constant",
            "9",
            LIMIT,
            faulty,
            partial(alone, tensor(CONSTANT, 2, (1 << 50,), b"\1")),
        ),
        "dims-cut": Fault(
            "dims end early",
            "7.1",
            TRUNCATED,
            FILE,
            partial(alone, record(TENSOR, bytes([0x21, 2, 0, 1]) + b"a\1")),
        ),
        "type": Fault("element type 14", "3.1", UNSUPPORTED, faulty, add(tensor(RAW, 14, (1,), b"\0", b"x"))),
        "layout": Fault("layout 8", "7.1", UNSUPPORTED, faulty, add(tensor(8, 12, (1,), b""))),
        "options": Fault(
            "reserved option", "7.4", UNSUPPORTED, faulty, add(tensor(DENSE, 12, (1,), b"\x20\0\0"))
        ),
        "payload-of-dense": Fault(
            "dense tensor with a payload",
            "7.1",
            CORRUPT,
            FILE,
            add(tensor(DENSE, 12, (0,), varints(0, 0, 0), b"x")),
        ),
        "payload-of-constant": Fault(
            "constant with a payload", "7.1", CORRUPT, FILE, add(tensor(CONSTANT, 2, (1,), b"\1", b"x"))
        ),
        "raw-length": Fault(
            "raw payload of another length", "7.2", CORRUPT, FILE, add(tensor(RAW, 12, (2,), b"\0", bytes(7)))
        ),
        "raw-plane": Fault(
            "plane beyond the element",
            "7.2",
            CORRUPT,
            FILE,
            add(plane, tensor(RAW, 5, (1,), b"\4\2", bytes(2))),
        ),
        "raw-byte": Fault(
            "byte of a plane beyond 255", "4.1", CORRUPT, faulty, add(plane, tensor(RAW, 2, (1,), b"\1\2"))
        ),
        "raw-bool": Fault("bool of 2", "3.1", CORRUPT, faulty, add(tensor(RAW, 1, (2,), b"\0", b"\1\2"))),
        "constant-bool": Fault(
            "constant bool of 2", "3.1", CORRUPT, FILE, add(tensor(CONSTANT, 1, (2,), b"\2"))
        ),
        "constant-empty": Fault(
            "constant without elements", "7.3", CORRUPT, FILE, add(tensor(CONSTANT, 2, (0,), b"\1"))
        ),
        "raw-sparse-stored": Fault(
            "more stored than elements",
            "7.2",
            CORRUPT,
            FILE,
            add(gaps([0, 0]), tensor(RAW_SPARSE, 2, (1,), varints(2, 2, 0), b"ab")),
        ),
        "raw-sparse-position": Fault(
            "position beyond the elements",
            "7.2",
            CORRUPT,
            faulty,
            add(gaps([3]), tensor(RAW_SPARSE, 2, (3,), varints(1, 2, 0), b"a")),
        ),
        "raw-sparse-length": Fault(
            "payload of another length",
            "7.2",
            CORRUPT,
            FILE,
            add(gaps([0]), tensor(RAW_SPARSE, 5, (3,), varints(1, 2, 0), b"a")),
        ),
        "sparse-stored": Fault(
            "n_stored beyond the elements", "7.4", CORRUPT, FILE, add(sparse(varints(0, 0, 7, 0, 1)))
        ),
        "sparse-position": Fault(
            "position beyond the elements",
            "7.4",
            CORRUPT,
            faulty,
            partial(
                alone,
                base()[3],
                record(STREAM, STREAM_OF_BYTES, b"\1\0"),
                gaps([6]),
                sparse(varints(0, 0, 1, 0, 1)),
            ),
        ),
        "sparse-columns": Fault(
            "column scan of a vector", "7.4", CORRUPT, FILE, add(tensor(DENSE, 12, (2,), varints(2, 0, 0)))
        ),
        "mask-count": Fault(
            "mask of other than n_stored bits",
            "7.4",
            CORRUPT,
            faulty,
            partial(
                alone,
                base()[3],
                record(STREAM, STREAM_OF_BYTES, b"\1\0"),
                masks(5),
                tensor(MASKED, 12, (3,), varints(0, 0, 1, 0, 1)),
            ),
        ),
        "mask-beyond": Fault(
            "mask bit beyond the elements",
            "7.4",
            CORRUPT,
            faulty,
            partial(
                alone,
                base()[3],
                record(STREAM, STREAM_OF_BYTES, b"\1\0"),
                masks(8),
                tensor(MASKED, 12, (3,), varints(0, 0, 1, 0, 1)),
            ),
        ),
        "classes-one": Fault(
            "one class", "7.5", CORRUPT, FILE, partial(classed, varints(1, 1, 3, 6, 0), b"\3\0\0\0")
        ),
        "classes-lines": Fault(
            "classes do not add up",
            "7.5",
            CORRUPT,
            FILE,
            partial(classed, varints(2, 1, 1, 2, 0, 1, 0), b"\3\0\1\1"),
        ),
        "classes-counts": Fault(
            "lines of another number",
            "7.5",
            CORRUPT,
            faulty,
            partial(classed, varints(2, 1, 1, 2, 0, 2, 0), b"\3\0\0\1"),
        ),
        "classes-class": Fault(
            "class that does not exist",
            "7.5",
            CORRUPT,
            faulty,
            partial(classed, varints(2, 1, 1, 2, 0, 2, 0), b"\3\0\1\2"),
        ),
        "classes-dense": Fault(
            "dense block that is not whole",
            "7.5",
            CORRUPT,
            FILE,
            partial(classed, varints(2, 1, 1, 1, 0, 2, 0), b"\3\0\1\1"),
        ),
        "alive-mark": Fault(
            "mark 2", "7.5", CORRUPT, faulty, partial(classed, varints(1, 1, 0), b"\2\0\2", 8)
        ),
        "alive-count": Fault(
            "marks of another number",
            "7.5",
            CORRUPT,
            faulty,
            partial(classed, varints(1, 1, 0), b"\2\1\1", 8),
        ),
        "alive-beyond": Fault(
            "more alive places than places",
            "7.5",
            CORRUPT,
            FILE,
            partial(classed, varints(3, 1, 0), b"\2\1\1", 8),
        ),
        "view-nothing": Fault("view of nothing", "7.6", CORRUPT, FILE, add(view(0, 1, 0))),
        "view-later": Fault("view of a later tensor", "7.6", CORRUPT, FILE, add(view(1, 4, 0, 2, 1, 0))),
        "view-cut": Fault("list of parts ends early", "7.6", TRUNCATED, FILE, add(view(9, 2, 0))),
        "view-view": Fault("view of a view", "7.6", CORRUPT, FILE, add(view(1, 3, 0, 2, 1, 0))),
        "view-newer-view": Fault(
            "view of a view with an unknown critical field",
            "7.6",
            CORRUPT,
            FILE,
            lambda: assembled(
                [*base()[:-1], record(TENSOR, base()[-1].body + b"\1\0"), view(1, 3, 0, 2, 1, 0)]
            ),
        ),
        "view-rows": Fault("rows beyond a part", "7.6", CORRUPT, FILE, add(view(1, 2, 1, 2, 1, 0))),
        "view-permutation": Fault("axis named twice", "7.6", CORRUPT, FILE, add(view(1, 0, 0, 1, 2, 0, 0))),
        "view-elements": Fault(
            "view of another number of elements", "7.6", CORRUPT, FILE, add(view(1, 2, 0, 1, 1, 0))
        ),
        "view-type": Fault(
            "view of another type",
            "7.6",
            CORRUPT,
            FILE,
            add(tensor(VIEW, 7, (2,), bytes([1, 2, 0, 2, 1, 0]))),
        ),
        "hash-options": Fault("reserved option", "7.7", UNSUPPORTED, faulty, partial(hash_of, hashed(2, 2))),
        "hash-signs": Fault("signs of int32", "7.7", CORRUPT, FILE, partial(hash_of, hashed(2, 1), 7)),
        "hash-later": Fault("hashed from itself", "7.7", CORRUPT, FILE, partial(hash_of, hashed(4))),
        "hash-view": Fault("hashed from a view", "7.7", CORRUPT, FILE, partial(hash_of, hashed(3))),
        "hash-type": Fault("hashed from another type", "7.7", CORRUPT, FILE, partial(hash_of, hashed(2), 7)),
        "hash-cut": Fault("seed ends early", "7.7", TRUNCATED, FILE, partial(hash_of, hashed(2)[:-1])),
        "hash-empty": Fault(
            "hashed from no elements",
            "7.7",
            CORRUPT,
            FILE,
            lambda: assembled(
                [
                    *base(),
                    record(TENSOR, tensor_body(RAW, 12, "none", (0,)) + b"\0"),
                    tensor(HASHED, 12, (2,), hashed(4)),
                ]
            ),
        ),
    }


TENSOR_FAULTS: dict[str, Fault] = _tensor_faults()
