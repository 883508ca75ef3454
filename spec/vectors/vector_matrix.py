"""Valid conformance files put together by hand: layouts, codecs, types and options in turn."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from vector_assembly import (
    CLASSES,
    CODEBOOK,
    CONSTANT,
    DENSE,
    GAPS,
    HASHED,
    HUFFMAN,
    MASK,
    MASKED,
    PLANE,
    RAW,
    RAW_SPARSE,
    SPARSE,
    STORED,
    TANS,
    VALUES,
    VIEW,
    Builder,
    Described,
    Mapping,
    bit_string,
    escaped,
    exp_golomb,
    f32,
    groups,
    hybrid,
    number_bits,
    signed,
    varint,
    varints,
)

CODECS = {"stored": STORED, "huffman": HUFFMAN, "tans": TANS}
LAYOUTS = {"dense": DENSE, "sparse": SPARSE, "mask": MASKED}
FLOATS = {10: "float16", 11: "bfloat16", 12: "float32", 13: "float64"}
WIDTHS = {1: 1, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 4, 8: 8, 9: 8, 10: 2, 11: 2, 12: 4, 13: 8}
MATRIX = np.array([[i * j % 5 if (i + 2 * j) % 3 else 0 for j in range(7)] for i in range(5)])


def coded(matrix: np.ndarray, layout: int) -> tuple[list[int], list[int]]:
    """Return the numbers and the gaps, mask bytes or nothing of a scan of a matrix."""
    flat = matrix.reshape(-1)
    if layout == DENSE:
        return flat.tolist(), []
    at = np.flatnonzero(flat)
    if layout == MASKED:
        return flat[at].tolist(), np.packbits(flat > 0, bitorder="little").tolist()
    return flat[at].tolist(), (np.diff(at, prepend=-1) - 1).tolist()


def block(values: int, positions: int, numbers: Sequence[int], layout: int) -> bytes:
    """Return the fields after the value rule (7.4)."""
    if layout == DENSE:
        return varint(values)
    return varints(len(numbers), values, positions)


def position_stream(builder: Builder, layout: int, slices: Sequence[Sequence[int]], codec: int) -> int:
    """Append the position stream of a layout, if it has one."""
    if layout == DENSE:
        return 0
    return builder.stream(GAPS if layout == SPARSE else MASK, slices, codec)


def layout_with_codec(layout: int, codec: int) -> bytes:
    """Return a file of every element type: floats with a codebook, all with affine values."""
    out = Builder()
    numbers, positions = coded(MATRIX, layout)
    book = out.codebook([0, 1, -2, 0.5, 3], 10)
    types = [*FLOATS, *(number for number in WIDTHS if 2 <= number <= 12 and number not in FLOATS)]
    uses = len(FLOATS) + len(types)
    values = out.stream(VALUES, [numbers] * uses, codec, groups(3, 5))
    places = position_stream(out, layout, [positions] * uses, codec)
    tail = block(values, places, numbers, layout)
    for number, name in FLOATS.items():
        out.tensor(layout, number, f"codebook.{name}", MATRIX.shape, varints(0, book) + tail)
    for number in types:
        step = 0.375 if number in FLOATS else 1.0
        rule = f32(step, 0.0) + b"\0" + signed(2)
        out.tensor(layout, number, f"affine.{number}", MATRIX.shape, b"\1" + rule + tail)
    return out.file()


def partition(layout: int, options: int) -> bytes:
    """Return a file of a matrix with column scan, line classes and alive list as options say."""
    out = Builder()
    matrix = np.where(MATRIX[:, ::2] > 0, MATRIX[:, ::2], 1) if layout == DENSE else MATRIX[:, ::2].copy()
    matrix[1] = 0
    lined = matrix.T if options & 2 else matrix
    if options & 8:
        lined[:, 2] = 0
    alive = [int(place != 2) for place in range(lined.shape[1])] if options & 8 else [1] * lined.shape[1]
    classes = [i % 3 % 2 for i in range(lined.shape[0])] if options & 4 else [0] * lined.shape[0]
    kept = lined[:, np.array(alive) == 1]
    parts = [kept[np.array(classes) == c] for c in range(2 if options & 4 else 1)]
    pairs = [coded(part, layout) for part in parts]
    fields = b""
    if options & 4:
        fields += varints(2, out.stream(CLASSES, [classes], HUFFMAN, groups(8, 2)))
    if options & 8:
        fields += varints(sum(alive), out.stream(CLASSES, [alive], STORED, groups(8, 2)))
    values = out.stream(VALUES, [numbers for numbers, _ in pairs], HUFFMAN, groups(3, 5))
    places = position_stream(out, layout, [positions for _, positions in pairs], STORED)
    for part, (numbers, _) in zip(parts, pairs, strict=True):
        fields += varint(len(part)) if options & 4 else b""
        fields += varints(len(numbers), values) + (b"" if layout == DENSE else varint(places))
    if not options & 12:
        fields = block(values, places, pairs[0][0], layout)
    rule = f32(0.5, 0.25) + b"\0" + signed(-1)
    out.tensor(layout, 12, "matrix", matrix.shape, bytes([1 | options]) + rule + fields)
    return out.file()


def raw_planes(codec: int) -> bytes:
    """Return a file of every element type with its highest and lowest byte planes coded."""
    out = Builder()
    n = 24
    slices: list[list[int]] = []
    tensors = []
    for number, n_bytes in WIDTHS.items():
        coded_planes = {0, n_bytes - 1}
        for plane in sorted(coded_planes):
            slices.append([(i * i + plane) % (2 if number == 1 else 5) for i in range(n)])
        mask = sum(1 << plane for plane in coded_planes)
        payload = bytes(i * 7 % 256 for i in range(n * (n_bytes - len(coded_planes))))
        tensors.append((number, mask, len(coded_planes), payload))
    planes = out.stream(PLANE, slices, codec)
    for number, mask, n_planes, payload in tensors:
        out.tensor(
            RAW, number, f"type.{number}", (n,), bytes([mask]) + varints(*[planes] * n_planes), payload
        )
    return out.file()


def raw_sparse(codec: int) -> bytes:
    """Return a file of every element type with three elements and the zeros between."""
    out = Builder()
    places = out.stream(GAPS, [[2, 0, 5]] * len(WIDTHS), codec, hybrid(2, 1))
    plane = out.stream(PLANE, [[1, 0, 1]] * len(WIDTHS), codec)
    for number, n_bytes in WIDTHS.items():
        fields = varints(3, places, 1, plane)
        payload = bytes(range(3 * (n_bytes - 1)))
        out.tensor(RAW_SPARSE, number, f"type.{number}", (3, 4), fields, payload)
    return out.file()


def raw_plain() -> bytes:
    """Return a file of every element type, stored."""
    out = Builder()
    for number, n_bytes in WIDTHS.items():
        payload = bytes(i * 37 % (2 if number == 1 else 256) for i in range(6 * n_bytes))
        out.tensor(RAW, number, f"type.{number}", (2, 3), b"\0", payload)
    return out.file()


def constants() -> bytes:
    """Return a file of constants of every type, negative zero and NaN with payload bits among them."""
    out = Builder()
    for number, n_bytes in WIDTHS.items():
        out.tensor(CONSTANT, number, f"type.{number}", (2, 2), bytes([1] * n_bytes))
    out.tensor(CONSTANT, 12, "zero", (3,), f32(-0.0))
    out.tensor(CONSTANT, 12, "nan", (), bytes.fromhex("0100c07f"))
    return out.file()


def mappings(mapping: Mapping, numbers: Sequence[int]) -> bytes:
    """Return a file of one row of int32 numbers under a mapping, with each codec."""
    out = Builder()
    for name, codec in CODECS.items():
        values = out.stream(VALUES, [numbers, numbers[:3]], codec, mapping)
        for part, length in (("whole", len(numbers)), ("start", 3)):
            fields = b"\1" + f32(1, 0) + b"\1" + varint(values)
            out.tensor(DENSE, 7, f"{name}.{part}", (length,), fields)
    return out.file()


def codebooks() -> bytes:
    """Return a file of codebooks of three types with both codings, with groups and both zeros."""
    out = Builder()
    values = out.stream(VALUES, [[0, 1, 2, 3, 3, 2]] * 7)
    plain = {10: "<f2", 12: "<f4"}
    for number in (10, 11, 12):
        entries = np.array([-0.0, 2, -1, 1024])
        payload = entries.astype(plain.get(number, "<f4")).tobytes()
        if number == 11:
            payload = b"".join(payload[i + 2 : i + 4] for i in range(0, 16, 4))
        out.add(CODEBOOK, bytes([number]) + varints(1, 4, 1), payload)
    for number, width in ((10, 16), (11, 16), (12, 32)):
        one = 2 ** (width - 1)
        bits = number_bits(5, 5) + number_bits(one - 1, width)  # -0.0, 0.0 and the next two numbers
        bits += exp_golomb(0, 5) * 2 + exp_golomb(300, 5)
        out.add(CODEBOOK, bytes([number | 16]) + varints(1, 4, 1), bit_string(bits))
    bits = number_bits(2, 5)
    for first in (0x8000, 0x4000):
        bits += number_bits(first + 0x3C00 * (first == 0x8000), 16) + exp_golomb(9, 2) * 3
    out.add(CODEBOOK, bytes([10 | 16]) + varints(2, 4, 1), bit_string(bits))
    for number in range(7):
        span = varint(3) if number == 6 else b""
        out.tensor(DENSE, 12, f"book.{number}", (2, 3), varints(0, number) + span + varint(values))
    return out.file()


def vectors(layout: int, column_scan: bool) -> bytes:
    """Return a file of units of three elements in two groups; the last unit is cut off."""
    out = Builder()
    book = out.codebook(list(range(1, 19)), 10, groups_of=2, width=3)
    matrix = np.array([1, 0, 2, 0, 2])
    numbers, positions = coded(matrix, layout)
    values = out.stream(VALUES, [numbers], HUFFMAN)
    places = position_stream(out, layout, [positions], STORED)
    rule = varints(2 * column_scan, book, 2) + block(values, places, numbers, layout)
    out.tensor(layout, 12, "vectors", (2, 7), rule)
    return out.file()


def scales(layout: int) -> bytes:
    """Return a file of scales of each type, stored and with coded planes, by row and by column."""
    out = Builder()
    numbers, positions = coded(MATRIX, layout)
    values = out.stream(VALUES, [numbers] * 6)
    places = position_stream(out, layout, [positions] * 6, STORED)
    planes = out.stream(PLANE, [[0x7E, 0x7F, 0x7D, 0x7E, 0x7F]] * 3, HUFFMAN)
    for number, n_bytes in ((10, 2), (11, 2), (12, 4)):
        one = {10: "003c", 11: "803f", 12: "0000803f"}[number]
        half = {10: "0038", 11: "003f", 12: "0000003f"}[number]
        by_column = bytes([number]) + varints(1, 7, 0)
        tail = block(values, places, numbers, layout)
        rule = b"\x11" + f32(0.75, 0.125) + b"\0" + signed(-2)
        out.tensor(
            layout,
            12,
            f"{number}.columns",
            MATRIX.shape,
            rule + by_column + tail,
            bytes.fromhex(one * 5 + half * 2),
        )
        by_row = bytes([number]) + varints(7, 5, 1 << n_bytes - 1, planes)
        payload = bytes(range(0, 20 * (n_bytes - 1), 4))
        out.tensor(
            layout, 10 if number == 12 else 12, f"{number}.rows", MATRIX.shape, rule + by_row + tail, payload
        )
    return out.file()


def views() -> bytes:
    """Return a file of tied, cut, joined, transposed, reshaped and empty views."""
    out = Builder()
    out.tensor(RAW, 5, "a", (3, 2, 2), b"\0", np.arange(12, dtype="<i2").tobytes())
    out.tensor(CONSTANT, 5, "b", (2, 2, 2), b"\7\0")
    views = {
        "tied": ((3, 2, 2), [(0, 0, 3)], [0, 1, 2]),
        "cut": ((1, 2, 2), [(0, 1, 1)], [0, 1, 2]),
        "joined": ((4, 2, 2), [(0, 2, 1), (1, 0, 2), (0, 0, 1)], [0, 1, 2]),
        "transposed": ((2, 3, 2), [(0, 0, 3)], [2, 0, 1]),
        "reshaped": ((12,), [(0, 0, 3)], [0, 2, 1]),
        "empty": ((0, 2, 2), [(0, 3, 0)], [0, 1, 2]),
    }
    for name, (dims, parts, permutation) in views.items():
        fields = varint(len(parts)) + b"".join(varints(*part) for part in parts)
        out.tensor(VIEW, 5, name, dims, fields + bytes([3, *permutation]))
    return out.file()


def hashed() -> bytes:
    """Return a file of hashed tensors of every type, and with signs of floats."""
    out = Builder()
    for number, n_bytes in WIDTHS.items():
        payload = bytes(i % (2 if number == 1 else 256) for i in range(9 * n_bytes))
        source = out.tensor(RAW, number, f"{number}.source", (9,), b"\0", payload)
        for signs in range(2 if number in FLOATS else 1):
            fields = bytes([signs]) + varint(source) + (99 * number).to_bytes(4, "little")
            out.tensor(HASHED, number, f"{number}.hashed.{signs}", (3, 5), fields)
    return out.file()


def hashed_from_every_layout() -> bytes:
    """Return a file of hashed tensors whose source is constant, dense and raw sparse; one is empty."""
    out = Builder()
    values = out.stream(VALUES, [[0, 1, 2]])
    gaps = out.stream(GAPS, [[1]])
    sources = [
        out.tensor(CONSTANT, 12, "constant", (2,), f32(2)),
        out.tensor(DENSE, 12, "dense", (3,), b"\1" + f32(1, 0.5) + b"\1" + varint(values)),
        out.tensor(RAW_SPARSE, 12, "sparse", (4,), varints(1, gaps, 0), f32(9)),
    ]
    for source in sources:
        out.tensor(HASHED, 12, f"from.{source}", (2, 4), b"\1" + varint(source) + bytes(4))
    out.tensor(HASHED, 12, "none", (0, 4), b"\0" + varint(0) + bytes(4))
    return out.file()


def mapped_bytes() -> bytes:
    """Return a file of bytes under each mapping that is not groups, with each codec."""
    out = Builder()
    mask, plane = [17, 40], [3, 17, 40, 200, 255, 16]
    values = out.stream(VALUES, [[0] * 4] * 6)
    for name, codec in CODECS.items():
        for mapping in (hybrid(4, 1), escaped(2, 15, 8)):
            fields = bytes([1, out.stream(PLANE, [plane], codec, mapping)])
            out.tensor(RAW, 2, f"plane.{name}.{mapping.number}", (6,), fields)
            places = out.stream(MASK, [mask], codec, mapping)
            fields = b"\1" + f32(1, 0) + b"\0\2" + varints(4, values, places)
            out.tensor(MASKED, 12, f"mask.{name}.{mapping.number}", (2, 8), fields)
    return out.file()


def shared_streams() -> bytes:
    """Return a file of six tensors of three layouts that share one value stream and its code."""
    out = Builder()
    out.codebook([0, 1, -2, 0.5, 3])
    order = [DENSE, SPARSE, MASKED, SPARSE, DENSE, MASKED]
    pairs = [coded(MATRIX + (layout == DENSE) * 0, layout) for layout in order]
    values = out.stream(VALUES, [numbers for numbers, _ in pairs], TANS, groups(2, 5))
    gaps = out.stream(
        GAPS, [p for (_, p), layout in zip(pairs, order, strict=True) if layout == SPARSE], HUFFMAN
    )
    mask = out.stream(
        MASK, [p for (_, p), layout in zip(pairs, order, strict=True) if layout == MASKED], HUFFMAN
    )
    for i, (layout, (numbers, _)) in enumerate(zip(order, pairs, strict=True)):
        places = gaps if layout == SPARSE else mask
        out.tensor(layout, 12, f"t{i}", MATRIX.shape, varints(0, 0) + block(values, places, numbers, layout))
    return out.file()


def _matrix() -> dict[str, Described]:
    found = {}
    for name, layout in LAYOUTS.items():
        for codec, number in CODECS.items():
            found[f"{name}-{codec}"] = Described(
                f"{name} layout of every type, {codec} streams",
                "7.4, 6",
                partial(layout_with_codec, layout, number),
            )
        for options in (2, 4, 6, 8, 10, 12, 14):
            words = [word for bit, word in ((2, "columns"), (4, "classes"), (8, "alive")) if options & bit]
            found[f"{name}-{'-'.join(words)}"] = Described(
                f"{name} layout with {', '.join(words)}", "7.4, 7.5", partial(partition, layout, options)
            )
        found[f"{name}-scales"] = Described(f"{name} layout with scales", "6.4", partial(scales, layout))
        for scan in (False, True):
            found[f"{name}-vectors{'-columns' * scan}"] = Described(
                f"{name} layout of vectors in two groups{', column scan' * scan}",
                "6.1",
                partial(vectors, layout, scan),
            )
    for codec, number in CODECS.items():
        found[f"planes-{codec}"] = Described(
            f"raw tensors of every type, {codec} planes", "7.2", partial(raw_planes, number)
        )
        found[f"raw-sparse-{codec}"] = Described(
            f"raw sparse tensors of every type, {codec} streams", "7.2", partial(raw_sparse, number)
        )
    return found


NUMBERS = [3, 0, 17, 1, 15, 30, 0, 2, 16, 8, 4]
MATRIX_FILES: dict[str, Described] = {
    **_matrix(),
    "raw": Described("raw tensors of every type", "7.2", raw_plain),
    "constant": Described("constants of every type, -0.0 and NaN bits", "7.3", constants),
    "map-groups": Described("groups of one number", "4.2", partial(mappings, groups(1, 31), NUMBERS)),
    "map-groups-8": Described(
        "groups of eight bits", "4.2", partial(mappings, groups(8, 2), [1, 0, 1, 1, 0] * 3)
    ),
    "map-hybrid-0": Described(
        "hybrid integers, split_log2 0", "4.3", partial(mappings, hybrid(0, 0), [*NUMBERS[:1], 9, 17])
    ),
    "map-hybrid-7": Described(
        "hybrid integers, split_log2 7, 3 mantissa bits",
        "4.3",
        partial(mappings, hybrid(7, 3), [*NUMBERS, 127, 128, 5000, 70000]),
    ),
    "map-escape": Described("groups with an escape", "4.6", partial(mappings, escaped(2, 15, 4), NUMBERS)),
    "map-escape-24": Described(
        "escape of 24 bits, window 1", "4.6", partial(mappings, escaped(8, 1, 24), [0, 1, 1 << 24, 0, 0])
    ),
    "codebooks": Described(
        "codebooks of three types, plain and ascending, -0.0 before 0.0", "6.1", codebooks
    ),
    "views": Described("tied, cut, joined, transposed, reshaped and empty views", "7.6", views),
    "hashed-types": Described("hashed tensors of every type", "7.7", hashed),
    "hashed-sources": Described(
        "hashed tensors from other layouts, one empty", "7.7", hashed_from_every_layout
    ),
    "shared-streams": Described("six tensors of three layouts in one value stream", "4.1", shared_streams),
    "bytes-mapped": Described("planes and masks as hybrid integers and with an escape", "4.1", mapped_bytes),
}
