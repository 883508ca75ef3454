from __future__ import annotations

import itertools

import numpy as np
import pytest

from nqformat.cursor import ByteCursor
from nqformat.errors import FormatError
from nqformat.prefix_code import PrefixCode, limited_code_lengths


def kraft(lengths: np.ndarray) -> float:
    used = lengths[lengths > 0].astype(float)
    return float((2.0**-used).sum())


def best_cost_by_search(counts: list[int], max_length: int) -> int:
    """Cheapest complete code by trying every vector of lengths."""
    best = None
    for lengths in itertools.product(range(1, max_length + 1), repeat=len(counts)):
        if sum(2.0**-n for n in lengths) == 1.0:
            cost = sum(c * n for c, n in zip(counts, lengths, strict=True))
            best = cost if best is None else min(best, cost)
    assert best is not None
    return best


@pytest.mark.parametrize(
    "counts", [[1, 1], [5, 1, 1], [1, 1, 2, 3, 5, 8], [100, 1, 1, 1, 1], [7, 7, 7, 7, 7]]
)
@pytest.mark.parametrize("max_length", [3, 4, 5])
def test_lengths_are_optimal_under_the_limit(counts: list[int], max_length: int) -> None:
    lengths = limited_code_lengths(np.array(counts), max_length)
    assert kraft(lengths) == 1.0
    assert lengths.max() <= max_length
    assert int((lengths * np.array(counts)).sum()) == best_cost_by_search(counts, max_length)


def test_fibonacci_counts_are_cut_to_the_limit() -> None:
    counts = [1, 1]
    while len(counts) < 40:
        counts.append(counts[-1] + counts[-2])
    for max_length in (6, 12, 13):
        lengths = limited_code_lengths(np.array(counts), max_length)
        assert lengths.max() == max_length
        assert kraft(lengths) == 1.0


def test_unused_symbols_get_no_codeword() -> None:
    code = PrefixCode.from_counts(np.array([0, 4, 0, 2, 2, 0]), 12)
    assert code.lengths == (0, 1, 0, 2, 2)


def test_codewords_are_canonical_and_prefix_free() -> None:
    code = PrefixCode.from_counts(np.array([10, 1, 5, 3, 0, 2]), 12)
    codes, lengths = code.codewords
    words = [format(int(codes[s]), f"0{lengths[s]}b")[::-1] for s in range(6) if lengths[s]]
    by_length = sorted(words, key=lambda w: (len(w), w))
    assert len(set(words)) == 5
    for a, b in itertools.permutations(words, 2):
        assert not b.startswith(a)
    values = [int(w, 2) / 2 ** len(w) for w in by_length]
    assert values == sorted(values)


def test_a_single_symbol_takes_no_bits() -> None:
    code = PrefixCode.from_counts(np.array([0, 0, 9]), 12)
    assert code.single == 2
    assert code.payload_bits(np.array([0, 0, 9])) == 0
    assert PrefixCode.read(ByteCursor(code.to_bytes(), "TABLE")) == code


@pytest.mark.parametrize("seed", range(20))
def test_tables_survive_serialization(seed: int) -> None:
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 1000, size=256) * (rng.random(256) < rng.random())
    counts[rng.integers(256)] += 1
    counts[rng.integers(256)] += 1
    code = PrefixCode.from_counts(counts, 12)
    assert PrefixCode.read(ByteCursor(code.to_bytes(), "TABLE")) == code


def test_every_byte_string_is_a_table_or_a_clear_error() -> None:
    rng = np.random.default_rng(0)
    parsed = 0
    for _ in range(20_000):
        body = bytes([0, rng.integers(2, 12)]) + rng.bytes(int(rng.integers(1, 8)))
        try:
            code = PrefixCode.read(ByteCursor(body, "TABLE"))
        except FormatError:
            continue
        parsed += 1
        assert sum(2.0**-n for n in code.lengths if n) == 1.0
        assert code.decode_table.size == 1 << code.max_length
        assert (code.decode_table >> 8).min() >= 1
    assert parsed > 0
