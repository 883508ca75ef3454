"""Sensitivities from activations of an ONNX graph, and binding to stored tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nqconvert import load_source
from nqconvert.sensitivity import measure_sensitivities
from nqconvert.sensitivity.binding import bind_sensitivities
from nqformat import ConversionError

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def small_model(seed: int = 0) -> Any:
    """Grouped convolution, transposed convolution, Gemm both ways round, MatMul on both sides."""
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(seed)
    arrays = {
        "conv": rng.normal(size=(6, 2, 3, 3)),
        "deconv": rng.normal(size=(6, 3, 2, 2)),
        "gemm": rng.normal(size=(20, 3)),
        "gemm2": rng.normal(size=(20, 7)),
        "matmul": rng.normal(size=(7, 9)),
        "left": rng.normal(size=(11, 5)),
    }
    nodes = [
        helper.make_node("Conv", ["x", "conv"], ["a"], group=2, strides=[2, 2]),
        helper.make_node("ConvTranspose", ["a", "deconv"], ["b"], strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["b"], ["c"]),
        helper.make_node("Flatten", ["c"], ["d"]),
        helper.make_node("Gemm", ["d", "gemm"], ["e"], transB=1),
        helper.make_node("Gemm", ["e", "gemm2"], ["f"]),
        helper.make_node("MatMul", ["f", "matmul"], ["g"]),
        helper.make_node("MatMul", ["left", "g"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [5, 4, 7, 7])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [11, 9])],
        [numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_activation_gives_each_weight_the_mean_square_of_its_input() -> None:
    source = load_source(small_model())
    x = np.random.default_rng(1).normal(size=(5, 4, 7, 7)).astype(np.float32)
    found = measure_sensitivities(source, x, method="activation", batch_size=5)
    assert set(found) == set(source.tensors)
    for name, array in found.items():
        assert array.shape == source.tensors[name].shape and array.dtype == np.float32
    squares = np.square(x.astype(np.float64)).sum(axis=(0, 2, 3)) / 5 / 4
    np.testing.assert_allclose(found["conv"][0, :, 1, 2], squares[:2], rtol=1e-5)
    np.testing.assert_allclose(found["conv"][5, :, 0, 0], squares[2:], rtol=1e-5)
    gemm = source.tensors["gemm"].astype(np.float64)
    assert (found["gemm"] == found["gemm"][0]).all() and (found["gemm2"][:, 0] == found["gemm2"].T).all()
    assert (found["left"] == found["left"][0]).all() and gemm.shape == found["gemm"].shape


def test_activation_is_the_hessian_of_a_linear_layers_squared_error() -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    module = torch.nn.Linear(6, 8)
    inputs = torch.randn(10, 6)
    source = load_source(module, example_inputs=inputs[:2])
    found = measure_sensitivities(source, inputs, method="activation")["weight"]
    expected = measure_sensitivities(
        module, (inputs, torch.zeros(10, 8)), method="becker", loss=torch.nn.functional.mse_loss
    )["weight"]
    np.testing.assert_allclose(found, expected * 8 / 2, rtol=1e-5)


def test_activation_needs_a_graph() -> None:
    with pytest.raises(ConversionError, match="needs a graph"):
        measure_sensitivities(load_source({"w": np.ones((9, 9))}), np.ones((1, 9)), method="activation")


def test_wrong_inputs_are_named() -> None:
    source = load_source(small_model())
    with pytest.raises(ConversionError, match=r"takes \['x'\]"):
        measure_sensitivities(source, {"z": np.ones((5, 4, 7, 7), np.float32)}, method="activation")


def test_sensitivities_follow_a_folded_batch_norm() -> None:
    """The loss in terms of folded weights is the same loss: its Hessian is h / scale^2."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(2, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.Flatten()]
    module = torch.nn.Sequential(*layers, torch.nn.Linear(8 * 4, 4)).eval()
    module[1].weight.data.uniform_(-2, 2)
    module[1].running_var.uniform_(0.5, 2.0)
    inputs = torch.randn(8, 2, 4, 4)
    source = load_source(module, example_inputs=inputs)
    sensitivities = measure_sensitivities(module, inputs, method="fisher")
    parameters = {name: p.detach().numpy() for name, p in module.named_parameters()}
    weights = {name: array for name, array in source.tensors.items() if array.ndim > 1}
    bound = bind_sensitivities(weights, parameters, sensitivities)
    assert bound.missing == () and len(bound.rescaled) == 1
    folded = torch.nn.Conv2d(2, 8, 3)
    folded.weight.data = torch.tensor(source.tensors[bound.rescaled[0]])
    folded.bias.data = torch.tensor(next(a for n, a in source.tensors.items() if n.endswith("0.bias")))
    plain = torch.nn.Sequential(folded, *layers[2:], module[4]).eval()
    expected = measure_sensitivities(plain, inputs, method="fisher")["0.weight"]
    np.testing.assert_allclose(bound.arrays[bound.rescaled[0]], expected, rtol=2e-2, atol=1e-4)


def test_sensitivities_are_found_by_value_in_another_order_or_reported_missing() -> None:
    rng = np.random.default_rng(0)
    w = {"a": rng.normal(size=(4, 3)).astype(np.float32), "b": rng.normal(size=(2, 3)).astype(np.float32)}
    h = {"a": rng.random((4, 3)).astype(np.float32), "b": rng.random((2, 3)).astype(np.float32)}
    joined = np.concatenate([w["b"], w["a"][::-1]])[None]
    bound = bind_sensitivities({"val": joined, "t": w["a"].T, "x": w["a"] + 1}, w, h)
    assert bound.looked_up == ("val",) and bound.missing == ("x",)
    assert np.array_equal(bound.arrays["val"], np.concatenate([h["b"], h["a"][::-1]])[None])
    assert np.array_equal(bound.arrays["t"], h["a"].T)
