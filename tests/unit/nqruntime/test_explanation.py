from __future__ import annotations

import json
import logging

import numpy as np
import pytest
from onnx import helper

import nqruntime
from nqformat.kernels import compiled, objects
from nqruntime import InferenceSession
from nqruntime.engines.engine import KernelChoice
from nqruntime.explanation import Explanation, explain_session
from nqruntime.kernels.library import COMPUTE

from .conftest import build_model, quantized


@pytest.fixture
def three_layers(save_model):
    """A product with Relu, which fuse where there is machine code, and a node that NumPy runs."""
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["h"], transB=1),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("CumSum", ["r", "axis"], ["y"]),
    ]
    model = build_model(
        nodes, {"x": (np.float32, ["batch", 200])}, ["y"], {"axis": np.array(1, dtype=np.int64)}
    )
    return save_model(model, {"w": quantized((160, 200), 0.1, 5), "b": np.ones(160, np.float32)})


def test_nodes_are_timed_only_when_asked(three_layers):
    with InferenceSession(three_layers, engine="native") as session:
        assert {row.seconds for row in session.explain()} == {None}
        for row in session.explain(timed=True):
            assert row.kernel.startswith("within") or (row.seconds is not None and row.seconds >= 0)


def test_memory_of_nodes_adds_up(three_layers):
    with InferenceSession(three_layers, engine="native") as session:
        rows = session.explain()
        assert rows[0].weight_bytes > 0
        assert sum(row.weight_bytes for row in rows) == session.weight_bytes


def test_fused_nodes_have_no_time_of_their_own(three_layers):
    if compiled(COMPUTE, 0, worth_loading=0, worth_compiling=0) is None:
        pytest.skip("no compiled kernels on this machine")
    with InferenceSession(three_layers, engine="native") as session:
        gemm, relu, _ = session.explain(timed=True)
    assert (relu.kernel, relu.seconds) == ("within #0", None)
    assert gemm.seconds is not None and gemm.seconds > 0


def test_nodes_are_timed_on_inputs_of_any_batch(three_layers):
    with InferenceSession(three_layers, engine="native") as session:
        for batch in (3, 1, 3):
            feeds = {"x": np.ones((batch, 200), np.float32)}
            assert session.explain(timed=True, feeds=feeds)[0].seconds is not None


def test_timing_refuses_feeds_as_a_run_does(three_layers):
    with InferenceSession(three_layers, engine="native") as session:
        with pytest.raises(ValueError, match="'x'"):
            session.explain(timed=True, feeds={"x": np.ones((1, 3), np.float32)})
        with pytest.raises(TypeError, match="float64"):
            session.explain(timed=True, feeds={"x": np.ones((1, 200))})


def test_inputs_of_unknown_rank_cannot_be_made_up(save_model):
    path = save_model(build_model([helper.make_node("Relu", ["x"], ["y"])], {"x": (np.float32, None)}, ["y"]))
    with InferenceSession(path, engine="native") as session:
        with pytest.raises(ValueError, match="made up"):
            session.made_up_inputs()
        assert session.explain(timed=True, feeds={"x": np.ones(3, np.float32)})[0].seconds is not None


def test_branches_are_timed_as_one_node(save_model):
    y = helper.make_tensor_value_info("t", 1, None)
    body = helper.make_graph([helper.make_node("Relu", ["x"], ["t"])], "body", [], [y])
    node = helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=body)
    path = save_model(build_model([node], {"c": (np.bool_, []), "x": (np.float32, [4])}, ["y"]))
    with InferenceSession(path, engine="native") as session:
        [row] = session.explain(timed=True)
    assert row.seconds is not None


def test_the_table_has_a_line_for_each_node_and_a_total(three_layers):
    with InferenceSession(three_layers, engine="native") as session:
        found = explain_session(session)
    head, *rows, total, run = str(found).splitlines()
    assert head.split() == ["node", "operator", "kernel", "time", "us", "memory", "bytes"]
    assert [row.split()[0] for row in rows] == ["#0", "#1", "#2"]
    assert total.startswith("total") and total.endswith(f"{found.weight_bytes:,}")
    assert run.startswith("one run: ") and run.endswith("with the native engine")
    assert json.loads(json.dumps(found.to_json()))["rows"][0]["operator"] == "Gemm"


def test_onnx_runtime_is_compared_on_the_same_inputs(three_layers):
    with (
        InferenceSession(three_layers, engine="native") as session,
        InferenceSession(three_layers, engine="ort") as rival,
    ):
        found = explain_session(session, rival=rival)
    assert found.ort_seconds is not None and found.ort_seconds > 0
    assert found.ort_weight_bytes == 4 * (160 * 200 + 160)
    assert "ONNX Runtime on the decoded weights" in str(found)


def test_onnx_runtime_tells_nothing_about_nodes(three_layers):
    with InferenceSession(three_layers, engine="ort") as session:
        found = explain_session(session)
    assert {row.seconds for row in found.rows} == {None}
    assert "not known" in str(found)


def test_long_names_are_cut():
    row = KernelChoice(node="#0 " + "n" * 99, operator="Gemm", kernel="k" * 99, reason="why")
    found = Explanation(
        engine="ort", rows=(row,), run_seconds=1e-3, weight_bytes=0, fallback_reason="it lacks it"
    )
    lines = str(found).splitlines()
    assert max(map(len, lines[:3])) < 180 and "..." in lines[1]
    assert lines[-1] == "not with the native engine: it lacks it"


def test_a_compilation_is_announced(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("NQFORMAT_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("NQFORMAT_KERNELS", raising=False)
    monkeypatch.setattr(objects, "_loaders", {})
    monkeypatch.setattr(objects, "_compile", lambda part: (None, b""))
    with caplog.at_level(logging.INFO, logger="nqformat.kernels"):
        made = nqruntime.compile_kernels()
    assert not made
    if objects._loaders[COMPUTE].missed_cache:
        assert "compiling compute kernels" in caplog.text
