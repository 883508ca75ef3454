from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from nqconvert.graphs.hoisting import hoist_initializers
from nqconvert.graphs.scope import all_names, free_names
from nqconvert.graphs.slimming import slim_graph


def constant(array, name):
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array, name))


def float_info(name, shape=None):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def matrix(rng, *shape):
    return rng.normal(size=shape or (6, 6)).astype(np.float32)


def mlp(make_model, rng):
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["hidden_layer"], name="first", doc_string="a long story"),
        helper.make_node("Relu", ["hidden_layer"], ["activated_layer"], name="second"),
        helper.make_node("Gemm", ["activated_layer", "w2", "bias"], ["y"]),
    ]
    arrays = {"w1": matrix(rng, 6, 5), "w2": matrix(rng, 5, 3), "bias": matrix(rng, 3)}
    model = make_model(nodes, {"x": ("batch", 6)}, ["y"], arrays)
    model.doc_string, model.producer_name = "documentation", "producer"
    model.graph.value_info.append(float_info("hidden_layer", (None, 5)))
    helper.set_model_props(model, {"key": "value"})
    return model


def test_a_slimmed_graph_holds_only_what_computes(make_model, run_model, restored, rng):
    model = mlp(make_model, rng)
    feeds = {"x": matrix(rng, 2, 6)}
    expected = run_model(model, feeds)[0]
    slim = slim_graph(model)
    parsed = onnx.ModelProto.FromString(slim.graph)
    assert set(slim.tensors) == {"w1", "w2", "bias"} and not parsed.graph.initializer
    for word in (b"first", b"story", b"documentation", b"producer", b"hidden_layer", b"key"):
        assert word not in slim.graph
    assert not parsed.graph.value_info
    assert sorted(free_names(parsed.graph)) == ["bias", "w1", "w2"]
    assert parsed.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    np.testing.assert_array_equal(run_model(restored(slim), feeds)[0], expected)


def test_attributes_that_repeat_the_schema_are_dropped_and_others_stay(make_model, run_model, restored, rng):
    gemm = helper.make_node("Gemm", ["x", "w"], ["h"], alpha=1.0, beta=0.5, transA=0, transB=1)
    model = make_model(
        [gemm, helper.make_node("Softmax", ["h"], ["y"], axis=0)],
        {"x": (3, 6)},
        ["y"],
        {"w": matrix(rng, 5, 6)},
    )
    feeds = {"x": matrix(rng, 3, 6)}
    expected = run_model(model, feeds)[0]
    slim = slim_graph(model)
    kept = {a.name for node in onnx.ModelProto.FromString(slim.graph).graph.node for a in node.attribute}
    assert kept == {"beta", "transB", "axis"}
    np.testing.assert_array_equal(run_model(restored(slim), feeds)[0], expected)


def test_slimming_is_deterministic(make_model):
    first, second = (slim_graph(mlp(make_model, np.random.default_rng(1))).graph for _ in range(2))
    assert first == second


def test_small_integers_scalars_and_overridable_weights_stay_inline(make_model, rng):
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["r"]),
        helper.make_node("Mul", ["r", "scale"], ["s"]),
        helper.make_node("Add", ["s", "over"], ["y"]),
    ]
    arrays = {"shape": np.array([2, 2]), "scale": np.float32(3), "over": matrix(rng, 2, 2)}
    model = make_model(nodes, {"x": (4,), "over": (2, 2)}, ["y"], arrays | {"idle": matrix(rng)})
    slim = slim_graph(model)
    assert slim.tensors == {}
    assert list(slim.reasons) == ["over"] and "input" in slim.reasons["over"]
    inline = {tensor.name for tensor in onnx.ModelProto.FromString(slim.graph).graph.initializer}
    assert inline == {"shape", "scale", "over"}


def test_large_integers_move_out(make_model, rng):
    table = rng.integers(0, 9, size=200)
    nodes = [
        helper.make_node("Gather", ["x", "table"], ["g"]),
        helper.make_node("Gather", ["g", "few"], ["y"]),
    ]
    slim = slim_graph(make_model(nodes, {"x": (9,)}, ["y"], {"table": table, "few": np.arange(3)}))
    assert list(slim.tensors) == ["table"] and slim.tensors["table"].dtype == np.int64


