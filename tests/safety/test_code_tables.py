"""Code tables: every length vector of small alphabets, deep codes, every tANS table of few weights."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest

from nqformat import kernels
from nqformat.bits import BitWriter
from nqformat.cursor import ByteCursor, encode_varint
from nqformat.errors import CorruptError, FormatError, TruncatedError
from nqformat.prefix_code import PrefixCode
from nqformat.tans import TansCode

Lengths = tuple[int, ...]


def lengths_body(lengths: Lengths) -> bytes:
    """Body of a table record of kind 0 after the kind: every length written out (spec 5.2)."""
    writer = BitWriter()
    for length in lengths:
        if length == 0:
            writer.put_text("1100")
        else:
            writer.put_text("11110")
            writer.put(length, 4)
    return encode_varint(len(lengths)) + writer.to_bytes()


def read_lengths(lengths: Lengths) -> PrefixCode | None:
    try:
        return PrefixCode.read(ByteCursor(lengths_body(lengths), "TABLE"), 0)
    except CorruptError:
        return None


def is_legal(lengths: Lengths) -> bool:
    """The oracle: a complete code whose last symbol is used."""
    kraft = sum(Fraction(1, 2**n) for n in lengths if n)
    return kraft == 1 and lengths[-1] > 0 and max(lengths) <= 13


@pytest.mark.parametrize(
    ("n_symbols", "longest"),
    [(2, 13), (3, 13), (4, 6), (5, 5), pytest.param(6, 5, marks=pytest.mark.slow)],
)
def test_exactly_the_complete_codes_are_taken(n_symbols: int, longest: int) -> None:
    n_taken = 0
    for lengths in itertools.product(range(longest + 1), repeat=n_symbols):
        code = read_lengths(lengths)
        assert (code is not None) == is_legal(lengths), lengths
        if code is not None:
            n_taken += 1
            assert code.lengths == lengths
            table = code.decode_table
            assert table.size == 1 << max(lengths) and (table >> 8).min() >= 1
    assert n_taken > 0


def chain(n_symbols: int) -> Lengths:
    """The most skewed code: lengths 1, 2, 3, ... and the last twice."""
    return (*range(1, n_symbols), n_symbols - 1)


@pytest.mark.parametrize("n_symbols", [2, 3, 12, 13, 14, 15, 16, 17])
def test_skewed_codes_are_taken_up_to_13_bits(n_symbols: int) -> None:
    assert (read_lengths(chain(n_symbols)) is not None) == (n_symbols <= 14)


def all_complete_codes(n_symbols: int, longest: int) -> list[Lengths]:
    """Sorted length vectors of complete codes."""
    found: list[Lengths] = []

    def grow(start: int, room: Fraction, taken: Lengths) -> None:
        if len(taken) == n_symbols:
            if room == 0:
                found.append(taken)
            return
        for length in range(start, longest + 1):
            if (share := Fraction(1, 2**length)) <= room:
                grow(length, room - share, (*taken, length))

    grow(1, Fraction(1), ())
    return found


@pytest.mark.parametrize("path", ["numpy", "numba"])
@pytest.mark.parametrize("n_symbols", [2, 3, 4, 5, 6, 7, 8])
def test_every_complete_code_decodes_what_it_encodes_and_refuses_the_rest(
    n_symbols: int, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NQFORMAT_KERNELS", path)
    rng = np.random.default_rng(n_symbols)
    for lengths in all_complete_codes(n_symbols, 13):
        code = PrefixCode(lengths=lengths)
        symbols = np.concatenate([np.arange(n_symbols), rng.integers(0, n_symbols, 40)]).astype(np.uint8)
        codes, widths = code.codewords
        (packed,) = kernels.pack_codes(symbols, [0, symbols.size], codes, widths)
        content = np.frombuffer(packed, dtype=np.uint8)
        decoded = kernels.decode_prefix_streams(content, [0, content.size], code, [0, symbols.size])
        assert decoded is not None and np.array_equal(decoded, symbols)
        longer = np.append(content, np.uint8(0))
        assert kernels.decode_prefix_streams(longer, [0, longer.size], code, [0, symbols.size]) is None
        shorter = content[:-1].copy()
        assert kernels.decode_prefix_streams(shorter, [0, shorter.size], code, [0, symbols.size]) is None


def tans_body(weights: tuple[int, ...], resolution: int, table_log2: int) -> bytes:
    """Body of a tANS table after the kind, unchecked."""
    return TansCode(weights=weights, resolution=resolution, table_log2=table_log2).to_bytes()[1:]


@pytest.mark.parametrize("n_symbols", [2, 3, 4])
def test_every_tans_table_of_few_weights_is_whole(n_symbols: int) -> None:
    rng = np.random.default_rng(0)
    most = 11 if n_symbols < 4 else 5
    for number, weights in enumerate(itertools.product(range(-1, most), repeat=n_symbols)):
        if weights[-1] < 0:
            continue
        table_log2, resolution = 5 + number % 8, number % 4
        body = tans_body(weights, resolution, table_log2)
        used = [i for i, weight in enumerate(weights) if weight >= 0]
        if len(used) < 2:
            with pytest.raises(CorruptError):
                TansCode.read(ByteCursor(body, "TABLE"))
            continue
        code = TansCode.read(ByteCursor(body, "TABLE"))
        assert code.weights == weights
        assert code.frequencies.sum() == 1 << table_log2
        assert (code.frequencies[used] >= 1).all() and np.count_nonzero(code.frequencies) == len(used)
        entries = code.decode_table.astype(np.int64)
        n_bits, base = entries & 255, entries >> 16
        assert (base + (1 << n_bits) <= 1 << table_log2).all() and (base >= 0).all()
        if number % 29 == 0:
            symbols = rng.choice(used, 50).astype(np.uint8)
            (coded,) = kernels.encode_tans_streams(symbols, [0, 50], code.encode_tables)
            packed = np.frombuffer(coded, dtype=np.uint8)
            decoded = kernels.decode_tans_streams(
                packed, [0, packed.size], code.decode_table, table_log2, [0, 50]
            )
            assert decoded is not None and np.array_equal(decoded, symbols)


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_every_table_body_of_two_bytes_is_read_or_refused(kind: int) -> None:
    n_read = 0
    for number in range(1 << 16):
        cursor = ByteCursor(number.to_bytes(2, "little"), "TABLE")
        try:
            code = TansCode.read(cursor) if kind == 2 else PrefixCode.read(cursor, kind)
        except (CorruptError, TruncatedError) as error:
            assert isinstance(error, FormatError)
            continue
        n_read += 1
        assert cursor.remaining == 0
        assert isinstance(code, TansCode) or code.single is not None or is_legal(code.lengths)
    assert n_read == {0: n_read, 1: 0, 2: 0}[kind]
