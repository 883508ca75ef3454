"""Writes files by hand, from streams of numbers and fields, for the conformance files (spec/nqz.md)."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from reference_codes import frequencies, tans_states
from reference_deflate import PRESET_DICTIONARY

METADATA, GRAPH, TABLE, CODEBOOK, STREAM, TENSOR, PADDING = 1, 2, 3, 4, 5, 6, 15
STORED, HUFFMAN, TANS = 0, 1, 2
VALUES, GAPS, MASK, PLANE, CLASSES = 1, 2, 3, 4, 5
RAW, CONSTANT, DENSE, SPARSE, MASKED, VIEW, HASHED, RAW_SPARSE = range(8)


class Described(NamedTuple):
    """A conformance file: what it tests, sections of nqz.md, and the function that makes it."""

    tests: str
    section: str
    make: Callable[[], bytes]


# Numbers and bits -------------------------------------------------------------------------------------------


def varint(number: int) -> bytes:
    """Return an unsigned number (3.2)."""
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def varints(*numbers: int) -> bytes:
    """Return several unsigned numbers."""
    return b"".join(map(varint, numbers))


def signed(number: int) -> bytes:
    """Return a signed number (3.2)."""
    return varint(2 * number if number >= 0 else -2 * number - 1)


def f32(*numbers: float) -> bytes:
    """Return binary32 numbers."""
    return np.array(numbers, "<f4").tobytes()


def number_bits(number: int, n_bits: int) -> str:
    """Return n bits of a number, lowest first."""
    return format(number, f"0{n_bits}b")[::-1] if n_bits else ""


def exp_golomb(x: int, order: int) -> str:
    """Return the bits of an Exp-Golomb code (3.3)."""
    y = x + (1 << order)
    n_bits = y.bit_length() - 1
    return "0" * (n_bits - order) + "1" + number_bits(y - (1 << n_bits), n_bits)


def bit_string(bits: str) -> bytes:
    """Pack bits, the first into bit 0 of the first byte (3.3)."""
    return bytes(int(bits[i : i + 8][::-1], 2) for i in range(0, len(bits), 8))


# Codes ------------------------------------------------------------------------------------------------------


def prefix_table(lengths: Sequence[int]) -> bytes:
    """Return the body of a TABLE record of kind 0 (5.2)."""
    items, previous, symbol = "", 4, 0
    while symbol < len(lengths):
        run = next(i for i, length in enumerate(lengths[symbol:]) if length)
        if run >= 3:
            items += "11111" + exp_golomb(run - 3, 0)
        else:
            items += "1100" * run
        symbol += run
        length = lengths[symbol]
        step = {0: "0", 1: "100", -1: "101", 2: "1101", -2: "1110"}.get(length - previous)
        items += step or "11110" + number_bits(length, 4)
        previous = length
        symbol += 1
    return b"\0" + varint(len(lengths)) + bit_string(items)


def codewords(lengths: Sequence[int]) -> dict[int, str]:
    """Assign codewords (5.1)."""
    words, codeword, previous = {}, 0, 0
    for length, symbol in sorted((length, symbol) for symbol, length in enumerate(lengths) if length):
        codeword <<= length - previous
        words[symbol] = format(codeword, f"0{length}b")
        codeword, previous = codeword + 1, length
    return words


def even_lengths(symbols: Sequence[int]) -> list[int]:
    """Return a complete code of the symbols, which all get about the same length."""
    used = sorted(set(symbols))
    short = len(used).bit_length() - 1
    n_short = 2 ** (short + 1) - len(used)
    lengths = [0] * (used[-1] + 1)
    for i, symbol in enumerate(used):
        lengths[symbol] = short + (i >= n_short)
    return lengths


def tans_table(table_log2: int, weights: dict[int, int]) -> bytes:
    """Return the body of a TABLE record of kind 2 with resolution 0 and order 0 (5.3)."""
    items, symbol, previous = "", 0, 0
    for used, weight in sorted(weights.items()):
        if used > symbol:
            items += exp_golomb(0, 0) + exp_golomb(used - symbol - 1, 0)
        d = weight - previous
        items += exp_golomb(2 * d + 1 if d >= 0 else -2 * d, 0)
        symbol, previous = used + 1, weight
    return bytes([2, table_log2 - 5]) + varint(symbol) + bit_string(items)


def tans_bits(symbols: Sequence[int], table_log2: int, weights: dict[int, int]) -> str:
    """Encode a sub-stream (5.3): from each lane's last symbol back to its first state."""
    states = tans_states(frequencies(weights, 0, 2**table_log2), table_log2)
    reads = [""] * len(symbols)
    firsts = []
    for lane in range(min(2, len(symbols))):
        at = len(symbols) - 1 - (len(symbols) - 1 - lane) % 2
        state = next(s for s, (symbol, _, _) in enumerate(states) if symbol == symbols[at])
        for i in range(at - 2, -1, -2):
            state, reads[i] = previous_state(states, symbols[i], state)
        firsts.append(number_bits(state, table_log2))
    return "".join(firsts) + "".join(reads)


