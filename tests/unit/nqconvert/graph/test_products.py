"""Products found in graphs, their weights as matrices, and graphs run by torch."""

from __future__ import annotations

import numpy as np
import pytest

from nqconvert.graphs.observation import observed_values
from nqconvert.graphs.products import find_products
from nqformat import ConversionError

onnx = pytest.importorskip("onnx")
helper = onnx.helper


@pytest.fixture
def arrays(rng):
    shapes = {
        "grouped": (6, 2, 3, 3),
        "grouped_bias": (6,),
        "deconv": (6, 2, 2, 2),
        "deconv_bias": (4,),
        "gemm": (24, 5),
        "gemm_bias": (5,),
        "turned": (7, 5),
        "matmul": (7, 9),
        "added": (9,),
    }
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def nodes(**changes):
    return [
        helper.make_node(
            "Conv", ["x", "grouped", "grouped_bias"], ["a"], group=2, strides=[2, 2], pads=[1, 0, 1, 2]
        ),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("ConvTranspose", ["b", "deconv", "deconv_bias"], ["c"], group=2, strides=[2, 1]),
        helper.make_node("AveragePool", ["c"], ["d"], kernel_shape=[2, 2], strides=[2, 2], pads=[0, 1, 1, 0]),
        helper.make_node("MaxPool", ["d"], ["e"], kernel_shape=[2, 1], strides=[2, 1], ceil_mode=1),
        helper.make_node("Flatten", ["e"], ["f"]),
        helper.make_node("Gemm", ["f", "gemm", "gemm_bias"], ["g"], **changes),
        helper.make_node("Gemm", ["g", "turned"], ["h"], transB=1),
        helper.make_node("MatMul", ["h", "matmul"], ["i"]),
        helper.make_node("Add", ["added", "i"], ["j"]),
        helper.make_node("Softmax", ["j"], ["y"], axis=-1),
    ]


@pytest.fixture
def model(make_model, arrays):
    return make_model(nodes(), {"x": [3, 4, 9, 6]}, ["y"], arrays)


def products_of(model, arrays):
    found = find_products(model.graph, {name: array.shape for name, array in arrays.items()})
    return {product.weight: product for product in found}


def test_products_and_their_biases_are_found(model, arrays):
    found = products_of(model, arrays)
    assert {name: (p.operator, p.bias, p.n_groups) for name, p in found.items()} == {
        "grouped": ("Conv", "grouped_bias", 2),
        "deconv": ("ConvTranspose", "deconv_bias", 2),
        "gemm": ("Gemm", "gemm_bias", 1),
        "turned": ("Gemm", None, 1),
        "matmul": ("MatMul", "added", 1),
    }


def test_a_bias_that_is_scaled_takes_up_no_errors(make_model, arrays):
    model = make_model(nodes(beta=2.0), {"x": [3, 4, 9, 6]}, ["y"], arrays)
    assert products_of(model, arrays)["gemm"].bias is None


def test_matrices_have_an_output_a_row_and_come_back_in_shape(model, arrays):
    shapes = {
        "grouped": (2, 3, 18),
        "deconv": (2, 8, 3),
        "gemm": (1, 5, 24),
        "turned": (1, 7, 5),
        "matmul": (1, 9, 7),
    }
    for name, product in products_of(model, arrays).items():
        matrices = product.matrices(arrays[name])
        assert matrices.shape == shapes[name] and product.is_matrix
        np.testing.assert_array_equal(product.restored(matrices), arrays[name])


def test_a_stack_of_matrices_is_no_matrix(make_model, rng):
    arrays = {"w": rng.normal(size=(2, 4, 3)).astype(np.float32)}
    model = make_model([helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": [2, 5, 4]}, ["y"], arrays)
    assert not products_of(model, arrays)["w"].is_matrix


def test_torch_computes_what_onnx_runtime_computes(model, arrays, run_model, rng):
    torch = pytest.importorskip("torch")
    from nqconvert.graphs.torch_graph import TorchGraph

    x = rng.normal(size=(3, 4, 9, 6)).astype(np.float32)
    graph = TorchGraph(model.SerializeToString())
    made = graph.run({"x": torch.from_numpy(x)}, {}, watch={"c"})
    np.testing.assert_allclose(made["y"].numpy(), run_model(model, {"x": x})[0], atol=1e-5)
    assert made["c"].shape == (3, 4, 10, 4)


def test_torch_names_an_operator_without_gradient(make_model):
    pytest.importorskip("torch")
    from nqconvert.graphs.torch_graph import TorchGraph, UnsupportedOperatorError

    model = make_model([helper.make_node("NonZero", ["x"], ["y"])], {"x": [3]}, ["y"])
    with pytest.raises(UnsupportedOperatorError, match="'NonZero'"):
        TorchGraph(model.SerializeToString())


def test_values_inside_a_graph_are_observed(model, run_model, rng):
    x = rng.normal(size=(3, 4, 9, 6)).astype(np.float32)
    found = observed_values(onnx.ModelProto.FromString(model.SerializeToString()), {}, ["c", "c", "x"])(
        {"x": x}
    )
    assert set(found) == {"x", "c", "y"}
    np.testing.assert_allclose(found["y"], run_model(model, {"x": x})[0], atol=1e-6)
    with pytest.raises(ConversionError, match="cannot load"):
        observed_values(onnx.ModelProto.FromString(model.SerializeToString()), {}, ["nothing"])
