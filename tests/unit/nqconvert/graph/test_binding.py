from __future__ import annotations

import numpy as np

from nqconvert.graphs.binding import bind_tensors


def matrix(seed, shape=(3, 4)):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_a_renamed_tensor_gets_the_models_name_back():
    weight = matrix(0)
    binding = bind_tensors({"val_3": weight.copy()}, {"fc.weight": weight})
    assert list(binding.tensors) == ["fc.weight"]
    assert binding.renames == {"val_3": "fc.weight"}
    assert binding.unused == () and binding.views == {}


def test_a_transposed_copy_becomes_a_view_of_the_models_tensor():
    weight = matrix(0)
    binding = bind_tensors({"val_3": np.ascontiguousarray(weight.T)}, {"fc.weight": weight})
    assert list(binding.tensors) == ["fc.weight"] and binding.tensors["fc.weight"].shape == (3, 4)
    np.testing.assert_array_equal(binding.views["val_3"].assemble(binding.tensors), weight.T)


def test_a_tied_tensor_is_stored_once_for_both_uses():
    weight = matrix(0)
    graph = {"e.weight": weight, "val_1": np.ascontiguousarray(weight.T), "val_2": weight.copy()}
    binding = bind_tensors(graph, {"e.weight": weight})
    assert list(binding.tensors) == ["e.weight"]
    assert list(binding.views) == ["val_1"] and binding.renames == {"val_2": "e.weight"}


def test_changed_and_unused_tensors_are_told_apart():
    graph = {"conv.weight": matrix(1), "val_9": matrix(2)}
    known = {"conv.weight": matrix(3), "bn.weight": matrix(4)}
    binding = bind_tensors(graph, known)
    assert set(binding.tensors) == {"conv.weight", "val_9"}
    np.testing.assert_array_equal(binding.tensors["conv.weight"], matrix(1))
    assert binding.changed == ("conv.weight",) and binding.unused == ("bn.weight",)


def test_other_names_for_a_stored_content_are_told_apart_from_unused_ones():
    known = {"one": matrix(0), "two": matrix(0), "three": matrix(1), "four": matrix(2), "five": matrix(2)}
    binding = bind_tensors({"v": matrix(0), "w": np.ascontiguousarray(matrix(2).T)}, known)
    assert set(binding.tensors) == {"one", "four"}
    assert binding.equal == {"two": "one", "five": "four"} and binding.unused == ("three",)


def test_a_name_that_the_graph_uses_otherwise_is_not_taken():
    weight = matrix(0)
    binding = bind_tensors({"val_3": weight.copy()}, {"fc": weight}, reserved={"fc"})
    assert list(binding.tensors) == ["val_3"] and binding.renames == {}
    transposed = bind_tensors({"val_3": np.ascontiguousarray(weight.T)}, {"fc": weight}, reserved={"fc"})
    assert list(transposed.tensors) == ["val_3"] and transposed.views == {}


def test_transposes_among_graph_tensors_are_found_without_a_model():
    weight = matrix(0)
    binding = bind_tensors({"a": weight, "b": np.ascontiguousarray(weight.T), "c": weight.copy()})
    assert list(binding.tensors) == ["a"] and list(binding.views) == ["b"] and binding.renames == {"c": "a"}


def test_a_transposed_pair_never_refers_to_itself():
    symmetric = np.eye(4, dtype=np.float32)
    binding = bind_tensors({"a": symmetric})
    assert list(binding.tensors) == ["a"] and binding.views == {}


def test_values_that_only_compare_equal_stay_apart():
    zeros = np.zeros((2, 2), np.float32)
    binding = bind_tensors({"a": zeros, "b": -zeros, "c": zeros.astype(np.float64)})
    assert list(binding.tensors) == ["a", "b", "c"]