def test_resize_scales_and_types_without_a_place_stay_inline(make_model, rng):
    nodes = [
        helper.make_node("Resize", ["x", "", "scales"], ["r"], mode="nearest"),
        helper.make_node("Cast", ["odd"], ["c"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["r", "c"], ["y"]),
    ]
    model = make_model(nodes, {"x": (1, 1, 2, 2)}, ["y"], {"scales": np.float32([1, 1, 2, 2])}, opset=19)
    odd = helper.make_tensor("odd", TensorProto.FLOAT8E4M3FN, [4], [1.0, 2.0, 0.5, 4.0])
    model.graph.initializer.append(odd)
    slim = slim_graph(model)
    assert slim.tensors == {} and set(slim.reasons) == {"scales", "odd"}


def test_duplicates_are_stored_once(make_model, run_model, restored, rng):
    weight = matrix(rng)
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["p"]),
        helper.make_node("MatMul", ["p", "b"], ["q"]),
        helper.make_node("MatMul", ["q", "c"], ["y"]),
    ]
    arrays = {"a": weight, "b": weight, "c": np.ascontiguousarray(weight.T)}
    model = make_model(nodes, {"x": (2, 6)}, ["y"], arrays)
    feeds = {"x": matrix(rng, 2, 6)}
    expected = run_model(model, feeds)[0]
    slim = slim_graph(model)
    assert list(slim.tensors) == ["a"] and slim.duplicates == {"b": "a"} and list(slim.views) == ["c"]
    np.testing.assert_array_equal(run_model(restored(slim), feeds)[0], expected)


def test_constant_nodes_become_tensors(make_model, run_model, restored, rng):
    nodes = [
        constant(matrix(rng), "w"),
        constant(np.float32([1, 2, 3, 4, 5, 6]), "small"),
        helper.make_node("Constant", [], ["list"], value_floats=[float(i) for i in range(20)]),
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("Add", ["m", "small"], ["a"]),
        helper.make_node("Gather", ["list", "index"], ["g"]),
        helper.make_node("Add", ["a", "g"], ["y"]),
    ]
    model = make_model(nodes, {"x": (2, 6)}, ["y"], {"index": np.array([19])})
    feeds = {"x": matrix(rng, 2, 6)}
    expected = run_model(model, feeds)[0]
    hoist_initializers(model)
    slim = slim_graph(model)
    assert set(slim.tensors) == {"w", "list"}
    np.testing.assert_array_equal(run_model(restored(slim), feeds)[0], expected)


def test_a_constant_that_is_an_output_stays_an_output(make_model, run_model, restored, rng):
    weight = matrix(rng, 5, 5)
    model = make_model(
        [constant(weight, "y"), helper.make_node("Relu", ["x"], ["z"])], {"x": (1,)}, ["y", "z"]
    )
    hoist_initializers(model)
    slim = slim_graph(model)
    assert len(slim.tensors) == 1
    y, _ = run_model(restored(slim), {"x": np.float32([1])})
    np.testing.assert_array_equal(y, weight)


def branch(body_nodes, output, initializers=()):
    return helper.make_graph(body_nodes, "branch", [], [float_info(output, (6, 6))], list(initializers))


def conditional(make_model, rng):
    """An If whose branches use the same inner names, one of which the main graph uses as well."""
    then_branch = branch(
        [constant(matrix(rng), "w"), helper.make_node("MatMul", ["shared", "w"], ["inner"])], "inner"
    )
    else_branch = branch(
        [
            helper.make_node("MatMul", ["shared", "w"], ["inner"]),
            helper.make_node("Add", ["inner", "a"], ["out"]),
        ],
        "out",
        [numpy_helper.from_array(matrix(rng), "w")],
    )
    nodes = [
        helper.make_node("Relu", ["x"], ["shared"]),
        helper.make_node("If", ["flag"], ["chosen"], then_branch=then_branch, else_branch=else_branch),
        helper.make_node("Add", ["chosen", "a"], ["y"]),
    ]
    model = make_model(nodes, {"x": (6, 6)}, ["y"], {"a": matrix(rng)})
    model.graph.output[0].CopyFrom(float_info("y", (6, 6)))
    model.graph.input.append(helper.make_tensor_value_info("flag", TensorProto.BOOL, []))
    return model


