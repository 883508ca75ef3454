"""Layers that aim at their former outputs from inputs that are quantized already."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from nqconvert import load_source
from nqconvert.array_spool import ArraySpool
from nqconvert.graphs.products import find_products
from nqconvert.obs import sequential
from nqconvert.obs import surgeon as surgeon_module
from nqconvert.obs.layer import Layer, prepare_layer
from nqconvert.obs.positions import inputs_at, n_positions, outputs_at
from nqconvert.obs.sequential import Decision, Moments, aimed_layer, run_sequentially
from nqconvert.obs.statistics import new_hessians
from nqconvert.obs.surgeon import CalibrationSettings, prepare_surgeon
from nqconvert.quantization import continuous_weights
from nqconvert.repair.float_network import FloatNetwork
from nqformat.errors import ConversionError

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
helper, numpy_helper = onnx.helper, onnx.numpy_helper

SHAPES = {"first": (10, 8), "first_bias": (10,), "second": (6, 10), "second_bias": (6,)}


def model(arrays: dict[str, np.ndarray], nodes: list[Any], x: list[Any], y: list[Any]) -> Any:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, x)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, y)],
        [numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def drawn(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: 0.4 * rng.normal(size=shape) for name, shape in shapes.items()}


def two_layers() -> Any:
    nodes = [
        helper.make_node("Gemm", ["x", "first", "first_bias"], ["a"], transB=1),
        helper.make_node("Gemm", ["a", "second", "second_bias"], ["y"], transB=1),
    ]
    return model(drawn(SHAPES), nodes, ["n", 8], ["n", 6])


def residual() -> Any:
    """Convolutions beside a bypass with a convolution of its own, products with bias, inside one block."""
    shapes = {
        "stem": (6, 2, 3, 3),
        "inner": (6, 6, 3, 3),
        "bypass": (6, 6, 1, 1),
        "last": (6, 4),
        "bias": (4,),
    }
    nodes = [
        helper.make_node("Conv", ["x", "stem"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "bypass"], ["d"], strides=[2, 2]),
        helper.make_node("Conv", ["b", "inner"], ["c"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["d", "c"], ["e"]),
        helper.make_node("ReduceMean", ["e"], ["f"], axes=[2, 3], keepdims=0),
        helper.make_node("MatMul", ["f", "last"], ["g"]),
        helper.make_node("Add", ["g", "bias"], ["y"]),
    ]
    return model(drawn({**shapes, "bias": (4,)}), nodes, ["n", 2, 6, 6], ["n", 4])


def inputs(*shape: int, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=shape) @ rng.normal(size=(shape[-1], shape[-1]))
    return mixed.astype(np.float32)


def network(graph: Any, calibration: np.ndarray) -> FloatNetwork:
    source = load_source(graph)
    return FloatNetwork(
        source=source, calibration=calibration, samples=1000, seed=0, progress=lambda line: None
    )


def layers_of(found: FloatNetwork) -> dict[str, Layer]:
    """Layers with identity Hessians."""
    source = found.source
    shapes = {name: array.shape for name, array in source.tensors.items()}
    graph = onnx.ModelProto.FromString(source.graph).graph
    made = {}
    for product in find_products(graph, shapes):
        statistics = new_hessians([product], source.tensors[product.weight], rows=False)
        statistics.set_identity()
        bias = None if product.bias is None else source.tensors[product.bias]
        made[product.weight] = prepare_layer(statistics, source.tensors[product.weight], bias)
    return made


def kept(layer: Layer) -> Decision:
    """The layer's weights unrounded."""
    product = layer.statistics.product
    weight = product.restored(layer.matrices).astype(np.float32)
    return Decision(weight=weight, bias=None if layer.bias is None else layer.bias.astype(np.float32))


def coarse(layer: Layer) -> Decision:
    made = kept(layer)
    return replace(made, weight=np.rint(made.weight / 0.5).astype(np.float32) * np.float32(0.5))


