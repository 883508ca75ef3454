"""Transformers and recurrent layers as machine code, against ONNX Runtime on the decoded weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
from onnx import helper

from nqruntime import InferenceSession

from .conftest import assert_close, build_model, quantized, run_in_ort
from .test_segments import check, kernels, noise  # noqa: F401  (a fixture for every test)

node = helper.make_node
F32 = np.float32


def dense(n_in, n_out, seed=0):
    return {"w": quantized((n_in, n_out), 0.4, 12, seed), "b": noise(n_out, seed + 1)}


FUNCTIONS = {
    "Exp": {},
    "Tanh": {},
    "Sigmoid": {},
    "Erf": {},
    "Gelu": {},
    "HardSigmoid": {"alpha": 0.3, "beta": 0.4},
    "HardSwish": {},
    "Abs": {},
    "Neg": {},
    "LeakyRelu": {"alpha": 0.2},
    "Elu": {"alpha": 0.7},
    "Relu": {},
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_after_a_product(save_model, name):
    nodes = [
        node("MatMul", ["x", "w"], ["h"]),
        node("Add", ["h", "b"], ["s"]),
        node(name, ["s"], ["y"], **FUNCTIONS[name]),
    ]
    feeds = [{"x": noise((2, n, 20))} for n in (3, 1)]
    check(save_model, nodes, {"x": (F32, (2, None, 20))}, ["y"], dense(20, 37), feeds, opset=20)


@pytest.mark.parametrize("form", ["none", "tanh"])
def test_gelu_in_both_forms(save_model, form):
    nodes = [node("MatMul", ["x", "w"], ["h"]), node("Gelu", ["h"], ["y"], approximate=form)]
    feeds = {"x": 3 * noise((5, 20))}
    check(save_model, nodes, {"x": (F32, (5, 20))}, ["y"], {"w": dense(20, 37)["w"]}, feeds, opset=20)


def test_gelu_in_parts_is_one_step(save_model):
    nodes = [
        node("MatMul", ["x", "w"], ["h"]),
        node("Div", ["h", "root"], ["a"]),
        node("Erf", ["a"], ["e"]),
        node("Add", ["e", "one"], ["p"]),
        node("Mul", ["h", "p"], ["m"]),
        node("Mul", ["m", "half"], ["y"]),
    ]
    numbers = {"root": math.sqrt(2), "one": 1, "half": 0.5}
    constants = {name: np.array(value, dtype=F32) for name, value in numbers.items()}
    tensors = {"w": dense(20, 37)["w"]}
    session = check(
        save_model, nodes, {"x": (F32, (5, 20))}, ["y"], tensors, {"x": noise((5, 20))}, constants=constants
    )
    assert [row.kernel for row in session.explain()][1:] == ["Gelu"] + ["within #1"] * 4


def test_a_value_times_its_sigmoid_is_one_step(save_model):
    for gate in ("Sigmoid", "HardSigmoid"):
        nodes = [
            node("MatMul", ["x", "w"], ["h"]),
            node(gate, ["h"], ["g"]),
            node("Mul", ["h", "g"], ["y"]),
        ]
        tensors = {"w": dense(20, 37)["w"]}
        session = check(save_model, nodes, {"x": (F32, (5, 20))}, ["y"], tensors, {"x": noise((5, 20))})
        assert session.explain()[2].kernel == "within #1"


@pytest.mark.parametrize("operator", ["Add", "Sub", "Mul", "Div"])
@pytest.mark.parametrize("shape", [(2, 3, 37), (37,), (2, 3, 1), (3, 1), (1,), ()])
@pytest.mark.parametrize("is_first", [False, True])
def test_operations_with_constants(save_model, operator, shape, is_first):
    names = ["c", "h"] if is_first else ["h", "c"]
    nodes = [node("MatMul", ["x", "w"], ["h"]), node(operator, names, ["y"])]
    constants = {"c": 1 + noise(shape) ** 2}
    tensors = {"w": dense(20, 37)["w"]}
    if is_first and operator == "Div":
        tensors = {"w": 1 + np.abs(noise((20, 37)))}
    feeds = {"x": np.abs(noise((2, 3, 20))) + 0.1}
    check(save_model, nodes, {"x": (F32, (2, 3, 20))}, ["y"], tensors, feeds, constants=constants)


@pytest.mark.parametrize("second", [(2, 3, 37), (1, 3, 37), (2, 1, 1), (37,), (4, 2, 3, 37)])
def test_operations_of_two_values(save_model, second):
    nodes = [
        node("MatMul", ["x", "w"], ["h"]),
        node("Add", ["h", "u"], ["s"]),
        node("Mul", ["u", "s"], ["m"]),
        node("Sub", ["m", "h"], ["y"]),
    ]
    inputs = {"x": (F32, (2, 3, 20)), "u": (F32, second)}
    feeds = {"x": noise((2, 3, 20)), "u": noise(second, 1)}
    check(save_model, nodes, inputs, ["y"], {"w": dense(20, 37)["w"]}, feeds)


@pytest.mark.parametrize("opset", [11, 17])
@pytest.mark.parametrize("mask", [None, (1, 1, 1, 9), (2, 1, 9, 9), (2, 3, 9, 9)])
def test_attention(save_model, opset, mask):
    """Queries, keys and values of one product, as PyTorch writes them."""
    total = ["scaled"] if mask is None else ["scaled", "mask"]
    nodes = [
        node("MatMul", ["x", "w"], ["h"]),
        node("Add", ["h", "b"], ["hb"]),
        node("Reshape", ["hb", "parts"], ["p"]),
        node("Transpose", ["p"], ["t"], perm=[2, 0, 3, 1, 4]),
        *(node("Gather", ["t", f"i{i}"], [name], axis=0) for i, name in enumerate("qkv")),
        node("Transpose", ["k"], ["kt"], perm=[0, 1, 3, 2]),
        node("MatMul", ["q", "kt"], ["scores"]),
        node("Div", ["scores", "root"], ["scaled"]),
        *([node("Add", total, ["sum"])] if mask else []),
        node("Softmax", ["sum" if mask else "scaled"], ["shares"], axis=3 if opset == 11 else -1),
        node("MatMul", ["shares", "v"], ["mixed"]),
        node("Transpose", ["mixed"], ["back"], perm=[0, 2, 1, 3]),
        node("Reshape", ["back", "whole"], ["y"]),
    ]
    constants = {
        "parts": np.array([0, 0, 3, 3, 20]),
        "whole": np.array([0, 0, 60]),
        "root": np.array(math.sqrt(20), dtype=F32),
        **{f"i{i}": np.array(i) for i in range(3)},
    }
    inputs, feeds = {"x": (F32, (2, 9, 33))}, {"x": noise((2, 9, 33))}
    if mask:
        inputs["mask"] = (F32, mask)
        feeds["mask"] = np.where(noise(mask, 3) > 1, -10000, 0).astype(F32)
    check(save_model, nodes, inputs, ["y"], dense(33, 180), feeds, constants=constants, opset=opset)


def test_attention_of_any_length_with_shapes_computed_from_values(save_model):
    nodes = [
        node("MatMul", ["x", "w"], ["h"]),
        node("Shape", ["h"], ["s"]),
        node("Gather", ["s", "i0"], ["batch"]),
        node("Gather", ["s", "i1"], ["length"]),
        *(node("Unsqueeze", [n, "axis"], [f"{n}1"]) for n in ("batch", "length")),
        node("Concat", ["batch1", "length1", "heads"], ["split"], axis=0),
        node("Reshape", ["h", "split"], ["p"]),
        node("Transpose", ["p"], ["q"], perm=[0, 2, 1, 3]),
        node("Transpose", ["p"], ["k"], perm=[0, 2, 3, 1]),
        node("MatMul", ["q", "k"], ["scores"]),
        node("Softmax", ["scores"], ["shares"], axis=-1),
        node("MatMul", ["shares", "q"], ["y"]),
    ]
    constants = {
        "i0": np.array(0),
        "i1": np.array(1),
        "axis": np.array([0]),
        "heads": np.array([4, 10]),
    }
    feeds = [{"x": noise((b, n, 33))} for b, n in ((1, 5), (2, 17))]
    check(
        save_model,
        nodes,
        {"x": (F32, (None, None, 33))},
        ["y", "split"],
        {"w": dense(33, 40)["w"]},
        feeds,
        constants=constants,
    )


@pytest.mark.parametrize("axis", [-1, 2, 1])
@pytest.mark.parametrize("second", [None, (2, 5, 37), (5, 37)])
def test_normalization_of_a_sum(save_model, axis, second):
    nodes = [
        node("MatMul", ["x", "w"], ["h"]),
        *([node("Add", ["h", "u"], ["s"])] if second else []),
        node("LayerNormalization", ["s" if second else "h", "f", "c"], ["y"], axis=axis, epsilon=1e-3),
    ]
    shape = (37,) if axis != 1 else (5, 37)
    tensors = {"w": dense(20, 37)["w"], "f": noise(shape, 5), "c": noise(shape, 6)}
    inputs, feeds = {"x": (F32, (2, 5, 20))}, {"x": noise((2, 5, 20))}
    if second:
        inputs["u"], feeds["u"] = (F32, second), noise(second, 8)
    check(save_model, nodes, inputs, ["y"], tensors, feeds, all_in_code=axis != 1)


@pytest.mark.parametrize("square", ["Pow", "Mul"])
def test_normalization_in_parts_is_one_step(save_model, square):
    squared = node("Pow", ["d", "two"], ["p"]) if square == "Pow" else node("Mul", ["d", "d"], ["p"])
    nodes = [
        node("MatMul", ["x", "w"], ["h"]),
        node("ReduceMean", ["h"], ["m"], axes=[-1]),
        node("Sub", ["h", "m"], ["d"]),
        squared,
        node("ReduceMean", ["p"], ["v"], axes=[-1]),
        node("Add", ["v", "e"], ["ve"]),
        node("Sqrt", ["ve"], ["r"]),
        node("Div", ["d", "r"], ["n"]),
        node("Mul", ["n", "f"], ["nf"]),
        node("Add", ["nf", "c"], ["y"]),
    ]
    constants = {"two": np.array(2, dtype=F32), "e": np.array(1e-3, dtype=F32)}
    tensors = {"w": dense(20, 37)["w"], "f": noise(37, 5), "c": noise(37, 6)}
    feeds = {"x": noise((2, 5, 20))}
    session = check(save_model, nodes, {"x": (F32, (2, 5, 20))}, ["y"], tensors, feeds, constants=constants)
    assert [row.kernel for row in session.explain()][1:] == ["normalization"] + ["within #1"] * 8


@pytest.mark.parametrize("axes", [[1], [2], [-1], [1, 2], [0, 1]])
@pytest.mark.parametrize("keeps", [0, 1])
@pytest.mark.parametrize("operator", ["ReduceMean", "ReduceSum"])
def test_means_and_sums_over_axes(save_model, axes, keeps, operator):
    nodes = [
        node("MatMul", ["x", "w"], ["h"]),
        node("Transpose", ["h"], ["t"], perm=[1, 0, 2]),
        node(operator, ["t", "axes"], ["y"], keepdims=keeps),
    ]
    constants = {"axes": np.array(axes)}
    tensors = {"w": dense(20, 37)["w"]}
    feeds = {"x": noise((2, 5, 20))}
    check(save_model, nodes, {"x": (F32, (2, 5, 20))}, ["y"], tensors, feeds, constants=constants, opset=18)


def test_parts_of_values(save_model):
    nodes = [
        node("MatMul", ["x", "w"], ["h"]),
        node("Split", ["h", "sizes"], ["a", "b", "c"], axis=-1),
        node("Slice", ["c", "starts", "ends", "axes", "steps"], ["d"]),
        node("Unsqueeze", ["d", "places"], ["e"]),
        node("Squeeze", ["e", "places"], ["f"]),
        node("Mul", ["a", "f"], ["g"]),
        node("Transpose", ["g"], ["t"]),
        node("Reshape", ["t", "flat"], ["y"]),
    ]
    constants = {
        "sizes": np.array([10, 7, 20]),
        "starts": np.array([0]),
        "ends": np.array([2**60]),
        "axes": np.array([2]),
        "steps": np.array([2]),
        "places": np.array([1]),
        "flat": np.array([-1]),
    }
    tensors = {"w": dense(20, 37)["w"]}
    feeds = {"x": noise((2, 5, 20))}
    check(save_model, nodes, {"x": (F32, (2, 5, 20))}, ["t", "y"], tensors, feeds, constants=constants)


def test_values_joined_along_any_axis(save_model):
    for axis in (0, 1, 2, -1):
        nodes = [
            node("MatMul", ["x", "w"], ["h"]),
            node("Transpose", ["h"], ["t"], perm=[1, 0, 2]),
            node("Transpose", ["t"], ["u"], perm=[1, 0, 2]),
            node("Sigmoid", ["h"], ["g"]),
            node("Concat", ["u", "g", "h"], ["y"], axis=axis),
        ]
        feeds = {"x": noise((2, 5, 20))}
        check(save_model, nodes, {"x": (F32, (2, 5, 20))}, ["y"], {"w": dense(20, 37)["w"]}, feeds)


def test_an_input_of_integers_leaves_the_others_in_code(save_model):
    nodes = [
        node("Gather", ["table", "ids"], ["e"]),
        node("Shape", ["ids"], ["s"]),
        node("Cast", ["ids"], ["f"], to=1),
        node("MatMul", ["e", "w"], ["h"]),
        node("Add", ["h", "c"], ["y"]),
    ]
    tensors = {"table": quantized((30, 20), 0.5, 9), **dense(20, 37)}
    ids = np.array([[1, 5, 29], [0, 0, 3]])
    nodes[4] = node("Add", ["h", "b"], ["y"])
    inputs = {"ids": (np.int64, (2, 3))}
    session = check(save_model, nodes, inputs, ["y", "s", "f"], tensors, {"ids": ids}, all_in_code=False)
    assert "numpy" not in session.explain()[3].kernel


CELLS = {
    "LSTM": ("LSTM", 4, {}),
    "GRU": ("GRU", 3, {}),
    "GRU that resets the product": ("GRU", 3, {"linear_before_reset": 1}),
    "RNN": ("RNN", 1, {}),
    "RNN with Relu": ("RNN", 1, {"activations": ["Relu"]}),
}


def recurrent(kind, direction, *, units, n_in, with_states, seed=0):
    operator, gates, attributes = CELLS[kind]
    n = 2 if direction == "bidirectional" else 1
    if "activations" in attributes:
        attributes = {"activations": attributes["activations"] * n}
    states = ["h0", "c0"][: 2 if operator == "LSTM" else 1] if with_states else []
    outputs = ["y", "yh", "yc"][: 3 if operator == "LSTM" else 2]
    made = node(
        operator,
        ["x", "w", "r", "b", "", *states],
        outputs,
        hidden_size=units,
        direction=direction,
        **attributes,
    )
    tensors = {
        "w": quantized((n, gates * units, n_in), 0.3, 12, seed),
        "r": quantized((n, gates * units, units), 0.3, 12, seed + 1),
        "b": noise((n, 2 * gates * units), seed + 2) / 4,
    }
    tensors["r"] = tensors["r"].decode() / 4 if units % 2 else tensors["r"]
    return made, tensors, states, outputs


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize(("units", "with_states"), [(16, True), (21, False), (5, True)])
def test_recurrent_layers(save_model, kind, direction, units, with_states):
    made, tensors, states, outputs = recurrent(kind, direction, units=units, n_in=11, with_states=with_states)
    n = tensors["b"].shape[0]
    inputs = {"x": (F32, (None, None, 11)), **dict.fromkeys(states, (F32, (n, None, units)))}
    feeds = [
        {"x": noise((steps, batch, 11)), **{name: noise((n, batch, units), 4) / 2 for name in states}}
        for steps, batch in ((7, 1), (4, 3))
    ]
    check(save_model, [made], inputs, outputs, tensors, feeds)


@pytest.mark.parametrize("kind", CELLS)
def test_the_output_of_both_directions_in_another_order(save_model, kind):
    made, tensors, _, _ = recurrent(kind, "bidirectional", units=20, n_in=11, with_states=False)
    nodes = [
        made,
        node("Transpose", ["y"], ["t"], perm=[0, 2, 1, 3]),
        node("Reshape", ["t", "shape"], ["s"]),
        node("MatMul", ["s", "v"], ["z"]),
    ]
    tensors["v"] = quantized((40, 9), 0.5, 12)
    constants = {"shape": np.array([0, 0, -1])}
    feeds = {"x": noise((6, 2, 11))}
    check(save_model, nodes, {"x": (F32, (6, 2, 11))}, ["z", "yh"], tensors, feeds, constants=constants)


def test_weights_put_together_of_slices_stay_compressed(save_model):
    """As PyTorch's newer exporter orders the gates of an LSTM."""
    units, n_in = 24, 10
    tensors = {"wi": quantized((4 * units, n_in), 0.2, 12), "wh": quantized((4 * units, units), 0.2, 12, 3)}
    constants = {f"k{k}": np.array([k]) for k in (0, units, 2 * units, 3 * units, 4 * units)}
    nodes = []
    for name in ("wi", "wh"):
        for gate in range(4):
            bounds = [f"k{gate * units}", f"k{(gate + 1) * units}", "k0"]
            nodes.append(node("Slice", [name, *bounds], [f"{name}{gate}"]))
        nodes.append(node("Concat", [f"{name}{gate}" for gate in (0, 3, 1, 2)], [f"{name}c"], axis=0))
        nodes.append(node("Unsqueeze", [f"{name}c", "k0"], [f"{name}u"]))
    nodes.append(node("LSTM", ["x", "wiu", "whu"], ["", "h"], hidden_size=units))
    feeds = {"x": noise((6, 2, n_in))}
    session = check(save_model, nodes, {"x": (F32, (6, 2, n_in))}, ["h"], tensors, feeds, constants=constants)
    assert session.weight_bytes < 4 * 4 * units * (n_in + units) / 2


