"""Every operator of the native engine against ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper, numpy_helper

from nqformat.errors import CorruptError, FormatError, LimitExceededError, UnsupportedFeatureError
from nqformat.limits import Limits
from nqruntime import InferenceSession
from nqruntime.operators import find_operator, operator_names

from .conftest import assert_close, build_model, run_in_ort

RNG = np.random.default_rng(17)


def floats(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def positive(*shape):
    return np.abs(floats(*shape)) + np.float32(0.1)


def ints(*values):
    return np.array(values, dtype=np.int64)


def flags(*shape):
    return RNG.random(shape) < 0.5


X = floats(2, 3, 4, 5)
IMAGE = floats(2, 4, 9, 8)
LINE = floats(2, 4, 11)
VOLUME = floats(1, 2, 5, 6, 4)

# (operator, opset, attributes, inputs); None leaves an input out.
CASES = [
    *[(name, 13, {}, [X]) for name in ("Relu", "Sigmoid", "Tanh", "Exp", "Neg", "Abs", "Floor", "Ceil")],
    *[(name, 13, {}, [positive(3, 4)]) for name in ("Sqrt", "Log", "Reciprocal")],
    *[(name, 13, {}, [X * 20]) for name in ("Sigmoid", "Softplus", "Softsign")],
    ("HardSwish", 14, {}, [X * 4]),
    ("LeakyRelu", 13, {}, [X]),
    ("LeakyRelu", 16, {"alpha": 0.3}, [X]),
    ("PRelu", 13, {}, [X, floats(3, 1, 1)]),
    ("Elu", 13, {"alpha": 1.5}, [X]),
    ("Selu", 13, {}, [X]),
    ("HardSigmoid", 13, {"alpha": 0.3, "beta": 0.4}, [X * 3]),
    ("Gelu", 20, {"approximate": "tanh"}, [X]),
    ("Gelu", 20, {}, [X * 3]),
    ("Erf", 13, {}, [np.linspace(-5, 5, 999, dtype=np.float32)]),
    ("ThresholdedRelu", 13, {"alpha": 0.4}, [X]),
    *[(name, 13, {}, [X * 3]) for name in ("Sin", "Cos", "Round", "Sign")],
    ("IsNaN", 13, {}, [np.float32([0, np.nan, np.inf])]),
    ("Mish", 18, {}, [X * 4]),
    ("Clip", 10, {"min": -0.5, "max": 0.7}, [X]),
    ("Clip", 13, {}, [X, np.float32(-0.5), np.float32(0.7)]),
    ("Clip", 13, {}, [X, None, np.float32(0.2)]),
    ("Clip", 13, {}, [X, np.float32(0.2)]),
    ("Clip", 13, {}, [ints(-5, 0, 9), np.int64(-1), np.int64(3)]),
    *[(name, opset, {}, [X * 9]) for name in ("Softmax", "LogSoftmax") for opset in (11, 13)],
    *[(name, opset, {"axis": 2}, [X]) for name in ("Softmax", "LogSoftmax") for opset in (11, 13)],
    ("Softmax", 11, {"axis": 0}, [X]),
    *[(name, 13, {}, [X, floats(3, 1, 5)]) for name in ("Add", "Sub", "Mul", "Div")],
    *[(name, 7, {}, [X, floats(5)]) for name in ("Add", "Sub", "Mul", "Div")],
    ("Div", 13, {}, [ints(7, -7, 7, -7, 0), ints(2, 2, -2, -2, 3)]),
    ("Div", 13, {}, [np.array([7, 200], np.uint32), np.array([2, 9], np.uint32)]),
    ("Pow", 13, {}, [positive(3, 4), floats(4)]),
    ("Pow", 13, {}, [X, np.float32(2)]),
    ("Pow", 13, {}, [X, np.float32([[[[[2]]]]])]),
    ("Pow", 13, {}, [ints(2, -3), ints(3, 2)]),
    *[(name, 13, {}, [X, floats(5), floats(4, 1)]) for name in ("Max", "Min", "Sum")],
    ("Mean", 13, {}, [X, floats(5), floats(4, 1)]),
    ("Mod", 13, {}, [ints(7, -7, 7, -7), ints(3, 3, -3, -3)]),
    ("Mod", 13, {"fmod": 1}, [X, floats(5)]),
    ("Identity", 13, {}, [X]),
    ("CastLike", 15, {}, [X, ints(1)]),
    ("Dropout", 10, {"ratio": 0.5}, [X]),
    ("Dropout", 13, {}, [X, np.float32(0.5)]),
    ("Cast", 13, {"to": 7}, [X * 5]),
    ("Cast", 13, {"to": 1}, [ints(3, -4)]),
    ("Cast", 13, {"to": 9}, [np.float32([0, -0.0, 0.5, 2])]),
    ("Cast", 13, {"to": 11}, [X]),
    *[
        (name, 13, {}, [ints(1, 2, 3), ints(3, 2, 1)])
        for name in ("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual")
    ],
    ("Not", 13, {}, [flags(4)]),
    *[(name, 13, {}, [flags(3, 4), flags(4)]) for name in ("And", "Or", "Xor")],
    ("Where", 13, {}, [flags(3, 4), floats(4), floats(3, 1)]),
    ("ArgMax", 13, {"axis": 1, "keepdims": 0}, [X]),
    ("ArgMax", 13, {}, [X]),
    ("ArgMin", 13, {"axis": -1}, [X]),
    ("ArgMax", 13, {"axis": 0, "select_last_index": 1}, [ints(3, 1, 3)]),
    ("ArgMin", 13, {"axis": 0, "select_last_index": 1, "keepdims": 0}, [ints(3, 1, 1, 2)]),
    ("ConstantOfShape", 13, {}, [ints(2, 3)]),
    (
        "ConstantOfShape",
        13,
        {"value": numpy_helper.from_array(ints(7))},
        [ints(4)],
    ),
    ("Range", 13, {}, [np.int64(2), np.int64(11), np.int64(3)]),
    ("Range", 13, {}, [np.float32(1), np.float32(-1), np.float32(-0.5)]),
    *[("Flatten", 13, {"axis": axis}, [X]) for axis in (0, 1, 2, 4, -1)],
    ("Reshape", 13, {}, [X, ints(0, -1, 5)]),
    ("Reshape", 14, {"allowzero": 1}, [np.zeros((0, 3), np.float32), ints(3, 0)]),
    ("Transpose", 13, {}, [X]),
    ("Transpose", 13, {"perm": [2, 0, 3, 1]}, [X]),
    ("Concat", 13, {"axis": -2}, [X, floats(2, 3, 1, 5), X]),
    ("Squeeze", 11, {"axes": [1]}, [floats(2, 1, 3)]),
    ("Squeeze", 11, {}, [floats(2, 1, 3, 1)]),
    ("Squeeze", 13, {}, [floats(2, 1, 3), ints(-2)]),
    ("Unsqueeze", 11, {"axes": [0, 2]}, [floats(2, 3)]),
    ("Unsqueeze", 13, {}, [floats(2, 3), ints(-1, 0)]),
    ("Shape", 13, {}, [X]),
    ("Shape", 15, {"start": 1, "end": -1}, [X]),
    ("Size", 13, {}, [X]),
    ("Expand", 13, {}, [floats(3, 1), ints(2, 1, 4)]),
    ("Tile", 13, {}, [floats(2, 3), ints(2, 2)]),
    ("Trilu", 14, {}, [floats(3, 4), np.int64(1)]),
    ("Trilu", 14, {"upper": 0}, [floats(2, 3, 4)]),
    ("GatherElements", 13, {"axis": 1}, [floats(3, 4), np.array([[0, -1], [2, 1], [3, 3]])]),
    ("CumSum", 14, {}, [floats(3, 4), np.int32(1)]),
    ("CumSum", 14, {"exclusive": 1, "reverse": 1}, [floats(3, 4), np.int64(0)]),
    ("Gather", 13, {}, [X, ints(1, 0, -1)]),
    ("Gather", 13, {"axis": -2}, [X, np.array([[0, 3], [1, 1]], np.int32)]),
    ("Slice", 13, {}, [X, ints(1, 0), ints(3, 100), ints(1, 3), ints(1, 2)]),
    ("Slice", 13, {}, [X, ints(-1, -100), ints(-100, 2), ints(3, -2), ints(-1, 1)]),
    ("Slice", 13, {}, [X, ints(5), ints(-7), ints(3), ints(-2)]),
    ("Slice", 13, {}, [X, ints(1, 1), ints(2, -1)]),
    ("ReduceMean", 13, {"axes": [-1, 1], "keepdims": 0}, [X]),
    ("ReduceMean", 13, {}, [X]),
    ("ReduceMean", 18, {}, [X, ints(2, 3)]),
    ("ReduceMean", 18, {"noop_with_empty_axes": 1}, [X]),
    ("ReduceSum", 11, {"axes": [2]}, [X]),
    ("ReduceSum", 13, {"keepdims": 0}, [ints(1, 2, 3), ints(0)]),
    ("ReduceMax", 13, {"axes": [1]}, [X]),
    ("ReduceMin", 18, {"keepdims": 0}, [X, ints(0)]),
    ("ReduceProd", 13, {"axes": [1]}, [X]),
    ("ReduceL1", 18, {}, [X, ints(1, 2)]),
    ("ReduceL2", 13, {"axes": [-1], "keepdims": 0}, [X]),
    ("ReduceSumSquare", 13, {}, [X]),
    ("Pad", 10, {"pads": [0, 1, 2, 0], "value": 1.5}, [floats(3, 4)]),
    ("Pad", 13, {}, [floats(3, 4), ints(1, 0, 0, 2), np.float32(-1)]),
    ("Pad", 13, {}, [floats(3, 4), ints(-1, 1, 0, -2)]),
    ("Pad", 13, {"mode": "reflect"}, [floats(3, 4), ints(1, 2, 1, 3)]),
    ("Pad", 13, {"mode": "edge"}, [floats(3, 4), ints(1, 2, 0, 3)]),
    ("Pad", 18, {}, [floats(3, 4), ints(1, 2), np.float32(0), ints(-1)]),
    ("Pad", 19, {"mode": "wrap"}, [floats(3, 4), ints(1, 2, 0, 3)]),
    ("BatchNormalization", 13, {"epsilon": 1e-3}, [X, floats(3), floats(3), floats(3), positive(3)]),
    ("BatchNormalization", 15, {}, [floats(5, 3), floats(3), floats(3), floats(3), positive(3)]),
    ("LayerNormalization", 17, {}, [X, floats(5), floats(5)]),
    ("LayerNormalization", 17, {"axis": 2, "epsilon": 1e-2}, [X, floats(4, 5)]),
    ("RMSNormalization", 23, {}, [X, floats(5)]),
    ("InstanceNormalization", 13, {}, [X, floats(3), floats(3)]),
    ("GroupNormalization", 21, {"num_groups": 2, "epsilon": 1e-3}, [IMAGE, floats(4), floats(4)]),
    ("Gemm", 13, {}, [floats(3, 4), floats(4, 5), floats(5)]),
    ("Gemm", 13, {"transA": 1, "transB": 1, "alpha": 0.5}, [floats(4, 3), floats(5, 4)]),
    ("Gemm", 13, {"transB": 1, "beta": 0.25}, [floats(3, 4), floats(5, 4), floats(3, 1)]),
    ("MatMul", 13, {}, [floats(2, 3, 4), floats(4, 5)]),
    ("MatMul", 13, {}, [floats(2, 3, 4), floats(2, 4, 5)]),
    ("MatMul", 13, {}, [floats(4), floats(4, 5)]),
    ("GlobalAveragePool", 13, {}, [IMAGE]),
    ("GlobalMaxPool", 13, {}, [IMAGE]),
    ("MaxPool", 13, {"kernel_shape": [2, 2], "strides": [2, 2]}, [IMAGE]),
    ("MaxPool", 13, {"kernel_shape": [3, 2], "pads": [1, 0, 1, 1], "strides": [2, 1]}, [IMAGE]),
    ("MaxPool", 13, {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}, [IMAGE]),
    ("MaxPool", 13, {"kernel_shape": [2, 2], "dilations": [2, 3]}, [IMAGE]),
    ("MaxPool", 13, {"kernel_shape": [3], "auto_pad": "SAME_UPPER", "strides": [2]}, [LINE]),
    ("MaxPool", 13, {"kernel_shape": [2, 2], "auto_pad": "SAME_LOWER"}, [IMAGE]),
    ("MaxPool", 13, {"kernel_shape": [2, 2, 2], "strides": [2, 2, 1]}, [VOLUME]),
    ("AveragePool", 13, {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 1, 1]}, [IMAGE]),
    ("AveragePool", 13, {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}, [IMAGE]),
    ("AveragePool", 19, {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}, [IMAGE]),
    (
        "AveragePool",
        19,
        {
            "kernel_shape": [3, 3],
            "strides": [2, 2],
            "ceil_mode": 1,
            "pads": [1, 1, 1, 1],
            "count_include_pad": 1,
        },
        [IMAGE],
    ),
    ("AveragePool", 19, {"kernel_shape": [2, 2], "dilations": [2, 2]}, [IMAGE]),
    ("Conv", 13, {}, [IMAGE, floats(6, 4, 3, 3), floats(6)]),
    ("Conv", 13, {"pads": [1, 0, 2, 1], "strides": [2, 3]}, [IMAGE, floats(6, 4, 3, 2)]),
    ("Conv", 13, {"auto_pad": "SAME_UPPER", "strides": [2, 1]}, [IMAGE, floats(5, 4, 2, 3)]),
    ("Conv", 13, {"dilations": [2, 1], "pads": [2, 0, 1, 1]}, [IMAGE, floats(5, 4, 2, 3)]),
    ("Conv", 13, {"auto_pad": "SAME_LOWER", "strides": [2, 2]}, [IMAGE, floats(5, 4, 3, 3)]),
    ("Conv", 13, {"auto_pad": "VALID"}, [IMAGE, floats(5, 4, 3, 3)]),
    ("Conv", 13, {"group": 2}, [IMAGE, floats(6, 2, 3, 3), floats(6)]),
    ("Conv", 13, {"group": 4, "pads": [1, 1, 1, 1]}, [IMAGE, floats(4, 1, 3, 3)]),
    ("Conv", 13, {"group": 4}, [IMAGE, floats(8, 1, 3, 3), floats(8)]),
    ("Conv", 13, {"strides": [2], "pads": [1, 1]}, [LINE, floats(3, 4, 3), floats(3)]),
    ("Conv", 13, {"pads": [1, 0, 1, 0, 1, 0]}, [VOLUME, floats(3, 2, 2, 3, 2)]),
    ("Conv", 13, {}, [IMAGE, floats(3, 4, 1, 1)]),
    ("ConvTranspose", 13, {}, [IMAGE, floats(4, 3, 3, 2), floats(3)]),
    ("ConvTranspose", 13, {"strides": [2, 3], "pads": [1, 0, 1, 2]}, [IMAGE, floats(4, 3, 3, 4)]),
    ("ConvTranspose", 13, {"strides": [2, 2], "output_padding": [1, 1]}, [IMAGE, floats(4, 2, 3, 3)]),
    ("ConvTranspose", 13, {"group": 2, "dilations": [2, 1]}, [IMAGE, floats(4, 3, 2, 2), floats(6)]),
    ("ConvTranspose", 13, {"strides": [2, 2], "auto_pad": "SAME_UPPER"}, [IMAGE, floats(4, 2, 3, 3)]),
    ("ConvTranspose", 13, {"strides": [2, 2], "output_shape": [19, 16]}, [IMAGE, floats(4, 2, 3, 3)]),
    ("ConvTranspose", 13, {"strides": [2]}, [LINE, floats(4, 2, 3)]),
    *[
        ("Resize", 19, {"mode": mode, "coordinate_transformation_mode": transform}, [IMAGE, None, scales])
        for mode in ("nearest", "linear", "cubic")
        for transform in ("half_pixel", "pytorch_half_pixel", "asymmetric")
        for scales in (np.float32([1, 1, 2, 3]), np.float32([1, 1, 0.6, 0.7]))
    ],
    ("Resize", 19, {"mode": "linear", "antialias": 1}, [IMAGE, None, np.float32([1, 1, 0.5, 0.6])]),
    ("Resize", 19, {"mode": "cubic", "exclude_outside": 1}, [IMAGE, None, np.float32([1, 1, 2, 2])]),
    ("Resize", 10, {"mode": "nearest"}, [IMAGE, np.float32([1, 1, 2, 2])]),
]

# ONNX Runtime takes these sizes as constants only.
SIZES = [
    *[
        ("Resize", 19, {"mode": mode, "coordinate_transformation_mode": transform}, [IMAGE, None, None, size])
        for mode in ("nearest", "linear", "cubic")
        for transform in ("align_corners", "half_pixel")
        for size in (ints(2, 4, 5, 13),)
    ],
    ("Resize", 18, {"axes": [3, 2], "mode": "linear"}, [IMAGE, None, None, ints(4, 18)]),
]


def case_id(case):
    name, opset, attributes, inputs = case
    shapes = "x".join("-" if a is None else str(np.shape(a)).replace(" ", "") for a in inputs)
    return f"{name}{opset}{shapes}{''.join(attributes)}"


def model_of(case, *, constant_from):
    """Return a model of one node whose inputs from `constant_from` on are initializers, and its feeds."""
    name, opset, attributes, inputs = case
    names = ["" if array is None else f"in{i}" for i, array in enumerate(inputs)]
    given = {n: np.asarray(a) for n, a in zip(names, inputs, strict=True) if n}
    fed = {n: a for n, a in given.items() if int(n[2:]) < constant_from}
    node = helper.make_node(name, names, ["out"], **attributes)
    model = build_model(
        [node],
        {n: (a.dtype, [None] * a.ndim) for n, a in fed.items()},
        ["out"],
        {n: a for n, a in given.items() if n not in fed},
        opset=opset,
    )
    return model, fed


@pytest.mark.parametrize("case", CASES, ids=map(case_id, CASES))
@pytest.mark.parametrize("constant_from", [1, 9], ids=["constants", "all fed"])
def test_operator_computes_what_onnx_runtime_does(case, constant_from, save_model):
    model, feeds = model_of(case, constant_from=constant_from)
    session = InferenceSession(save_model(model), engine="native")
    assert_close(session.run(None, feeds)[0], run_in_ort(model, feeds)[0])


@pytest.mark.parametrize("case", SIZES, ids=map(case_id, SIZES))
def test_images_are_resized_to_given_sizes_as_onnx_runtime_does(case, save_model):
    model, feeds = model_of(case, constant_from=1)
    session = InferenceSession(save_model(model), engine="native")
    assert_close(session.run(None, feeds)[0], run_in_ort(model, feeds)[0])


def test_every_operator_has_a_case():
    elsewhere = {"Constant", "Split", "LSTM", "GRU", "RNN"}
    assert {case[0] for case in CASES} == set(operator_names()) - elsewhere


@pytest.mark.parametrize(
    ("opset", "attributes", "sizes", "n_outputs"),
    [
        (11, {"split": [1, 4], "axis": -1}, None, 2),
        (11, {"axis": 3}, None, 5),
        (13, {"axis": 3}, [2, 3], 2),
        (18, {"axis": 3, "num_outputs": 2}, None, 2),
    ],
)
def test_split_gives_every_part(opset, attributes, sizes, n_outputs, save_model):
    names = [f"part{i}" for i in range(n_outputs)]
    inputs = ["x"] if sizes is None else ["x", "sizes"]
    model = build_model(
        [helper.make_node("Split", inputs, names, **attributes)],
        {"x": (np.float32, [2, 3, 4, 5])},
        names,
        {} if sizes is None else {"sizes": ints(*sizes)},
        opset=opset,
    )
    parts = InferenceSession(save_model(model), engine="native").run(None, {"x": X})
    for part, expected in zip(parts, run_in_ort(model, {"x": X}), strict=True):
        assert_close(part, expected)


@pytest.mark.parametrize(
    "attributes",
    [
        {"value": numpy_helper.from_array(floats(2, 3))},
        {"value_float": 2.5},
        {"value_int": 3},
        {"value_floats": [1.0, 2.0]},
        {"value_ints": [1, 2]},
    ],
    ids=lambda a: next(iter(a)),
)
def test_constants_have_the_value_of_their_attribute(attributes, save_model):
    nodes = [helper.make_node("Constant", [], ["c"], **attributes), helper.make_node("Neg", ["c"], ["out"])]
    model = build_model(nodes, {}, ["out"])
    result = InferenceSession(save_model(model), engine="native").run(None, {})[0]
    assert_close(result, run_in_ort(model, {})[0])


REFUSED = [
    ("Det", 13, {}, [floats(2, 2)], "Det"),
    (
        "LSTM",
        13,
        {"hidden_size": 3, "activations": ["Sigmoid", "Tanh", "Swish"]},
        [floats(2, 1, 3), floats(1, 12, 3), floats(1, 12, 3)],
        "Swish",
    ),
    (
        "Resize",
        13,
        {"coordinate_transformation_mode": "align_corners", "mode": "linear"},
        [IMAGE, None, np.float32([1, 1, 0.6, 0.6])],
        "aligned corners",
    ),
    ("Add", 6, {}, [X, X], "Add of opset 6"),
    ("Gelu", 20, {"approximate": "rough"}, [X], "rough"),
    ("Pad", 13, {"mode": "unheard"}, [X, ints(*[0] * 8)], "unheard"),
    ("Cast", 13, {"to": 8}, [X], "string"),
]


@pytest.mark.parametrize("case", REFUSED, ids=lambda c: c[0])
def test_what_the_engine_lacks_is_refused_by_name(case, save_model):
    model, _ = model_of(case[:4], constant_from=9)
    with pytest.raises(UnsupportedFeatureError, match=case[4]):
        InferenceSession(save_model(model), engine="native")


def test_all_lacking_operators_are_named_at_once(save_model):
    nodes = [
        helper.make_node("Det", ["x"], ["a"]),
        helper.make_node("Relu", ["x"], ["b"]),
        helper.make_node("FusedThing", ["b"], ["c"], domain="com.example"),
    ]
    model = build_model(nodes, {"x": (np.float32, [2, 2])}, ["a", "c"])
    with pytest.raises(UnsupportedFeatureError, match=r"Det of opset 17; .*com\.example::FusedThing"):
        InferenceSession(save_model(model), engine="native")


@pytest.mark.parametrize("opset", [0, 27, 1000])
def test_opsets_beyond_the_known_ones_are_refused(opset, save_model):
    model = build_model(
        [helper.make_node("Relu", ["x"], ["y"])], {"x": (np.float32, [1])}, ["y"], opset=opset
    )
    with pytest.raises(UnsupportedFeatureError, match="opsets 1 to 26"):
        InferenceSession(save_model(model), engine="native")


def test_versions_of_an_operator_end_where_the_next_begins():
    assert find_operator("Clip", 10) is not find_operator("Clip", 11)
    assert find_operator("Clip", 11) is find_operator("Clip", 26)
    assert find_operator("Clip", 5) is None


IMPOSSIBLE = [
    ("Conv", {"strides": [0, 1]}, [IMAGE, floats(6, 4, 3, 3)], CorruptError),
    ("Conv", {"pads": [1, 1]}, [IMAGE, floats(6, 4, 3, 3)], CorruptError),
    ("Conv", {"axis": 1, "auto_pad": "MAYBE"}, [IMAGE, floats(6, 4, 3, 3)], CorruptError),
    ("Conv", {"strides": 2}, [IMAGE, floats(6, 4, 3, 3)], CorruptError),
    ("MaxPool", {"kernel_shape": [30, 30]}, [IMAGE], FormatError),
    ("Conv", {}, [IMAGE, floats(6, 5, 3, 3)], FormatError),
    ("Reshape", {}, [X, ints(7, 7)], FormatError),
    ("Gather", {}, [X, ints(99)], FormatError),
    ("Concat", {"axis": 9}, [X, X], FormatError),
    ("MatMul", {}, [floats(2, 3), floats(4, 5)], FormatError),
    ("Add", {}, [floats(2, 3), floats(4, 5)], FormatError),
]


@pytest.mark.parametrize("case", IMPOSSIBLE, ids=lambda c: f"{c[0]}{c[1]}")
def test_graphs_that_contradict_themselves_are_format_errors_that_name_the_node(case, save_model):
    name, attributes, inputs, error = case
    model, feeds = model_of((name, 13, attributes, inputs), constant_from=1)
    with pytest.raises(error, match=f"node #0 out.*{name}"):
        InferenceSession(save_model(model), engine="native").run(None, feeds)


@pytest.mark.parametrize(
    ("name", "attributes", "inputs"),
    [
        ("ConstantOfShape", {}, [ints(1 << 20, 1 << 20)]),
        ("Expand", {}, [X, ints(1 << 30, 1, 1, 1, 1)]),
        ("Pad", {}, [floats(3, 4), ints(1 << 40, 0, 0, 0)]),
        ("Range", {}, [np.int64(0), np.int64(1 << 50), np.int64(1)]),
        ("MaxPool", {"kernel_shape": [1, 1], "pads": [1 << 30] * 4}, [IMAGE]),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_huge_results_are_refused_before_they_are_allocated(name, attributes, inputs, save_model):
    model, feeds = model_of((name, 13, attributes, inputs), constant_from=9)
    limits = Limits(materialised_bytes=1 << 30)
    session = InferenceSession(save_model(model), engine="native", limits=limits)
    with pytest.raises(LimitExceededError, match=name):
        session.run(None, feeds)
