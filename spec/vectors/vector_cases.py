"""Valid conformance files put together by hand: shapes, names, numbers, chunks, blobs."""

from __future__ import annotations

from functools import partial

from vector_assembly import (
    CLASSES,
    CODEBOOK,
    CONSTANT,
    DENSE,
    GAPS,
    GRAPH,
    HUFFMAN,
    MASK,
    MASKED,
    METADATA,
    PADDING,
    RAW,
    RAW_SPARSE,
    SPARSE,
    STORED,
    STREAM,
    TABLE,
    TANS,
    TENSOR,
    VALUES,
    VIEW,
    Builder,
    Described,
    Record,
    assembled,
    bit_string,
    coder,
    deflated,
    f32,
    hybrid,
    prefix_table,
    record,
    signed,
    tensor_body,
    varint,
    varints,
)


def extreme_shapes() -> bytes:
    """Return a file of scalars, of rank 8, of one element, and of 2^20 elements."""
    out = Builder()
    book = out.codebook([4])
    values = out.stream(VALUES, [[0], [0], [0]])
    gaps = out.stream(GAPS, [[0], [(1 << 20) - 1]], STORED, hybrid(0, 0))
    out.tensor(RAW, 13, "scalar", (), b"\0", bytes(8))
    out.tensor(DENSE, 12, "scalar.dense", (), varints(0, book, values))
    out.tensor(SPARSE, 12, "rank", (1,) * 8, varints(2, book, 1, values, gaps))
    out.tensor(SPARSE, 10, "long", (1, 1 << 20), varints(2, book, 1, values, gaps))
    return out.file()


def names() -> bytes:
    """Return a file of names of 1 and 1,024 bytes, of other scripts, with shared starts, one of another."""
    out = Builder()
    for name in (
        "a",
        "ab",
        "abc",
        "b",
        "\u00e9\u4e2d",
        "\u00e8",
        "x" * 1024,
        "x" * 1023,
        ".." + "/" + "up",
        " ",
    ):
        out.tensor(CONSTANT, 2, name, (1,), b"\7")
    return out.file()


def extreme_numbers() -> bytes:
    """Return a file of the largest k, of overflow to infinity and of subnormal results."""
    out = Builder()
    values = out.stream(VALUES, [[0, (1 << 25) - 2, 5]] * 4, STORED, hybrid(4, 2))
    rules = {"k": (1.0, 0.0), "large": (3e38, 0.0), "small": (1e-45, 0.0), "both": (1e-38, 1e38)}
    for name, (step, offset) in rules.items():
        rule = f32(step, offset) + b"\0" + signed(1 - (1 << 24))
        out.tensor(DENSE, 12, name, (3,), b"\1" + rule + varint(values))
    out.tensor(CONSTANT, 12, "end", (1,), f32(1))
    half = out.stream(VALUES, [[0, 1, 2, 3]])
    book = out.codebook([65504, 65519, 65520, 1e-8])
    out.tensor(DENSE, 10, "half", (4,), varints(0, book, half))
    return out.file()


