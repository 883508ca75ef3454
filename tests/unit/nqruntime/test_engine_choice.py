"""Engine ``auto``: measured once for files that are worth it, and remembered."""

from __future__ import annotations

import json

import ml_dtypes
import numpy as np
import pytest
from onnx import helper

import nqformat
from nqformat.kernels import compiled
from nqruntime import InferenceSession, remembering, session
from nqruntime.engines import choice
from nqruntime.graph import GraphValue
from nqruntime.graph_reader import read_model
from nqruntime.kernels.library import COMPUTE
from nqruntime.made_up import made_up_feeds

from .conftest import build_model, quantized

LARGE = quantized((400, 400), 1.0, 16)
X = np.random.default_rng(0).normal(size=(1, 400)).astype(np.float32)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A cache folder of the test's own, and nothing remembered."""
    monkeypatch.setenv("NQFORMAT_CACHE_DIR", str(tmp_path / "cache"))
    remembering.forget()
    return tmp_path / "cache"


def product_of(tensor):
    return build_model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        {"x": (np.float32, ["batch", tensor.shape[0]])},
        ["y"],
    )


@pytest.mark.parametrize(("native", "ort", "winner"), [(1e-3, 1e-3, "native"), (1.1e-3, 1e-3, "ort")])
def test_the_faster_engine_is_taken_and_remembered(native, ort, winner, folder, save_model, monkeypatch):
    path = save_model(product_of(LARGE), {"w": LARGE})
    asked = []
    monkeypatch.setattr(
        choice, "compare", lambda *_: asked.append(1) or choice.Timings(native=native, ort=ort)
    )
    for _ in range(2):
        remembering.forget()  # as another process would find it
        with InferenceSession(path) as made:
            assert made.engine == winner
            assert (made.fallback_reason is None) == (winner == "native")
            np.testing.assert_allclose(made.run(None, {"x": X})[0], X @ LARGE.decode(), rtol=1e-4, atol=1e-4)
    assert len(asked) == 1
    (kept,) = folder.glob("engine-*.json")
    assert json.loads(kept.read_text()) == {"native": native, "ort": ort}


def test_choices_of_kernels_are_remembered(folder, save_model, monkeypatch):
    if compiled(COMPUTE, 0, worth_loading=0, worth_compiling=0) is None:
        pytest.skip("no compiled kernels on this machine")
    monkeypatch.setenv("NQFORMAT_KERNELS", "numba")
    sparse = quantized((400, 400), 0.1, 9)
    path = save_model(product_of(sparse), {"w": sparse})
    first = InferenceSession(path, engine="native").explain()[0].kernel
    (kept,) = folder.glob("kernels-*.json")
    assert first.startswith(next(iter(json.loads(kept.read_text()).values())))
    asked = []
    monkeypatch.setattr(
        "nqruntime.lowering.measuring._plan_seconds", lambda *a: asked.append(1) or [1.0] * len(a[2])
    )
    remembering.forget()
    assert InferenceSession(path, engine="native").explain()[0].kernel == first
    assert not asked
    for content in (b"[]", b"{", b'{"0": "no form"}'):
        kept.write_bytes(content)
        remembering.forget()
        asked.clear()
        made = InferenceSession(path, engine="native")
        np.testing.assert_allclose(made.run(None, {"x": X})[0], X @ sparse.decode(), rtol=1e-4, atol=1e-4)
        assert asked


def test_a_real_comparison_times_both_engines(folder, save_model):
    with InferenceSession(save_model(product_of(LARGE), {"w": LARGE})) as made:
        (kept,) = folder.glob("engine-*.json")
        timings = choice.Timings(**json.loads(kept.read_text()))
        assert timings.native > 0 and timings.ort > 0
        assert made.engine == ("native" if timings.native_wins else "ort")
        assert made.fallback_reason is None or "ms with the native engine" in made.fallback_reason


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"native": 1}', b'{"native": "fast", "ort": 1}'], ids=repr
)
def test_a_damaged_memory_is_measured_again(content, folder, save_model):
    path = save_model(product_of(LARGE), {"w": LARGE})
    InferenceSession(path).close()
    (kept,) = folder.glob("engine-*.json")
    kept.write_bytes(content)
    remembering.forget()
    InferenceSession(path).close()
    assert set(json.loads(kept.read_text())) == {"native", "ort"}


