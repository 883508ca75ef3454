from __future__ import annotations

import sys
import threading

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, helper

import nqformat
import nqruntime
from nqformat import DType, RawTensor
from nqformat.errors import (
    BadMagicError,
    ConversionError,
    CorruptError,
    FormatError,
    LimitExceededError,
    MissingDependencyError,
    UnsupportedFeatureError,
)
from nqformat.limits import Limits
from nqruntime import InferenceSession

from .conftest import assert_close, build_model, quantized, run_in_ort


@pytest.fixture
def two_inputs(save_model):
    """A model of two inputs and two outputs."""
    nodes = [
        helper.make_node("Gemm", ["image", "w", "b"], ["score"], transB=1),
        helper.make_node("Add", ["score", "shift"], ["shifted"]),
    ]
    model = build_model(
        nodes,
        {"image": (np.float32, ["batch", 6]), "shift": (np.float32, [4])},
        ["score", "shifted"],
    )
    tensors = {"w": quantized((4, 6), 0.5, 5), "b": np.ones(4, np.float32)}
    return save_model(model, tensors, {"method": "test"}), model, tensors


@pytest.fixture(params=["native", "ort"])
def session(request, two_inputs):
    with InferenceSession(two_inputs[0], engine=request.param) as opened:
        yield opened


IMAGE = np.arange(12, dtype=np.float32).reshape(2, 6)
SHIFT = np.arange(4, dtype=np.float32)
FEEDS = {"image": IMAGE, "shift": SHIFT}


def test_the_package_exports_the_session_and_how_to_prepare_a_machine():
    assert nqruntime.__all__ == ["InferenceSession", "compile_kernels"]


def test_all_outputs_come_in_the_order_of_the_graph(session, two_inputs):
    _, model, tensors = two_inputs
    results = session.run(None, FEEDS)
    for actual, expected in zip(results, run_in_ort(model, FEEDS, tensors), strict=True):
        assert_close(actual, expected)


def test_named_outputs_come_in_the_order_asked_for(session):
    score, shifted = session.run(None, FEEDS)
    np.testing.assert_array_equal(session.run(["shifted"], FEEDS)[0], shifted)
    reordered = session.run(["shifted", "score"], FEEDS)
    np.testing.assert_array_equal(reordered[1], score)


def test_inputs_and_outputs_are_described_as_onnx_runtime_does(session):
    image, shift = session.get_inputs()
    assert (image.name, image.shape, image.type) == ("image", ["batch", 6], "tensor(float)")
    assert (shift.name, shift.shape) == ("shift", [4])
    assert [value.name for value in session.get_outputs()] == ["score", "shifted"]


def test_the_session_tells_what_is_in_the_file(session):
    assert session.tensor_names == ("w", "b")
    assert session.metadata == {"method": "test"}
    assert session.weight_bytes > 0
    assert session.fallback_reason is None


def test_explain_has_a_row_for_each_node(session):
    rows = session.explain()
    assert [row.operator for row in rows] == ["Gemm", "Add"]
    assert [row.node for row in rows] == ["#0 score", "#1 shifted"]
    assert str(rows[0]).startswith("#0 score: Gemm, ")


@pytest.mark.parametrize(
    ("feeds", "error", "words"),
    [
        ({"image": IMAGE, "shift": SHIFT, "extra": SHIFT}, ValueError, ["'extra'", "'image'", "batch, 6"]),
        ({"image": IMAGE}, ValueError, ["'shift'", "missing"]),
        ({"image": IMAGE.astype(np.float64), "shift": SHIFT}, TypeError, ["'image'", "float32", "float64"]),
        ({"image": IMAGE.tolist(), "shift": SHIFT}, TypeError, ["'image'", "NumPy", "list"]),
        ({"image": IMAGE[:, :5], "shift": SHIFT}, ValueError, ["'image'", "batch, 6", "[2, 5]"]),
        ({"image": IMAGE[0], "shift": SHIFT}, ValueError, ["'image'", "[6]"]),
        ([IMAGE, SHIFT], TypeError, ["mapping", "list"]),
    ],
    ids=["unknown", "missing", "dtype", "no array", "size", "rank", "no mapping"],
)
def test_wrong_feeds_are_refused_with_what_was_expected_and_what_came(session, feeds, error, words):
    with pytest.raises(error) as raised:
        session.run(None, feeds)
    for word in words:
        assert word in str(raised.value)


