"""First part of the reference reader: errors, limits, bytes, bits, tables, mappings (nqz.md 1, 3 to 5, 9)."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple, TypeVar

Item = TypeVar("Item")

# Errors (1) and limits (9) ----------------------------------------------------------------------------------


class NqzError(ValueError):
    """Base of the error classes (1)."""


class BadMagic(NqzError):
    """Not a .nqz file."""


class Truncated(NqzError):
    """The file or a structure in it ends early."""


class Corrupt(NqzError):
    """A checksum differs, a code is invalid, or numbers contradict each other."""


class LimitExceeded(NqzError):
    """More is asked for than the limits allow."""


class UnsupportedVersion(NqzError):
    """The version is newer than the reader."""


class UnsupportedFeature(NqzError):
    """A critical item is unknown to the reader."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a caller may change (9)."""

    array_bytes: int = min(64 << 30, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2)
    directory_bytes: int = 16 << 20
    graph_bytes: int = 256 << 20
    metadata_bytes: int = 16 << 20
    tensors: int = 1 << 20


def require(condition: bool, message: str) -> None:
    """Raise Corrupt unless the condition holds."""
    if not condition:
        raise Corrupt(message)


def limit(count: int, most: int, what: str) -> None:
    """Raise LimitExceeded if there is more than allowed (9)."""
    if count > most:
        raise LimitExceeded(f"{what}: {count}, limit {most}")


def known(items: dict[int, Item], number: int, what: str) -> Item:
    """Return the item with a number, or raise UnsupportedFeature."""
    if number not in items:
        raise UnsupportedFeature(f"{what} {number}")
    return items[number]


def if_supported(read: Callable[[], Item]) -> Item | UnsupportedFeature:
    """Read an item; an unknown critical part of it concerns only what needs the item (1)."""
    try:
        return read()
    except UnsupportedFeature as error:
        return error


def supported(item: Item | UnsupportedFeature) -> Item:
    """Return an item that was read by if_supported and is needed now."""
    if isinstance(item, UnsupportedFeature):
        raise item
    return item


# Bytes (3.2) and bits (3.3) ---------------------------------------------------------------------------------


class Fields:
    """Reads a structure field by field."""

    def __init__(self, data: bytes) -> None:
        self.left = memoryview(data)

    def take(self, count: int) -> bytes:
        """Return the next bytes."""
        if count > len(self.left):
            raise Truncated(f"{count} bytes wanted, {len(self.left)} left")
        taken, self.left = self.left[:count], self.left[count:]
        return bytes(taken)

    def u8(self) -> int:
        """Return the next byte."""
        return self.take(1)[0]

    def f32(self) -> float:
        """Return the next binary32 number."""
        return float(struct.unpack("<f", self.take(4))[0])

    def varint(self) -> int:
        """Return an unsigned number (3.2)."""
        value = 0
        for place in range(9):
            byte = self.u8()
            value |= (byte & 0x7F) << (7 * place)
            if byte < 0x80:
                require(byte != 0 or place == 0, "varint is not minimal")
                return value
        raise Corrupt("varint has more than nine bytes")

    def signed(self) -> int:
        """Return a signed number (3.2)."""
        return unzigzag(self.varint())


def referred(items: list[Item], body: Fields) -> Item:
    """Read the number of an item that stands before (3.5)."""
    number = body.varint()
    require(number < len(items), "reference to an item that does not stand before")
    return items[number]


def unzigzag(number: int) -> int:
    """Map 0, 1, 2, 3, 4, ... to 0, -1, 1, -2, 2, ... (3.2)."""
    return -(number + 1) // 2 if number % 2 else number // 2


class Bits:
    """Reads a bit string, lowest bit of the first byte first, held as text of 0 and 1 (3.3)."""

    def __init__(self, data: bytes | memoryview) -> None:
        self.text = "".join(format(byte, "08b")[::-1] for byte in data)
        self.at = 0

    def take(self, n_bits: int) -> str:
        """Return the next bits."""
        require(self.at + n_bits <= len(self.text), "bit string ends early")
        self.at += n_bits
        return self.text[self.at - n_bits : self.at]

    def number(self, n_bits: int) -> int:
        """Return a number, lowest bit first."""
        return int(self.take(n_bits)[::-1] or "0", 2)

    def exp_golomb(self, order: int) -> int:
        """Return a number in the Exp-Golomb code."""
        n_bits = order
        while self.take(1) == "0":
            n_bits += 1
        return (1 << n_bits) + self.number(n_bits) - (1 << order)

    def end(self) -> None:
        """Refuse padding other than 0 and bytes after the last used one."""
        unused = self.text[self.at :]
        require(len(unused) < 8 and "1" not in unused, "bit string has bytes or bits left over")


