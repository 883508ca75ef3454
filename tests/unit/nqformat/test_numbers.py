from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nqformat.bits import BitReader, BitWriter
from nqformat.chunks import chunk_grid
from nqformat.cursor import ByteCursor, encode_varint, encode_zigzag
from nqformat.dtypes import bfloat16_to_float32, float32_to_bfloat16
from nqformat.errors import CorruptError, TruncatedError
from nqformat.grouping import GroupMapping
from nqformat.hybrid import HybridMapping
from nqformat.planes import join_planes, split_planes
from nqformat.tensor import DType


@given(st.integers(0, (1 << 63) - 1))
def test_varints_survive(number: int) -> None:
    assert ByteCursor(encode_varint(number), "T").varint() == number


@given(st.integers(-(1 << 61), 1 << 61))
def test_signed_varints_survive(number: int) -> None:
    assert ByteCursor(encode_zigzag(number), "T").zigzag() == number


def test_a_padded_varint_is_refused() -> None:
    with pytest.raises(CorruptError, match="minimal"):
        ByteCursor(b"\x80\x00", "T").varint()
    with pytest.raises(CorruptError, match="63 bits"):
        ByteCursor(b"\xff" * 9 + b"\x01", "T").varint()
    with pytest.raises(TruncatedError):
        ByteCursor(b"\x80", "T").varint()


@given(st.lists(st.tuples(st.integers(0, 1 << 30), st.integers(0, 20)), max_size=30))
def test_exp_golomb_codes_survive(items: list[tuple[int, int]]) -> None:
    writer = BitWriter()
    for number, order in items:
        writer.put_exp_golomb(number, order)
    reader = BitReader(writer.to_bytes(), "T")
    assert [reader.get_exp_golomb(order) for _, order in items] == [number for number, _ in items]
    reader.finish()


@pytest.mark.parametrize("split,mantissa", [(0, 0), (4, 1), (5, 2), (6, 2), (7, 3)])
def test_hybrid_integers_survive_and_stay_in_order(split: int, mantissa: int) -> None:
    mapping = HybridMapping(split, mantissa)
    numbers = np.unique(
        np.concatenate([np.arange(3000), 2 ** np.arange(22), 2 ** np.arange(1, 22) - 1])
    ).astype(np.int64)
    symbols, extra, widths = mapping.split(numbers)
    assert np.array_equal(mapping.join(symbols, extra), numbers)
    assert np.array_equal(mapping.symbol_widths[symbols], widths)
    assert (np.diff(symbols.astype(int)) >= 0).all()
    assert np.array_equal(symbols[: 1 << split], np.arange(1 << split))


@given(st.integers(1, 8), st.data())
def test_groups_survive(group: int, data: st.DataObject) -> None:
    width = data.draw(st.integers(1, int(256 ** (1 / group) + 1e-9)))
    values = np.array(data.draw(st.lists(st.integers(0, width - 1), max_size=40)), dtype=np.uint8)
    mapping = GroupMapping(group, width)
    symbols = mapping.join(values)
    assert symbols.size == mapping.n_symbols(values.size)
    again = mapping.split(symbols, values.size)
    assert again is not None and np.array_equal(again, values)


def test_a_group_beyond_its_alphabet_or_filling_is_refused() -> None:
    assert GroupMapping(2, 3).split(np.array([9], dtype=np.uint8), 2) is None
    assert GroupMapping(2, 3).split(np.array([8], dtype=np.uint8), 1) is None


@given(st.lists(st.integers(0, 100_000), max_size=12), st.integers(14, 16))
def test_the_chunk_grid_covers_each_slice_once(lengths: list[int], chunk_log2: int) -> None:
    chunks = chunk_grid(lengths, chunk_log2)
    covered = [0] * len(lengths)
    for chunk in chunks:
        assert sum(p.n_elements for p in chunk.parts) <= 1 << chunk_log2
        for place, part in enumerate(chunk.parts):
            assert part.n_elements > 0
            assert part.start == covered[part.slice_index]
            assert place == 0 or part.start == 0
            covered[part.slice_index] = part.stop
    assert covered == lengths


@pytest.mark.parametrize("dtype", [d for d in DType if d is not DType.BOOL])
def test_planes_survive(dtype: DType) -> None:
    rng = np.random.default_rng(1)
    bits = np.frombuffer(rng.bytes(24 * dtype.itemsize), dtype=dtype.storage_dtype)
    planes = split_planes(bits, dtype)
    assert len(planes) == dtype.itemsize
    assert join_planes(planes, dtype).tobytes() == bits.tobytes()


def test_the_top_plane_of_float32_is_its_exponent() -> None:
    values = np.array([1.0, -2.0, 0.75], dtype=np.float32)
    assert split_planes(values, DType.FLOAT32)[3].tolist() == [127, 128, 126]


def test_bfloat16_rounds_to_nearest_even() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    rng = np.random.default_rng(2)
    values = rng.integers(0, 1 << 32, size=5000, dtype=np.uint64).astype(np.uint32).view(np.float32)
    finite = values[np.isfinite(values)]
    with np.errstate(over="ignore"):
        expected = finite.astype(ml_dtypes.bfloat16).view(np.uint16)
    assert np.array_equal(float32_to_bfloat16(finite), expected)
    assert np.isnan(bfloat16_to_float32(float32_to_bfloat16(np.array([np.nan], dtype=np.float32)))).all()