def test_unknown_outputs_are_refused_with_those_there_are(session):
    with pytest.raises(ValueError, match=r"'nothing'.*'score', 'shifted'"):
        session.run(["nothing"], FEEDS)
    with pytest.raises(TypeError, match="list of names"):
        session.run("score", FEEDS)


def test_big_endian_and_strided_feeds_give_the_same_result(session):
    expected = session.run(None, FEEDS)[0]
    strided = np.repeat(IMAGE, 2, axis=1)[:, ::2]
    for image in (IMAGE.astype(">f4"), strided, np.asfortranarray(IMAGE)):
        np.testing.assert_allclose(session.run(None, FEEDS | {"image": image})[0], expected, rtol=1e-6)


def test_a_closed_session_says_so(session):
    session.close()
    session.close()
    with pytest.raises(ValueError, match="closed"):
        session.run(None, FEEDS)


def test_concurrent_runs_give_what_single_runs_give(session):
    images = [np.random.default_rng(i).normal(size=(3, 6)).astype(np.float32) for i in range(8)]
    expected = [session.run(["score"], {"image": i, "shift": SHIFT})[0] for i in images]
    wrong = []

    def work(number):
        for _ in range(20):
            result = session.run(["score"], {"image": images[number], "shift": SHIFT})[0]
            if result.tobytes() != expected[number].tobytes():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("memory", ["default", "low"])
def test_onnx_runtime_gives_the_same_result_in_either_memory_mode(memory, save_model):
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["h"], transB=1),
        helper.make_node("Reshape", ["h", "shape"], ["r"]),
        helper.make_node("Cast", ["half"], ["wide"], to=1),
        helper.make_node("Cast", ["brain"], ["wider"], to=1),
        helper.make_node("Sum", ["r", "wide", "wider", "constant"], ["y"]),
    ]
    rng = np.random.default_rng(1)
    brain = rng.normal(size=(20, 40)).astype(ml_dtypes.bfloat16)
    tensors = {
        "w": quantized((800, 30), 0.2, 9),
        "shape": np.array([1, 20, 40]),
        "half": rng.normal(size=(20, 40)).astype(np.float16),
        "brain": RawTensor(bits=brain.view(np.uint16), dtype=DType.BFLOAT16),
        "constant": np.full((20, 40), 2.5, np.float32),
    }
    x = rng.normal(size=(1, 30)).astype(np.float32)
    model = build_model(nodes, {"x": (np.float32, [1, 30])}, ["y"])
    session = InferenceSession(save_model(model, tensors), engine="ort", memory=memory)
    expected = (x @ tensors["w"].decode().T).reshape(1, 20, 40) + 2.5
    expected = expected + tensors["half"].astype(np.float32) + brain.astype(np.float32)
    assert_close(session.run(None, {"x": x})[0], expected.astype(np.float32))


def test_models_from_before_ir_version_4_run(save_model):
    model = build_model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        {"x": (np.float32, [1, 6])},
        ["y"],
        opset=8,
        ir_version=3,
    )
    path = save_model(model, {"w": quantized((6, 4), 0.5, 5)})
    x = np.ones((1, 6), np.float32)
    native, ort = (
        InferenceSession(path, engine=engine).run(None, {"x": x})[0] for engine in ("native", "ort")
    )
    assert_close(native, ort)


@pytest.mark.parametrize("engine", ["native", "ort"])
def test_inputs_with_a_default_may_be_left_out(engine, save_model):
    model = build_model(
        [helper.make_node("Add", ["x", "bias"], ["y"])],
        {"x": (np.float32, [3]), "bias": (np.float32, [3])},
        ["y"],
        {"bias": np.float32([1, 2, 3])},
    )
    session = InferenceSession(save_model(model), engine=engine)
    x = np.zeros(3, np.float32)
    assert [value.name for value in session.get_inputs()] == ["x"]
    assert session.run(None, {"x": x})[0].tolist() == [1, 2, 3]
    assert session.run(None, {"x": x, "bias": x})[0].tolist() == [0, 0, 0]


