"""Tensors of the reference reader: the layouts (nqz.md 7)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from reference_codes import Fields, UnsupportedFeature, referred, require
from reference_streams import CLASSES, GAPS, MASK, VALUES, Numbers, Slice
from reference_values import (
    Array,
    Decode,
    Head,
    ValueRule,
    read_affine_rule,
    read_codebook_rule,
    read_scales,
    read_vector,
)

if TYPE_CHECKING:
    from reference_reader import NqzFile, Payload

RAW, CONSTANT, DENSE, SPARSE, MASKED, VIEW, HASHED, RAW_SPARSE = range(8)


def no_payload(payload: Payload) -> None:
    """Refuse a payload of a tensor that has none (7.1)."""
    require(payload.n_bytes == 0, "payload of a tensor that has none")


def read_raw(body: Fields, head: Head, payload: Payload, file: NqzFile) -> Decode:
    """Read layout 0 (7.2)."""
    vector = read_vector(body, head.element, head.elements, payload, file)
    return lambda: head.element.of_bits(vector())


def read_raw_sparse(body: Fields, head: Head, payload: Payload, file: NqzFile) -> Decode:
    """Read layout 7 (7.2)."""
    n_stored = body.varint()
    require(n_stored <= head.elements, "n_stored beyond the elements")
    gaps = file.slice(body, GAPS, n_stored)
    vector = read_vector(body, head.element, n_stored, payload, file)

    def decode() -> Array:
        out = np.zeros(head.elements, head.element.dtype)
        out[gaps.positions(head.elements)] = head.element.of_bits(vector())
        return out

    return decode


def read_constant(body: Fields, head: Head, payload: Payload, file: NqzFile) -> Decode:
    """Read layout 1 (7.3)."""
    require(head.elements > 0, "CONSTANT tensor without elements")
    value = head.element.of_bits(np.frombuffer(body.take(head.element.n_bytes), head.element.unsigned))
    no_payload(payload)
    return lambda: np.repeat(value, head.elements)


class Block(NamedTuple):
    """Units that are coded together (7.4, 7.5): places, places with a number, and slices if any."""

    n_places: int
    n_stored: int
    values: Slice | None
    positions: Slice | None

    def stored(self, layout: int) -> Numbers:
        """Return the positions of units with a number."""
        if self.positions is None:
            return np.arange(self.n_stored)
        if layout == SPARSE:
            return self.positions.positions(self.n_places)
        bits = np.unpackbits(self.positions.bytes(), bitorder="little")
        require(not bits[self.n_places :].any(), "mask has bits beyond the last unit")
        require(int(bits.sum()) == self.n_stored, "mask does not have n_stored bits")
        return np.flatnonzero(bits)


def read_block(body: Fields, layout: int, n_places: int, n_stored: int, file: NqzFile) -> Block:
    """Take the slices of a tensor or of a block (7.4, 7.5)."""
    values = file.slice(body, VALUES, n_stored)
    if layout == DENSE:
        return Block(n_places, n_stored, values, None)
    kind, count = (GAPS, n_stored) if layout == SPARSE else (MASK, -(-n_places // 8))
    return Block(n_places, n_stored, values, file.slice(body, kind, count))


class Scan(NamedTuple):
    """The order of elements (7.4): lines are rows, or columns with column scan."""

    n_lines: int
    cross: int
    by_columns: bool

    def c_positions(self, scan_positions: Numbers) -> Numbers:
        """Return positions in C order of scan positions."""
        if not self.by_columns:
            return scan_positions
        return scan_positions % self.cross * self.n_lines + scan_positions // self.cross


def read_coded(body: Fields, head: Head, payload: Payload, file: NqzFile) -> Decode:
    """Read layouts 2 to 4 (7.4)."""
    options = body.u8()
    if options > 31:
        raise UnsupportedFeature(f"options {options:#x}")
    require(not options & 2 or len(head.dims) >= 2, "column scan needs rank 2")
    affine = bool(options & 1)
    rule = (
        read_affine_rule(body, head, head.layout != DENSE) if affine else read_codebook_rule(body, head, file)
    )
    scales = read_scales(body, head, payload, file) if options & 16 else None
    if not scales:
        no_payload(payload)
    rows, columns = (head.dims[0], math.prod(head.dims[1:])) if head.dims else (1, 1)
    scan = Scan(columns, rows, True) if options & 2 else Scan(rows, columns, False)
    if options & 12:
        require(rule.width == 1, "classes or alive list of vectors")
        partition = read_partition(body, head, options, scan, file)
    else:
        n_units = -(-head.elements // rule.width)
        n_stored = n_units if head.layout == DENSE else body.varint()
        require(n_stored <= n_units, "n_stored beyond the units")
        partition = whole(read_block(body, head.layout, n_units, n_stored, file))

    def decode() -> Array:
        none = np.zeros(0, np.int64)
        rule.values(none, none)  # a tensor needs its codebook even if it has no numbers
        scaled = scales() if scales else None
        out = np.zeros(head.elements, head.element.dtype)
        for block, scan_positions_of in partition():
            stored = scan_positions_of(block.stored(head.layout))
            numbers = block.values.numbers() if block.values else none
            places, values = placed(rule, scan, numbers, stored, head.elements)
            if scaled:
                values = scaled(values, places)
            out[places] = head.element.rounded(values) if head.element.is_float else values
        return out

    return decode


Partition = Callable[[], list[tuple[Block, Callable[[Numbers], Numbers]]]]


def whole(block: Block) -> Partition:
    """Return the partition of a tensor that is one block."""
    return lambda: [(block, lambda positions: positions)]


def placed(
    rule: ValueRule, scan: Scan, numbers: Numbers, units: Numbers, n_elements: int
) -> tuple[Numbers, Array]:
    """Return C-order positions and values of the elements of units, which are given in scan order (6.1)."""
    if rule.width == 1:
        places = scan.c_positions(units)
        return places, rule.values(numbers, places)[:, 0]
    scan_positions = (units[:, None] * rule.width + np.arange(rule.width)).reshape(-1)
    inside = scan_positions < n_elements
    return scan.c_positions(scan_positions[inside]), rule.values(numbers, units).reshape(-1)[inside]


def read_partition(body: Fields, head: Head, options: int, scan: Scan, file: NqzFile) -> Partition:
    """Read a partition (7.5)."""
    require(len(head.dims) >= 2, "classes and alive lists need rank 2")
    n_lines, cross = scan.n_lines, scan.cross
    n_classes, n_alive, classes, alive = 1, cross, None, None
    if options & 4:
        n_classes = body.varint()
        require(2 <= n_classes <= 16, "number of classes outside 2..16")
        classes = file.slice(body, CLASSES, n_lines)
    if options & 8:
        n_alive = body.varint()
        require(n_alive <= cross, "more alive places than places")
        alive = file.slice(body, CLASSES, cross)
    counts, blocks = [], []
    for _ in range(n_classes):
        counts.append(body.varint() if classes else n_lines)
        n_places, n_stored = counts[-1] * n_alive, body.varint()
        require(n_stored <= n_places, "n_stored beyond the block")
        require(head.layout != DENSE or n_stored in (0, n_places), "DENSE block that is not whole")
        empty = Block(n_places, 0, None, None)
        blocks.append(read_block(body, head.layout, n_places, n_stored, file) if n_stored else empty)
    require(sum(counts) == n_lines, "classes do not add up to the lines")

    def partition() -> list[tuple[Block, Callable[[Numbers], Numbers]]]:
        file.charge(n_lines + cross)
        places = alive_places(alive, cross, n_alive)
        lines_of_blocks = lines_of_classes(classes, n_lines, counts)
        return [
            (block, joined(lines, places, cross))
            for block, lines in zip(blocks, lines_of_blocks, strict=True)
        ]

    return partition


def joined(lines: Numbers, places: Numbers, cross: int) -> Callable[[Numbers], Numbers]:
    """Return the function from positions in a block to scan positions of the tensor (7.5)."""
    n_places = max(len(places), 1)
    return lambda positions: lines[positions // n_places] * cross + places[positions % n_places]


def lines_of_classes(classes: Slice | None, n_lines: int, counts: list[int]) -> list[Numbers]:
    """Return the lines of each class (7.5)."""
    if classes is None:
        return [np.arange(n_lines)]
    class_of = classes.numbers()
    require(bool((class_of < len(counts)).all()), "class that does not exist")
    found = [np.flatnonzero(class_of == number) for number in range(len(counts))]
    require([len(lines) for lines in found] == counts, "classes do not have the declared lines")
    return found


def alive_places(alive: Slice | None, cross: int, n_alive: int) -> Numbers:
    """Return the alive places (7.5)."""
    if alive is None:
        return np.arange(cross)
    marks = alive.numbers()
    declared = bool((marks <= 1).all()) and int(marks.sum()) == n_alive
    require(declared, "marks are not the declared ones")
    return np.flatnonzero(marks)


def read_view(body: Fields, head: Head, payload: Payload, file: NqzFile) -> Decode:
    """Read layout 5 (7.6)."""
    parts = [(referred(file.tensors, body), body.varint(), body.varint()) for _ in range(body.varint())]
    permutation = list(body.take(body.u8()))
    no_payload(payload)
    require(bool(parts), "view of nothing")
    require(1 <= len(permutation) <= 8, "rank of a permutation")
    require(sorted(permutation) == list(range(len(permutation))), "no permutation of axes")

    def check() -> None:
        cross = parts[0][0].head.dims[1:]
        for tensor, start, rows in parts:
            source = tensor.head
            require(source.layout not in (VIEW, HASHED), "view of a view or of a hashed tensor")
            require(source.element_number == head.element_number, "view of another element type")
            require(len(source.dims) > 0 and source.dims[1:] == cross, "parts of different dims")
            require(start + rows <= source.dims[0], "rows beyond a part")
        require(len(permutation) == 1 + len(cross), "permutation of other axes")
        n_rows = sum(rows for _, _, rows in parts)
        require(n_rows * math.prod(cross) == head.elements, "view of another number of elements")

    def decode() -> Array:
        joined = np.concatenate([file.decode(tensor)[start : start + rows] for tensor, start, rows in parts])
        return joined.transpose(permutation).reshape(-1)

    file.checks.append(check)
    return decode


def mix(x: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Mix 32-bit numbers (7.7)."""
    x = (x ^ x >> np.uint32(16)) * np.uint32(0x85EBCA6B)
    x = (x ^ x >> np.uint32(13)) * np.uint32(0xC2B2AE35)
    return x ^ x >> np.uint32(16)


