"""Pruned weights as gaps and values in exported models."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from nqconvert.export.building import UINT4, UINT8
from nqconvert.export.forms.sparse import gap_numbers, n_gaps
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


@pytest.mark.parametrize("kind", [UINT4, UINT8])
def test_gaps_longer_than_a_number_take_fillers(kind, rng):
    gaps = np.array([0, 1, 14, 15, 16, 30, 254, 255, 256, 700, 0])
    numbers = gap_numbers(gaps, kind)
    assert numbers.size == n_gaps(gaps, kind) and numbers.max() <= kind.highest
    position, found = -1, []
    for number in numbers:
        position += kind.highest if number == kind.highest else number + 1
        if number < kind.highest:
            found.append(position)
    assert found == (np.cumsum(gaps + 1) - 1).tolist()


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
    assert report.tensors[0].form == "sparse uint8 gaps, uint8 values"
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


@pytest.mark.parametrize("dtype", [DType.FLOAT16, DType.FLOAT64])
def test_other_float_types_are_scattered_too(dtype, export, make_graph, weights_of, rng):
    tensor = pruned(rng, 60, 50, dtype=dtype)
    nodes = [
        helper.make_node("Cast", ["w"], ["wide"], to=FLOAT),
        helper.make_node("Add", ["x", "wide"], ["y"]),
    ]
    graph = make_graph(nodes, {"x": (FLOAT, (60, 50))}, {"y": (60, 50)})
    report, model = export({"w": tensor}, graph, form="sparse")
    assert report.tensors[0].form.startswith("sparse")
    assert weights_of(model)["w"].tobytes() == tensor.decode().tobytes()


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
        "brain": pruned(rng, 50, 40, dtype=DType.BFLOAT16),
        "minus": minus_zero,
        "zeros": np.zeros((50, 40), np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["brain"], ["wide"], to=FLOAT),
        helper.make_node("Sum", ["x", "wide", "full", "minus", "zeros"], ["y"]),
    ]
    graph = make_graph(nodes, {"x": (FLOAT, (50, 40))}, {"y": (50, 40)}, opset=21, ir_version=10)
    report, _ = export(tensors, graph, form="sparse")
    reasons = {t.name: t.reason for t in report.tensors}
    assert "zeros" in reasons["full"] and "bfloat16" in reasons["brain"] and "no zeros" in reasons["minus"]
    assert "nothing but zeros" in reasons["zeros"] and all(t.form == "dense" for t in report.tensors)


def test_a_pruned_matrix_takes_a_fifth_of_its_codebook_file(export, make_graph, rng):
    tensors = {"w": pruned(rng, 700, 500)}
    sparse, _ = added(export, make_graph, tensors, (700, 500), form="sparse")
    codebook, _ = added(export, make_graph, tensors, (700, 500), form="codebook")
    assert sparse.total_bytes <= 0.2 * codebook.total_bytes
    assert codebook.total_bytes <= 1.1 * 700 * 500 / 2


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
