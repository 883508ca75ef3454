"""Graphs that run a stretch at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nqconvert.graphs.stretches import Stretches
from nqformat.errors import ConversionError

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
helper, numpy_helper = onnx.helper, onnx.numpy_helper
FLOAT = onnx.TensorProto.FLOAT


def model() -> Any:
    """Two products, a value that skips one of them, a branch whose body reads from outside, two outputs."""
    value = helper.make_tensor_value_info
    bodies = [
        helper.make_graph([helper.make_node(kind, ["a", "c"], [kind])], kind, [], [value(kind, FLOAT, None)])
        for kind in ("Add", "Sub")
    ]
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("ReduceSum", ["a"], ["total"], keepdims=0),
        helper.make_node("Greater", ["total", "limit"], ["many"]),
        helper.make_node("MatMul", ["a", "first"], ["b"]),
        helper.make_node("Sigmoid", ["b"], ["c"]),
        helper.make_node("If", ["many"], ["d"], then_branch=bodies[0], else_branch=bodies[1]),
        helper.make_node("MatMul", ["d", "second"], ["y"]),
    ]
    limit = numpy_helper.from_array(np.float32(0.0), "limit")
    outputs = [value("y", FLOAT, ["n", 3]), value("c", FLOAT, ["n", 4])]
    graph = helper.make_graph(nodes, "g", [value("x", FLOAT, ["n", 4])], outputs, [limit])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def tensors(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {"first": (4, 4), "second": (4, 3)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def whole(feeds: dict[str, np.ndarray], arrays: dict[str, np.ndarray]) -> list[np.ndarray]:
    graph = model()
    graph.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in arrays.items())
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


def test_stretches_give_what_the_whole_graph_gives() -> None:
    feeds = {"x": np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)}
    stretches = Stretches(model(), ["first", "second"], ["b", "y"])
    assert len(stretches) == 3
    for seed in (0, 1):
        arrays = tensors(seed)
        values: dict[str, np.ndarray] = dict(feeds)
        lying_between = []
        for number in range(3):
            values |= stretches.run(number, values, arrays)
            values = {name: value for name, value in values.items() if name in stretches.needed_after(number)}
            lying_between.append(set(values))
        assert lying_between == [{"a", "many"}, {"c", "d"}, {"c", "y"}]
        for found, expected in zip((values["y"], values["c"]), whole(feeds, arrays), strict=True):
            np.testing.assert_array_equal(found, expected)


def test_a_node_that_cannot_run_is_an_error() -> None:
    graph = model()
    graph.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(ConversionError, match="ONNX Runtime cannot"):
        Stretches(graph, ["first", "second"], ["b"]).run(0, {"x": np.ones((1, 4), np.float32)}, tensors())