def test_the_aim_is_the_regression_of_former_outputs_on_present_inputs(monkeypatch: Any) -> None:
    monkeypatch.setattr(sequential, "DAMPING", 1e-12)
    layer = layers_of(network(two_layers(), inputs(50, 8)))["second"]
    rng = np.random.default_rng(2)
    before = rng.normal(size=(10, 300)).astype(np.float32)
    now = before + 0.3 * rng.normal(size=(10, 300)).astype(np.float32)
    now1 = np.concatenate([now, np.ones((1, 300), np.float32)])
    weights = layer.matrices[0].astype(np.float32)
    sums = Moments(inputs=np.zeros((1, 11, 11)), missing=np.zeros((1, 6, 11)))
    for part in (slice(0, 100), slice(100, 300)):
        sums.add(now1[None, :, part], (weights @ (before - now))[None, :, part])
    aimed = aimed_layer(layer, sums)
    wanted = weights @ before + layer.bias[:, None]
    expected = np.linalg.lstsq(now1.T.astype(np.float64), wanted.T.astype(np.float64), rcond=None)[0].T
    np.testing.assert_allclose(aimed.matrices[0], expected[:, :10], atol=1e-5)
    np.testing.assert_allclose(aimed.bias, expected[:, 10], atol=1e-5)


def test_a_later_layer_makes_up_for_an_earlier_one() -> None:
    calibration = inputs(200, 8)
    found = network(two_layers(), calibration)
    layers = layers_of(found)
    made: dict[str, Decision] = {}

    def decide(name: str, layer: Layer) -> Decision:
        made[name] = coarse(layer) if name == "first" else kept(layer)
        return made[name]

    run_sequentially(found, layers, decide, ArraySpool(budget_bytes=0))
    assert list(made) == ["first", "second"]
    arrays = found.source.tensors
    hidden = calibration @ made["first"].weight.T + made["first"].bias
    wanted = (calibration @ arrays["first"].T + arrays["first_bias"]) @ arrays["second"].T
    plain = hidden @ arrays["second"].T
    aimed = hidden @ made["second"].weight.T + made["second"].bias - arrays["second_bias"]
    assert np.square(aimed - wanted).sum() < 0.5 * np.square(plain - wanted).sum()


def test_a_layer_beside_a_bypass_makes_up_for_its_error() -> None:
    calibration = inputs(60, 2, 6, 6)
    found = network(residual(), calibration)
    seen: dict[str, Layer] = {}

    def decide(name: str, layer: Layer) -> Decision:
        seen[name] = layer
        return coarse(layer) if name == "bypass" else kept(layer)

    layers = layers_of(found)
    run_sequentially(found, layers, decide, ArraySpool(budget_bytes=1 << 20))
    assert list(seen) == ["stem", "bypass", "inner", "last"]
    changed = {name: not np.allclose(seen[name].matrices, layers[name].matrices) for name in seen}
    assert changed == {"stem": False, "bypass": False, "inner": True, "last": True}


def test_zeros_of_pruned_layers_stay() -> None:
    layer = layers_of(network(two_layers(), inputs(50, 8)))["second"]
    zeros = np.random.default_rng(0).random(layer.matrices.shape) < 0.6
    sums = Moments(inputs=np.eye(11)[None], missing=np.ones((1, 6, 11)))
    aimed = aimed_layer(replace(layer, zeros=zeros), sums)
    np.testing.assert_array_equal(aimed.matrices[zeros], layer.matrices[zeros])
    assert (aimed.matrices[~zeros] != layer.matrices[~zeros]).all()


