"""Scales of channels and blocks (spec 6.4)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

import nqformat
from nqformat import AffineTensor, Codebook, CodebookTensor, CorruptError, DType, Layout, PackedTensor, Scales
from nqformat.accounting import account

RNG = np.random.default_rng(3)


def scales(n: int, span: int, stored_as: DType = DType.FLOAT16) -> Scales:
    values = RNG.uniform(0.1, 2, n).astype(np.float16)
    values = (values.view(np.uint16) & np.uint16(0xFFF0)).view(np.float16)
    bits = values.astype(np.float32).view(np.uint32) & np.uint32(0xFFFF0000)
    return Scales(values=bits.view(np.float32), span=span, stored_as=stored_as)


def by_hand(values: np.ndarray, given: Scales, dtype: np.dtype) -> np.ndarray:
    """Section 6.4, element by element."""
    out = np.empty(values.size, dtype=np.float32)
    for p, value in enumerate(values.reshape(-1)):
        out[p] = np.float32(value) * given.values[(p // given.span) % given.values.size]
    return out.astype(dtype).reshape(values.shape)


@pytest.mark.parametrize("dtype", [DType.FLOAT32, DType.FLOAT16, DType.FLOAT64])
@pytest.mark.parametrize("density", [0.04, 0.4, 1.0])
@pytest.mark.parametrize("n, span", [(30, 35), (35, 1), (7, 5), (11, 3), (1, 1050)])
def test_elements_are_multiplied_by_the_scale_of_their_place(
    dtype: DType, density: float, n: int, span: int
) -> None:
    k = RNG.integers(-6, 7, size=(30, 35)) * (RNG.random((30, 35)) < density)
    tensor = AffineTensor(k=k.astype(np.int32), step=0.5, scales=scales(n, span), dtype=dtype)
    wanted = by_hand(0.5 * k, tensor.scales, dtype.storage_dtype)
    with nqformat.from_bytes(nqformat.save({"t": tensor})) as file:
        assert np.array_equal(file.get_tensor("t"), wanted)
        assert np.array_equal(file.get_slice("t", 7, 19), wanted[7:19])
        packed = file.get_packed("t")
        assert isinstance(packed, PackedTensor)
        assert np.array_equal(packed.decode(), wanted)
    assert np.array_equal(tensor.decode(), wanted)


@pytest.mark.parametrize("layout", [Layout.DENSE, Layout.SPARSE, Layout.MASK])
@pytest.mark.parametrize("column_scan", [False, True])
def test_codebook_tensors_have_scales_in_every_layout(
    layout: Layout, column_scan: bool, forced_plan: Callable[[Layout, bool], None]
) -> None:
    forced_plan(layout, column_scan)
    indices = np.where(RNG.random((60, 50)) < 0.4, RNG.integers(1, 17, (60, 50)), 0).astype(np.uint8)
    book = Codebook(values=np.arange(17, dtype=np.float32) / 8)
    tensor = CodebookTensor(indices=indices, codebook=book, scales=scales(60, 50, DType.BFLOAT16))
    with nqformat.from_bytes(nqformat.save({"t": tensor}), threads=2) as file:
        assert file.info("t").layout is layout
        assert np.array_equal(file.get_tensor("t"), tensor.decode())
        assert np.array_equal(file.get_packed("t").decode(), tensor.decode())


def test_scales_of_a_partitioned_tensor() -> None:
    density = np.choose(RNG.integers(0, 3, 120), [0.0, 0.04, 0.4])
    k = RNG.integers(1, 4, (120, 160)) * (RNG.random((120, 160)) < density[:, None])
    tensor = AffineTensor(k=k.astype(np.int32), step=1.0, scales=scales(120, 160))
    with nqformat.from_bytes(nqformat.save({"t": tensor})) as file:
        [record] = file.directory.tensors
        assert record.fields.partition is not None
        assert np.array_equal(file.get_tensor("t"), tensor.decode())


def test_the_exponents_of_scales_share_a_stream_with_those_of_biases() -> None:
    k = RNG.integers(-3, 4, (600, 20)).astype(np.int32)
    steps, bias = np.ldexp(1 + RNG.random((2, 600)), -5).astype(np.float32)
    tensors = {
        "w": AffineTensor(k=k, step=1.0, scales=Scales.along_axis(steps, k.shape)),
        "b": bias,
    }
    with nqformat.from_bytes(nqformat.save(tensors)) as file:
        slices = file.directory.slices
        assert slices[0, "scales3"].stream == slices[1, "plane3"].stream
        assert np.array_equal(file.get_tensor("w"), tensors["w"].decode())
        accounts = account(file)
        assert accounts.tensors[0].stored_bytes > 600 * 3
        assert accounts.padding == 0


def test_what_scales_must_not_be() -> None:
    k = np.zeros((4, 3), dtype=np.int32)
    for values in ([0.0], [-1.0], [np.inf], [np.nan], []):
        with pytest.raises(ValueError, match="scales must be"):
            Scales(values=np.array(values, dtype=np.float32), span=1)
    with pytest.raises(ValueError, match="not exactly representable in bfloat16"):
        Scales(values=np.float32([1 / 3]), span=1, stored_as=DType.BFLOAT16)
    with pytest.raises(ValueError, match="at least one element"):
        Scales(values=np.ones(1, np.float32), span=0)
    with pytest.raises(ValueError, match="13 scales of 1 elements"):
        AffineTensor(k=k, step=1.0, scales=Scales(values=np.ones(13, np.float32), span=1))
    with pytest.raises(ValueError, match="floating-point"):
        AffineTensor(k=k, step=1.0, dtype=DType.INT8, scales=Scales(values=np.ones(1, np.float32), span=1))
    with pytest.raises(ValueError, match="for axis 1"):
        Scales.along_axis(np.ones(4, np.float32), (4, 3), axis=1)


def test_a_stored_scale_that_is_not_above_zero_is_corrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = AffineTensor(k=np.ones((2, 3), np.int32), step=1.0, scales=scales(2, 3, DType.FLOAT32))
    for bad in (0.0, -2.0, np.nan):
        broken = replace(tensor)
        values = tensor.scales.values.copy()
        values[1] = bad
        monkeypatch.setattr("nqformat.scales.are_scales", lambda _: True)
        object.__setattr__(broken, "scales", Scales(values=values, span=3))
        content = nqformat.save({"t": broken})
        monkeypatch.undo()
        with pytest.raises(CorruptError, match="scale of tensor 't' is not above zero"):
            nqformat.load(content)
