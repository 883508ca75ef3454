"""Both engines on scales, grouped and vector codebooks and hashed tensors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from onnx import helper

from nqformat import AffineTensor, GroupedCodebook, GroupedTensor, HashedTensor, Scales
from nqruntime import InferenceSession

from .conftest import assert_close, build_model, quantized, run_in_ort

RNG = np.random.default_rng(11)


def scales(shape, axis):
    return Scales.along_axis(RNG.uniform(0.5, 2, shape[axis]).astype(np.float32), shape, axis)


def grouped(shape, groups, span, width):
    values = RNG.normal(size=(groups, 8, width)).astype(np.float32)
    indices = RNG.integers(0, 8, -(-int(np.prod(shape)) // width)).astype(np.uint8)
    return GroupedTensor(indices=indices, shape=shape, codebook=GroupedCodebook(values=values), span=span)


def tensors_of(shape):
    k = (RNG.integers(-6, 7, shape) * (RNG.random(shape) < 0.2)).astype(np.int32)
    return {
        "affine by row": AffineTensor(k=k, step=1.0, scales=scales(shape, 0)),
        "dense by row": replace(quantized(shape, 1.0, 16), scales=scales(shape, 0)),
        "sparse by column": replace(quantized(shape, 0.1, 16), scales=scales(shape, 1)),
        "blocks": AffineTensor(k=k, step=0.5, scales=Scales(values=np.float32([1, 2, 3]), span=5)),
        "channels": grouped(shape, shape[0], int(np.prod(shape[1:])), 1),
        "vectors": grouped(shape, 1, 1, 3),
    }


@pytest.mark.parametrize("engine", ["native", "ort"])
@pytest.mark.parametrize("name", sorted(tensors_of((9, 9))))
@pytest.mark.parametrize("transposed", [0, 1])
def test_matrix_products(engine, name, transposed, save_model):
    shape = (30, 24) if transposed else (24, 30)
    tensor = tensors_of(shape)[name]
    node = helper.make_node("Gemm", ["x", "w"], ["y"], transB=transposed)
    model = build_model([node], {"x": (np.float32, [5, 24])}, ["y"])
    feeds = {"x": RNG.normal(size=(5, 24)).astype(np.float32)}
    with InferenceSession(save_model(model, {"w": tensor}), engine=engine) as session:
        assert_close(session.run(None, feeds)[0], run_in_ort(model, feeds, {"w": tensor})[0])


@pytest.mark.parametrize("engine", ["native", "ort"])
@pytest.mark.parametrize("name", sorted(tensors_of((9, 9))))
def test_convolutions(engine, name, save_model):
    tensor = tensors_of((8, 4, 3, 3))[name]
    model = build_model(
        [helper.make_node("Conv", ["x", "w"], ["y"])], {"x": (np.float32, [2, 4, 7, 7])}, ["y"]
    )
    feeds = {"x": RNG.normal(size=(2, 4, 7, 7)).astype(np.float32)}
    with InferenceSession(save_model(model, {"w": tensor}), engine=engine) as session:
        assert_close(session.run(None, feeds)[0], run_in_ort(model, feeds, {"w": tensor})[0])


def test_scaled_rows_stay_compressed(save_model):
    tensor = replace(quantized((100, 200), 1.0, 16), scales=scales((100, 200), 0))
    node = helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)
    model = build_model([node], {"x": (np.float32, [1, 200])}, ["y"])
    session = InferenceSession(save_model(model, {"w": tensor}), engine="native")
    assert "scaled rows" in session.explain()[0].kernel
    assert session.weight_bytes < 21_000


def test_many_scaled_levels_are_scaled_once(save_model):
    """A codebook too large for the kernels is decoded whole, with its scales."""
    k = RNG.integers(-(1 << 20), 1 << 20, (40, 30)).astype(np.int32)
    tensor = AffineTensor(k=k, step=2.0**-20, scales=scales((40, 30), 0))
    node = helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)
    model = build_model([node], {"x": (np.float32, [3, 30])}, ["y"])
    feeds = {"x": RNG.normal(size=(3, 30)).astype(np.float32)}
    with InferenceSession(save_model(model, {"w": tensor}), engine="native") as session:
        assert_close(session.run(None, feeds)[0], run_in_ort(model, feeds, {"w": tensor})[0])


@pytest.mark.parametrize("engine", ["native", "ort"])
def test_hashed_weights(engine, save_model):
    values = RNG.normal(size=50).astype(np.float32)
    hashed = HashedTensor(source="values", shape=(24, 30), seed=5)
    model = build_model([helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": (np.float32, [5, 24])}, ["y"])
    feeds = {"x": RNG.normal(size=(5, 24)).astype(np.float32)}
    with InferenceSession(save_model(model, {"values": values, "w": hashed}), engine=engine) as session:
        wanted = run_in_ort(model, feeds, {"w": hashed.assemble(values)})[0]
        assert_close(session.run(None, feeds)[0], wanted)


@pytest.mark.parametrize("name", sorted(tensors_of((9, 9))))
def test_embeddings(name, save_model):
    tensor = tensors_of((20, 12))[name]
    node = helper.make_node("Gather", ["w", "ids"], ["y"], axis=0)
    model = build_model([node], {"ids": (np.int64, [4])}, ["y"])
    with InferenceSession(save_model(model, {"w": tensor}), engine="native") as session:
        found = session.run(None, {"ids": np.array([3, 19, 0, 3])})[0]
    assert np.array_equal(found, tensor.decode()[[3, 19, 0, 3]])
