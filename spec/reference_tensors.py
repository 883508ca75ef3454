"""Second part of the reference reader: streams, values and tensors (nqz.md 3.1, 4, 6, 7)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from reference_codes import (
    Bits,
    Fields,
    Mapping,
    Table,
    UnsupportedFeature,
    known,
    limit,
    referred,
    require,
    supported,
    unzigzag,
)

if TYPE_CHECKING:
    from reference_reader import NqzFile, Payload

try:
    import ml_dtypes

    BFLOAT16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
except ImportError:
    BFLOAT16 = np.dtype("<u2")

Array = NDArray[Any]
Decode = Callable[[], Array]

# Element types (3.1, 6.3) -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Element:
    """An element type (3.1)."""

    name: str
    dtype: np.dtype[Any]

    @property
    def n_bytes(self) -> int:
        """Bytes of an element."""
        return self.dtype.itemsize

    @property
    def unsigned(self) -> np.dtype[Any]:
        """Unsigned integers of the same width."""
        return np.dtype(f"<u{self.n_bytes}")

    @property
    def is_float(self) -> bool:
        """Whether it is a floating-point type."""
        return "float" in self.name

    def of_bits(self, bits: Array) -> Array:
        """View unsigned integers as elements; a bool is 0 or 1 (3.1)."""
        require(self.name != "bool" or bool((bits <= 1).all()), "stored bool other than 0 and 1")
        return np.ascontiguousarray(bits, self.unsigned).view(self.dtype)

    def rounded(self, values: NDArray[np.float32]) -> Array:
        """Convert float32 values once, to nearest, ties to even (6.3)."""
        if self.name == "bfloat16":
            wide = values.view("<u4").astype("<u8")
            return self.of_bits((wide + 0x7FFF + (wide >> 16) % 2) >> 16)
        with np.errstate(over="ignore"):
            return values.astype(self.dtype)

    def widened(self, bits: Array) -> NDArray[np.float32]:
        """Widen bit patterns to float32 exactly (6.1)."""
        if self.name == "bfloat16":
            return (bits.astype("<u4") << 16).view("<f4")
        return bits.view(self.dtype).astype("<f4")


ELEMENTS = {
    1: Element("bool", np.dtype("?")),
    2: Element("uint8", np.dtype("<u1")),
    3: Element("int8", np.dtype("<i1")),
    4: Element("uint16", np.dtype("<u2")),
    5: Element("int16", np.dtype("<i2")),
    6: Element("uint32", np.dtype("<u4")),
    7: Element("int32", np.dtype("<i4")),
    8: Element("uint64", np.dtype("<u8")),
    9: Element("int64", np.dtype("<i8")),
    10: Element("float16", np.dtype("<f2")),
    11: Element("bfloat16", BFLOAT16),
    12: Element("float32", np.dtype("<f4")),
    13: Element("float64", np.dtype("<f8")),
}


# Streams (4) ------------------------------------------------------------------------------------------------

VALUES, GAPS, MASK, PLANE, CLASSES = 1, 2, 3, 4, 5


class Coding(NamedTuple):
    """The fields of a STREAM record (4.1)."""

    kind: int
    mapping: Mapping
    chunk_numbers: int
    four_allowed: bool
    table: Table | UnsupportedFeature | None


class Part(NamedTuple):
    """The piece of a slice in a chunk (4.4): number of the slice, start in the slice, and length."""

    slice_number: int
    start: int
    n_numbers: int


class Chunk(NamedTuple):
    """A chunk (4.5): its parts, sub-streams and extra bits, and the scan position before its first gap."""

    parts: list[Part]
    sub_streams: list[bytes]
    extra: bytes
    start: int


class Stream:
    """A stream (4). Slices are added while TENSOR records are read; then it is decoded chunk by chunk."""

    def __init__(self, coding: Coding | UnsupportedFeature, payload: Payload) -> None:
        self.coding = coding
        self.payload = payload
        self.slice_lengths: list[int] = []
        self.chunks: list[Chunk] = []
        self.chunks_of: dict[int, list[int]] = {}
        self.decoded: dict[int, dict[int, list[int]]] = {}

    def parts(self, slice_number: int) -> Iterator[tuple[int, list[int]]]:
        """Yield for each part of a slice the declared position before its first gap, and its numbers."""
        coding = supported(self.coding)
        supported(coding.table)
        if self.slice_lengths[slice_number] == 0:
            return
        if not self.chunks:
            self.read_index(coding)
        for number in self.chunks_of[slice_number]:
            if number not in self.decoded:
                self.decoded[number] = decode_chunk(coding, self.chunks[number])
            yield self.chunks[number].start, self.decoded[number][slice_number]

    def read_index(self, coding: Coding) -> None:
        """Cut the payload into chunks and note which of them hold a slice."""
        data = self.payload.read()
        self.chunks = read_chunks(
            coding, data, chunk_grid(self.slice_lengths, coding.chunk_numbers, len(data))
        )
        for number, chunk in enumerate(self.chunks):
            for part in chunk.parts:
                self.chunks_of.setdefault(part.slice_number, []).append(number)


def chunk_grid(slice_lengths: list[int], capacity: int, payload_bytes: int) -> list[list[Part]]:
    """Lay out slices in chunks (4.4), at most as many as the payload has bytes (9)."""
    chunks: list[list[Part]] = []
    room = 0
    for number, length in enumerate(slice_lengths):
        if 0 < length <= room:
            chunks[-1].append(Part(number, 0, length))
            room -= length
        elif length:
            require(len(chunks) + -(-length // capacity) <= payload_bytes, "more chunks than payload bytes")
            for start in range(0, length, capacity):
                chunks.append([Part(number, start, min(capacity, length - start))])
            room = capacity - chunks[-1][0].n_numbers
    return chunks


def read_chunks(coding: Coding, payload: bytes, grid: list[list[Part]]) -> list[Chunk]:
    """Read the chunk index and cut the payload into chunks (4.5)."""
    index = Fields(payload)
    entries: list[tuple[list[Part], list[int], int]] = []
    start = 0
    for parts in grid:
        sizes = [index.varint()]
        if coding.four_allowed and coding.table is not None and n_symbols(coding, parts) >= 4096:
            first = [sizes[0] // 4 + index.signed() for _ in range(3)]
            sizes = [*first, sizes[0] - sum(first)]
            require(min(sizes) >= 0, "sub-stream of negative length")
        sizes.append(index.varint() if coding.mapping.has_extra_bits else 0)
        start = start + index.varint() if coding.kind == GAPS and parts[0].start > 0 else 0
        entries.append((parts, sizes, start))
    require(sum(sum(sizes) for _, sizes, _ in entries) == len(index.left), "chunks do not fill the payload")
    chunks = []
    for parts, sizes, start in entries:
        pieces = [index.take(size) for size in sizes]
        chunks.append(Chunk(parts, pieces[:-1], pieces[-1], start))
    return chunks


def n_symbols(coding: Coding, parts: list[Part]) -> int:
    """Symbols of a chunk: groups end with their part (4.2)."""
    return sum(coding.mapping.n_symbols(part.n_numbers) for part in parts)


def decode_chunk(coding: Coding, chunk: Chunk) -> dict[int, list[int]]:
    """Return the numbers of each part of a chunk, by slice number."""
    symbols = decode_symbols(coding, chunk)
    extra = Bits(chunk.extra)
    numbers = {}
    at = 0
    for part in chunk.parts:
        count = coding.mapping.n_symbols(part.n_numbers)
        numbers[part.slice_number] = coding.mapping.numbers(symbols[at : at + count], part.n_numbers, extra)
        at += count
    extra.end()
    return numbers


def decode_symbols(coding: Coding, chunk: Chunk) -> list[int]:
    """Decode the sub-streams of a chunk (4.5)."""
    count = n_symbols(coding, chunk.parts)
    table = supported(coding.table)
    if table is None:
        require(len(chunk.sub_streams[0]) == count, "STORED chunk of another length")
        return list(chunk.sub_streams[0])
    q = -(-count // len(chunk.sub_streams))
    symbols: list[int] = []
    for i, data in enumerate(chunk.sub_streams):
        bits = Bits(data)
        symbols += table.symbols(bits, min((i + 1) * q, count) - i * q)
        bits.end()
    return symbols


@dataclass(slots=True)
class Slice:
    """The numbers of a stream that belong to one tensor; it joins the stream when its record is read."""

    stream: Stream
    kind: int
    count: int
    number: int = -1

    def join(self) -> None:
        """Become the next slice of the stream, which must be of the right kind (4.1)."""
        coding = self.stream.coding
        require(isinstance(coding, UnsupportedFeature) or coding.kind == self.kind, "stream of another kind")
        self.number = len(self.stream.slice_lengths)
        self.stream.slice_lengths.append(self.count)

    def numbers(self) -> list[int]:
        """Return all numbers."""
        return [number for _, numbers in self.stream.parts(self.number) for number in numbers]

    def bytes(self) -> NDArray[np.uint8]:
        """Return the numbers of a MASK or PLANE stream, which are bytes."""
        numbers = self.numbers()
        require(max(numbers, default=0) < 256, "byte beyond 255")
        return np.array(numbers, np.uint8)

    def positions(self, n_places: int) -> list[int]:
        """Return scan positions from gaps (7.4) and check the starts of chunks (4.5)."""
        out: list[int] = []
        position = 0
        for start, gaps in self.stream.parts(self.number):
            require(not out or position == start, "start_delta does not agree with the gaps")
            for gap in gaps:
                position += gap
                require(position < n_places, "position beyond the elements")
                out.append(position)
                position += 1
        return out


# Values (6) -------------------------------------------------------------------------------------------------


def plain_entries(data: bytes, element: Element, entries: int) -> Array:
    """Return the bit patterns of codebook coding 0 (6.1)."""
    return np.frombuffer(data, element.unsigned)


def ascending_entries(data: bytes, element: Element, entries: int) -> Array:
    """Return the bit patterns of codebook coding 1 (6.1)."""
    width = 8 * element.n_bytes
    sign = 2 ** (width - 1)
    bits = Bits(data)
    order, key = bits.number(5), bits.number(width)
    keys = [key]
    for _ in range(entries - 1):
        key += 1 + bits.exp_golomb(order)
        require(key < 2**width, "key beyond its width")
        keys.append(key)
    bits.end()
    return np.array([key - sign if key >= sign else 2 * sign - 1 - key for key in keys], element.unsigned)


CODEBOOK_CODINGS = {0: plain_entries, 1: ascending_entries}


def read_codebook(body: Fields, payload: Payload) -> Decode:
    """Read a CODEBOOK record (6.1); entries are decoded to float32."""
    head, groups, entries, width = body.u8(), body.varint(), body.varint(), body.varint()
    if groups != 1 or width != 1:
        raise UnsupportedFeature(f"codebook of {groups} groups and width {width}")
    decode = known(CODEBOOK_CODINGS, head >> 4, "codebook coding")
    element = known(ELEMENTS, head % 16, "element type")
    require(element.is_float and element.n_bytes <= 4, "codebook entries of another type")
    require(entries >= 1, "codebook without entries")
    limit(entries, 4096 if head >> 4 == 1 else 1 << 20, "codebook entries")
    require(
        head >> 4 != 0 or payload.n_bytes == entries * element.n_bytes, "codebook payload of another length"
    )

    def values() -> NDArray[np.float32]:
        found = element.widened(decode(payload.read(), element, entries))
        require(bool(np.isfinite(found).all()), "codebook entry is not finite")
        return found

    return values


def read_codebook_rule(body: Fields, head: Head, file: NqzFile) -> Callable[[list[int]], Array]:
    """Read a value rule that names a codebook (7.4) and return the function from numbers to values."""
    book = referred(file.codebooks, body)
    require(head.element.is_float, "codebook values of another type")

    def values(numbers: list[int]) -> Array:
        entries = supported(book)()
        require(max(numbers, default=0) < len(entries), "index beyond the codebook")
        return head.element.rounded(entries[np.array(numbers, np.int64)])

    return values


def read_affine_rule(body: Fields, head: Head) -> Callable[[list[int]], Array]:
    """Read the fields of affine values (6.2) and return the function from numbers to values."""
    element = head.element
    step, offset, order = body.f32(), body.f32(), body.u8()
    require(math.isfinite(step) and math.isfinite(offset), "step or offset is not finite")
    integers = not element.is_float
    require(
        not integers or (element.name != "bool" and step == 1 and offset == 0), "affine values of this type"
    )
    if order > 1:
        raise UnsupportedFeature(f"order {order} of affine values")
    k_min = body.signed() if order == 0 else 0
    require(abs(k_min) < 1 << 24, "k_min out of range")

    def values(numbers: list[int]) -> Array:
        if order == 0:
            ks = [k_min + number for number in numbers]
        else:
            ks = [unzigzag(number + (head.layout != DENSE)) for number in numbers]
        require(all(abs(k) < 1 << 24 for k in ks), "k out of range")
        if integers:
            range_of = np.iinfo(element.dtype)
            require(all(range_of.min <= k <= range_of.max for k in ks), "k out of the range of its type")
            return np.array(ks, element.dtype)
        with np.errstate(over="ignore"):
            return element.rounded((np.float64(step) * np.array(ks, np.float64) + offset).astype("<f4"))

    return values


# Tensors (7) ------------------------------------------------------------------------------------------------

DENSE, SPARSE, MASKED, VIEW = 2, 3, 4, 5


@dataclass(frozen=True, slots=True)
class Head:
    """The common fields of a TENSOR record (7.1)."""

    layout: int
    element_number: int
    name: str
    dims: tuple[int, ...]

    @property
    def element(self) -> Element:
        """Element type."""
        return known(ELEMENTS, self.element_number, "element type")

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.dims)


def read_raw(body: Fields, head: Head, payload: Payload, file: NqzFile) -> Decode:
    """Read layout 0 (7.2)."""
    element, mask = head.element, body.u8()
    require(mask < 2**element.n_bytes, "plane beyond the element")
    planes = {i: file.slice(body, PLANE, head.elements) for i in range(8) if mask >> i & 1}
    plain_bytes = (element.n_bytes - len(planes)) * head.elements
    require(payload.n_bytes == plain_bytes, "RAW payload of another length")

    def decode() -> Array:
        if not planes:
            return element.of_bits(np.frombuffer(payload.read(), element.unsigned))
        plain = Fields(payload.read())
        columns = np.empty((head.elements, element.n_bytes), np.uint8)
        for i in range(element.n_bytes):
            columns[:, i] = (
                planes[i].bytes() if i in planes else np.frombuffer(plain.take(head.elements), np.uint8)
            )
        bits = columns.view(element.unsigned).reshape(-1)
        if element.is_float:
            one, top = element.unsigned.type(1), element.unsigned.type(8 * element.n_bytes - 1)
            bits = bits >> one | bits << top
        return element.of_bits(bits)

    return decode


def read_constant(body: Fields, head: Head, payload: Payload, file: NqzFile) -> Decode:
    """Read layout 1 (7.3)."""
    require(head.elements > 0, "CONSTANT tensor without elements")
    value = head.element.of_bits(np.frombuffer(body.take(head.element.n_bytes), head.element.unsigned))
    return lambda: np.repeat(value, head.elements)


class Block(NamedTuple):
    """Elements that are coded together (7.4, 7.5): places, places with a number, and slices if any."""

    n_places: int
    n_stored: int
    values: Slice | None
    positions: Slice | None

    def stored(self, layout: int) -> list[int]:
        """Return the scan positions of elements with a number."""
        if self.positions is None:
            return list(range(self.n_stored))
        if layout == SPARSE:
            return self.positions.positions(self.n_places)
        bits = np.unpackbits(self.positions.bytes(), bitorder="little")
        require(not bits[self.n_places :].any(), "mask has bits beyond the last element")
        require(int(bits.sum()) == self.n_stored, "mask does not have n_stored bits")
        return [int(position) for position in np.flatnonzero(bits)]


def read_block(body: Fields, layout: int, n_places: int, n_stored: int, file: NqzFile) -> Block:
    """Take the slices of a tensor or of a block (7.4, 7.5)."""
    values = file.slice(body, VALUES, n_stored)
    if layout == DENSE:
        return Block(n_places, n_stored, values, None)
    kind, count = (GAPS, n_stored) if layout == SPARSE else (MASK, -(-n_places // 8))
    return Block(n_places, n_stored, values, file.slice(body, kind, count))


def read_coded(body: Fields, head: Head, payload: Payload, file: NqzFile) -> Decode:
    """Read layouts 2 to 4 (7.4)."""
    options = body.u8()
    if options > 15:
        raise UnsupportedFeature(f"options {options:#x}")
    require(not options & 2 or len(head.dims) >= 2, "column scan needs rank 2")
    values_of = read_affine_rule(body, head) if options & 1 else read_codebook_rule(body, head, file)
    rows, columns = (head.dims[0], math.prod(head.dims[1:])) if head.dims else (1, 1)
    n_lines, cross = (columns, rows) if options & 2 else (rows, columns)
    if options & 12:
        blocks, lines_of_blocks, alive_places = read_partition(body, head, options, (n_lines, cross), file)
    else:
        n_stored = head.elements if head.layout == DENSE else body.varint()
        require(n_stored <= head.elements, "n_stored beyond the elements")
        blocks = [read_block(body, head.layout, head.elements, n_stored, file)]
        lines_of_blocks, alive_places = lambda: [range(n_lines)], lambda: range(cross)

    def decode() -> Array:
        out = np.zeros(head.elements, head.element.dtype)
        values_of([])  # a tensor needs its codebook even if it has no numbers
        file.charge(n_lines + cross if options & 12 else 0)
        alive = alive_places()
        for block, lines in zip(blocks, lines_of_blocks(), strict=True):
            if block.values is None:
                continue
            values = values_of(block.values.numbers())
            for position, value in zip(block.stored(head.layout), values, strict=True):
                line, place = lines[position // len(alive)], alive[position % len(alive)]
                out[place * columns + line if options & 2 else line * columns + place] = value
        return out

    return decode


Numbered = range | list[int]


def read_partition(
    body: Fields, head: Head, options: int, shape: tuple[int, int], file: NqzFile
) -> tuple[list[Block], Callable[[], list[Numbered]], Callable[[], Numbered]]:
    """Read a partition (7.5): blocks, and functions that decode the lines of each and the alive places."""
    require(len(head.dims) >= 2, "classes and alive lists need rank 2")
    n_lines, cross = shape
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

    def lines_of_blocks() -> list[Numbered]:
        if classes is None:
            return [range(n_lines)]
        class_of = classes.numbers()
        require(max(class_of, default=0) < n_classes, "class that does not exist")
        found = [[line for line in range(n_lines) if class_of[line] == c] for c in range(n_classes)]
        require([len(lines) for lines in found] == counts, "classes do not have the declared lines")
        return list(found)

    def alive_places() -> Numbered:
        if alive is None:
            return range(cross)
        marks = alive.numbers()
        require(max(marks, default=0) <= 1 and sum(marks) == n_alive, "marks are not the declared ones")
        return [place for place in range(cross) if marks[place]]

    return blocks, lines_of_blocks, alive_places


def read_view(body: Fields, head: Head, payload: Payload, file: NqzFile) -> Decode:
    """Read layout 5 (7.6)."""
    parts = [(referred(file.tensors, body), body.varint(), body.varint()) for _ in range(body.varint())]
    permutation = list(body.take(body.u8()))
    require(bool(parts), "view of nothing")
    require(sorted(permutation) == list(range(len(permutation))), "no permutation of axes")

    def check() -> None:
        cross = parts[0][0].head.dims[1:]
        for tensor, start, rows in parts:
            source = tensor.head
            require(source.layout != VIEW, "view of a view")
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


LAYOUTS = {
    0: read_raw,
    1: read_constant,
    DENSE: read_coded,
    SPARSE: read_coded,
    MASKED: read_coded,
    VIEW: read_view,
}


class Tensor(NamedTuple):
    """A TENSOR record (7): its common fields, and the function that decodes it to a flat array."""

    head: Head
    decode: Decode | UnsupportedFeature
