"""Hessians of whole networks, and what one penalty makes of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nqconvert import load_source
from nqconvert.graphs.products import find_products
from nqconvert.obs import surgeon as surgeon_module
from nqconvert.obs.plain import add_plain_moments
from nqconvert.obs.statistics import new_hessians
from nqconvert.obs.surgeon import CalibrationSettings, prepare_surgeon
from nqconvert.quantization import continuous_weights, quantize_tensors
from nqformat import AffineTensor, CodebookTensor, ConversionError
from nqformat.errors import MissingDependencyError

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
helper, numpy_helper = onnx.helper, onnx.numpy_helper

QUIET = CalibrationSettings(samples=100, progress=lambda line: None)
SHAPES = {
    "grouped": (6, 2, 3, 3),
    "grouped_bias": (6,),
    "deconv": (6, 4, 2, 2),
    "gemm": (12, 64),
    "gemm_bias": (12,),
    "last": (12, 8),
}


def small_model(seed: int = 0, **replaced: np.ndarray) -> Any:
    rng = np.random.default_rng(seed)
    arrays = {name: 0.4 * rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    arrays |= {name: 0.4 * array for name, array in replaced.items()}
    nodes = [
        helper.make_node("Conv", ["x", "grouped", "grouped_bias"], ["a"], group=2, strides=[2, 2]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("ConvTranspose", ["b", "deconv"], ["c"], strides=[2, 2]),
        helper.make_node("Flatten", ["c"], ["d"]),
        helper.make_node("Gemm", ["d", "gemm", "gemm_bias"], ["e"], transB=1),
        helper.make_node("Tanh", ["e"], ["f"]),
        helper.make_node("MatMul", ["f", "last"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 4, 6, 6])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 8])],
        [numpy_helper.from_array(a, n) for n, a in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def inputs(n: int = 100, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, 4, 6, 6)).astype(np.float32)


def made_surgeon(model: Any = None, calibration: Any = None, settings: CalibrationSettings = QUIET) -> Any:
    source = load_source(model or small_model())
    weights = continuous_weights(source.tensors)
    return source, prepare_surgeon(
        source, weights, inputs() if calibration is None else calibration, settings
    )


def measured(n_samples: int, passes: int, *, rows: bool = False, pruned: bool = False) -> Any:
    torch = pytest.importorskip("torch")
    from nqconvert.graphs.torch_graph import TorchGraph
    from nqconvert.obs.gauss_newton import GaussNewtonSettings, add_gauss_newton

    replaced = {}
    if pruned:
        rng = np.random.default_rng(3)
        for name, density in (("gemm", 0.2), ("grouped", 0.4)):
            kept = rng.random(SHAPES[name]) < density
            replaced[name] = np.where(kept, rng.normal(size=SHAPES[name]), 0.0).astype(np.float32)
    source = load_source(small_model(**replaced))
    graph = onnx.ModelProto.FromString(source.graph).graph
    products = list(find_products(graph, {n: a.shape for n, a in source.tensors.items()}))
    layers = {p.weight: new_hessians([p], source.tensors[p.weight], rows=rows) for p in products}
    batches = [{"x": part} for part in np.array_split(inputs(n_samples), 2)]
    settings = GaussNewtonSettings(temperature=2.0, passes=passes, row_passes=passes)
    runner = TorchGraph(source.graph)
    names = list(layers.values())
    add_gauss_newton(names, runner, source.tensors, batches, settings=settings, progress=lambda line: None)
    return torch, source, runner, layers


def brute_force(torch: Any, source: Any, runner: Any, name: str, n_samples: int) -> np.ndarray:
    """Gradients of every log-probability, scaled: (samples x classes, elements of the weight)."""
    found = []
    for sample in inputs(n_samples):
        tensors = {n: torch.from_numpy(a.copy()).requires_grad_(n == name) for n, a in source.tensors.items()}
        logits = runner.run({"x": torch.from_numpy(sample[None])}, tensors)["y"]
        scores = torch.log_softmax(logits[0] / 2.0, dim=0)
        for c in range(8):
            (gradient,) = torch.autograd.grad(scores[c], tensors[name], retain_graph=True)
            found.append(2.0 * scores[c].exp().sqrt().item() * gradient.numpy())
    return np.array(found)


def assert_alike(made: np.ndarray, expected: np.ndarray) -> None:
    """Sums of random signs: standard errors are about 5 % of the largest element with 200 x 4 draws."""
    assert made.shape == expected.shape
    assert np.abs(made - expected).max() < 0.25 * np.abs(expected).max()
    traces = [np.trace(stack, axis1=1, axis2=2) for stack in (made, expected)]
    np.testing.assert_allclose(traces[0], traces[1], rtol=0.15)


def test_hessians_are_those_of_brute_force() -> None:
    n_samples = 4
    torch, source, runner, layers = measured(n_samples, passes=200)
    for name, layer in layers.items():
        gradients = brute_force(torch, source, runner, name, n_samples)
        matrices = np.array([layer.product.matrices(g) for g in gradients])
        n = matrices.shape[3]
        expected = np.einsum("sgoi,sgoj->gij", matrices, matrices) / n_samples / matrices.shape[2]
        made = np.array([group[0][:n, :n] for group in layer.shared])
        assert_alike(made, expected)
        scales = np.square(matrices).sum(axis=(0, 3))
        np.testing.assert_allclose(layer.scales, scales / scales.mean(), rtol=0.3)


def test_a_pruned_layer_has_a_hessian_for_each_output() -> None:
    torch, source, runner, layers = measured(4, passes=200, rows=True, pruned=True)
    assert layers["last"].rows is None
    for name in ("gemm", "grouped"):
        layer = layers[name]
        gradients = brute_force(torch, source, runner, name, 4)
        flat = np.array([layer.product.matrices(g) for g in gradients])
        flat = flat.reshape(len(gradients), -1, flat.shape[-1])
        weights = layer.product.matrices(source.tensors[name]).reshape(flat.shape[1:])
        for row in (0, 5):
            kept = np.flatnonzero(weights[row])
            np.testing.assert_array_equal(layer.kept[row], kept)
            expected = flat[:, row, kept].T @ flat[:, row, kept] / 4
            assert_alike(layer.rows[row][None, :-1, :-1], expected[None])


def test_plain_moments_are_those_of_the_windows() -> None:
    torch = pytest.importorskip("torch")
    source = load_source(small_model())
    model = onnx.ModelProto.FromString(source.graph)
    products = list(find_products(model.graph, {n: a.shape for n, a in source.tensors.items()}))
    layers = {p.weight: new_hessians([p], source.tensors[p.weight], rows=False) for p in products}
    add_plain_moments(list(layers.values()), model, source.tensors, [{"x": inputs(8)}], lambda line: None)
    windows = torch.nn.functional.unfold(torch.from_numpy(inputs(8)), 3, stride=2).numpy()
    windows = windows.transpose(1, 0, 2).reshape(36, -1).astype(np.float64)
    matrices = layers["grouped"].product.matrices(source.tensors["grouped"].astype(np.float64))
    parts = [windows[:18], windows[18:]]
    energy = sum(np.square(matrices[g] @ parts[g]).sum() for g in range(2))
    for group in range(2):
        expected = 2.0 * parts[group] @ parts[group].T / energy
        np.testing.assert_allclose(
            layers["grouped"].shared[group][0][:18, :18], expected, rtol=1e-4, atol=1e-7
        )


def test_every_product_is_quantized_and_biases_take_up_errors() -> None:
    pytest.importorskip("torch")
    source, surgeon = made_surgeon()
    assert set(surgeon.layers) == {"grouped", "deconv", "gemm", "last"} and surgeon.notes == ()
    operation = surgeon.operate(0.01)
    assert set(operation.biases) == {"grouped_bias", "gemm_bias"}
    for name, tensor in operation.tensors.items():
        assert isinstance(tensor, AffineTensor | CodebookTensor)
        assert tensor.shape == source.tensors[name].shape
        difference = tensor.decode() - source.tensors[name]
        assert 0 < np.abs(difference).max() < 2.0 and np.square(difference).mean() < 0.1
    finer = surgeon.operate(1e-4)
    assert finer.loss < operation.loss
    again = surgeon.operate(0.01)
    for name, tensor in operation.tensors.items():
        np.testing.assert_array_equal(tensor.decode(), again.tensors[name].decode())


def test_without_torch_or_with_a_foreign_operator_inputs_alone_decide(monkeypatch: Any) -> None:
    real = surgeon_module.require_package

    def without_torch(name: str) -> Any:
        if name == "torch":
            raise MissingDependencyError("torch", "convert")
        return real(name)

    monkeypatch.setattr(surgeon_module, "require_package", without_torch)
    source, surgeon = made_surgeon()
    assert len(surgeon.notes) == 1 and "inputs alone" in surgeon.notes[0] and "torch" in surgeon.notes[0]
    operation = surgeon.operate(1e-3)
    error = operation.tensors["gemm"].decode() - source.tensors["gemm"]
    assert 0 < np.square(error).mean() < 0.1


def test_tensors_without_a_product_are_quantized_as_ever_and_named() -> None:
    pytest.importorskip("torch")
    model = small_model()
    table = np.random.default_rng(0).normal(size=(400, 8)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(table, "table"))
    model.graph.initializer.append(numpy_helper.from_array(np.array([3, 5]), "places"))
    model.graph.node.append(helper.make_node("Gather", ["table", "places"], ["rows"]))
    model.graph.node.append(helper.make_node("ReduceSum", ["rows"], ["sum"], keepdims=0))
    model.graph.node.append(helper.make_node("Add", ["y", "sum"], ["z"]))
    model.graph.output[0].name = "z"
    source, surgeon = made_surgeon(model)
    assert any("table" in note for note in surgeon.notes) and "table" not in surgeon.layers
    from nqconvert.presets import preset_settings

    made = quantize_tensors(source.tensors, preset_settings("post-training"), None, surgeon)
    assert isinstance(made.tensors["table"], CodebookTensor) and made.loss > 0
    assert np.abs(made.tensors["table"].decode() - table).max() < 0.1


def test_what_is_missing_is_named() -> None:
    source = load_source(small_model())
    weights = continuous_weights(source.tensors)
    with pytest.raises(ConversionError, match="needs a model with a graph and calibration inputs"):
        prepare_surgeon(source, weights, None, QUIET)
    with pytest.raises(ConversionError, match="graph and calibration"):
        prepare_surgeon(load_source(dict(source.tensors)), weights, inputs(), QUIET)
    with pytest.raises(ConversionError, match="no weight outside If, Loop and Scan"):
        prepare_surgeon(source, {}, inputs(), QUIET)
    with pytest.raises(ConversionError, match="the calibration data has 2 inputs"):
        prepare_surgeon(source, weights, [((inputs(), inputs()), None)], QUIET)


def test_weights_of_few_values_are_left_alone() -> None:
    few = np.random.default_rng(0).integers(0, 8, size=(12, 64)).astype(np.float32)
    weights = continuous_weights(load_source(small_model(gemm=few)).tensors)
    assert "gemm" not in weights and "last" in weights


@pytest.mark.parametrize("density", [0.3, 0.1])
def test_pruning_to_a_density_takes_the_weights_of_least_loss(density: float) -> None:
    pytest.importorskip("torch")
    source, surgeon = made_surgeon()
    n_weights = sum(layer.matrices.size for layer in surgeon.layers.values())
    made = surgeon.operate(1e-4, density)
    n_kept = sum(int(np.count_nonzero(tensor.decode())) for tensor in made.tensors.values())
    assert 0.9 * density * n_weights <= n_kept <= density * n_weights
    by_layer = [np.count_nonzero(t.decode()) / t.decode().size for t in made.tensors.values()]
    assert max(by_layer) > 1.3 * min(by_layer)

    from nqconvert.training.preparation import prune_tensors

    pruned = prune_tensors(source.tensors, density)
    run = load_source(small_model()).run
    assert run is not None
    expected = run({"x": inputs(200, 5)})[0]

    def error(tensors: Any) -> float:
        from nqconvert.graphs.torch_graph import TorchGraph

        torch = pytest.importorskip("torch")
        values = {name: torch.from_numpy(np.array(array)) for name, array in tensors.items()}
        found = TorchGraph(source.graph).run({"x": torch.from_numpy(inputs(200, 5))}, values)["y"]
        return float(np.square(found.numpy() - expected).mean())

    surgical = {name: tensor.decode() for name, tensor in made.tensors.items()}
    biases = {name: bias.values.astype(np.float32) for name, bias in made.biases.items()}
    assert error({**source.tensors, **surgical, **biases}) < 0.8 * error(pruned)


def test_a_density_that_is_there_already_costs_nothing() -> None:
    pytest.importorskip("torch")
    _, surgeon = made_surgeon()
    plain, dense = surgeon.operate(0.01), surgeon.operate(0.01, 1.0)
    assert dense.loss == plain.loss
