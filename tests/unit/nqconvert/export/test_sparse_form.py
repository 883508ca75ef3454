"""Pruned weights as gaps and values in exported models."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from nqconvert.export.forms.sparse import SHARED_ELEMENTS
from nqconvert.export.forms.sparse_words import best_words
from nqformat import AffineTensor, Codebook, CodebookTensor, DType, Scales

FLOAT = TensorProto.FLOAT


def pruned(rng, *shape, density=0.08, n_entries=16, dtype=DType.FLOAT32):
    values = np.unique(rng.normal(size=n_entries * 8).astype(np.float16))
    chosen = values[values != 0][: n_entries - 1].astype(np.float32)
    codes = rng.integers(1, n_entries, size=shape)
    indices = np.where(rng.random(shape) < density, codes, 0)
    book = Codebook(values=np.append(np.float32(0), chosen))
    kind = np.uint8 if n_entries <= 256 else np.uint16
    return CodebookTensor(indices=indices.astype(kind), codebook=book, dtype=dtype)


def added(export, make_graph, tensors, shape, **options):
    """Export x + the sum of all tensors of that shape."""
    nodes = [helper.make_node("Sum", ["x", *tensors], ["y"])]
    graph = make_graph(nodes, {"x": (FLOAT, shape)}, {"y": shape}, opset=options.pop("graph_opset", 20))
    return export(tensors, graph, **options)


def bits_of(array):
    return np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}").tobytes()


def read_words(table, words):
    """Gaps and codes from words, as the exported graph reads them."""
    ends = np.cumsum(table.advances()[words]) - 1
    codes = table.codes()[words]
    return np.diff(ends[codes > 0], prepend=-1) - 1, codes[codes > 0] - 1


@pytest.mark.parametrize(("most_words", "n_codes"), [(16, 1), (256, 1), (256, 15), (256, 200), (256, 250)])
def test_words_give_gaps_and_codes_back(most_words, n_codes, rng):
    gaps = np.append(rng.geometric(0.08, 3000) - 1, [0, 15, 16, 255, 256, 2047, 2048, 50_000, 0])
    codes = np.minimum(rng.geometric(0.2, gaps.size) - 1, n_codes - 1)
    codes[-1] = n_codes - 1
    table = best_words(gaps, codes, most_words=most_words)
    words = table.encode(gaps, codes)
    assert table.n_words <= most_words and words.min() >= 0 and words.max() < table.n_words
    found_gaps, found_codes = read_words(table, words)
    assert found_gaps.tolist() == gaps.tolist() and found_codes.tolist() == codes.tolist()


def test_the_table_of_words_suits_the_values(rng):
    gaps = rng.geometric(0.08, 20_000) - 1
    even, skewed = rng.integers(0, 15, gaps.size), np.minimum(rng.geometric(0.5, gaps.size) - 1, 14)
    words = {
        name: best_words(gaps, codes, most_words=256).encode(gaps, codes).size
        for name, codes in {"even": even, "skewed": skewed}.items()
    }
    assert words["skewed"] < 1.1 * gaps.size < 1.2 * gaps.size < words["even"]
    assert best_words(gaps, np.arange(gaps.size) % 300, most_words=256) is None


@pytest.mark.parametrize(
    ("density", "n_entries"), [(0.004, 16), (0.08, 16), (0.3, 5), (0.1, 200), (0.1, 300)]
)
def test_the_sparse_form_is_bit_exact(density, n_entries, export, make_graph, weights_of, rng):
    tensor = pruned(rng, 120, 90, density=density, n_entries=n_entries)
    report, model = added(export, make_graph, {"w": tensor}, (120, 90), form="sparse")
    onnx.checker.check_model(model, full_check=True)
    assert report.tensors[0].form.startswith("sparse") and report.max_difference == 0
    assert weights_of(model)["w"].tobytes() == tensor.decode().tobytes()
    assert report.tensors[0].stored_bytes < report.tensors[0].dense_bytes


def test_opsets_before_21_have_bytes_only(export, make_graph, weights_of, rng):
    tensor = pruned(rng, 100, 80)
    report, model = added(export, make_graph, {"w": tensor}, (100, 80), form="sparse", opset=17)
    assert report.tensors[0].form in ("sparse uint8 gaps, uint8 values", "sparse uint8 gaps with values")
    assert weights_of(model)["w"].tobytes() == tensor.decode().tobytes()


def test_columns_are_scanned_where_that_is_smaller(export, make_graph, weights_of, rng):
    alive = (np.arange(640) % 8 == 0)[:, None] * np.ones((1, 64), bool)
    values = np.float32([0, 0.5, -1])
    tensor = CodebookTensor(
        indices=np.where(alive, rng.integers(1, 3, size=(640, 64)), 0).astype(np.uint8),
        codebook=Codebook(values=values),
    )
    report, model = added(export, make_graph, {"w": tensor}, (640, 64), form="sparse")
    assert "Transpose" in {node.op_type for node in model.graph.node}
    assert weights_of(model)["w"].tobytes() == tensor.decode().tobytes()
    assert report.max_difference == 0


@pytest.mark.parametrize("dtype", [DType.FLOAT16, DType.FLOAT64, DType.BFLOAT16])
def test_other_float_types_are_scattered_too(dtype, export, make_graph, weights_of, rng):
    tensor = pruned(rng, 60, 50, dtype=dtype)
    nodes = [
        helper.make_node("Cast", ["w"], ["wide"], to=FLOAT),
        helper.make_node("Add", ["x", "wide"], ["y"]),
    ]
    graph = make_graph(nodes, {"x": (FLOAT, (60, 50))}, {"y": (60, 50)}, opset=21, ir_version=10)
    report, model = export({"w": tensor}, graph, form="sparse")
    assert report.tensors[0].form.startswith("sparse")
    assert bits_of(weights_of(model)["w"]) == bits_of(tensor.decode())


def test_affine_tensors_with_scales_keep_their_zeros(export, make_graph, weights_of, rng):
    k = np.where(rng.random((48, 40)) < 0.1, rng.integers(-7, 8, (48, 40)), 0).astype(np.int32)
    scales = Scales(values=rng.uniform(0.1, 2, 48).astype(np.float32), span=40)
    tensor = AffineTensor(k=k, step=1.0, scales=scales)
    report, model = added(export, make_graph, {"w": tensor}, (48, 40), form="sparse")
    assert report.tensors[0].form.startswith("sparse")
    assert weights_of(model)["w"].tobytes() == tensor.decode().tobytes()


def test_tensors_without_many_zeros_stay_dense_with_a_reason(export, make_graph, quantized, rng):
    minus_zero = CodebookTensor(
        indices=rng.integers(0, 2, (50, 40)).astype(np.uint8), codebook=Codebook(values=np.float32([-0.0, 1]))
    )
    tensors = {
        "full": quantized(rng, 50, 40, n_entries=200),
        "minus": minus_zero,
        "zeros": np.zeros((50, 40), np.float32),
    }
    nodes = [helper.make_node("Sum", ["x", "full", "minus", "zeros"], ["y"])]
    graph = make_graph(nodes, {"x": (FLOAT, (50, 40))}, {"y": (50, 40)}, opset=21, ir_version=10)
    report, _ = export(tensors, graph, form="sparse")
    reasons = {t.name: t.reason for t in report.tensors}
    assert "zeros" in reasons["full"] and "no zeros" in reasons["minus"]
    assert "nothing but zeros" in reasons["zeros"] and all(t.form == "dense" for t in report.tensors)
    assert report.notes == ("no tensor takes the sparse form, so all are dense",)


def test_a_pruned_matrix_takes_a_fifth_of_its_codebook_file(export, make_graph, rng):
    tensors = {"w": pruned(rng, 700, 500)}
    sparse, _ = added(export, make_graph, tensors, (700, 500), form="sparse")
    codebook, _ = added(export, make_graph, tensors, (700, 500), form="codebook")
    assert sparse.total_bytes <= 0.2 * codebook.total_bytes
    assert codebook.total_bytes <= 1.1 * 700 * 500 / 2


@pytest.mark.parametrize(("density", "n_entries"), [(0.03, 3), (0.08, 16), (0.1, 200), (0.1, 300)])
def test_onnx_runtime_decodes_once_when_it_loads(density, n_entries, export, make_graph, tmp_path, rng):
    tensor = pruned(rng, 120, 90, density=density, n_entries=n_entries)
    report, _ = added(export, make_graph, {"w": tensor}, (120, 90), form="sparse")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(report.path, options, providers=["CPUExecutionProvider"])
    assert [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node] == ["Sum"]


def test_small_tensors_share_one_chain(export, make_graph, weights_of, rng):
    tensors = {f"w{i}": pruned(rng, 60, 50, n_entries=2 + i) for i in range(6)}
    report, model = added(export, make_graph, tensors, (60, 50), form="sparse")
    onnx.checker.check_model(model, full_check=True)
    operators = [node.op_type for node in model.graph.node]
    assert operators.count("ScatterElements") == operators.count("Split") == 1 and report.max_difference == 0
    weights = weights_of(model)
    assert all(weights[name].tobytes() == tensor.decode().tobytes() for name, tensor in tensors.items())
    alone = [added(export, make_graph, {n: t}, (60, 50), form="sparse")[0] for n, t in tensors.items()]
    assert report.total_bytes < 0.6 * sum(one.total_bytes for one in alone)
    stored = sum(line.stored_bytes for line in report.tensors)
    assert 0.5 * report.total_bytes < stored < report.total_bytes


def test_large_tensors_and_those_with_many_values_have_chains_of_their_own(export, make_graph, rng):
    side = 1 + int((SHARED_ELEMENTS // 2) ** 0.5)
    tensors = {name: pruned(rng, side, side) for name in "ab"} | {"c": pruned(rng, side, side, n_entries=90)}
    _, model = added(export, make_graph, tensors, (side, side), form="sparse", verify=False)
    operators = [node.op_type for node in model.graph.node]
    assert operators.count("ScatterElements") == 3 and "Split" not in operators


def test_auto_takes_the_smallest_exact_form_for_each_tensor(export, make_graph, weights_of, quantized, rng):
    tensors = {
        "few": pruned(rng, 60, 50),
        "many": quantized(rng, 60, 50),
        "raw": rng.normal(size=(60, 50)).astype(np.float32),
    }
    report, model = added(export, make_graph, tensors, (60, 50), form="auto")
    forms = {t.name: t.form.partition(" ")[0] for t in report.tensors}
    assert forms == {"few": "sparse", "many": "codebook", "raw": "dense"} and report.max_difference == 0
    for name in ("few", "many"):
        assert weights_of(model)[name].tobytes() == tensors[name].decode().tobytes()
