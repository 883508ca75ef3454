"""Whatever the writer takes comes back bit for bit, on both kernel paths."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import nqformat
from nqformat import AffineTensor, Codebook, CodebookTensor, DType, Layout, RawTensor, ViewSource, ViewTensor

SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=9)


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.dtype.itemsize == b.dtype.itemsize and a.tobytes() == b.tobytes()


def round_trip(tensor: object) -> np.ndarray:
    return nqformat.load(nqformat.save({"t": tensor}), bfloat16="uint16")["t"]


@given(st.sampled_from(list(DType)), SHAPES, st.randoms(use_true_random=False), st.booleans())
def test_raw_elements_of_every_dtype_survive(
    dtype: DType, shape: tuple[int, ...], random: object, few: bool
) -> None:
    n_bytes = int(np.prod(shape)) * dtype.itemsize
    choices = [0, 1] if dtype is DType.BOOL else ([0, 255, 127, 128] if few else list(range(256)))
    content = bytes(random.choice(choices) for _ in range(n_bytes))
    bits = np.frombuffer(content, dtype=dtype.storage_dtype).reshape(shape)
    assert same_bits(round_trip(RawTensor(bits=bits, dtype=dtype)), bits)


@given(
    SHAPES,
    st.integers(1, 40),
    st.floats(0, 1),
    st.sampled_from([DType.FLOAT16, DType.BFLOAT16, DType.FLOAT32, DType.FLOAT64]),
    st.integers(0, 1 << 30),
)
def test_codebook_tensors_survive(
    shape: tuple[int, ...], n_entries: int, zero_share: float, dtype: DType, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=n_entries).astype(np.float32)
    values[0] = rng.choice([0.0, -0.0, 1.0])
    indices = np.where(rng.random(shape) < zero_share, 0, rng.integers(0, n_entries, size=shape)).astype(
        np.uint8
    )
    tensor = CodebookTensor(indices=indices, codebook=Codebook(values=values), dtype=dtype)
    assert same_bits(round_trip(tensor), tensor.decode())


@given(SHAPES, st.integers(0, 1 << 23), st.floats(-10, 10, width=32), st.booleans(), st.integers(0, 1 << 30))
def test_affine_tensors_survive(
    shape: tuple[int, ...], spread: int, offset: float, sparse: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    k = rng.integers(-spread, spread + 1, size=shape).astype(np.int32)
    if sparse:
        k = np.where(rng.random(shape) < 0.9, 0, k).astype(np.int32)
        offset = 0.0
    tensor = AffineTensor(k=k, step=0.0625, offset=float(np.float32(offset)))
    assert same_bits(round_trip(tensor), tensor.decode())


@pytest.mark.parametrize(
    "dtype", [DType.INT8, DType.UINT8, DType.INT16, DType.INT32, DType.INT64, DType.UINT64]
)
def test_integer_tensors_survive_as_affine(dtype: DType) -> None:
    rng = np.random.default_rng(0)
    low = 0 if dtype.label.startswith("u") else -100
    k = rng.integers(low, 100, size=(13, 17)).astype(np.int32)
    tensor = AffineTensor(k=k, step=1.0, dtype=dtype)
    assert same_bits(round_trip(tensor), k.astype(dtype.storage_dtype))


@pytest.mark.parametrize(
    ("density", "n_entries", "layout"),
    [(0.05, 17, Layout.SPARSE), (0.3, 60, Layout.MASK), (1.0, 16, Layout.DENSE), (0.05, 2, Layout.SPARSE)],
)
@pytest.mark.parametrize(
    "path", [("numpy", "size"), ("numba", "size"), ("numpy", "speed"), ("numba", "speed")]
)
def test_large_tensors_span_chunks(
    density: float,
    n_entries: int,
    layout: Layout,
    path: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kernels, prefer = path
    monkeypatch.setenv("NQFORMAT_KERNELS", kernels)
    rng = np.random.default_rng(1)
    shape = (600, 700) if density > 0.1 else (1500, 1100)
    levels = rng.integers(1, n_entries, size=shape)
    indices = np.where(rng.random(shape) < density, levels, 0).astype(np.uint8)
    values = np.concatenate([[0.0], rng.normal(size=n_entries)]).astype(np.float32)
    tensor = CodebookTensor(indices=indices, codebook=Codebook(values=values))
    content = nqformat.save({"t": tensor}, prefer=prefer)
    with nqformat.from_bytes(content) as file:
        assert prefer == "size" or file.info("t").layout is layout
        assert max(map(max, file.directory.slice_lengths)) > 65_536
        assert same_bits(file.get_tensor("t"), tensor.decode())
        assert same_bits(file.get_slice("t", 100, 260), tensor.decode()[100:260])


def test_numpy_and_numba_paths_write_the_same_file(
    every_layout: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NQFORMAT_KERNELS", "numpy")
    by_numpy = nqformat.save(every_layout)
    decoded = nqformat.load(by_numpy, bfloat16="uint16")
    monkeypatch.setenv("NQFORMAT_KERNELS", "numba")
    assert nqformat.save(every_layout) == by_numpy
    for name, array in nqformat.load(by_numpy, bfloat16="uint16").items():
        assert same_bits(array, decoded[name])


@given(
    st.integers(1, 5),
    st.integers(1, 5),
    st.integers(0, 4),
    st.permutations([0, 1, 2]),
    st.integers(0, 1 << 30),
)
def test_views_join_and_permute(
    rows_a: int, rows_b: int, start: int, permutation: list[int], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(rows_a, 3, 4)), rng.normal(size=(rows_b, 3, 4))
    start = min(start, rows_b)
    expected = np.concatenate([a, b[start:]]).transpose(permutation)
    view = ViewTensor(
        sources=(ViewSource(name="a", start=0, stop=rows_a), ViewSource(name="b", start=start, stop=rows_b)),
        permutation=tuple(permutation),
        shape=expected.shape,
    )
    decoded = nqformat.load(nqformat.save({"v": view, "a": a, "b": b}))
    assert list(decoded) == ["a", "b", "v"]
    assert same_bits(decoded["v"], np.ascontiguousarray(expected))
    assert same_bits(view.assemble({"a": a, "b": b}), decoded["v"])


def test_many_small_tensors_share_streams() -> None:
    rng = np.random.default_rng(5)
    tensors = {}
    for i in range(60):
        book = Codebook(values=rng.normal(size=16).astype(np.float32))
        indices = np.minimum(rng.geometric(0.3, size=(9, 20)) - 1, 15).astype(np.uint8)
        tensors[f"layer{i}.weight"] = CodebookTensor(indices=indices, codebook=book)
    content = nqformat.save(tensors)
    with nqformat.from_bytes(content) as file:
        assert len(file.directory.streams) < 10
        for name, tensor in tensors.items():
            assert same_bits(file.get_tensor(name), tensor.decode())


def test_a_negative_zero_is_not_dropped_by_a_sparse_layout() -> None:
    values = np.zeros(400, dtype=np.float32)
    values[::7] = 1.5
    values[3] = -0.0
    indices = np.zeros(400, dtype=np.uint8)
    indices[::7], indices[3] = 1, 2
    tensor = CodebookTensor(
        indices=indices, codebook=Codebook(values=np.array([0.0, 1.5, -0.0], dtype=np.float32))
    )
    content = nqformat.save({"t": tensor})
    with nqformat.from_bytes(content) as file:
        assert file.info("t").layout is not Layout.RAW
    assert same_bits(nqformat.load(content)["t"], values)


def test_packed_tensors_describe_the_same_elements(
    every_layout: dict[str, object], small_file: bytes
) -> None:
    with nqformat.from_bytes(small_file) as file:
        for name in ("sparse", "mask", "dense", "affine", "affine_int8", "half"):
            packed = file.get_packed(name)
            assert isinstance(packed, nqformat.PackedTensor)
            assert same_bits(packed.decode(), every_layout[name].decode())
            if packed.positions is not None:
                assert (np.diff(packed.positions) > 0).all()
