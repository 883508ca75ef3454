"""Scales, grouped and vector codebooks and hashed tensors in exported models."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from nqformat import (
    AffineTensor,
    DType,
    GroupedCodebook,
    GroupedTensor,
    HashedTensor,
    Scales,
)

FLOAT = TensorProto.FLOAT
SHAPE = (48, 40)


def book(rng, groups, entries, width):
    return GroupedCodebook(values=rng.normal(size=(groups, entries, width)).astype(np.float32))


def grouped(rng, groups, entries, width, span, **more):
    indices = rng.integers(0, entries, -(-SHAPE[0] * SHAPE[1] // width)).astype(np.uint16)
    return GroupedTensor(
        indices=indices, shape=SHAPE, codebook=book(rng, groups, entries, width), span=span, **more
    )


def scaled(rng, n, span, **more):
    k = (rng.integers(-7, 8, SHAPE) * (rng.random(SHAPE) < 0.5)).astype(np.int32)
    values = rng.uniform(0.1, 2, n).astype(np.float32)
    return AffineTensor(k=k, step=1.0, scales=Scales(values=values, span=span), **more)


CASES = {
    "scaled rows": lambda rng: scaled(rng, 48, 40),
    "scaled columns": lambda rng: scaled(rng, 40, 1),
    "scaled blocks": lambda rng: scaled(rng, 240, 8),
    "channels": lambda rng: grouped(rng, 48, 6, 1, 40),
    "blocks of channels": lambda rng: grouped(rng, 12, 16, 1, 160),
    "vectors": lambda rng: grouped(rng, 1, 300, 4, 1),
    "places": lambda rng: grouped(rng, 10, 9, 4, 1),
    "columns": lambda rng: grouped(rng, 3, 12, 8, 10, column_scan=True),
    "scaled vectors": lambda rng: grouped(
        rng, 1, 30, 4, 1, scales=Scales(values=rng.uniform(1, 2, 48).astype(np.float32), span=40)
    ),
}


def exported(export, make_graph, tensors, form):
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = make_graph([node], {"x": (FLOAT, (3, 48))}, {"y": (3, 40)}, opset=20)
    return export(tensors, graph, form=form)


@pytest.mark.parametrize("case", sorted(CASES))
def test_the_codebook_form_is_bit_exact(case, export, make_graph, weights_of, rng):
    tensor = CASES[case](rng)
    report, model = exported(export, make_graph, {"w": tensor}, "codebook")
    onnx.checker.check_model(model, full_check=True)
    [line] = report.tensors
    assert line.form.startswith("codebook") and line.stored_bytes < line.dense_bytes
    assert weights_of(model)["w"].tobytes() == tensor.decode().tobytes()


@pytest.mark.parametrize("case", sorted(CASES))
def test_the_dense_form_holds_them_decoded(case, export, make_graph, weights_of, rng):
    tensor = CASES[case](rng)
    _, model = exported(export, make_graph, {"w": tensor}, "dense")
    assert weights_of(model)["w"].tobytes() == tensor.decode().tobytes()


def test_a_hashed_tensor_becomes_a_table_of_its_values(export, make_graph, weights_of, rng):
    values = rng.normal(size=200).astype(np.float32)
    hashed = HashedTensor(source="values", shape=SHAPE, seed=3)
    report, model = exported(export, make_graph, {"values": values, "w": hashed}, "codebook")
    assert report.tensors[0].form == "codebook uint16"
    assert weights_of(model)["w"].tobytes() == hashed.assemble(values).tobytes()


@pytest.mark.parametrize(
    "make, reason",
    [
        (lambda rng: scaled(rng, 7, 40), "unequal length"),
        (lambda rng: grouped(rng, 7, 6, 1, 40), "groups of unequal length"),
        (lambda rng: grouped(rng, 1, 9, 7, 1), "last unit"),
    ],
)
def test_what_no_pattern_fits_stays_dense_with_a_reason(make, reason, export, make_graph, weights_of, rng):
    tensor = make(rng)
    report, model = exported(export, make_graph, {"w": tensor}, "codebook")
    assert reason in report.tensors[0].reason and report.tensors[0].form == "dense"
    assert weights_of(model)["w"].tobytes() == tensor.decode().tobytes()


def test_scaled_half_precision_stays_dense(export, make_graph, rng):
    tensor = scaled(rng, 48, 40, dtype=DType.FLOAT16)
    nodes = [
        helper.make_node("Cast", ["w"], ["wide"], to=FLOAT),
        helper.make_node("MatMul", ["x", "wide"], ["y"]),
    ]
    graph = make_graph(nodes, {"x": (FLOAT, (3, 48))}, {"y": (3, 40)}, opset=20)
    report, _ = export({"w": tensor}, graph, form="codebook")
    assert report.tensors[0].reason == "scales of a float16 tensor"


def test_an_embedding_with_scales_is_exact(export, make_graph, run_file, rng):
    tensor = scaled(rng, 48, 40)
    node = helper.make_node("Gather", ["w", "ids"], ["y"], axis=0)
    graph = make_graph([node], {"ids": (TensorProto.INT64, (5,))}, {"y": (5, 40)}, opset=20)
    report, _ = export({"w": tensor}, graph, form="codebook")
    ids = np.array([3, 0, 47, 3, 9])
    assert np.array_equal(run_file(report.path, {"ids": ids})[0], tensor.decode()[ids])