def test_positions_of_convolutions_and_products_are_told_apart() -> None:
    graph = onnx.ModelProto.FromString(load_source(residual()).graph).graph
    shapes = {"inner": (6, 6, 3, 3), "last": (6, 4)}
    products = {p.weight: p for p in find_products(graph, shapes)}
    rng = np.random.default_rng(0)
    value, weight = rng.normal(size=(5, 6, 6, 6)), rng.normal(size=(6, 6, 3, 3))
    conv = products["inner"]
    assert n_positions(conv, value) == 5 * 3 * 3
    places = np.array([0, 7, 44])
    padded = np.pad(value, [(0, 0), (0, 0), (1, 1), (1, 1)])
    for place, column in zip(places, inputs_at(conv, value, places)[0].T, strict=True):
        sample, row, line = place // 9, place // 3 % 3, place % 3
        window = padded[sample, :, 2 * row : 2 * row + 3, 2 * line : 2 * line + 3]
        np.testing.assert_allclose(column, window.reshape(-1), rtol=1e-6)
    output = rng.normal(size=(5, 6, 3, 3)) + weight.mean()
    np.testing.assert_allclose(outputs_at(conv, output, places)[0, :, 1], output[0, :, 2, 1], rtol=1e-6)
    dense = products["last"]
    assert n_positions(dense, value[:, :, 0, 0]) == 5
    np.testing.assert_allclose(
        inputs_at(dense, value[:, :, 0, 0], places[:1])[0, :, 0], value[0, :, 0, 0], rtol=1e-6
    )


def prepared(graph: Any, calibration: np.ndarray) -> Any:
    source = load_source(graph)
    settings = CalibrationSettings(samples=500, progress=lambda line: None)
    return source, prepare_surgeon(source, continuous_weights(source.tensors), calibration, settings)


def deep() -> Any:
    names = [f"w{number}" for number in range(5)]
    nodes = []
    for place, name in enumerate(names):
        nodes.append(helper.make_node("MatMul", [f"r{place}" if place else "x", name], [f"m{place}"]))
        nodes.append(helper.make_node("Relu", [f"m{place}"], ["y" if place == 4 else f"r{place + 1}"]))
    return model(drawn(dict.fromkeys(names, (16, 16))), nodes, ["n", 16], ["n", 16])


def test_whole_networks_answer_more_like_before() -> None:
    samples = inputs(600, 16)
    source, surgeon = prepared(deep(), samples[:300])
    expected = source.run({"x": samples[300:]})[0]

    def error(rate: float, **keywords: Any) -> float:
        made = surgeon.operate(rate, **keywords)
        arrays = {name: tensor.decode() for name, tensor in made.tensors.items()}
        changed = model(arrays, list(deep().graph.node), ["n", 16], ["n", 16])
        found = load_source(changed).run({"x": samples[300:]})[0]
        return float(np.square(found - expected).mean())

    rates = (0.03, 0.1, 0.3)
    plain, sequential = ([error(rate, sequential=wanted) for rate in rates] for wanted in (False, True))
    assert np.mean(np.log(sequential)) < np.mean(np.log(plain)) - 0.1


def test_a_density_is_kept() -> None:
    _, surgeon = prepared(residual(), inputs(100, 2, 6, 6))
    n_weights = sum(layer.matrices.size for layer in surgeon.layers.values())
    made = surgeon.operate(1e-3, 0.3, sequential=True)
    n_kept = sum(int(np.count_nonzero(tensor.decode())) for tensor in made.tensors.values())
    assert 0.2 * n_weights < n_kept <= 0.3 * n_weights


def test_a_graph_that_cannot_be_run_is_quantized_without_and_that_is_said(monkeypatch: Any) -> None:
    _, surgeon = prepared(two_layers(), inputs(100, 8))

    def refuses(*arguments: Any) -> None:
        raise ConversionError("ONNX Runtime cannot run the model: no such kernel")

    monkeypatch.setattr(surgeon_module, "run_sequentially", refuses)
    made = surgeon.operate(0.1, sequential=True)
    assert made.notes == ("no sequential calibration: ONNX Runtime cannot run the model: no such kernel",)
    assert made.loss == surgeon.operate(0.1).loss


def test_values_of_many_samples_do_not_fill_the_memory() -> None:
    found = replace(network(deep(), inputs(40_000, 16)), samples=40_000)
    layers = layers_of(found)
    tracemalloc.start()
    try:
        run_sequentially(found, layers, lambda name, layer: kept(layer), ArraySpool(budget_bytes=0))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 40_000 * 16 * 4
