from __future__ import annotations

import numpy as np

from nqconvert.graphs.binding import bind_tensors
from nqconvert.graphs.row_binding import bind_rows


def matrix(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def gates(array, order):
    parts = np.split(array, 4)
    return np.concatenate([parts[i] for i in order])


def assert_views(binding, graph):
    for name, view in binding.views.items():
        np.testing.assert_array_equal(view.assemble(binding.tensors), graph[name])


def test_reordered_gates_of_both_directions_are_views():
    model = {
        f"{kind}{end}": matrix(i, 32, 10) for i, (kind, end) in enumerate([("w", ""), ("w", "_reverse")])
    }
    biases = {f"{kind}{end}": matrix(9 + i, 32) for i, (kind, end) in enumerate([("bi", ""), ("bh", "")])}
    order = (0, 3, 1, 2)
    graph = {
        "val_1": np.stack([gates(model["w"], order), gates(model["w_reverse"], order)]),
        "val_2": np.concatenate([gates(biases["bi"], order), gates(biases["bh"], order)])[None],
    }
    binding = bind_tensors(graph, {**model, **biases})
    assert set(binding.tensors) == {*model, *biases} and set(binding.views) == {"val_1", "val_2"}
    assert_views(binding, graph)
    assert len(binding.views["val_1"].sources) == 6 and binding.views["val_1"].shape == (2, 32, 10)
    assert binding.unused == () and binding.equal == {}


def test_transposed_parts_of_one_matrix_are_views_of_it():
    model = {"inner.weight": matrix(0, 48, 16)}
    graph = {
        f"val_{i}": np.ascontiguousarray(part.T) for i, part in enumerate(np.split(model["inner.weight"], 3))
    }
    binding = bind_tensors(graph, model)
    assert set(binding.tensors) == {"inner.weight"} and set(binding.views) == set(graph)
    assert_views(binding, graph)


def test_parts_of_a_tensor_that_is_not_needed_whole_are_stored_themselves():
    model = {"table": matrix(0, 500, 8)}
    tensors = {"val_1": model["table"][20:40].copy()}
    assert bind_rows(tensors, model, set()) == {} and list(tensors) == ["val_1"]
    both = {"val_1": model["table"][20:40].copy(), "table": model["table"]}
    assert list(bind_rows(both, model, set())) == ["val_1"] and list(both) == ["table"]


def test_other_content_types_and_taken_names_are_left_alone():
    model = {"a": matrix(0, 20, 8), "b": matrix(1, 20, 8)}
    mixed = np.concatenate([model["a"], model["b"] + 1])
    for graph, taken in (
        ({"v": mixed}, set()),
        ({"v": np.concatenate([model["a"], model["b"]])}, {"b"}),
        ({"v": model["a"][::-1].astype(np.float16)}, set()),
        ({"v": np.float32(3)}, set()),
        ({"v": np.zeros((0, 8), np.float32)}, set()),
    ):
        tensors = dict(graph)
        assert bind_rows(tensors, model, taken) == {} and list(tensors) == ["v"]


def test_a_shuffled_matrix_has_too_many_parts():
    model = {"a": matrix(0, 300, 4)}
    tensors = {"v": np.random.default_rng(1).permutation(model["a"])}
    assert bind_rows(tensors, model, set()) == {}


def test_second_names_of_a_content_are_views_unless_it_is_small_or_constant():
    from onnx import helper, numpy_helper

    from nqconvert.sources import load_source

    arrays = {"w": matrix(0, 12, 12), "again": matrix(0, 12, 12), "zero": np.zeros((12, 12), np.float32)}
    arrays["nothing"] = arrays["zero"].copy()
    nodes = [helper.make_node("Sum", ["x", *arrays], ["y"])]
    infos = [helper.make_tensor_value_info(name, 1, (12, 12)) for name in "xy"]
    initializers = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    model = helper.make_model(helper.make_graph(nodes, "g", infos[:1], infos[1:], initializers))
    source = load_source(model)
    assert set(source.tensors) == {"w", "zero"} and set(source.views) == {"again"}