# Code tables (5) --------------------------------------------------------------------------------------------

STORED, HUFFMAN, TANS = 0, 1, 2


class Table(NamedTuple):
    """A code table: the codec that takes it, and the function that decodes so many symbols."""

    codec: int
    symbols: Callable[[Bits, int], list[int]]


def read_single_symbol(body: Fields) -> Table:
    """Read table kind 1 (5.2)."""
    symbol = body.u8()
    require(not body.left, "bytes after a table")
    return Table(HUFFMAN, lambda bits, count: [symbol] * count)


def read_alphabet(body: Fields) -> int:
    """Read the number of symbols of a table (5.2, 5.3)."""
    count = body.varint()
    require(2 <= count <= 256, "a table has 2 to 256 symbols")
    return count


LENGTH_ITEMS = {
    "0": 0,
    "100": 1,
    "101": -1,
    "1101": 2,
    "1110": -2,
    "11110": "given",
    "1100": "one",
    "11111": "run",
}


def read_lengths(bits: Bits, count: int) -> list[int]:
    """Read the code lengths of table kind 0; unused symbols have length 0 (5.2)."""
    lengths: list[int] = []
    previous = 4
    while len(lengths) < count:
        prefix = ""
        while prefix not in LENGTH_ITEMS:
            prefix += bits.take(1)
        item = LENGTH_ITEMS[prefix]
        if item in ("one", "run"):
            run = 1 if item == "one" else bits.exp_golomb(0) + 3
            require(run < count - len(lengths), "run beyond the last symbol, which is used")
            lengths += [0] * run
        else:
            previous = previous + item if isinstance(item, int) else bits.number(4)
            require(1 <= previous <= 13, "code length outside 1..13")
            lengths.append(previous)
    bits.end()
    return lengths


def read_prefix_code(body: Fields) -> Table:
    """Read table kind 0 and give out codewords (5.1)."""
    count = read_alphabet(body)
    lengths = read_lengths(Bits(body.left), count)
    used = sorted((length, symbol) for symbol, length in enumerate(lengths) if length)
    require(sum(2 ** (13 - length) for length, _ in used) == 2**13, "lengths are no complete code")
    symbol_of = {}
    codeword, previous = 0, used[0][0]
    for length, symbol in used:
        codeword <<= length - previous
        symbol_of[format(codeword, f"0{length}b")] = symbol
        codeword, previous = codeword + 1, length

    def symbols(bits: Bits, count: int) -> list[int]:
        out = []
        for _ in range(count):
            word = bits.take(1)
            while word not in symbol_of:
                word += bits.take(1)
            out.append(symbol_of[word])
        return out

    return Table(HUFFMAN, symbols)


def read_weights(bits: Bits, count: int, resolution: int, order: int) -> dict[int, int]:
    """Read the weights of the used symbols of table kind 2 (5.3)."""
    weights: dict[int, int] = {}
    symbol, previous = 0, 0
    while symbol < count:
        item = bits.exp_golomb(order)
        if item == 0:
            symbol += bits.exp_golomb(0) + 1
            require(symbol < count, "run beyond the last symbol, which is used")
            continue
        previous += item // 2 if item % 2 else -(item // 2)
        require(0 <= previous <= 23 << resolution, "weight out of range")
        weights[symbol] = previous
        symbol += 1
    bits.end()
    return weights


A = (16777216, 15384775, 14107901, 12937002, 11863283, 10878679, 9975792, 9147842)