def test_small_graphs_low_memory_and_chosen_engines_are_not_compared(folder, save_model, monkeypatch):
    monkeypatch.setattr(choice, "compare", lambda *_: pytest.fail("compared"))
    small = quantized((20, 20), 1.0, 16)
    assert InferenceSession(save_model(product_of(small), {"w": small})).engine == "native"
    path = save_model(product_of(LARGE), {"w": LARGE})
    assert InferenceSession(path, memory="low").engine == "native"
    assert InferenceSession(path, engine="native").engine == "native"
    assert InferenceSession(path, engine="ort").engine == "ort"


def test_without_onnx_runtime_the_native_engine_runs(folder, save_model, monkeypatch):
    def missing(*_):
        raise nqformat.errors.MissingDependencyError("onnxruntime", "ort")

    monkeypatch.setattr(session, "_build_ort", missing)
    assert InferenceSession(save_model(product_of(LARGE), {"w": LARGE})).engine == "native"


def test_graphs_that_made_up_inputs_do_not_fit_run_in_onnx_runtime(folder, save_model):
    model = build_model(
        [
            helper.make_node("Reshape", ["x", "shape"], ["wide"]),
            helper.make_node("MatMul", ["wide", "w"], ["y"]),
        ],
        {"x": (np.float32, [None, None])},
        ["y"],
        {"shape": np.array([-1, 400])},
    )
    with InferenceSession(save_model(model, {"w": LARGE})) as made:
        assert made.engine == "ort" and "made-up inputs" in made.fallback_reason


def test_made_up_inputs_fit_what_is_declared():
    model = build_model(
        [helper.make_node("Identity", ["a"], ["y"])],
        {"a": (np.float32, ["n", 3, "t"]), "b": (np.int64, [None]), "c": (np.bool_, [])},
        ["y"],
    )
    graph = read_model(model.SerializeToString()).graph
    feeds = made_up_feeds(graph.inputs, {})
    assert {name: (feed.shape, feed.dtype.str) for name, feed in feeds.items()} == {
        "a": ((1, 3, 16), "<f4"),
        "b": ((1,), "<i8"),
        "c": ((), "|b1"),
    }
    assert set(feeds["b"]) <= {0, 1} and feeds["a"].std() > 0.5
    assert set(made_up_feeds(graph.inputs, {"a": None})) == {"b", "c"}


def test_axes_with_the_symbol_of_the_batch_are_of_its_size():
    bfloat16 = np.dtype(ml_dtypes.bfloat16)
    inputs = [
        GraphValue(name="a", element_number=1, shape=("n", "t")),
        GraphValue(name="b", element_number=16, shape=("t", "n", None)),
    ]
    feeds = made_up_feeds(inputs, (), batch=3, open_size=5)
    assert (feeds["a"].shape, feeds["b"].shape, feeds["b"].dtype) == ((3, 3), (3, 3, 5), bfloat16)
    feeds = made_up_feeds(inputs[:1], (), batch=3, open_size=5)
    assert feeds["a"].shape == (3, 5)


@pytest.mark.parametrize(
    "value",
    [
        GraphValue(name="a", element_number=1, shape=None),
        GraphValue(name="a", element_number=8, shape=(1,)),
        GraphValue(name="a", element_number=99, shape=(1,)),
        GraphValue(name="a", element_number=1, shape=(1 << 26,)),
        GraphValue(name="a", element_number=1, shape=(1,), is_tensor=False),
    ],
    ids=["rank", "string", "type", "size", "sequence"],
)
def test_nothing_is_made_up_for_inputs_without_known_shape_or_type(value):
    assert made_up_feeds([value], ()) is None
    assert made_up_feeds([value], ("a",)) == {}
