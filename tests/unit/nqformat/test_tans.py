"""tANS codes: frequencies, tables, both kernel paths, damage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nqformat import CorruptError, FormatError, kernels
from nqformat.chunks import substream_bounds
from nqformat.cursor import ByteCursor
from nqformat.tans import KIND_TANS, MAX_HALVINGS, TansCode, frequencies_of_weights


def code_of(symbols: np.ndarray, resolution: int = 2, table_log2: int = 12) -> TansCode:
    return TansCode.from_counts(np.bincount(symbols, minlength=256), resolution, table_log2)


@contextmanager
def path_of(compiled: bool) -> Iterator[None]:
    """Take the compiled kernels, or NumPy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NQFORMAT_KERNELS", "numba" if compiled else "numpy")
        yield


def encoded(code: TansCode, symbols: np.ndarray, n_streams: int, numba: bool) -> list[bytes]:
    with path_of(numba):
        return kernels.encode_tans_streams(
            symbols, substream_bounds(symbols.size, n_streams), code.encode_tables
        )


def decoded(
    code: TansCode, parts: list[bytes], n_symbols: int, numba: bool, buffer: bytes | None = None
) -> np.ndarray | None:
    byte_bounds = [0, *np.cumsum([len(p) for p in parts]).tolist()]
    content = np.frombuffer(b"".join(parts) if buffer is None else buffer, dtype=np.uint8)
    with path_of(numba):
        return kernels.decode_tans_streams(
            content, byte_bounds, code.decode_table, code.table_log2, substream_bounds(n_symbols, len(parts))
        )


def test_the_example_of_the_specification() -> None:
    assert frequencies_of_weights((0, 1, 1), 0, 5) == (16, 8, 8)
    code = TansCode(weights=(0, 1, 1), resolution=0, table_log2=5)
    assert [int(code.symbol_of_state[s]) for s in (0, 23, 14, 5)] == [0, 0, 0, 0]
    n_bits = code.decode_table & 0xFF
    assert sorted(n_bits[code.symbol_of_state == 0].tolist()) == [1] * 16
    assert sorted(n_bits[code.symbol_of_state == 2].tolist()) == [2] * 8


@given(
    st.lists(st.integers(-1, MAX_HALVINGS), min_size=2, max_size=40), st.integers(0, 3), st.integers(6, 12)
)
def test_frequencies_sum_to_the_states(steps: list[int], resolution: int, table_log2: int) -> None:
    weights = tuple(w << resolution if w >= 0 else -1 for w in [*steps, 0])
    counts = frequencies_of_weights(weights, resolution, table_log2)
    assert sum(counts) == 1 << table_log2
    assert all((n > 0) == (w >= 0) for n, w in zip(counts, weights, strict=True))


@given(
    st.integers(0, 400),
    st.integers(2, 256),
    st.floats(0.01, 0.99),
    st.integers(0, 3),
    st.tuples(st.sampled_from([8, 10, 12]), st.sampled_from([1, 4]), st.integers(0, 1 << 30)),
)
def test_both_paths_give_the_same_bits_and_the_symbols_back(
    n: int, width: int, p: float, resolution: int, rest: tuple[int, int, int]
) -> None:
    table_log2, n_streams, seed = rest
    symbols = np.minimum(np.random.default_rng(seed).geometric(p, n) - 1, width - 1).astype(np.uint8)
    code = code_of(np.append(symbols, [0, 1]).astype(np.uint8), resolution, table_log2)
    parts = encoded(code, symbols, n_streams, numba=False)
    assert parts == encoded(code, symbols, n_streams, numba=True)
    for numba in (False, True):
        found = decoded(code, parts, n, numba)
        assert found is not None
        assert np.array_equal(found, symbols)


@given(st.lists(st.integers(0, 10_000), min_size=2, max_size=256), st.integers(0, 3))
def test_tables_survive_their_bytes(counts: list[int], resolution: int) -> None:
    code = TansCode.from_counts(np.array([*counts, 1, 1]), resolution, 12)
    body = code.to_bytes()
    cursor = ByteCursor(body, "TABLE")
    assert cursor.u8() == KIND_TANS
    assert TansCode.read(cursor) == code


@given(st.binary(min_size=2, max_size=24))
def test_any_table_bytes_parse_or_are_corrupt(body: bytes) -> None:
    try:
        code = TansCode.read(ByteCursor(body, "TABLE"))
    except FormatError:
        return
    assert int(code.frequencies.sum()) == 1 << code.table_log2
    assert code.decode_table.size == 1 << code.table_log2


def test_more_symbols_than_states_are_corrupt() -> None:
    body = TansCode(weights=(0,) * 40, resolution=0, table_log2=5).to_bytes()
    with pytest.raises(CorruptError, match="states"):
        TansCode.read(ByteCursor(body[1:], "TABLE"))


@given(st.integers(0, 1 << 30), st.sampled_from([1, 4]))
def test_damaged_bits_end_alike_on_both_paths(seed: int, n_streams: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 300))
    symbols = np.minimum(rng.geometric(0.3, n) - 1, 20).astype(np.uint8)
    code = code_of(np.append(symbols, [0, 1]).astype(np.uint8))
    parts = encoded(code, symbols, n_streams, numba=False)
    content = bytearray(b"".join(parts))
    for _ in range(3):
        content[int(rng.integers(len(content)))] ^= int(rng.integers(1, 256))
    by_numpy, by_numba = (decoded(code, parts, n, numba, bytes(content)) for numba in (False, True))
    assert (by_numpy is None) == (by_numba is None)
    assert by_numpy is None or np.array_equal(by_numpy, by_numba)


def test_the_code_takes_the_entropy() -> None:
    symbols = np.minimum(np.random.default_rng(3).geometric(0.7, 200_000) - 1, 15).astype(np.uint8)
    counts = np.bincount(symbols)
    shares = counts[counts > 0] / symbols.size
    entropy = -symbols.size * float((shares * np.log2(shares)).sum())
    taken = 8 * sum(map(len, encoded(code_of(symbols, 3), symbols, 4, numba=True)))
    assert taken < 1.002 * entropy
