"""Graphs that keep their weights where converters forget to look: each is compressed, or named."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import nqformat
from nqconvert import convert, export_onnx
from nqconvert.sources import load_source
from nqformat.errors import ConversionError
from nqruntime import InferenceSession

from .awkward_graphs import (
    FLOAT,
    GRAPHS,
    RNG,
    X,
    info,
    initializer,
    model,
    of_type,
    product,
    weight,
)

NAMED = {
    "graph input with a default": {"w": "caller may override"},
    "int4 initializer": {"q": "INT4"},
    "int4 in branches": {"c": "INT4"},
    "float8 initializer": {"q": "FLOAT8E4M3FN"},
    "table of texts": {"table": "STRING"},
    "attributes of an operator": {"y.offset": "Scaler", "y.scale": "Scaler"},
    "scales of Resize": {"sizes": "shape inference"},
}


def protos(graph: Any) -> Iterator[tuple[str, Any]]:
    """Yield all tensors of a graph, sparse ones left out."""
    for tensor in graph.initializer:
        yield tensor.name, tensor
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield node.output[0], attribute.t
            if attribute.HasField("g"):
                yield from protos(attribute.g)


def contents(made: Any) -> dict[str, bytes]:
    """Bytes of all tensors of more than 64 bytes by name."""
    arrays = {name: numpy_helper.to_array(tensor) for name, tensor in protos(made.graph)}
    return {name: array.tobytes() for name, array in arrays.items() if array.nbytes > 64}


def feeds_of(made: Any) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    constants = {tensor.name for tensor in made.graph.initializer}
    shapes = {
        value.name: [d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in made.graph.input
        if value.name not in constants
    }
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def outputs_of(path: Path, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def assert_same(found: list[np.ndarray], wanted: list[np.ndarray]) -> None:
    for one, other in zip(found, wanted, strict=True):
        if other.dtype == object:
            assert one.tolist() == other.tolist()
            continue
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6 * np.abs(other).max())


@pytest.mark.parametrize("case", sorted(GRAPHS))
def test_every_weight_is_compressed_or_named(case: str, tmp_path: Path) -> None:
    made = GRAPHS[case]()
    original, file, back = (tmp_path / f"m.{end}" for end in ("onnx", "nqz", "back.onnx"))
    onnx.save(made, original)
    report = convert(original, file, preset="lossless")
    stored = nqformat.load_file(file)
    found = {array.tobytes() for array in stored.values()}
    left = {name for name, content in contents(made).items() if content not in found}
    expected = NAMED.get(case, {})
    assert left <= set(expected)
    for name, words in expected.items():
        assert words in report.exact[name]
    assert expected or stored

    feeds = feeds_of(made)
    wanted = outputs_of(original, feeds)
    assert_same(InferenceSession(file, engine="ort").run(None, feeds), wanted)
    for form in ("dense", "auto"):
        exported = export_onnx(file, back, form=form)
        assert exported.max_difference is not None and exported.max_difference <= 1e-6
        assert_same(outputs_of(back, feeds), wanted)
    export_onnx(file, back)
    again, before = load_source(back, fold_batch_norms=False), load_source(original, fold_batch_norms=False)
    assert again.graph == before.graph
    assert {n: a.tobytes() for n, a in again.tensors.items()} == {
        n: a.tobytes() for n, a in before.tensors.items()
    }


def test_external_data_is_stored_like_any_other(tmp_path: Path) -> None:
    w = weight(40, 60)
    made = model(product(), [initializer(w)], inputs=[info("x", (3, 40))])
    onnx.save(made, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=100)
    convert(tmp_path / "m.onnx", tmp_path / "m.nqz", preset="lossless")
    assert nqformat.load_file(tmp_path / "m.nqz")["w"].tobytes() == w.tobytes()
    report = export_onnx(tmp_path / "m.nqz", tmp_path / "back.onnx", external_data=True)
    assert report.data_path is not None
    feeds = {"x": np.ones((3, 40), np.float32)}
    assert_same(outputs_of(report.path, feeds), outputs_of(tmp_path / "m.onnx", feeds))


@pytest.mark.parametrize("kind", [FLOAT, TensorProto.BFLOAT16, TensorProto.DOUBLE])
def test_large_external_tensors_are_stored_like_any_other(kind: int, tmp_path: Path) -> None:
    shared = weight(512, 1100)
    made = of_type(kind, shared) if kind != FLOAT else model(product(), [initializer(shared)])
    made.graph.input[0].CopyFrom(info("x", (3, 512)))
    wanted = load_source(made)
    onnx.save(made, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=100)
    found = load_source(tmp_path / "m.onnx")
    assert found.graph == wanted.graph and list(found.tensors) == list(wanted.tensors)
    for name, array in found.tensors.items():
        assert array.dtype == wanted.tensors[name].dtype and array.shape == (512, 1100)
        assert array.tobytes() == wanted.tensors[name].tobytes()
    feeds = {"x": np.ones((3, 512), np.float32)}
    assert found.run is not None and wanted.run is not None
    assert_same(found.run(feeds), wanted.run(feeds))


def test_large_external_weights_before_a_batch_norm_are_folded(tmp_path: Path) -> None:
    vectors = [initializer(RNG.uniform(0.5, 2, 600).astype(np.float32), n) for n in "abcd"]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h"]),
        helper.make_node("BatchNormalization", ["h", *"abcd"], ["y"]),
    ]
    made = model(nodes, [initializer(weight(600, 50, 3, 3)), *vectors], inputs=[info("x", (1, 50, 3, 3))])
    wanted = load_source(made)
    onnx.save(made, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=100)
    found = load_source(tmp_path / "m.onnx")
    assert found.notes == wanted.notes and found.graph == wanted.graph
    assert {n: a.tobytes() for n, a in found.tensors.items()} == {
        n: a.tobytes() for n, a in wanted.tensors.items()
    }


def test_external_data_of_another_length_is_refused(tmp_path: Path) -> None:
    made = model(product(), [initializer(weight(512, 600))], inputs=[info("x", (3, 512))])
    onnx.save(made, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=100)
    damaged = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    next(e for e in damaged.graph.initializer[0].external_data if e.key == "length").value = "400"
    (tmp_path / "m.onnx").write_bytes(damaged.SerializeToString())
    with pytest.raises(ConversionError, match="400 bytes of external data"):
        load_source(tmp_path / "m.onnx")


def test_weights_that_nothing_reads_are_named(tmp_path: Path) -> None:
    made = model(product(), [initializer(weight(12, 10)), initializer(weight(30, 30), "spare")])
    report = convert(made, tmp_path / "m.nqz", preset="lossless")
    assert any("nothing reads them: spare" in note for note in report.notes)


def test_a_model_without_weights_says_so(tmp_path: Path) -> None:
    made = model([helper.make_node("Relu", ["x"], ["y"])])
    report = convert(made, tmp_path / "m.nqz", preset="lossless")
    assert any("no weights" in note for note in report.notes)


@pytest.mark.parametrize("opset", range(7, 27))
def test_opsets_7_to_26(opset: int) -> None:
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["h"], transB=1),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Softmax", ["r"], ["y"], axis=1),
    ]
    ir = 3 if opset < 9 else onnx.helper.find_min_ir_version_for([helper.make_opsetid("", opset)], True)
    arrays = [initializer(weight(10, 12)), initializer(weight(10), "b")]
    inputs = [info("x", (3, 12))]
    inputs += [info(t.name, tuple(t.dims)) for t in arrays] if ir < 4 else []
    source = load_source(model(nodes, arrays, inputs=inputs, opset=opset, ir=ir))
    assert set(source.tensors) == {"w", "b"} and not source.reasons
    assert source.run is not None and source.run({"x": X})[0].shape == (3, 10)