def long_streams(kind: int, n_numbers: int, four: int) -> bytes:
    """Return a file of one slice over several chunks of single symbols, which take no bits."""
    chunk, left = 1 << 14, n_numbers
    index, start = b"", 0
    while left:
        n = min(chunk, left)
        index += b"\0" + (b"\0\0\0" if four and n >= 4096 else b"")
        index += varint(start) if kind == GAPS and left < n_numbers else b""
        start, left = 2 * chunk if kind == GAPS else 0, left - n
    number = 1 if kind == GAPS else 0
    records = [
        record(TABLE, bytes([1, number])),
        record(TABLE, b"\1\0"),
        record(CODEBOOK, b"\n\1\1\1", b"\0<"),
    ]
    coding = bytes([kind, 1, 1, 255, 16 * four, 0])
    records.append(record(STREAM, coding, index))
    if kind == VALUES:
        fields = tensor_body(DENSE, 10, "long", (n_numbers,)) + varints(0, 0, 0)
        return assembled([*records, record(TENSOR, fields)])
    values = b"\0" * -(-n_numbers // chunk)
    records.append(record(STREAM, bytes([VALUES, 1, 1, 255, 0, 1]), values))
    fields = tensor_body(SPARSE, 10, "long", (2 * n_numbers,)) + varints(0, 0, n_numbers, 1, 0)
    return assembled([*records, record(TENSOR, fields)])


def four_sub_streams(codec: int) -> bytes:
    """Return a file of a stream of 4,098 groups, so that the last sub-stream is shorter."""
    numbers = [int(i % 7 == 0 or i % 11 == 3) for i in range(4098)]
    table, encode = coder(codec, [0, 1])
    parts = [encode(numbers[i * 1025 : (i + 1) * 1025]) for i in range(4)]
    total = sum(map(len, parts))
    index = varint(total) + b"".join(signed(len(part) - total // 4) for part in parts[:3])
    return assembled(
        [
            record(TABLE, table),
            record(STREAM, bytes([VALUES, codec, 1, 255, 16, 0]), index + b"".join(parts)),
            record(TENSOR, tensor_body(DENSE, 2, "bits", (4098,)) + b"\1" + f32(1, 0) + varints(0, 0, 0)),
        ]
    )


def code_lengths() -> bytes:
    """Return a file of a code with lengths 1 to 13, of one of 256 symbols, and of runs of unused symbols."""
    out = Builder()
    for name, lengths in {
        "long": [*range(1, 14), 13],
        "wide": [8] * 256,
        "runs": [0, 0, 1, 0, 0, 0, 2, *[0] * 20, 3, 0, 3],
    }.items():
        used = [symbol for symbol, length in enumerate(lengths) if length]
        table = out.add(TABLE, prefix_table(lengths))
        words = {}
        codeword, previous = 0, 0
        for length, symbol in sorted((lengths[symbol], symbol) for symbol in used):
            codeword <<= length - previous
            words[symbol] = format(codeword, f"0{length}b")
            codeword, previous = codeword + 1, length
        coded_bytes = bit_string("".join(words[symbol] for symbol in used))
        fields = bytes([VALUES, HUFFMAN, 1, 255, 0]) + varint(table)
        values = out.add(STREAM, fields, varint(len(coded_bytes)) + coded_bytes)
        out.tensor(DENSE, 2, name, (len(used),), b"\1" + f32(1, 0) + varints(0, 0, values))
    return out.file()


def blobs(*, graph: bool, metadata: bool, deflate: bool) -> bytes:
    """Return a file of blobs, plain or deflated, and a tensor."""
    records = []
    plain = b'{"method":"kmeans","seed":1,"nested":{"list":[1,2.5,null,true,"\xc3\xa9"]}}'
    wrapped = {
        METADATA: (plain, b""),
        GRAPH: (b"\x08\x08\x12\x07pytorch", b"\1"),
    }
    for kind in (METADATA,) * metadata + (GRAPH,) * graph:
        content, head = wrapped[kind]
        body = head + (b"\1" + varint(len(content)) if deflate else b"\0")
        records.append(record(kind, body, deflated(content) if deflate else content))
    records.append(record(TENSOR, tensor_body(CONSTANT, 12, "fc.weight", (2, 2)) + f32(1)))
    return assembled(records, deflate=deflate)


def ignored_items(minor: int = 0) -> bytes:
    """Return a file of PADDING, unknown records and extension fields that readers ignore."""
    extension = varints(2 << 1, 3) + b"abc"
    body = tensor_body(RAW, 2, "raw", (2,)) + b"\0"
    return assembled(
        [
            Record(40 << 3 | 2, b"?", b"unknown"),
            record(METADATA, b"\0" + extension, b"{}"),
            Record(7 << 3, b"not critical"),
            record(GRAPH, b"\1\0" + extension, b"\x08\x08"),
            record(CODEBOOK, b"\x0c\1\1\1" + extension, f32(1)),
            record(STREAM, bytes([VALUES, 0, 1, 255, 0]) + extension, b"\1\0"),
            record(TENSOR, body + extension, b"\1\2"),
            record(TENSOR, tensor_body(DENSE, 12, "dense", (1,)) + varints(0, 0, 0) + extension),
            Record(PADDING << 3 | 2, b"", b"padding"),
            Record(PADDING << 3, b"body"),
        ],
        minor=minor,
    )


def aligned(page_log2: int) -> bytes:
    """Return a file whose second payload is aligned, with pages of a given size."""
    first = record(TENSOR, tensor_body(RAW, 2, "a", (3,)) + b"\0", b"abc")
    second = record(TENSOR, tensor_body(RAW, 2, "b", (70,)) + b"\0", bytes(range(70)))
    second.tag |= 4
    third = record(TENSOR, tensor_body(RAW, 2, "c", (1,)) + b"\0", b"z")
    return assembled([first, second, third], page_log2=page_log2)


def empty_shapes() -> bytes:
    """Return a file of tensors without elements in every layout that allows it."""
    out = Builder()
    book = out.codebook([1])
    values, gaps, mask = (out.stream(kind, []) for kind in (VALUES, GAPS, MASK))
    classes = out.stream(CLASSES, [[0, 1, 0]])
    raw = out.tensor(RAW, 9, "raw", (0,), b"\0")
    out.tensor(RAW_SPARSE, 9, "raw.sparse", (3, 0), varints(0, gaps, 0))
    out.tensor(DENSE, 12, "dense", (0, 5), varints(0, book, values))
    out.tensor(SPARSE, 12, "sparse", (5, 0), varints(2, book, 0, values, gaps))
    out.tensor(MASKED, 12, "mask", (2, 0, 3), varints(0, book, 0, values, mask))
    out.tensor(SPARSE, 12, "lines", (3, 0), varints(4, book, 2, classes, 2, 0, 1, 0))
    scale = b"\x10" + varint(book) + b"\x0c" + varints(1, 1, 0)
    out.tensor(DENSE, 12, "scaled", (0,), scale + varint(values), f32(1))
    out.tensor(VIEW, 9, "view", (0,), varints(1, raw, 0, 0) + b"\1\0")
    return out.file()


CASE_FILES: dict[str, Described] = {
    "empty-shapes": Described("tensors without elements in every layout", "7", empty_shapes),
    "extreme-shapes": Described("scalars, rank 8, 2^20 elements with one number", "7.1", extreme_shapes),
    "names": Described("names of 1 and 1,024 bytes, UTF-8, shared starts", "7.1", names),
    "extreme-numbers": Described("largest k, infinite and subnormal values", "6.2, 6.3", extreme_numbers),
    "chunks": Described(
        "a slice over three chunks, one sub-stream each", "4.4", partial(long_streams, VALUES, 40000, 0)
    ),
    "chunks-four": Described("chunks of four sub-streams", "4.5", partial(long_streams, VALUES, 40000, 1)),
    "chunks-gaps": Described(
        "gaps over three chunks, with start_delta", "4.5", partial(long_streams, GAPS, 40000, 0)
    ),
    "four-huffman": Described("4,098 symbols in four sub-streams", "4.5", partial(four_sub_streams, HUFFMAN)),
    "four-tans": Described(
        "4,098 tANS symbols in four sub-streams", "4.5, 5.3", partial(four_sub_streams, TANS)
    ),
    "code-lengths": Described("code lengths 1 to 13, 256 symbols, runs", "5.1, 5.2", code_lengths),
    "graph-only": Described(
        "a graph, plain, and no metadata", "8.1", partial(blobs, graph=True, metadata=False, deflate=False)
    ),
    "metadata-only": Described(
        "metadata, deflated, and no graph", "8.2", partial(blobs, graph=False, metadata=True, deflate=True)
    ),
    "blobs-plain": Described(
        "plain graph, metadata and directory", "3.4", partial(blobs, graph=True, metadata=True, deflate=False)
    ),
    "blobs-deflated": Described(
        "deflated graph, metadata and directory",
        "3.4, 3.7",
        partial(blobs, graph=True, metadata=True, deflate=True),
    ),
    "no-blobs": Described(
        "a tensor alone, deflated directory", "3", partial(blobs, graph=False, metadata=False, deflate=True)
    ),
    "nothing": Described("no record at all: 32 bytes", "2.1", partial(assembled, [])),
    "ignored": Described("PADDING, unknown records, extension fields", "3.5, 3.6", ignored_items),
    "aligned": Described("an aligned payload between others", "3.5", partial(aligned, 12)),
    "pages-large": Described("pages of 2^27 bytes", "2.2", partial(aligned, 27)),
    "later-minor": Described(
        "version 1.200 with items of later versions that readers ignore", "10", partial(ignored_items, 200)
    ),
}