def previous_state(states: list[tuple[int, int, int]], symbol: int, state: int) -> tuple[int, str]:
    """Return the state of a symbol that leads to a state, and the bits it reads."""
    for s, (owner, n_bits, base) in enumerate(states):
        if owner == symbol and base <= state < base + 2**n_bits:
            return s, number_bits(state - base, n_bits)
    raise ValueError("no state leads there")


def coder(codec: int, symbols: Sequence[int]) -> tuple[bytes, Callable[[Sequence[int]], bytes]]:
    """Return the body of a TABLE record for symbols, and the function that encodes a sub-stream of them."""
    if codec == STORED:
        return b"", bytes
    if codec == TANS:
        weights = {symbol: i % 3 for i, symbol in enumerate(sorted({*symbols, 1, 2}))}
        table_log2 = max(6, len(weights).bit_length() + 1)
        return tans_table(table_log2, weights), lambda part: bit_string(tans_bits(part, table_log2, weights))
    if len(set(symbols)) == 1:
        return bytes([1, symbols[0]]), lambda part: b""
    lengths = even_lengths(symbols)
    words = codewords(lengths)
    return prefix_table(lengths), lambda part: bit_string("".join(words[symbol] for symbol in part))


# Mappings ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Mapping:
    """Number and parameters of a mapping (4.2, 4.3, 4.6), numbers of a symbol, and both of one number."""

    number: int
    parameters: bytes
    group: int
    width: int
    digit: Callable[[int], tuple[int, str]]

    def symbols(self, numbers: Sequence[int]) -> tuple[list[int], str]:
        """Return the symbols and extra bits of a part."""
        pairs = [self.digit(number) for number in numbers]
        digits = [digit for digit, _ in pairs]
        out = [
            sum(digit * self.width**place for place, digit in enumerate(digits[i : i + self.group]))
            for i in range(0, len(digits), self.group)
        ]
        return out, "".join(bits for _, bits in pairs)


def groups(group: int = 1, width: int = 256) -> Mapping:
    """Return mapping 0."""
    return Mapping(0, bytes([group, width - 1]), group, width, lambda number: (number, ""))


def hybrid(split_log2: int, m: int) -> Mapping:
    """Return mapping 1."""

    def digit(x: int) -> tuple[int, str]:
        if x < 1 << split_log2:
            return x, ""
        e = x.bit_length() - 1
        symbol = (1 << split_log2) + ((e - split_log2) << m) + (x >> (e - m)) % (1 << m)
        return symbol, number_bits(x % (1 << (e - m)), e - m)

    return Mapping(1, bytes([split_log2 | m << 4]), 1, 256, digit)


def escaped(group: int, window: int, escape_bits: int) -> Mapping:
    """Return mapping 2."""

    def digit(x: int) -> tuple[int, str]:
        return (x, "") if x < window else (window, number_bits(x - window, escape_bits))

    return Mapping(2, bytes([group, window, escape_bits]), group, window + 1, digit)


# Files ------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Record:
    """A record (3.5)."""

    tag: int
    body: bytes
    payload: bytes = b""


def record(kind: int, body: bytes, payload: bytes = b"") -> Record:
    """Return a record with the critical bit of its kind; without a payload field if that is empty."""
    critical = kind not in (METADATA, PADDING)
    return Record(kind << 3 | 2 * bool(payload) | critical, body, payload)


def tensor_body(layout: int, element: int, name: str, dims: Sequence[int], previous: str = "") -> bytes:
    """Return the common fields of a tensor (7.1)."""
    own, before = name.encode(), previous.encode()
    unlike = (i for i, (a, b) in enumerate(zip(own, before, strict=False)) if a != b)
    shared = next(unlike, min(len(own), len(before)))
    head = bytes([layout | len(dims) << 4, element]) + varints(shared, len(own) - shared)
    return head + own[shared:] + varints(*dims)


