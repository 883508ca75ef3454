"""Round trips of every codec, mapping, layout, value rule and element type, whatever the numbers are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import nqformat
from fuzz.assembly import BYTES, GAPS, Coding, fits, quantized_file
from nqformat import Codebook, DType, Layout, RawTensor
from nqformat.errors import FormatError
from nqformat.escape import EscapeMapping
from nqformat.grouping import GroupMapping
from nqformat.hybrid import HybridMapping
from nqformat.streams import Codec, Mapping

FLOATS = [DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16, DType.FLOAT64]
QUANTIZED = [Layout.DENSE, Layout.SPARSE, Layout.MASK]
CODECS = [Codec.STORED, Codec.HUFFMAN, Codec.TANS]
SHAPES = st.lists(st.integers(0, 9), min_size=1, max_size=4).map(tuple)

few = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
many = settings(
    max_examples=10_000,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@st.composite
def mappings(draw: Any) -> Mapping:
    kind = draw(st.integers(0, 2))
    if kind == 0:
        group = draw(st.integers(1, 8))
        return GroupMapping(group, draw(st.integers(1, int(256 ** (1 / group) + 1e-9))))
    if kind == 1:
        split = draw(st.integers(0, 7))
        return HybridMapping(split, draw(st.integers(0, min(3, split))))
    group = draw(st.integers(1, 8))
    return EscapeMapping(
        group, draw(st.integers(1, max(1, int(256 ** (1 / group) + 1e-9) - 1))), draw(st.integers(1, 24))
    )


@st.composite
def numbers(draw: Any) -> np.ndarray:
    """Numbers of any shape: all zero, few, many, small, large."""
    shape = draw(SHAPES)
    rng = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    most = draw(st.sampled_from([1, 2, 3, 5, 15, 255, 4000, (1 << 23) - 1]))
    density = draw(st.sampled_from([0.0, 0.03, 0.3, 1.0]))
    skew = rng.random(shape) ** draw(st.sampled_from([1, 4]))
    found = 1 + (skew * most).astype(np.int64)
    return np.where(rng.random(shape) < density, np.minimum(found, most), 0)


def expected_bits(values: np.ndarray, dtype: DType) -> np.ndarray:
    """Round float32 or float64 values to the element type by NumPy, for bfloat16 by hand."""
    if dtype is not DType.BFLOAT16:
        return values.astype(dtype.storage_dtype)
    bits = values.astype("<f4").view("<u4").astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2")


def check_quantized(
    k: np.ndarray, mapping: Mapping, layout: Layout, codec: Codec, dtype: DType, options: tuple[bool, ...]
) -> None:
    """Write under the chosen coding, read on both paths, compare with NumPy."""
    column_scan, use_codebook, four_streams = options
    column_scan = column_scan and k.ndim > 1
    use_codebook = use_codebook and int(k.max(initial=0)) < 300
    first = 0 if layout is Layout.DENSE else 1
    stored = k.reshape(-1)[k.reshape(-1) >= first] - first
    if not fits(mapping, stored) or (
        isinstance(mapping, GroupMapping) and stored.size and stored.max() > 255
    ):
        mapping = HybridMapping(7, 0)
    step, offset = 0.375, -1.25
    book = Codebook(values=np.linspace(-2, 2, max(int(k.max(initial=0)) + 1 - first, 1)).astype(np.float32))
    content = quantized_file(
        k,
        layout=layout,
        values=Coding(codec=codec, mapping=mapping, chunk_log2=14, four_streams=four_streams),
        positions=Coding(codec=codec, mapping=GAPS if layout is Layout.SPARSE else BYTES, chunk_log2=14),
        dtype=dtype,
        codebook=book if use_codebook else None,
        step=step,
        offset=offset,
        column_scan=column_scan,
    ).to_bytes()
    if use_codebook:
        values = book.values[np.maximum(k - first, 0)].astype(np.float64)
    else:
        values = (np.float64(np.float32(step)) * k + np.float64(offset)).astype(np.float32).astype(np.float64)
    values = np.where((k < first), 0.0, values)
    expected = expected_bits(values, dtype)
    with nqformat.from_bytes(content, bfloat16="uint16", threads=1) as file:
        found = file.get_tensor("t")
        assert found.shape == k.shape and found.tobytes() == expected.tobytes()
        packed = file.get_packed("t")
        assert isinstance(packed, nqformat.PackedTensor)
        assert packed.decode().tobytes() == expected.tobytes()
        if k.shape[0] > 1:
            assert file.get_slice("t", 1, k.shape[0]).tobytes() == expected[1:].tobytes()


CASES = [
    pytest.param(layout, codec, dtype, id=f"{layout.name}-{codec.name}-{dtype.name}".lower())
    for layout in QUANTIZED
    for codec in CODECS
    for dtype in FLOATS
]
ARGUMENTS = (numbers(), mappings(), st.tuples(st.booleans(), st.booleans(), st.booleans()))


@pytest.mark.parametrize(("layout", "codec", "dtype"), CASES)
@few
@given(*ARGUMENTS)
def test_quantized_tensors_survive(
    layout: Layout, codec: Codec, dtype: DType, k: np.ndarray, mapping: Mapping, options: tuple[bool, ...]
) -> None:
    check_quantized(k, mapping, layout, codec, dtype, options)


@pytest.mark.slow
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("layout", QUANTIZED)
@many
@given(*ARGUMENTS)
def test_quantized_tensors_of_every_type_survive_ten_thousand_times(
    layout: Layout, codec: Codec, k: np.ndarray, mapping: Mapping, options: tuple[bool, ...]
) -> None:
    for dtype in FLOATS:
        check_quantized(k, mapping, layout, codec, dtype, options)


SPECIAL = {
    DType.FLOAT16: [0x0000, 0x8000, 0x0001, 0x8001, 0x7C00, 0xFC00, 0x7E00, 0x7C01, 0x7BFF],
    DType.BFLOAT16: [0x0000, 0x8000, 0x0001, 0x8001, 0x7F80, 0xFF80, 0x7FC0, 0x7F81, 0x7F7F],
    DType.FLOAT32: [0, 0x80000000, 1, 0x80000001, 0x7F800000, 0xFF800000, 0x7FC00000, 0x7F800001, 0x7F7FFFFF],
    DType.FLOAT64: [0, 1 << 63, 1, (1 << 63) + 1, 0x7FF << 52, 0xFFF << 52, 0x7FF8 << 48, (0x7FF << 52) + 1],
}


def check_raw(dtype: DType, shape: tuple[int, ...], seed: int, kind: int) -> None:
    rng = np.random.default_rng(seed)
    n_elements = int(np.prod(shape))
    unsigned = np.dtype(f"<u{dtype.itemsize}")
    if dtype is DType.BOOL:
        bits = rng.integers(0, 2, n_elements).astype(np.uint8)
    elif kind == 0 and dtype in SPECIAL:
        bits = rng.choice(np.array(SPECIAL[dtype], dtype=np.uint64), n_elements).astype(unsigned)
    elif kind == 1:
        bits = (
            np.repeat(rng.integers(0, 256, dtype.itemsize, dtype=np.uint8)[None], n_elements, 0)
            .reshape(-1)
            .view(unsigned)
        )
    else:
        high = 256 if kind == 2 else 3
        bits = rng.integers(0, high, n_elements * dtype.itemsize).astype(np.uint8).view(unsigned)
    stored = np.ascontiguousarray(bits).view(dtype.storage_dtype).reshape(shape)
    found = nqformat.load(nqformat.save({"t": RawTensor(bits=stored, dtype=dtype)}), bfloat16="uint16")["t"]
    assert found.shape == stored.shape and found.tobytes() == stored.tobytes()


RAW_ARGUMENTS = (
    st.lists(st.integers(0, 12), max_size=4).map(tuple),
    st.integers(0, 1 << 30),
    st.integers(0, 3),
)


@pytest.mark.parametrize("dtype", list(DType), ids=lambda dtype: dtype.label)
@few
@given(*RAW_ARGUMENTS)
def test_raw_tensors_survive(dtype: DType, shape: tuple[int, ...], seed: int, kind: int) -> None:
    check_raw(dtype, shape, seed, kind)


@pytest.mark.slow
@many
@given(*RAW_ARGUMENTS)
def test_raw_tensors_of_every_type_survive_ten_thousand_times(
    shape: tuple[int, ...], seed: int, kind: int
) -> None:
    for dtype in DType:
        check_raw(dtype, shape, seed, kind)


@pytest.mark.parametrize("kernels", ["numpy", "numba"])
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("layout", QUANTIZED)
def test_slices_of_several_chunks_survive(
    layout: Layout, codec: Codec, kernels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NQFORMAT_KERNELS", kernels)
    rng = np.random.default_rng(3)
    k = np.where(
        rng.random((150, 301)) < (1 if layout is Layout.DENSE else 0.8), rng.integers(1, 6, (150, 301)), 0
    )
    for options in ((False, True, True), (True, False, False)):
        check_quantized(k, GroupMapping(2, 6), layout, codec, DType.FLOAT32, options)


def test_a_file_of_another_shape_is_no_round_trip() -> None:
    made = quantized_file(np.arange(12).reshape(3, 4), layout=Layout.DENSE, values=Coding())
    made.records[-1].body = made.records[-1].body.replace(b"\3\4", b"\3\5")
    with nqformat.from_bytes(made.to_bytes()) as file, pytest.raises(FormatError):
        file.get_tensor("t")
