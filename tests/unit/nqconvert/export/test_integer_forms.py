"""Forms qdq and ort-nbits, float16 and bfloat16 weights, 2-bit indices, views as nodes."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.reference
import onnxruntime
import pytest
from onnx import TensorProto, helper

import nqformat
from nqconvert.export.building import pack_bits
from nqformat import AffineTensor, Codebook, CodebookTensor, Scales, ViewSource, ViewTensor
from nqformat.errors import ConversionError

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def grid(rng, *shape, low=-8, high=7, step=0.0625, offset=0.0, scales=None):
    k = rng.integers(low, high + 1, size=shape).astype(np.int32)
    k.reshape(-1)[:2] = low, high
    return AffineTensor(k=k, step=step, offset=offset, scales=scales)


def added(export, make_graph, tensors, shape, **options):
    nodes = [helper.make_node("Sum", ["x", *tensors], ["y"])]
    graph = make_graph(nodes, {"x": (FLOAT, shape)}, {"y": shape}, opset=options.pop("graph_opset", 20))
    return export(tensors, graph, **options)


QDQ = {
    "int4": {"low": -8, "high": 7},
    "uint4": {"low": 0, "high": 15, "offset": -0.5},
    "int8": {"low": -100, "high": 90},
    "uint8": {"low": 0, "high": 255, "offset": -2.0},
    "int16": {"low": -3000, "high": 3000, "step": 0.1015625},
}


@pytest.mark.parametrize("label", sorted(QDQ))
def test_weights_on_a_grid_become_integers(label, export, make_graph, weights_of, rng):
    tensor = grid(rng, 70, 60, **QDQ[label])
    report, model = added(export, make_graph, {"w": tensor}, (70, 60), form="qdq")
    onnx.checker.check_model(model, full_check=True)
    assert report.tensors[0].form == f"qdq {label}, a scale for each row" and report.max_difference <= 1e-6
    assert [n.op_type for n in model.graph.node] == ["DequantizeLinear", "Sum"]
    assert weights_of(model)["w"].tobytes() == tensor.decode().tobytes()
    assert all(t.raw_data for t in model.graph.initializer if t.name.startswith("w.q"))


def test_channels_on_axis_0_have_scales_of_their_own(export, make_graph, weights_of, rng):
    scales = Scales(values=rng.uniform(0.01, 0.1, 24).astype(np.float32), span=3 * 25)
    tensor = grid(rng, 24, 3, 5, 5, low=-90, high=90, step=1.0, scales=scales)
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"])]
    graph = make_graph(nodes, {"x": (FLOAT, (1, 3, 9, 9))}, {"y": (1, 24, 5, 5)}, opset=19)
    report, model = export({"w": tensor}, graph, form="qdq")
    assert report.tensors[0].form == "qdq int8, a scale for each row" and report.opset == 19
    assert weights_of(model)["w"].tobytes() == tensor.decode().tobytes()


def test_codebooks_that_are_evenly_spaced_are_grids(export, make_graph, weights_of, rng):
    book = Codebook(values=np.float32([-0.75, -0.25, 0.0, 0.5]))
    tensor = CodebookTensor(indices=rng.integers(0, 4, (60, 50)).astype(np.uint8), codebook=book)
    report, model = added(export, make_graph, {"w": tensor}, (60, 50), form="qdq")
    assert report.tensors[0].form == "qdq int4, a scale for each row"
    assert weights_of(model)["w"].tobytes() == tensor.decode().tobytes()


@pytest.mark.parametrize("form", ["qdq", "ort-nbits"])
def test_a_model_without_grids_is_refused_with_the_reasons(form, export, make_graph, rng):
    book = Codebook(values=np.sort(rng.normal(size=16)).astype(np.float32))
    uneven = CodebookTensor(indices=rng.integers(0, 16, (40, 40)).astype(np.uint8), codebook=book)
    tensors = {"w": uneven, "v": rng.normal(size=(40, 40)).astype(np.float32)}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("MatMul", ["h", "v"], ["y"])]
    graph = make_graph(nodes, {"x": (FLOAT, (2, 40))}, {"y": (2, 40)})
    with pytest.raises(ConversionError, match=r"evenly spaced.*w: its codebook is not.*v: stored raw"):
        export(tensors, graph, form=form)


def test_scales_of_blocks_and_odd_offsets_stay_dense(export, make_graph, rng):
    tensors = {
        "good": grid(rng, 48, 40),
        "blocks": grid(rng, 48, 40, step=1.0, scales=Scales(values=np.full(240, 0.5, np.float32), span=8)),
        "odd": grid(rng, 48, 40, step=0.1015625, offset=0.015625),
        "wide": grid(rng, 48, 40, low=-40000, high=40000),
    }
    report, _ = added(export, make_graph, tensors, (48, 40), form="qdq")
    reasons = {t.name: t.reason for t in report.tensors}
    assert reasons["good"] == "" and "axis 0" in reasons["blocks"] and "65,536" in reasons["wide"]
    assert "rounding" in reasons["odd"]


def test_embeddings_are_dequantized_after_the_gather(export, make_graph, rng):
    tensors = {"table": grid(rng, 90, 24)}
    nodes = [helper.make_node("Gather", ["table", "ids"], ["y"])]
    report, model = export(tensors, make_graph(nodes, {"ids": (INT64, ("n",))}, {"y": ("n", 24)}), form="qdq")
    assert [n.op_type for n in model.graph.node] == ["Gather", "DequantizeLinear"]
    assert report.tensors[0].form == "qdq int8" and report.max_difference == 0


def products(tensors, make_graph, n_inputs):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "g", "b"], ["y"], transB=1),
    ]
    graph = make_graph(nodes, {"x": (FLOAT, ("n", n_inputs))}, {"y": ("n", 24)})
    return {**tensors, "b": np.linspace(-1, 1, 24, dtype=np.float32)}, graph


@pytest.mark.parametrize("low", [-8, 0])
def test_matrices_become_blocks_of_ONNX_Runtimes_own(low, export, make_graph, run_file, rng):  # noqa: N802
    tensors = {"w": grid(rng, 70, 48, low=low, high=low + 15), "g": grid(rng, 24, 48, low=low, high=low + 15)}
    tensors, graph = products(tensors, make_graph, 70)
    report, model = export(tensors, graph, form="ort-nbits")
    forms = {t.name: t.form.partition(" ")[0] for t in report.tensors}
    assert forms == {"w": "ort-nbits", "g": "ort-nbits", "b": "dense"}
    kinds = [n.op_type for n in model.graph.node]
    assert kinds == ["MatMulNBits", "Relu", "MatMulNBits", "Add"] and report.max_difference <= 1e-6
    x = rng.normal(size=(5, 70)).astype(np.float32)
    hidden = np.maximum(x.astype("f8") @ tensors["w"].decode(), 0)
    expected = hidden @ tensors["g"].decode().T.astype("f8") + tensors["b"]
    np.testing.assert_allclose(run_file(report.path, {"x": x})[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("high", [7, 100])
@pytest.mark.parametrize("transposed", [False, True])
def test_products_of_integers_are_not_computed_from_rounded_inputs(
    high, transposed, export, make_graph, run_file, rng
):
    turned = ViewTensor(
        sources=(ViewSource(name="linear", start=0, stop=48),), permutation=(1, 0), shape=(70, 48)
    )
    stored = grid(rng, 48, 70, low=-high, high=high, step=0.1015625)
    tensors = {"linear": stored, "w": turned} if transposed else {"w": grid(rng, 70, 48, high=high)}
    tensors, graph = products({**tensors, "g": grid(rng, 24, 48, high=high)}, make_graph, 70)
    report, _ = export(tensors, graph, form="qdq")
    forms = [t.form.partition(" ")[0] for t in report.tensors if t.name != "b"]
    assert set(forms) <= {"qdq", "view"} and report.max_difference <= 1e-6


def test_a_transposed_view_keeps_its_scales_for_each_output(export, make_graph, rng):
    scales = Scales(values=rng.uniform(0.01, 0.1, 48).astype(np.float32), span=70)
    turned = ViewTensor(
        sources=(ViewSource(name="linear", start=0, stop=48),), permutation=(1, 0), shape=(70, 48)
    )
    tensors = {"linear": grid(rng, 48, 70, step=1.0, scales=scales), "w": turned, "g": grid(rng, 24, 48)}
    tensors, graph = products(tensors, make_graph, 70)
    for form, label in (("ort-nbits", "ort-nbits 4-bit"), ("qdq", "view of linear")):
        report, _ = export(tensors, graph, form=form)
        by_name = {t.name: t.form for t in report.tensors}
        assert by_name["w"].startswith(label) and report.max_difference <= 2e-6


def test_matrices_that_other_nodes_take_stay_dense(export, make_graph, rng):
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"]),
        helper.make_node("Add", ["h", "a"], ["i"]),
        helper.make_node("Gemm", ["i", "b"], ["j"], alpha=0.5),
        helper.make_node("MatMul", ["j", "c"], ["k"]),
        helper.make_node("Gemm", ["k", "c"], ["l"], transB=1),
        helper.make_node("MatMul", ["l", "d"], ["m"]),
        helper.make_node("MatMul", ["m", "e"], ["y"]),
    ]
    columns = Scales(values=np.full(40, 0.5, np.float32), span=40)
    tensors = {name: grid(rng, 40, 40) for name in "abce"}
    tensors["d"] = grid(rng, 40, 40, step=1.0, scales=columns)
    graph = make_graph(nodes, {"x": (FLOAT, (40, 40))}, {"y": (40, 40)})
    report, _ = export(tensors, graph, form="ort-nbits")
    reasons = {t.name: t.reason for t in report.tensors}
    assert "not only" in reasons["a"] and "not only" in reasons["b"] and "both" in reasons["c"]
    assert "along the inputs" in reasons["d"] and reasons["e"] == ""


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_dense_weights_in_16_bits(dtype, export, make_graph, rng):
    exact = grid(rng, 40, 33, step=0.5)
    tensors = {"w1": exact, "w2": rng.normal(size=(10, 33)).astype(np.float32), "b": np.ones(10, np.float32)}
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"]),
        helper.make_node("Gemm", ["h", "w2", "b"], ["y"], transB=1),
    ]
    graph = make_graph(nodes, {"x": (FLOAT, ("n", 40))}, {"y": ("n", 10)})
    report, model = export(tensors, graph, dtype=dtype)
    forms = {t.name: t.form for t in report.tensors}
    assert forms == {"w1": f"dense {dtype}", "w2": f"dense {dtype}, rounded", "b": "dense"}
    assert 0 < report.max_difference < 1e-2 and report.total_bytes < 0.6 * 4 * (40 * 33 + 330 + 10) + 700
    onnx.checker.check_model(model, full_check=True)


def test_values_beyond_float16_stay_float32(export, make_graph, rng):
    tensors = {"w": rng.normal(size=(30, 30)).astype(np.float32) * 1e6}
    report, _ = added(export, make_graph, tensors, (30, 30), dtype="float16")
    assert report.tensors[0].form == "dense" and "range of float16" in report.tensors[0].reason


def test_a_dtype_goes_with_the_dense_form_only(export, two_layers):
    tensors, graph = two_layers
    with pytest.raises(ValueError, match="float16, bfloat16"):
        export(tensors, graph, dtype="float8")
    with pytest.raises(ValueError, match="with form 'dense'"):
        export(tensors, graph, dtype="float16", form="codebook")


def test_four_entries_take_2_bits_from_opset_25_on(export, make_graph, quantized, rng):
    tensor = quantized(rng, 61, 41, n_entries=4)
    report, model = added(export, make_graph, {"w": tensor}, (61, 41), form="codebook", opset=25)
    assert report.tensors[0].form == "codebook uint2" and report.opset == 25 and report.max_difference == 0
    assert len(model.graph.initializer[0].raw_data) == -(-61 * 41 // 4)


def test_bits_are_packed_from_the_low_end():
    assert pack_bits(np.array([1, 2, 3, 0, 2]), 2) == b"\x39\x02"
    assert pack_bits(np.array([-1, -8, 7]), 4) == b"\x8f\x07"


def test_views_of_parts_become_nodes(export, make_graph, weights_of, quantized, rng):
    tensors = {"a": quantized(rng, 40, 12), "b": quantized(rng, 40, 12)}
    parts = [("a", 10, 40), ("b", 0, 40), ("a", 0, 10)]
    tensors["w"] = ViewTensor(
        sources=tuple(ViewSource(name=n, start=i, stop=j) for n, i, j in parts),
        permutation=(0, 1),
        shape=(1, 80, 12),
    )
    tensors["same"] = ViewTensor(
        sources=(ViewSource(name="a", start=0, stop=40),), permutation=(0, 1), shape=(40, 12)
    )
    nodes = [helper.make_node("Add", ["x", "w"], ["y"]), helper.make_node("Add", ["z", "same"], ["u"])]
    inputs = {"x": (FLOAT, (1, 80, 12)), "z": (FLOAT, (40, 12))}
    graph = make_graph(nodes, inputs, {"y": (1, 80, 12), "u": (40, 12)})
    report, model = export(tensors, graph, form="codebook")
    by_name = {t.name: t for t in report.tensors}
    assert by_name["w"].form == "view of a, b" and by_name["w"].stored_bytes == 0
    assert by_name["a"].form == "codebook uint4"
    a, b = (tensors[name].decode() for name in "ab")
    np.testing.assert_array_equal(weights_of(model)["w"][0], np.concatenate([a[10:], b, a[:10]]))
    np.testing.assert_array_equal(weights_of(model)["same"], a)


LEVELS = ["DISABLE_ALL", "ENABLE_BASIC", "ENABLE_EXTENDED", "ENABLE_ALL"]


@pytest.mark.parametrize("form", ["dense", "codebook", "sparse", "qdq", "auto"])
def test_every_optimization_level_gives_the_same_outputs(form, export, make_graph, rng):
    k = np.where(rng.random((16, 8, 3, 3)) < 0.2, rng.integers(-7, 8, (16, 8, 3, 3)), 0).astype(np.int32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["h"], ["y"]),
    ]
    graph = make_graph(nodes, {"x": (FLOAT, (1, 8, 9, 9))}, {"y": (1, 16, 9, 9)})
    report, model = export({"w": AffineTensor(k=k, step=0.25)}, graph, form=form)
    x = rng.normal(size=(1, 8, 9, 9)).astype(np.float32)
    outputs = []
    for level in LEVELS:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_{level}")
        session = onnxruntime.InferenceSession(report.path, options, providers=["CPUExecutionProvider"])
        outputs.append(session.run(None, {"x": x})[0])
    outputs.append(onnx.reference.ReferenceEvaluator(model).run(None, {"x": x})[0])
    for other in outputs[1:]:
        np.testing.assert_allclose(other, outputs[0], rtol=0, atol=1e-6 * np.abs(outputs[0]).max())


def test_unverified_exports_need_no_onnxruntime(export, two_layers, monkeypatch):
    tensors, graph = two_layers
    monkeypatch.setattr("nqconvert.export.verify.open_session", None)
    for form in ("dense", "codebook", "auto"):
        report, _ = export(tensors, graph, form=form, verify=False)
        assert report.max_difference is None and report.total_bytes == report.path.stat().st_size
    assert nqformat.__version__
