"""Streams of the reference reader: slices, chunks and sub-streams (nqz.md 4)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from reference_codes import Bits, Fields, Mapping, Table, UnsupportedFeature, require, supported

if TYPE_CHECKING:
    from reference_reader import Payload

Numbers = NDArray[np.int64]
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

    def numbers(self) -> Numbers:
        """Return all numbers."""
        return np.array(
            [number for _, numbers in self.stream.parts(self.number) for number in numbers], np.int64
        )

    def bytes(self) -> NDArray[np.uint8]:
        """Return the numbers of a MASK or PLANE stream, which are bytes."""
        numbers = self.numbers()
        require(bool((numbers < 256).all()), "byte beyond 255")
        return numbers.astype(np.uint8)

    def positions(self, n_places: int) -> Numbers:
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
        return np.array(out, np.int64)