@pytest.mark.parametrize("flag", [True, False])
def test_weights_inside_if_branches_are_hoisted(flag, make_model, run_model, restored, rng):
    model = conditional(make_model, rng)
    feeds = {"x": matrix(rng), "flag": np.array(flag)}
    expected = run_model(model, feeds)[0]
    assert hoist_initializers(model) == {}
    onnx.checker.check_model(model, full_check=True)
    slim = slim_graph(model)
    assert len(slim.tensors) == 3
    rebuilt = restored(slim)
    onnx.checker.check_model(rebuilt, full_check=True)
    assert "shared" not in all_names(rebuilt.graph) and "inner" not in all_names(rebuilt.graph)
    np.testing.assert_array_equal(run_model(rebuilt, feeds)[0], expected)


def test_weights_inside_a_loop_body_are_hoisted(make_model, run_model, restored, rng):
    body = helper.make_graph(
        [
            constant(matrix(rng), "w"),
            helper.make_node("MatMul", ["state", "w"], ["next"]),
            helper.make_node("Identity", ["going"], ["still"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("step", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            float_info("state", (6, 6)),
        ],
        [helper.make_tensor_value_info("still", TensorProto.BOOL, []), float_info("next", (6, 6))],
    )
    nodes = [helper.make_node("Loop", ["count", "", "x"], ["y"], body=body)]
    model = make_model(nodes, {"x": (6, 6)}, ["y"], {"count": np.array(3)})
    feeds = {"x": matrix(rng)}
    expected = run_model(model, feeds)[0]
    hoist_initializers(model)
    slim = slim_graph(model)
    assert len(slim.tensors) == 1
    np.testing.assert_array_equal(run_model(restored(slim), feeds)[0], expected)


def test_models_before_ir_4_list_every_weight_as_an_input(make_model, rng):
    model = make_model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        {"x": (2, 4), "w": (6, 6)},
        ["y"],
        {"w": matrix(rng)},
        opset=8,
        ir_version=3,
    )
    hoist_initializers(model)
    slim = slim_graph(model)
    assert list(slim.tensors) == ["w"] and slim.reasons == {}
    assert [value.name for value in onnx.ModelProto.FromString(slim.graph).graph.input] == ["x"]


def test_constants_in_model_functions_are_found(make_model, run_model, restored, rng):
    opset = helper.make_opsetid("", 17)
    body = [constant(matrix(rng), "w"), helper.make_node("MatMul", ["in", "w"], ["out"])]
    function = helper.make_function("own", "Layer", ["in"], ["out"], body, [opset])
    model = make_model([helper.make_node("Layer", ["x"], ["y"], domain="own")], {"x": (6, 6)}, ["y"])
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("own", 1))
    feeds = {"x": matrix(rng)}
    expected = run_model(model, feeds)[0]
    hoist_initializers(model)
    slim = slim_graph(model)
    assert len(slim.tensors) == 1 and b"own" not in slim.graph
    np.testing.assert_array_equal(run_model(restored(slim), feeds)[0], expected)


@pytest.mark.parametrize("linear", [True, False])
def test_sparse_initializers_are_made_dense(linear, make_model, run_model, restored, rng):
    dense = np.zeros((6, 6), np.float32)
    dense[1, 2], dense[3, 0] = 5, -7
    indices = np.array([8, 18]) if linear else np.array([[1, 2], [3, 0]])
    model = make_model([helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": (6, 6)}, ["y"])
    model.graph.sparse_initializer.append(
        helper.make_sparse_tensor(
            numpy_helper.from_array(np.float32([5, -7]), "w"),
            numpy_helper.from_array(indices, "w_at"),
            [6, 6],
        )
    )
    hoist_initializers(model)
    slim = slim_graph(model)
    np.testing.assert_array_equal(slim.tensors["w"], dense)
    np.testing.assert_array_equal(run_model(restored(slim), {"x": np.eye(6, dtype=np.float32)})[0], dense)