@pytest.mark.parametrize("engine", ["native", "ort"])
def test_results_belong_to_the_caller(engine, save_model):
    nodes = [
        helper.make_node("Identity", ["x"], ["same"]),
        helper.make_node("Identity", ["w"], ["weight"]),
        helper.make_node("Flatten", ["x"], ["flat"]),
    ]
    model = build_model(nodes, {"x": (np.float32, [2, 2])}, ["same", "weight", "flat"])
    session = InferenceSession(save_model(model, {"w": np.ones(300, np.float32)}), engine=engine)
    x = np.ones((2, 2), np.float32)
    for result in session.run(None, {"x": x}):
        result[...] = -1
    assert x.tolist() == [[1, 1], [1, 1]]
    assert session.run(["weight"], {"x": x})[0].min() == 1


BRANCH = helper.make_graph(
    [
        helper.make_node("Mul", ["x", "factor"], ["product"]),
        helper.make_node("Shrink", ["product"], ["scaled"], lambd=0.0),
    ],
    "branch",
    [],
    [helper.make_tensor_value_info("scaled", TensorProto.FLOAT, None)],
)


@pytest.fixture
def with_branches(save_model):
    """A model whose tensor is read inside branches only, which the native engine cannot run."""
    node = helper.make_node("If", ["flag"], ["y"], then_branch=BRANCH, else_branch=BRANCH)
    model = build_model(
        [helper.make_node("Relu", ["x"], ["r"]), node],
        {"x": (np.float32, [400]), "flag": (np.bool_, [])},
        ["y", "r"],
    )
    return save_model(model, {"factor": np.full(400, 3, np.float32)})


def test_auto_takes_the_native_engine_where_it_can(two_inputs):
    assert InferenceSession(two_inputs[0]).engine == "native"


def test_auto_falls_back_to_onnx_runtime_and_says_why(with_branches):
    session = InferenceSession(with_branches)
    assert session.engine == "ort"
    assert "operator Shrink" in session.fallback_reason
    relu, branch = session.explain()
    assert "operator Shrink" in branch.reason
    assert relu.reason == ""
    feeds = {"x": np.ones(400, np.float32), "flag": np.array(True)}
    assert session.run(["y"], feeds)[0].tolist() == [3.0] * 400


def test_native_refuses_what_auto_would_hand_on(with_branches):
    with pytest.raises(UnsupportedFeatureError, match="operator Shrink"):
        InferenceSession(with_branches, engine="native")


def test_half_precision_without_declared_types_goes_to_onnx_runtime(save_model):
    model = build_model([helper.make_node("Cast", ["w"], ["y"], to=1)], {}, ["y"])
    path = save_model(model, {"w": np.arange(700, dtype=np.float16)})
    session = InferenceSession(path)
    assert session.engine == "ort"
    assert "'y' has none declared" in session.fallback_reason
    assert session.run(None, {})[0].tolist() == list(range(700))


@pytest.fixture
def without_onnxruntime(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)


def test_the_native_engine_runs_without_onnx_runtime(two_inputs, without_onnxruntime):
    assert InferenceSession(two_inputs[0]).run(None, FEEDS)[0].shape == (2, 4)


def test_a_missing_onnx_runtime_is_named_with_its_extra(two_inputs, without_onnxruntime):
    with pytest.raises(MissingDependencyError, match=r"nqformat\[ort\]"):
        InferenceSession(two_inputs[0], engine="ort")


def test_a_missing_onnx_runtime_is_named_with_the_operators_that_need_it(with_branches, without_onnxruntime):
    with pytest.raises(MissingDependencyError, match=r"nqformat\[ort\].*operator Shrink") as raised:
        InferenceSession(with_branches)
    assert raised.value.extra == "ort"


def test_a_file_of_tensors_only_says_what_to_do(tmp_path):
    path = tmp_path / "weights.nqz"
    nqformat.save_file({"w": np.ones(3, np.float32)}, path)
    with pytest.raises(ConversionError, match=r"weights\.nqz.*tensors only; use nqformat\.load_file"):
        InferenceSession(path)


