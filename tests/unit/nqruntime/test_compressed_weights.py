"""Layers whose weights stay compressed, on both kernel paths, against ONNX Runtime on decoded weights."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from onnx import helper

from nqformat import AffineTensor, ViewSource, ViewTensor
from nqruntime import InferenceSession

from .conftest import assert_close, build_model, quantized, run_in_ort

WEIGHTS = {
    "sparse": lambda shape: quantized(shape, 0.1, 9),
    "half zeros": lambda shape: quantized(shape, 0.5, 9),
    "dense palette": lambda shape: quantized(shape, 1.0, 16),
    "wide palette": lambda shape: quantized(shape, 0.9, 300),
    "sparse with a wide palette": lambda shape: quantized(shape, 0.1, 300),
    "sparse affine": lambda shape: AffineTensor(
        k=quantized(shape, 0.1, 9).indices.astype(np.int32), step=0.25
    ),
    "dense affine": lambda shape: AffineTensor(
        k=quantized(shape, 1.0, 30).indices.astype(np.int32), step=0.25, offset=-1.5
    ),
    "plain": lambda shape: np.random.default_rng(1).normal(size=shape).astype(np.float32),
    "all zero": lambda shape: np.zeros(shape, np.float32),
}


@pytest.fixture(params=["numpy", "numba"])
def kernels(request, monkeypatch):
    if request.param == "numba":
        pytest.importorskip("numba")
    monkeypatch.setenv("NQFORMAT_KERNELS", request.param)
    return request.param


def compare(save_model, model, tensors, feeds):
    session = InferenceSession(save_model(model, tensors), engine="native")
    for actual, expected in zip(session.run(None, feeds), run_in_ort(model, feeds, tensors), strict=True):
        assert_close(actual, expected)
    return session


@pytest.mark.parametrize("weight", WEIGHTS.values(), ids=WEIGHTS.keys())
@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("batch", [1, 5])
def test_gemm_computes_from_any_storage(weight, transposed, batch, kernels, save_model):
    tensors = {"w": weight((40, 60) if transposed else (60, 40)), "b": np.ones(40, np.float32)}
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=transposed)
    x = np.random.default_rng(2).normal(size=(batch, 60)).astype(np.float32)
    model = build_model([node], {"x": (np.float32, ["n", 60])}, ["y"])
    compare(save_model, model, tensors, {"x": x})


@pytest.mark.parametrize("weight", WEIGHTS.values(), ids=WEIGHTS.keys())
def test_matmul_computes_from_any_storage(weight, kernels, save_model):
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    x = np.random.default_rng(3).normal(size=(2, 3, 50)).astype(np.float32)
    model = build_model([node], {"x": (np.float32, ["n", 3, 50])}, ["y"])
    compare(save_model, model, {"w": weight((50, 30))}, {"x": x})


@pytest.mark.parametrize("weight", WEIGHTS.values(), ids=WEIGHTS.keys())
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_conv_computes_from_any_storage(weight, groups, kernels, save_model):
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], group=groups, pads=[1, 1, 1, 1], strides=[2, 1])
    tensors = {"w": weight((12, 6 // groups, 3, 3)), "b": np.arange(12, dtype=np.float32)}
    x = np.random.default_rng(4).normal(size=(2, 6, 9, 10)).astype(np.float32)
    model = build_model([node], {"x": (np.float32, ["n", 6, 9, 10])}, ["y"])
    compare(save_model, model, tensors, {"x": x})


@pytest.mark.parametrize("weight", WEIGHTS.values(), ids=WEIGHTS.keys())
@pytest.mark.parametrize("axis", [0, 1])
def test_gather_reads_a_compressed_table(weight, axis, kernels, save_model):
    node = helper.make_node("Gather", ["table", "ids"], ["y"], axis=axis)
    model = build_model([node], {"ids": (np.int64, [2, 2])}, ["y"])
    compare(save_model, model, {"table": weight((20, 7))}, {"ids": np.array([[0, 6], [-1, 3]])})


def test_a_compressed_operand_of_any_other_operator_is_decoded(kernels, save_model):
    model = build_model([helper.make_node("Mul", ["x", "w"], ["y"])], {"x": (np.float32, [4, 6])}, ["y"])
    compare(save_model, model, {"w": quantized((4, 6), 0.2, 5)}, {"x": np.full((4, 6), 2, np.float32)})


@pytest.mark.parametrize("inserted", ["Transpose", "Identity"])
def test_weights_stay_compressed_behind_nodes_that_pass_them_on(inserted, kernels, save_model):
    nodes = [
        helper.make_node(inserted, ["w"], ["passed"]),
        helper.make_node("MatMul", ["x", "passed"], ["y"]),
    ]
    shape = (30, 80) if inserted == "Transpose" else (80, 30)
    tensors = {"w": quantized(shape, 0.1, 9)}
    x = np.random.default_rng(5).normal(size=(1, 80)).astype(np.float32)
    model = build_model(nodes, {"x": (np.float32, [1, 80])}, ["y"])
    session = compare(save_model, model, tensors, {"x": x})
    assert any(form in session.explain()[1].kernel for form in ("sparse", "palette"))


def test_weights_stay_compressed_behind_a_transposed_view(kernels, save_model):
    stored = quantized((30, 80), 0.1, 9)
    view = ViewTensor(
        sources=(ViewSource(name="stored", start=0, stop=30),), permutation=(1, 0), shape=(80, 30)
    )
    model = build_model([helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": (np.float32, [3, 80])}, ["y"])
    path = save_model(model, {"stored": stored, "w": view})
    session = InferenceSession(path, engine="native")
    x = np.random.default_rng(6).normal(size=(3, 80)).astype(np.float32)
    expected = run_in_ort(model, {"x": x}, {"w": np.ascontiguousarray(stored.decode().T)})[0]
    assert_close(session.run(None, {"x": x})[0], expected)
    assert any(form in session.explain()[0].kernel for form in ("sparse", "palette"))


def test_views_of_some_rows_are_decoded(save_model):
    stored = quantized((30, 8), 0.1, 9)
    view = ViewTensor(
        sources=(ViewSource(name="stored", start=3, stop=11),), permutation=(0, 1), shape=(8, 8)
    )
    model = build_model([helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": (np.float32, [3, 8])}, ["y"])
    session = InferenceSession(save_model(model, {"stored": stored, "w": view}), engine="native")
    x = np.random.default_rng(6).normal(size=(3, 8)).astype(np.float32)
    assert_close(session.run(None, {"x": x})[0], run_in_ort(model, {"x": x}, {"w": stored.decode()[3:11]})[0])


def test_sparse_weights_take_at_most_three_bytes_a_nonzero(save_model):
    tensor = quantized((1000, 1000), 0.09, 16)
    model = build_model(
        [helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)], {"x": (np.float32, [1, 1000])}, ["y"]
    )
    session = InferenceSession(save_model(model, {"w": tensor}), engine="native", memory="low")
    n_nonzero = np.count_nonzero(tensor.indices)
    assert 1.5 * n_nonzero < session.weight_bytes < 3.15 * n_nonzero


def test_palette_weights_take_at_most_a_byte_each(save_model):
    model = build_model(
        [helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)], {"x": (np.float32, [1, 200])}, ["y"]
    )
    session = InferenceSession(save_model(model, {"w": quantized((100, 200), 1.0, 16)}), engine="native")
    assert 10_000 <= session.weight_bytes < 20_200


def test_weights_with_no_elements_give_empty_results(save_model):
    model = build_model([helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": (np.float32, [3, 0])}, ["y"])
    session = InferenceSession(save_model(model, {"w": np.zeros((0, 4), np.float32)}), engine="native")
    result = session.run(None, {"x": np.zeros((3, 0), np.float32)})[0]
    np.testing.assert_array_equal(result, np.zeros((3, 4), np.float32))


def test_long_rows_keep_their_precision(kernels, save_model):
    tensors = {"w": quantized((8, 30_000), 1.0, 16)}
    node = helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)
    x = np.random.default_rng(7).random(size=(1, 30_000)).astype(np.float32)
    session = InferenceSession(
        save_model(build_model([node], {"x": (np.float32, [1, 30_000])}, ["y"]), tensors), engine="native"
    )
    exact = tensors["w"].decode().astype(np.float64) @ x[0].astype(np.float64)
    difference = np.abs(session.run(None, {"x": x})[0][0] - exact).max()
    assert difference < 1e-5 * np.abs(exact).max()


def test_small_networks_do_not_import_numba(monkeypatch, save_model):
    monkeypatch.setenv("NQFORMAT_KERNELS", "auto")
    monkeypatch.delitem(sys.modules, "numba", raising=False)
    model = build_model(
        [helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)], {"x": (np.float32, [1, 60])}, ["y"]
    )
    session = InferenceSession(save_model(model, {"w": quantized((40, 60), 0.1, 9)}), engine="native")
    session.run(None, {"x": np.zeros((1, 60), np.float32)})
    assert "numba" not in sys.modules