def frequencies(weights: dict[int, int], resolution: int, n_states: int) -> dict[int, int]:
    """Return the number of states of each used symbol (5.3, Frequencies)."""
    a = {}
    for symbol, weight in weights.items():
        e = weight * 2 ** (3 - resolution)
        a[symbol] = A[e % 8] >> e // 8
    f = {symbol: max(1, a[symbol] * n_states // sum(a.values())) for symbol in a}
    missing = n_states - sum(f.values())
    while missing:
        for symbol in sorted(a, key=lambda symbol: (-a[symbol], symbol)):
            if missing > 0:
                f[symbol], missing = f[symbol] + 1, missing - 1
            elif missing < 0 and f[symbol] > 1:
                f[symbol], missing = f[symbol] - 1, missing + 1
    return f


def tans_states(f: dict[int, int], table_log2: int) -> list[tuple[int, int, int]]:
    """Return for each state its symbol, the bits it reads and the state they are added to (5.3, States)."""
    n_states = 2**table_log2
    owners = [0] * n_states
    taken = 0
    for symbol in sorted(f):
        for _ in range(f[symbol]):
            owners[taken * (n_states // 2 + n_states // 8 + 3) % n_states] = symbol
            taken += 1
    counters = dict(f)
    states = []
    for symbol in owners:
        n_bits = table_log2 - (counters[symbol].bit_length() - 1)
        states.append((symbol, n_bits, (counters[symbol] << n_bits) - n_states))
        counters[symbol] += 1
    return states


def read_tans(body: Fields) -> Table:
    """Read table kind 2 (5.3)."""
    parameters = body.u8()
    require(parameters < 128, "bit 7 of the tANS parameters")
    table_log2, resolution, order = parameters % 8 + 5, parameters >> 3 & 3, parameters >> 5
    count = read_alphabet(body)
    weights = read_weights(Bits(body.left), count, resolution, order)
    require(2 <= len(weights) <= 2**table_log2, "too few or too many used symbols")

    @cache
    def states() -> list[tuple[int, int, int]]:
        return tans_states(frequencies(weights, resolution, 2**table_log2), table_log2)

    def symbols(bits: Bits, count: int) -> list[int]:
        lanes = [bits.number(table_log2) for _ in range(min(2, count))]
        out = []
        for i in range(count):
            symbol, n_bits, base = states()[lanes[i % 2]]
            out.append(symbol)
            if i + 2 < count:
                lanes[i % 2] = base + bits.number(n_bits)
        return out

    return Table(TANS, symbols)


TABLE_KINDS = {0: read_prefix_code, 1: read_single_symbol, 2: read_tans}


# Mappings (4.2, 4.3, 4.6) -----------------------------------------------------------------------------------


class Mapping(NamedTuple):
    """Numbers in a symbol, whether there are extra bits, and the function from symbols to so many numbers."""

    group: int
    has_extra_bits: bool
    numbers: Callable[[list[int], int, Bits], list[int]]

    def n_symbols(self, count: int) -> int:
        """Symbols of a part of count numbers."""
        return -(-count // self.group)


def digits(symbols: list[int], count: int, group: int, width: int) -> list[int]:
    """Split symbols into digits below width, the first one lowest, and drop the filling (4.2)."""
    require(max(symbols, default=0) < width**group, "symbol beyond the groups")
    found = [symbol // width**place % width for symbol in symbols for place in range(group)]
    require(not any(found[count:]), "filling of a group is not 0")
    return found[:count]


def read_groups(body: Fields) -> Mapping:
    """Read mapping 0 (4.2)."""
    group, width = body.u8(), body.u8() + 1
    require(1 <= group <= 8 and width**group <= 256, "group and width do not fit a symbol")
    return Mapping(group, False, lambda symbols, count, extra: digits(symbols, count, group, width))


def read_hybrid_integers(body: Fields) -> Mapping:
    """Read mapping 1 (4.3)."""
    parameter = body.u8()
    split_log2, m = parameter % 16, parameter >> 4
    require(split_log2 <= 7 and m <= min(3, split_log2), "hybrid integers out of range")

    def number(symbol: int, extra: Bits) -> int:
        if symbol < 1 << split_log2:
            return symbol
        e, mantissa = divmod(symbol - (1 << split_log2), 1 << m)
        e += split_log2
        require(e <= 47, "symbol stands for no number")
        return (((1 << m) + mantissa) << (e - m)) + extra.number(e - m)

    return Mapping(1, True, lambda symbols, count, extra: [number(symbol, extra) for symbol in symbols])


def read_groups_with_escape(body: Fields) -> Mapping:
    """Read mapping 2 (4.6)."""
    group, window, escape_bits = body.u8(), body.u8(), body.u8()
    fits = 1 <= group <= 8 and window >= 1 and (window + 1) ** group <= 256 and 1 <= escape_bits <= 24
    require(fits, "groups with an escape out of range")

    def numbers(symbols: list[int], count: int, extra: Bits) -> list[int]:
        found = digits(symbols, count, group, window + 1)
        return [x if x < window else window + extra.number(escape_bits) for x in found]

    return Mapping(group, True, numbers)


MAPPINGS = {0: read_groups, 1: read_hybrid_integers, 2: read_groups_with_escape}
