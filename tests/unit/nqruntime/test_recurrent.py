"""Recurrent layers and branches against ONNX Runtime, with plain and with compressed weights."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from nqformat.errors import CorruptError, FormatError
from nqruntime import InferenceSession

from .conftest import assert_close, build_model, quantized, run_in_ort

RNG = np.random.default_rng(5)
N_STEPS, N_BATCH, N_INPUTS, N_UNITS = 7, 3, 5, 4
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def floats(*shape):
    return (RNG.normal(size=shape) * 0.5).astype(np.float32)


def layer(name, *, n_directions=1, biases=True, lengths=None, states=False, peepholes=False, **attributes):
    """Return a model of one layer, its feeds and its weights."""
    n_rows = GATES[name] * N_UNITS
    x = floats(N_STEPS, N_BATCH, N_INPUTS)
    inputs = {"x": x}
    weights = {"w": floats(n_directions, n_rows, N_INPUTS), "r": floats(n_directions, n_rows, N_UNITS)}
    names = ["x", "w", "r", "", ""]
    if biases:
        names[3], weights["b"] = "b", floats(n_directions, 2 * n_rows)
    if lengths is not None:
        names[4], inputs["lengths"] = "lengths", np.array(lengths, dtype=np.int32)
    if states:
        for state in ("h", "c")[: 2 if name == "LSTM" else 1]:
            names.append(state)
            inputs[state] = floats(n_directions, N_BATCH, N_UNITS)
    if peepholes:
        names += [""] * (7 - len(names)) + ["p"]
        weights["p"] = floats(n_directions, 3 * N_UNITS)
    outputs = ["y", "y_h", "y_c"][: 3 if name == "LSTM" else 2]
    direction = "bidirectional" if n_directions == 2 else attributes.pop("direction", "forward")
    node = helper.make_node(name, names, outputs, hidden_size=N_UNITS, direction=direction, **attributes)
    model = build_model([node], {n: (a.dtype, [None] * a.ndim) for n, a in inputs.items()}, outputs, opset=14)
    return model, inputs, weights


CASES = [
    *[(name, {}) for name in GATES],
    *[(name, {"n_directions": 2, "states": True}) for name in GATES],
    *[(name, {"direction": "reverse", "lengths": [7, 2, 4]}) for name in GATES],
    *[(name, {"lengths": [1, 7, 3], "states": True}) for name in GATES],
    ("LSTM", {"peepholes": True, "states": True}),
    ("LSTM", {"biases": False, "clip": 0.3}),
    ("LSTM", {"input_forget": 1}),
    ("LSTM", {"activations": ["HardSigmoid", "Softsign", "Relu"], "activation_alpha": [0.3]}),
    ("GRU", {"linear_before_reset": 1}),
    ("GRU", {"n_directions": 2, "linear_before_reset": 1, "lengths": [5, 5, 6]}),
    ("RNN", {"activations": ["LeakyRelu"], "activation_alpha": [0.2]}),
]


@pytest.mark.parametrize(("name", "settings"), CASES, ids=str)
def test_recurrent_layers_compute_what_onnx_runtime_does(name, settings, save_model):
    model, feeds, weights = layer(name, **settings)
    found = InferenceSession(save_model(model, weights), engine="native").run(None, feeds)
    for actual, expected in zip(found, run_in_ort(model, feeds, weights), strict=True):
        assert_close(actual, expected)


@pytest.mark.parametrize("name", GATES)
def test_weights_stay_compressed(name, save_model):
    model, feeds, weights = layer(name, n_directions=2)
    packed = {n: quantized(a.shape, 0.4, 9, seed=3) if n != "b" else a for n, a in weights.items()}
    session = InferenceSession(save_model(model, packed), engine="native")
    for actual, expected in zip(session.run(None, feeds), run_in_ort(model, feeds, packed), strict=True):
        assert_close(actual, expected)
    (choice,) = session.explain()
    assert "16" in choice.kernel or "palette" in choice.kernel or "sparse" in choice.kernel


def test_weights_that_are_fed_are_used(save_model):
    model, feeds, weights = layer("GRU")
    inputs = {n: (a.dtype, a.shape) for n, a in {**feeds, **weights}.items()}
    whole = build_model(list(model.graph.node), inputs, ["y", "y_h"], opset=14)
    found = InferenceSession(save_model(whole), engine="native").run(None, {**feeds, **weights})
    assert_close(found[0], run_in_ort(model, feeds, weights)[0])


@pytest.mark.parametrize(
    ("attributes", "shapes"),
    [
        ({"direction": "sideways"}, {}),
        ({}, {"r": (1, 16, 5)}),
        ({}, {"w": (1, 15, 5)}),
        ({"activations": ["Tanh"]}, {}),
    ],
    ids=str,
)
def test_impossible_layers_are_corrupt(attributes, shapes, save_model):
    model, _, weights = layer("LSTM", **attributes)
    weights |= {n: floats(*shape) for n, shape in shapes.items()}
    with pytest.raises(CorruptError, match="LSTM"):
        InferenceSession(save_model(model, weights), engine="native")


def test_an_input_of_another_size_is_named(save_model):
    model, feeds, weights = layer("GRU")
    session = InferenceSession(save_model(model, weights), engine="native")
    with pytest.raises(FormatError, match="GRU"):
        session.run(None, {"x": feeds["x"][:, :, :-1]})


def branch(name, nodes, output):
    value = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
    return helper.make_graph(nodes, name, [], [value])


@pytest.fixture
def branching():
    """y = relu(x @ w) + 1 if the condition holds, else the constant w; inside another branch."""
    inner_then = branch("t2", [helper.make_node("Add", ["hidden", "one"], ["a"])], "a")
    inner_else = branch("e2", [helper.make_node("Neg", ["x"], ["n"])], "n")
    then = branch(
        "t",
        [
            helper.make_node("Relu", ["product"], ["hidden"]),
            helper.make_node("If", ["second"], ["z"], then_branch=inner_then, else_branch=inner_else),
        ],
        "z",
    )
    other = branch("e", [helper.make_node("Identity", ["w"], ["i"])], "i")
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["product"]),
        helper.make_node("If", ["first"], ["y"], then_branch=then, else_branch=other),
    ]
    inputs = {"x": (np.float32, [4, 4]), "first": (np.bool_, []), "second": (np.bool_, [])}
    return build_model(nodes, inputs, ["y"], {"one": np.float32(1)}), {"w": quantized((4, 4), 0.6, 5)}


@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize("first", [False, True])
def test_branches_compute_what_onnx_runtime_does(first, second, branching, save_model):
    model, tensors = branching
    feeds = {"x": floats(4, 4), "first": np.array(first), "second": np.array(second)}
    session = InferenceSession(save_model(model, tensors), engine="native")
    found = session.run(None, feeds)[0]
    assert_close(found, run_in_ort(model, feeds, tensors)[0])
    found[...] = 0  # the caller's own, whichever branch made it
    assert_close(session.run(None, feeds)[0], run_in_ort(model, feeds, tensors)[0])


def test_what_a_branch_lacks_is_named(branching, save_model):
    model, tensors = branching
    model.graph.node[1].attribute[0].g.node[0].op_type = "Det"
    with pytest.raises(Exception, match="Det of opset 17"):
        InferenceSession(save_model(model, tensors), engine="native")


def test_a_branch_without_outputs_is_corrupt(branching, save_model):
    model, tensors = branching
    del model.graph.node[1].attribute[0].g.output[:]
    with pytest.raises(CorruptError, match=r"_branch of other inputs or outputs"):
        InferenceSession(save_model(model, tensors), engine="native")