def hashes(positions: NDArray[np.uint64], seed: int) -> NDArray[np.uint32]:
    """Return h of uint64 positions (7.7)."""
    low, high = positions.astype(np.uint32), (positions >> np.uint64(32)).astype(np.uint32)
    return mix(low ^ mix(high ^ np.uint32(seed)))


def read_hashed(body: Fields, head: Head, payload: Payload, file: NqzFile) -> Decode:
    """Read layout 6 (7.7)."""
    options = body.u8()
    if options > 1:
        raise UnsupportedFeature(f"options {options:#x}")
    require(not options or head.element.is_float, "signs of another type")
    tensor = referred(file.tensors, body)
    seed = int.from_bytes(body.take(4), "little")
    no_payload(payload)

    def check() -> None:
        source = tensor.head
        require(source.layout not in (VIEW, HASHED), "hashed from a view or from a hashed tensor")
        require(source.element_number == head.element_number, "hashed from another element type")
        require(1 <= source.elements < 1 << 32, "hashed from too few or too many elements")

    def decode() -> Array:
        source, element = file.decode(tensor).reshape(-1), head.element
        h = hashes(np.arange(head.elements, dtype=np.uint64), seed)
        buckets = h.astype(np.uint64) * np.uint64(source.size) >> np.uint64(32)
        bits = source.view(element.unsigned)[buckets.astype(np.int64)]
        if options:
            bits = bits ^ (h & np.uint32(1)).astype(element.unsigned) << element.unsigned.type(
                8 * element.n_bytes - 1
            )
        return element.of_bits(bits)

    file.checks.append(check)
    return decode


LAYOUTS = {
    RAW: read_raw,
    CONSTANT: read_constant,
    DENSE: read_coded,
    SPARSE: read_coded,
    MASKED: read_coded,
    VIEW: read_view,
    HASHED: read_hashed,
    RAW_SPARSE: read_raw_sparse,
}


class Tensor(NamedTuple):
    """A TENSOR record (7): its common fields, and the function that decodes it to a flat array."""

    head: Head
    decode: Decode | UnsupportedFeature