def test_a_file_that_is_no_nqz_file_is_refused(tmp_path):
    path = tmp_path / "other.nqz"
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(BadMagicError):
        InferenceSession(path)
    with pytest.raises(FileNotFoundError):
        InferenceSession(tmp_path / "absent.nqz")


def test_a_graph_that_reads_an_absent_tensor_is_corrupt(save_model):
    model = build_model([helper.make_node("Relu", ["lost"], ["y"])], {}, ["y"])
    with pytest.raises(CorruptError, match="'lost'"):
        InferenceSession(save_model(model))


def test_outputs_without_a_name_are_corrupt(save_model):
    model = build_model([helper.make_node("Relu", ["x"], ["y"])], {"x": (np.float32, [1])}, ["y", ""])
    with pytest.raises(CorruptError, match="without a name"):
        InferenceSession(save_model(model))


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        ([("Relu", ["x"], ["y"]), ("Relu", ["x"], ["y"])], "'y' twice"),
        ([("Relu", ["later"], ["y"]), ("Relu", ["x"], ["later"])], "'later' before"),
        ([("Relu", ["x"], ["x"]), ("Relu", ["x"], ["y"])], "'x' twice"),
    ],
)
def test_graphs_out_of_order_are_corrupt(nodes, words, save_model):
    model = build_model([helper.make_node(*node) for node in nodes], {"x": (np.float32, [1])}, ["y"])
    with pytest.raises(FormatError, match=words):
        InferenceSession(save_model(model), engine="native")


def test_a_graph_that_onnx_runtime_cannot_load_is_our_own_error(save_model):
    model = build_model([helper.make_node("NoSuchThing", ["x"], ["y"])], {"x": (np.float32, [1])}, ["y"])
    with pytest.raises((FormatError, UnsupportedFeatureError), match="NoSuchThing"):
        InferenceSession(save_model(model))


def test_a_run_that_onnx_runtime_refuses_is_our_own_error(save_model):
    model = build_model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": (np.float32, ["n", "m"])}, ["y"]
    )
    session = InferenceSession(save_model(model, {"w": np.ones((300, 4), np.float32)}), engine="ort")
    with pytest.raises(FormatError, match="cannot run"):
        session.run(None, {"x": np.ones((2, 7), np.float32)})


@pytest.mark.parametrize("engine", ["native", "ort"])
def test_weights_beyond_the_limits_are_refused(engine, two_inputs, save_model):
    model = build_model([helper.make_node("Relu", ["w"], ["y"])], {}, ["y"])
    path = save_model(model, {"w": np.zeros((1000, 1000), np.float32)})
    with pytest.raises(LimitExceededError):
        InferenceSession(path, engine=engine, limits=Limits(materialised_bytes=1 << 20))


def test_together_the_tensors_must_keep_the_limits_too(save_model):
    names = [f"w{i}" for i in range(4)]
    model = build_model([helper.make_node("Sum", names, ["y"])], {}, ["y"])
    path = save_model(model, {name: np.zeros(100_000, np.float32) for name in names})
    with pytest.raises(LimitExceededError):
        InferenceSession(path, engine="ort", limits=Limits(materialised_bytes=1 << 20))


@pytest.mark.parametrize(
    "settings", [{"engine": "fast"}, {"memory": "none"}, {"threads": 0}, {"threads": "many"}]
)
def test_unknown_settings_are_refused(settings, two_inputs):
    with pytest.raises(ValueError, match=next(iter(settings))):
        InferenceSession(two_inputs[0], **settings)


def test_inputs_that_are_no_tensors_are_unsupported(save_model):
    model = build_model([helper.make_node("SequenceAt", ["s", "i"], ["y"])], {}, ["y"])
    model.graph.input.append(helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None))
    model.graph.input.append(helper.make_tensor_value_info("i", TensorProto.INT64, []))
    with pytest.raises(UnsupportedFeatureError, match="'s' is not a tensor"):
        InferenceSession(save_model(model))
