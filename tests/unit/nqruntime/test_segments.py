"""Networks of several nodes as machine code, against ONNX Runtime on the decoded weights."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from onnx import helper

from nqformat.errors import FormatError, LimitExceededError
from nqformat.kernels import compiled
from nqruntime import InferenceSession
from nqruntime.kernels.library import COMPUTE
from nqruntime.lowering.segment import Segment

from .conftest import assert_close, build_model, quantized, run_in_ort


@pytest.fixture(autouse=True)
def kernels(monkeypatch):
    if compiled(COMPUTE, 0, worth_loading=0, worth_compiling=0) is None:
        pytest.skip("no compiled kernels on this machine")
    monkeypatch.setenv("NQFORMAT_KERNELS", "numba")


def noise(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def check(save_model, nodes, inputs, outputs, tensors, feeds, *, constants=None, opset=17, all_in_code=True):
    """Compare with ONNX Runtime; return the session."""
    model = build_model(nodes, inputs, outputs, constants, opset=opset)
    session = InferenceSession(save_model(model, tensors), engine="native", threads=1)
    for given in feeds if isinstance(feeds, list) else [feeds]:
        expected = run_in_ort(model, given, tensors)
        for actual, wanted in zip(session.run(None, given), expected, strict=True):
            assert_close(actual, wanted)
    if all_in_code:
        assert not [str(row) for row in session.explain() if row.kernel.endswith("numpy")]
    return session


CONVOLUTIONS = {
    "3x3": {"shape": (6, 4, 3, 3), "pads": [1, 1, 1, 1]},
    "3x3 valid": {"shape": (6, 4, 3, 3)},
    "5x5": {"shape": (7, 4, 5, 5), "pads": [2, 2, 2, 2]},
    "1x1": {"shape": (9, 4, 1, 1)},
    "uneven pads": {"shape": (6, 4, 3, 3), "pads": [0, 2, 1, 0]},
    "same": {"shape": (6, 4, 4, 4), "auto_pad": "SAME_UPPER"},
    "dilated": {"shape": (6, 4, 3, 3), "pads": [2, 2, 2, 2], "dilations": [2, 2]},
    "stride 2": {"shape": (6, 4, 3, 3), "pads": [1, 1, 1, 1], "strides": [2, 2]},
    "stride 3 and 2": {"shape": (6, 4, 5, 3), "pads": [2, 1, 2, 1], "strides": [3, 2]},
    "1x1 stride 2": {"shape": (6, 4, 1, 1), "strides": [2, 2]},
    "7x7 stride 2": {"shape": (6, 4, 7, 7), "pads": [3, 3, 3, 3], "strides": [2, 2]},
    "depthwise": {"shape": (4, 1, 3, 3), "pads": [1, 1, 1, 1], "group": 4},
    "depthwise stride 2": {"shape": (8, 1, 3, 3), "pads": [1, 1, 1, 1], "group": 4, "strides": [2, 2]},
    "groups": {"shape": (6, 2, 3, 3), "pads": [1, 1, 1, 1], "group": 2},
    "groups stride 2": {"shape": (6, 2, 3, 3), "pads": [1, 1, 1, 1], "group": 2, "strides": [2, 2]},
}
FORMS = {"sparse": (0.15, 12), "palette": (0.9, 12), "bytes": (0.9, 100), "floats": None}


def weights_of(shape, form):
    if FORMS[form] is None:
        return noise(shape, 3)
    density, n_entries = FORMS[form]
    return quantized(shape, density, n_entries, 5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_with_bias_and_relu(save_model, name, form):
    attributes = dict(CONVOLUTIONS[name])
    shape = attributes.pop("shape")
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], **attributes),
        helper.make_node("Relu", ["c"], ["y"]),
    ]
    tensors = {"w": weights_of(shape, form), "b": noise(shape[0], 1)}
    feeds = [{"x": noise((n, 4, 13, 18), n)} for n in (1, 3)]
    check(save_model, nodes, {"x": (np.float32, ["n", 4, 13, 18])}, ["y"], tensors, feeds)


@pytest.mark.parametrize("form", FORMS)
def test_convolutions_of_one_axis(save_model, form):
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1]),
        helper.make_node("Conv", ["c", "v"], ["y"], strides=[2], pads=[2, 2]),
    ]
    tensors = {"w": weights_of((5, 3, 3), form), "v": weights_of((4, 5, 5), form)}
    check(save_model, nodes, {"x": (np.float32, [2, 3, 50])}, ["y"], tensors, {"x": noise((2, 3, 50))})


@pytest.mark.parametrize("operator", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize(
    "attributes",
    [
        {"kernel_shape": [2, 2], "strides": [2, 2]},
        {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
        {"kernel_shape": [3, 2], "strides": [1, 3], "pads": [1, 0, 0, 1]},
        {"kernel_shape": [3, 3], "auto_pad": "SAME_LOWER", "strides": [2, 2]},
    ],
)
def test_pooling_between_convolutions(save_model, operator, attributes):
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node(operator, ["c"], ["p"], **attributes),
        helper.make_node("Conv", ["p", "v"], ["y"], pads=[1, 1, 1, 1]),
    ]
    tensors = {"w": quantized((5, 3, 3, 3), 0.3, 9), "v": quantized((4, 5, 3, 3), 0.3, 9)}
    x = noise((2, 3, 11, 14))
    check(save_model, nodes, {"x": (np.float32, list(x.shape))}, ["y"], tensors, {"x": x})


def test_averages_may_count_the_padding(save_model):
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("AveragePool", ["c"], ["y"], kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1),
    ]
    x = noise((1, 3, 8, 9))
    tensors = {"w": quantized((5, 3, 1, 1), 0.5, 9)}
    check(save_model, nodes, {"x": (np.float32, list(x.shape))}, ["y"], tensors, {"x": x})


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("after_relu", [False, True])
def test_residual_blocks(save_model, stride, after_relu):
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["s"], pads=[1] * 4),
        helper.make_node("Relu", ["s"], ["r"]),
        helper.make_node("Conv", ["r", "b"], ["t"], pads=[1] * 4, strides=[stride] * 2),
        helper.make_node("Relu", ["t"], ["u"]),
        helper.make_node("Conv", ["u", "c"], ["v"], pads=[1] * 4),
        helper.make_node("Conv", ["r", "d"], ["shortcut"], strides=[stride] * 2),
        helper.make_node("Add", ["v", "shortcut"] if after_relu else ["shortcut", "v"], ["sum"]),
        helper.make_node("Relu", ["sum"], ["y"]),
    ]
    tensors = {
        "a": quantized((6, 3, 3, 3), 0.3, 9, 1),
        "b": quantized((8, 6, 3, 3), 0.3, 9, 2),
        "c": quantized((8, 8, 3, 3), 0.3, 9, 3),
        "d": quantized((8, 6, 1, 1), 0.6, 9, 4),
    }
    feeds = [{"x": noise((n, 3, 12, 15), n)} for n in (1, 2)]
    check(save_model, nodes, {"x": (np.float32, ["n", 3, 12, 15])}, ["y", "u"], tensors, feeds)


def test_shortcuts_that_skip_pixels_and_add_channels(save_model):
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["r"], pads=[1] * 4),
        helper.make_node("Slice", ["r", "zero", "end", "two", "two"], ["s"]),
        helper.make_node("Slice", ["s", "zero", "end", "three", "two"], ["t"]),
        helper.make_node("Pad", ["t", "pads"], ["u"]),
        helper.make_node("Conv", ["r", "b"], ["v"], pads=[1] * 4, strides=[2, 2]),
        helper.make_node("Add", ["v", "u"], ["w"]),
        helper.make_node("Relu", ["w"], ["m"]),
        helper.make_node("ReduceMean", ["m"], ["n"], axes=[2, 3], keepdims=0),
        helper.make_node("Gemm", ["n", "c"], ["y"], transB=1),
    ]
    constants = {
        "zero": np.array([0]),
        "end": np.array([2**62]),
        "two": np.array([2]),
        "three": np.array([3]),
        "pads": np.array([0, 1, 0, 0, 0, 3, 0, 0]),
    }
    tensors = {
        "a": quantized((4, 3, 3, 3), 0.3, 9),
        "b": quantized((8, 4, 3, 3), 0.3, 9),
        "c": quantized((5, 8), 1.0, 9),
    }
    x = noise((2, 3, 11, 12))
    check(
        save_model, nodes, {"x": (np.float32, list(x.shape))}, ["y"], tensors, {"x": x}, constants=constants
    )


def test_channels_side_by_side(save_model):
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["p"]),
        helper.make_node("Conv", ["x", "b"], ["q"], pads=[1] * 4),
        helper.make_node("Concat", ["p", "x", "q"], ["r"], axis=1),
        helper.make_node("Conv", ["r", "c"], ["y"], pads=[2] * 4),
    ]
    tensors = {
        "a": quantized((4, 3, 1, 1), 0.5, 9),
        "b": quantized((5, 3, 3, 3), 0.5, 9),
        "c": quantized((6, 12, 5, 5), 0.1, 9),
    }
    x = noise((2, 3, 9, 10))
    check(save_model, nodes, {"x": (np.float32, list(x.shape))}, ["y"], tensors, {"x": x})


def test_batch_normalization_and_clip(save_model):
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1] * 4),
        helper.make_node("BatchNormalization", ["c", "scale", "bias", "mean", "variance"], ["n"]),
        helper.make_node("Clip", ["n", "low", "high"], ["d"]),
        helper.make_node("GlobalAveragePool", ["d"], ["e"]),
        helper.make_node("Flatten", ["e"], ["f"]),
        helper.make_node("MatMul", ["f", "v"], ["g"]),
        helper.make_node("Add", ["g", "k"], ["y"]),
    ]
    constants = {
        "scale": noise(6, 1),
        "bias": noise(6, 2),
        "mean": noise(6, 3),
        "variance": np.abs(noise(6, 4)) + 0.1,
        "low": np.float32(0),
        "high": np.float32(6),
        "k": noise(5, 6),
    }
    tensors = {"w": quantized((6, 3, 3, 3), 0.3, 9), "v": quantized((6, 5), 1.0, 12)}
    x = noise((2, 3, 9, 10))
    check(
        save_model, nodes, {"x": (np.float32, list(x.shape))}, ["y"], tensors, {"x": x}, constants=constants
    )


def test_fully_connected_layers_take_any_rank(save_model):
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["p"]),
        helper.make_node("Add", ["b", "p"], ["q"]),
        helper.make_node("Relu", ["q"], ["r"]),
        helper.make_node("MatMul", ["r", "c"], ["y"]),
    ]
    tensors = {"a": quantized((20, 33), 0.2, 9), "b": noise(33), "c": quantized((33, 7), 1.0, 16)}
    feeds = [{"x": noise(shape, 1)} for shape in [(1, 1, 20), (2, 5, 20), (1, 40, 20)]]
    check(save_model, nodes, {"x": (np.float32, ["n", "t", 20])}, ["y"], tensors, feeds)


def test_images_flow_into_fully_connected_layers(save_model):
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("MaxPool", ["d"], ["e"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Reshape", ["e", "shape"], ["f"]),
        helper.make_node("Gemm", ["f", "v", "b"], ["g"], transB=1),
        helper.make_node("Relu", ["g"], ["h"]),
        helper.make_node("Gemm", ["h", "u"], ["y"], transB=1),
    ]
    tensors = {
        "w": quantized((6, 1, 5, 5), 0.3, 9),
        "v": quantized((30, 384), 0.1, 9),
        "b": noise(30),
        "u": quantized((10, 30), 1.0, 9),
    }
    feeds = [{"x": noise((n, 1, 20, 20), n)} for n in (1, 4, 20)]
    constants = {"shape": np.array([-1, 384])}
    check(
        save_model, nodes, {"x": (np.float32, ["n", 1, 20, 20])}, ["y"], tensors, feeds, constants=constants
    )


def test_batches_without_images_give_results_without_rows(save_model):
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("Relu", ["c"], ["y"])]
    model = build_model(nodes, {"x": (np.float32, ["n", 3, 5, 5])}, ["y"])
    session = InferenceSession(save_model(model, {"w": quantized((4, 3, 3, 3), 0.3, 9)}), engine="native")
    assert session.run(None, {"x": np.zeros((0, 3, 5, 5), np.float32)})[0].shape == (0, 4, 3, 3)


def test_sums_that_broadcast_are_computed_all_the_same(save_model):
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("GlobalAveragePool", ["c"], ["d"]),
        helper.make_node("Add", ["c", "d"], ["y"]),
    ]
    x = noise((2, 3, 6, 7))
    tensors = {"w": quantized((4, 3, 1, 1), 0.5, 9)}
    inputs = {"x": (np.float32, list(x.shape))}
    check(save_model, nodes, inputs, ["y"], tensors, {"x": x}, all_in_code=False)


def test_shapes_that_come_later_may_broadcast(save_model):
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["p"]),
        helper.make_node("MatMul", ["z", "a"], ["q"]),
        helper.make_node("Add", ["p", "q"], ["r"]),
        helper.make_node("MatMul", ["r", "b"], ["y"]),
    ]
    tensors = {"a": quantized((20, 33), 0.2, 9), "b": quantized((33, 7), 1.0, 16)}
    inputs = {"x": (np.float32, ["n", 20]), "z": (np.float32, ["m", 20])}
    feeds = [
        {"x": noise((n, 20), 1), "z": noise((m, 20), 2)} for n, m in [(1, 1), (3, 3), (4, 1), (1, 4), (2, 2)]
    ]
    check(save_model, nodes, inputs, ["y"], tensors, feeds, all_in_code=False)


def test_wrong_shapes_are_our_own_error_and_name_the_node(save_model):
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["p"]),
        helper.make_node("Conv", ["z", "b"], ["q"]),
    ]
    tensors = {"a": quantized((20, 33), 0.2, 9), "b": quantized((4, 3, 3, 3), 0.5, 9)}
    inputs = {"x": (np.float32, ["n", "k"]), "z": (np.float32, ["n", "c", "h", "w"])}
    model = build_model(nodes, inputs, ["p", "q"])
    session = InferenceSession(save_model(model, tensors), engine="native")
    good = {"x": noise((1, 20)), "z": noise((1, 3, 5, 5))}
    assert session.run(None, good)[1].shape == (1, 4, 3, 3)
    for bad in ({"x": noise((1, 21))}, {"z": noise((1, 2, 5, 5))}, {"z": noise((1, 3, 2, 5))}):
        with pytest.raises(FormatError, match="cannot run"):
            session.run(None, {**good, **bad})
    assert session.run(None, good)[1].shape == (1, 4, 3, 3)


@pytest.mark.parametrize("pads", [[2**20] * 4, [2**30] * 4])
def test_padding_beyond_the_limits_is_refused(save_model, pads):
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=pads),
        helper.make_node("MaxPool", ["c"], ["y"], kernel_shape=[2, 2]),
    ]
    model = build_model(nodes, {"x": (np.float32, ["n", 3, 5, 5])}, ["y"])
    session = InferenceSession(save_model(model, {"w": quantized((4, 3, 3, 3), 0.3, 9)}), engine="native")
    with pytest.raises(LimitExceededError, match="limit"):
        session.run(None, {"x": noise((1, 3, 5, 5))})


def test_windows_larger_than_any_image_are_left_to_numpy(save_model):
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("MaxPool", ["c"], ["y"], kernel_shape=[1, 5000], pads=[0, 2500, 0, 2500]),
    ]
    tensors = {"w": quantized((4, 3, 1, 1), 0.3, 9)}
    inputs = {"x": (np.float32, [1, 3, 2, 9])}
    check(save_model, nodes, inputs, ["y"], tensors, {"x": noise((1, 3, 2, 9))}, all_in_code=False)


def test_threads_share_a_session(save_model):
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("Flatten", ["d"], ["e"]),
        helper.make_node("MatMul", ["e", "v"], ["y"]),
    ]
    tensors = {"w": quantized((8, 3, 3, 3), 0.3, 9), "v": quantized((800, 5), 0.2, 9)}
    model = build_model(nodes, {"x": (np.float32, ["n", 3, 10, 10])}, ["y"])
    session = InferenceSession(save_model(model, tensors), engine="native")
    feeds = [noise((n % 3 + 1, 3, 10, 10), n) for n in range(8)]
    alone = [session.run(None, {"x": x})[0] for x in feeds]
    wrong = []

    def work(i):
        for _ in range(50):
            if session.run(None, {"x": feeds[i]})[0].tobytes() != alone[i].tobytes():
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_infinities_do_not_leak_into_neighbours(save_model):
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1] * 4),
        helper.make_node("Conv", ["c", "v"], ["y"], pads=[1] * 4),
    ]
    tensors = {"w": quantized((2, 1, 3, 3), 0.9, 9), "v": quantized((2, 2, 3, 3), 0.9, 9)}
    x = np.zeros((1, 1, 12, 12), np.float32)
    x[0, 0, 0, 11] = np.inf
    model = build_model(nodes, {"x": (np.float32, [1, 1, 12, 12])}, ["y"])
    session = InferenceSession(save_model(model, tensors), engine="native")
    found = session.run(None, {"x": x})[0]
    assert np.isfinite(found[0, :, 3:, :]).all()
    assert np.isfinite(found[0, :, :, :7]).all()


def large_network():
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["p"], pads=[1] * 4),
        helper.make_node("Relu", ["p"], ["q"]),
        helper.make_node("MaxPool", ["q"], ["r"], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4),
        helper.make_node("Conv", ["r", "b"], ["s"], pads=[1] * 4, strides=[2, 2]),
        helper.make_node("Conv", ["s", "c"], ["t"], pads=[1] * 4),
        helper.make_node("Add", ["t", "s"], ["u"]),
        helper.make_node("Flatten", ["u"], ["v"]),
        helper.make_node("MatMul", ["v", "d"], ["w"]),
        helper.make_node("MatMul", ["w", "e"], ["y"]),
    ]
    tensors = {
        "a": quantized((13, 3, 3, 3), 0.9, 9),
        "b": quantized((20, 13, 3, 3), 0.2, 9),
        "c": quantized((20, 20, 3, 3), 0.2, 9),
        "d": quantized((720, 70), 0.2, 9),
        "e": quantized((70, 9), 0.9, 9),
    }
    return build_model(nodes, {"x": (np.float32, ["n", 3, 24, 24])}, ["y"]), tensors


def test_threads_that_share_a_run_change_no_bit(save_model, monkeypatch):
    path = save_model(*large_network())
    alone = InferenceSession(path, engine="native", threads=1, memory="low")
    monkeypatch.setattr(Segment, "_gains", lambda *_: True)
    for n_threads in (2, 3, 7):
        shared = InferenceSession(path, engine="native", threads=n_threads, memory="low")
        for n in (1, 2, 17):
            x = noise((n, 3, 24, 24), n)
            assert shared.run(None, {"x": x})[0].tobytes() == alone.run(None, {"x": x})[0].tobytes(), (
                n_threads
            )


def test_callers_and_shared_runs_mix(save_model, monkeypatch):
    path = save_model(*large_network())
    alone = InferenceSession(path, engine="native", threads=1, memory="low")
    monkeypatch.setattr(Segment, "_gains", lambda *_: True)
    sessions = [InferenceSession(path, engine="native", threads=t, memory="low") for t in (2, 3)]
    x = noise((2, 3, 24, 24))
    expected = alone.run(None, {"x": x})[0].tobytes()
    wrong = []

    def work(session):
        for _ in range(30):
            if session.run(None, {"x": x})[0].tobytes() != expected:
                wrong.append(session)

    callers = [threading.Thread(target=work, args=(sessions[i % 2],)) for i in range(5)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


def test_a_team_without_threads_leaves_the_work_to_the_caller(save_model, monkeypatch):
    monkeypatch.setattr(Segment, "_gains", lambda *_: True)

    class NoPool:
        def submit(self, _):
            raise RuntimeError("cannot schedule new futures after shutdown")

    monkeypatch.setattr("nqruntime.team.Team._threads", lambda *_: NoPool())
    path = save_model(*large_network())
    x = noise((1, 3, 24, 24))
    session = InferenceSession(path, engine="native", threads=2, memory="low")
    alone = InferenceSession(path, engine="native", threads=1, memory="low")
    assert session.run(None, {"x": x})[0].tobytes() == alone.run(None, {"x": x})[0].tobytes()


@pytest.mark.parametrize("n_threads", [1, 2])
def test_products_skip_zeros_where_there_are_many(save_model, monkeypatch, n_threads):
    monkeypatch.setattr(Segment, "_gains", lambda *_: True)
    monkeypatch.setattr("nqruntime.lowering.measuring.Chooser.most_nonzeros", lambda *_: 100)
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["p"]),
        helper.make_node("Relu", ["p"], ["q"]),
        helper.make_node("MatMul", ["q", "b"], ["y"]),
    ]
    tensors = {"a": quantized((400, 130), 0.1, 9), "b": quantized((130, 40), 0.2, 9)}
    model = build_model(nodes, {"x": (np.float32, ["n", 400])}, ["y"])
    session = InferenceSession(save_model(model, tensors), engine="native", threads=n_threads)
    assert "zero inputs skipped" in session.explain()[0].kernel
    for density in (0.1, 0.2, 0.3, 1.0):
        x = noise((1, 400)) * (np.random.default_rng(1).random((1, 400)) < density).astype(np.float32)
        assert_close(session.run(None, {"x": x})[0], run_in_ort(model, {"x": x}, tensors)[0])
