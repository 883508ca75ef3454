from __future__ import annotations

import numpy as np
import onnx
import onnx.reference
import pytest
from onnx import TensorProto, helper, numpy_helper

from nqconvert.sources import load_source
from nqformat.errors import ConversionError


def small_model(seed=0):
    rng = np.random.default_rng(seed)
    arrays = {
        "conv.weight": rng.normal(size=(4, 2, 3, 3)),
        "scale": rng.normal(size=4),
        "shift": rng.normal(size=4),
        "mean": rng.normal(size=4),
        "variance": rng.uniform(0.5, 2, size=4),
        "fc": rng.normal(size=(16, 5)),
    }
    nodes = [
        helper.make_node("Conv", ["x", "conv.weight"], ["c"]),
        helper.make_node("BatchNormalization", ["c", "scale", "shift", "mean", "variance"], ["n"]),
        helper.make_node("Flatten", ["n"], ["f"]),
        helper.make_node("Gemm", ["f", "fc"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("n", 2, 4, 4))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("n", 5))],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_a_model_is_split_and_the_original_still_runs(tmp_path):
    onnx.save(small_model(), tmp_path / "m.onnx")
    source = load_source(tmp_path / "m.onnx")
    assert set(source.tensors) == {"conv.weight", "conv.bias", "fc"}
    assert (source.input_names, source.output_names) == (("x",), ("y",))
    assert source.notes == ("batch norm folded into: conv.weight",)
    x = np.random.default_rng(1).normal(size=(3, 2, 4, 4)).astype(np.float32)
    expected = onnx.reference.ReferenceEvaluator(small_model()).run(None, {"x": x})[0]
    np.testing.assert_allclose(source.run({"x": x})[0], expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="inputs"):
        source.run({"z": x})


def test_a_model_proto_is_taken_and_left_as_it_was():
    model = small_model()
    before = model.SerializeToString()
    source = load_source(model)
    assert model.SerializeToString() == before
    assert source.graph == load_source(small_model()).graph
    assert source.run is not None


def with_external_data(folder, **entries):
    model = small_model()
    onnx.save(
        model, folder / "m.onnx", save_as_external_data=True, location="weights.bin", size_threshold=100
    )
    if entries:
        model = onnx.load(folder / "m.onnx", load_external_data=False)
        tensor = next(t for t in model.graph.initializer if t.external_data)
        for entry in tensor.external_data:
            entry.value = entries.get(entry.key, entry.value)
        (folder / "m.onnx").write_bytes(model.SerializeToString())
    return folder / "m.onnx"


def test_external_data_is_read(tmp_path):
    source = load_source(with_external_data(tmp_path))
    inline = load_source(small_model())
    for name, array in inline.tensors.items():
        np.testing.assert_array_equal(source.tensors[name], array)
    x = np.ones((1, 2, 4, 4), np.float32)
    np.testing.assert_array_equal(source.run({"x": x})[0], inline.run({"x": x})[0])


@pytest.mark.parametrize(
    "location", ["../secret.bin", "/etc/hostname", "sub/../../secret.bin", "", "c:\\secret"]
)
def test_external_data_outside_the_folder_is_refused(tmp_path, location):
    (tmp_path / "secret.bin").write_bytes(bytes(4096))
    (tmp_path / "model").mkdir()
    path = with_external_data(tmp_path / "model", location=location)
    with pytest.raises(ConversionError, match="leaves the model's folder"):
        load_source(path)


def test_external_data_behind_a_link_is_refused(tmp_path):
    (tmp_path / "secret.bin").write_bytes(bytes(4096))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "link.bin").symlink_to(tmp_path / "secret.bin")
    path = with_external_data(tmp_path / "model", location="link.bin")
    with pytest.raises(ConversionError, match="is a link"):
        load_source(path)


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"location": "absent.bin"}, "is missing"),
        ({"length": "99999999"}, "lie outside"),
        ({"offset": "-4"}, "lie outside"),
        ({"offset": "four"}, "no number"),
        ({"length": "8"}, "malformed"),
    ],
)
def test_wrong_external_data_is_refused(tmp_path, entries, words):
    with pytest.raises(ConversionError, match=words):
        load_source(with_external_data(tmp_path, **entries))


def test_a_model_proto_with_external_data_needs_its_path(tmp_path):
    path = with_external_data(tmp_path)
    with pytest.raises(ConversionError, match="pass the path"):
        load_source(onnx.load(path, load_external_data=False))


def test_malformed_initializers_are_named(tmp_path):
    model = small_model()
    model.graph.initializer[0].raw_data = b"\0\0\0\0"
    with pytest.raises(ConversionError, match=r"conv\.weight"):
        load_source(model)
    (tmp_path / "empty.onnx").write_bytes(b"")
    with pytest.raises(ConversionError, match="no graph"):
        load_source(tmp_path / "empty.onnx")
