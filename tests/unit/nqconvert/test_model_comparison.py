from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from nqconvert.model_comparison import compare_models


def written(path, array, *, op_type="MatMul", name="h", constant=False):
    infos = [helper.make_tensor_value_info(n, 1, (12, 12)) for n in "xy"]
    nodes = [helper.make_node(op_type, ["x", "w"], [name]), helper.make_node("Relu", [name], ["y"])]
    tensor = numpy_helper.from_array(array, "w")
    if constant:
        nodes.insert(0, helper.make_node("Constant", [], ["w"], value=tensor))
    graph = helper.make_graph(nodes, "g", infos[:1], infos[1:], [] if constant else [tensor])
    onnx.save(helper.make_model(graph), path)
    return path


def test_inner_names_and_places_of_constants_do_not_count(tmp_path):
    array = np.random.default_rng(0).normal(size=(12, 12)).astype(np.float32)
    one = written(tmp_path / "a.onnx", array)
    other = written(tmp_path / "b.onnx", array, name="other", constant=True)
    found = compare_models(one, other)
    assert found.same_graph and found.n_tensors == 1 and found.differing == ()


def test_other_bits_and_other_nodes_are_told_apart(tmp_path):
    array = np.zeros((12, 12), np.float32)
    one = written(tmp_path / "a.onnx", array)
    assert compare_models(one, written(tmp_path / "b.onnx", -array)).differing == ("w",)
    assert not compare_models(one, written(tmp_path / "c.onnx", array, op_type="Add")).same_graph