@pytest.mark.parametrize(
    ("attributes", "inputs"),
    [
        ({"clip": 0.5}, []),
        ({"input_forget": 1}, []),
        ({"activations": ["Sigmoid", "Relu", "Tanh"]}, []),
        ({}, ["lengths"]),
        ({}, ["", "", "", "peepholes"]),
    ],
)
def test_other_recurrent_layers_run_in_numpy(save_model, attributes, inputs):
    units, n_in = 8, 5
    made = node("LSTM", ["x", "w", "r", "", *inputs], ["y"], hidden_size=units, **attributes)
    tensors = {"w": quantized((1, 4 * units, n_in), 0.5, 9), "r": quantized((1, 4 * units, units), 0.5, 9, 1)}
    constants = {"lengths": np.array([4, 2], dtype=np.int32), "peepholes": noise((1, 3 * units))}
    constants = {name: value for name, value in constants.items() if name in inputs}
    model = build_model([made], {"x": (F32, (4, 2, n_in))}, ["y"], constants)
    feeds = {"x": noise((4, 2, n_in))}
    with InferenceSession(save_model(model, tensors), engine="native", threads=1) as session:
        assert_close(session.run(None, feeds)[0], run_in_ort(model, feeds, tensors)[0])
        assert session.explain()[-1].kernel.endswith("numpy")


def test_threads_share_directions(save_model):
    made, tensors, _, outputs = recurrent("LSTM", "bidirectional", units=16, n_in=11, with_states=False)
    model = build_model([made], {"x": (F32, (300, 4, 11))}, outputs)
    path, feeds = save_model(model, tensors), {"x": noise((300, 4, 11))}
    found = []
    for threads in (1, 2):
        with InferenceSession(path, engine="native", threads=threads) as session:
            found.append(session.run(None, feeds))
    for one, two in zip(*found, strict=True):
        assert one.tobytes() == two.tobytes()