def deflated(plain: bytes) -> bytes:
    """Return a deflate stream (3.7)."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15, zdict=PRESET_DICTIONARY)
    return packer.compress(plain) + packer.flush()


def assembled(
    records: Sequence[Record], *, deflate: bool = False, page_log2: int = 20, minor: int = 0
) -> bytes:
    """Write records as a file with right checksums, whatever the records say."""
    plain = b""
    for each in records:
        plain += varints(each.tag, len(each.body))
        plain += (varint(len(each.payload)) if each.tag & 2 else b"") + each.body
    stored = varint(len(plain)) + deflated(plain) if deflate else plain
    n_pages = 0
    while True:  # the page checksums stand before the body and so move aligned payloads
        body = aligned_body(records, 32 + 4 * n_pages + len(stored))
        if n_pages == -(-len(body) // (1 << page_log2)):
            break
        n_pages += 1
    return sealed(stored, body, page_log2 - 12 << 4 | deflate, minor)


def aligned_body(records: Sequence[Record], start: int) -> bytes:
    """Return all payloads, aligned ones at multiples of 64 from the start of the file (3.5)."""
    body = b""
    for each in records:
        if each.tag & 4 and each.tag & 2:
            body += bytes(-(start + len(body)) % 64)
        body += each.payload
    return body


def sealed(stored_directory: bytes, body: bytes, flags: int, minor: int = 0) -> bytes:
    """Put header and page checksums before a stored directory and the body (2)."""
    page_bytes = 1 << 12 + (flags >> 4)
    pages = [zlib.crc32(body[i : i + page_bytes]) for i in range(0, len(body), page_bytes)]
    area = b"".join(page.to_bytes(4, "little") for page in pages) + stored_directory
    head = bytes.fromhex("894e515a0d0a1a0a") + bytes([1, minor, flags, 0]) + len(area).to_bytes(4, "little")
    head += (32 + len(area) + len(body)).to_bytes(8, "little") + zlib.crc32(area).to_bytes(4, "little")
    return with_header_crc(head) + area + body


def with_header_crc(head: bytes) -> bytes:
    """Append header_crc32 to the first 28 bytes of a header."""
    return head + zlib.crc32(head).to_bytes(4, "little")


@dataclass(slots=True)
class Builder:
    """Collects records; tables, codebooks, streams and tensors are numbered as they come."""

    records: list[Record] = field(default_factory=list)
    numbers: dict[int, int] = field(default_factory=dict)
    last_name: str = ""

    def add(self, kind: int, body: bytes, payload: bytes = b"") -> int:
        """Append a record; return its number among those of its kind."""
        self.records.append(record(kind, body, payload))
        self.numbers[kind] = self.numbers.get(kind, -1) + 1
        return self.numbers[kind]

    def stream(
        self, kind: int, slices: Sequence[Sequence[int]], codec: int = STORED, mapping: Mapping | None = None
    ) -> int:
        """Append a stream of slices that fit into one chunk of at most 4,095 symbols."""
        mapping = mapping or groups()
        parts = [mapping.symbols(numbers) for numbers in slices]
        symbols = [symbol for part, _ in parts for symbol in part]
        table, encode = coder(codec, symbols or [0])
        coded, extra = encode(symbols), bit_string("".join(bits for _, bits in parts))
        index = varint(len(coded)) + (varint(len(extra)) if mapping.number else b"")
        fields = bytes([kind, codec | mapping.number << 4]) + mapping.parameters + b"\0"
        fields += varint(self.add(TABLE, table)) if codec else b""
        return self.add(STREAM, fields, index + coded + extra if symbols else b"")

    def codebook(self, values: Sequence[float], element: int = 12, groups_of: int = 1, width: int = 1) -> int:
        """Append a plain codebook of float32 or float16 numbers."""
        entries = len(values) // (groups_of * width)
        payload = np.array(values, "<f4" if element == 12 else "<f2").tobytes()
        return self.add(CODEBOOK, bytes([element]) + varints(groups_of, entries, width), payload)

    def tensor(  # noqa: PLR0917
        self, layout: int, element: int, name: str, dims: Sequence[int], fields: bytes, payload: bytes = b""
    ) -> int:
        """Append a tensor."""
        body = tensor_body(layout, element, name, dims, self.last_name)
        self.last_name = name
        return self.add(TENSOR, body + fields, payload)

    def file(self, *, deflate: bool = False, page_log2: int = 20) -> bytes:
        """Write the file; records in ascending order of kind."""
        ordered = sorted(self.records, key=lambda each: each.tag >> 3)
        return assembled(ordered, deflate=deflate, page_log2=page_log2)
