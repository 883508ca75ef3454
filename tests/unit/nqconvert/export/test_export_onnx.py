from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import nqformat
from nqconvert.export import export_onnx
from nqformat.errors import ConversionError, FormatError

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def bits(array):
    return np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}")


def types_of(model):
    return {t.name: t.data_type for t in model.graph.initializer}


def test_the_dense_form_holds_the_decoded_weights(export, two_layers, run_file, rng):
    tensors, graph = two_layers
    report, model = export(tensors, graph)
    onnx.checker.check_model(model, full_check=True)
    arrays = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    assert set(arrays) == {"w1", "w2", "b"}
    np.testing.assert_array_equal(arrays["w1"], tensors["w1"].decode())
    x = rng.normal(size=(3, 40)).astype(np.float32)
    hidden = np.maximum(x @ tensors["w1"].decode(), 0)
    expected = hidden @ tensors["w2"].decode().T + tensors["b"]
    np.testing.assert_allclose(run_file(report.path, {"x": x})[0], expected, rtol=1e-4, atol=1e-5)
    assert report.max_difference == 0 and report.form == "dense" and report.opset == 20
    assert report.total_bytes == report.path.stat().st_size


def test_the_codebook_form_is_smaller_and_bit_exact(export, two_layers, weights_of):
    tensors, graph = two_layers
    report, model = export(tensors, graph, form="codebook")
    onnx.checker.check_model(model, full_check=True)
    assert (report.opset, model.ir_version) == (21, 10)
    weights = weights_of(model)
    for name in ("w1", "w2"):
        np.testing.assert_array_equal(bits(weights[name]), bits(tensors[name].decode()))
    forms = {t.name: t.form for t in report.tensors}
    assert forms == {"w1": "codebook uint4", "w2": "codebook uint8", "b": "dense"}
    by_name = {t.name: t for t in report.tensors}
    assert by_name["b"].reason == "stored raw in the file"
    assert by_name["w1"].stored_bytes == 40 * 33 // 2 + 16 * 4 and by_name["w1"].dense_bytes == 40 * 33 * 4
    assert all(t.raw_data or not t.dims for t in model.graph.initializer)
    assert report.max_difference <= 1e-6


def test_more_than_256_entries_take_uint16_indices(export, quantized, make_graph, weights_of, rng):
    tensors = {"w": quantized(rng, 64, 64, n_entries=300)}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    graph = make_graph(nodes, {"x": (FLOAT, (2, 64))}, {"y": (2, 64)}, opset=13, ir_version=7)
    report, model = export(tensors, graph, form="codebook")
    assert report.opset == 13 and report.tensors[0].form == "codebook uint16"
    np.testing.assert_array_equal(bits(weights_of(model)["w"]), bits(tensors["w"].decode()))


def test_sparse_affine_and_half_precision_tensors_are_exact(export, make_graph, weights_of, rng):
    mask = rng.random((50, 40)) < 0.08
    k = np.where(mask, rng.integers(-5, 6, size=mask.shape), 0).astype(np.int32)
    levels = np.array([0, 0.25, -0.5, 1.5], np.float32)
    tensors = {
        "affine": nqformat.AffineTensor(k=k, step=0.125),
        "offset": nqformat.AffineTensor(k=k, step=0.1015625, offset=-0.25),
        "sparse": nqformat.CodebookTensor(
            indices=np.where(mask, 2, 0).astype(np.uint8), codebook=nqformat.Codebook(values=levels)
        ),
        "half": nqformat.CodebookTensor(
            indices=rng.integers(0, 4, size=(50, 40)).astype(np.uint8),
            codebook=nqformat.Codebook(values=levels),
            dtype=nqformat.DType.FLOAT16,
        ),
        "brain": nqformat.CodebookTensor(
            indices=rng.integers(0, 4, size=(50, 40)).astype(np.uint8),
            codebook=nqformat.Codebook(values=levels),
            dtype=nqformat.DType.BFLOAT16,
        ),
    }
    nodes = [
        helper.make_node("Cast", ["half"], ["h"], to=FLOAT),
        helper.make_node("Cast", ["brain"], ["b"], to=FLOAT),
        helper.make_node("Sum", ["x", "affine", "offset", "sparse", "h", "b"], ["y"]),
    ]
    graph = make_graph(nodes, {"x": (FLOAT, (50, 40))}, {"y": (50, 40)}, opset=21, ir_version=10)
    report, model = export(tensors, graph, form="codebook")
    assert {t.name: t.form for t in report.tensors} == dict.fromkeys(tensors, "codebook uint4")
    weights = weights_of(model)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(bits(weights[name]), bits(tensor.decode()), err_msg=name)
    assert report.max_difference == 0


def test_embeddings_are_looked_up_after_the_gather(export, quantized, make_graph, run_file, rng):
    tensors = {"table": quantized(rng, 100, 24), "shared": quantized(rng, 100, 24)}
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("Gather", ["shared", "ids"], ["more"]),
        helper.make_node("Add", ["rows", "more"], ["sum"]),
        helper.make_node("MatMul", ["sum", "turned"], ["y"]),
    ]
    tensors["turned"] = nqformat.ViewTensor(
        sources=(nqformat.ViewSource(name="shared", start=0, stop=100),), permutation=(1, 0), shape=(24, 100)
    )
    graph = make_graph(nodes, {"ids": (INT64, ("n", 5))}, {"y": ("n", 5, 100)})
    report, model = export(tensors, graph, form="codebook")
    forms = {t.name: t.form for t in report.tensors}
    assert forms == {"table": "codebook uint8", "shared": "codebook uint8", "turned": "view of shared"}
    indices = {t.name for t in model.graph.initializer if t.data_type == TensorProto.UINT8}
    gathers = [node for node in model.graph.node if list(node.input)[1:] == ["ids"]]
    assert {node.op_type for node in gathers} == {"Gather"} and {n.input[0] for n in gathers} == indices
    ids = rng.integers(0, 100, size=(2, 5))
    decoded = {name: tensors[name].decode() for name in ("table", "shared")}
    expected = (decoded["table"][ids] + decoded["shared"][ids]) @ decoded["shared"].T
    np.testing.assert_allclose(run_file(report.path, {"ids": ids})[0], expected, rtol=1e-4, atol=1e-5)


def test_a_table_that_is_also_multiplied_is_decoded_first(export, quantized, make_graph, rng):
    tensors = {"t": quantized(rng, 60, 60)}
    nodes = [
        helper.make_node("Gather", ["t", "ids"], ["rows"]),
        helper.make_node("MatMul", ["rows", "t"], ["y"]),
    ]
    graph = make_graph(nodes, {"ids": (INT64, (4,))}, {"y": (4, 60)})
    report, _ = export(tensors, graph, form="codebook")
    assert report.tensors[0].form == "codebook uint4"


def test_equal_codebooks_are_written_once(export, make_graph, rng):
    codebook = nqformat.Codebook(values=np.linspace(-1, 1, 16, dtype=np.float32))
    tensors = {
        name: nqformat.CodebookTensor(
            indices=np.concatenate([np.arange(16), rng.integers(0, 16, 2384)])
            .astype(np.uint8)
            .reshape(40, 60),
            codebook=codebook,
        )
        for name in ("a", "b")
    }
    nodes = [helper.make_node("Sum", ["x", "a", "b"], ["y"])]
    _, model = export(tensors, make_graph(nodes, {"x": (FLOAT, (40, 60))}, {"y": (40, 60)}), form="codebook")
    assert sorted(types_of(model).values()) == [TensorProto.FLOAT, TensorProto.UINT4, TensorProto.UINT4]


def test_an_odd_number_of_4_bit_indices_is_padded(export, quantized, make_graph, weights_of, rng):
    tensors = {"w": quantized(rng, 17, 31)}
    nodes = [helper.make_node("Add", ["x", "w"], ["y"])]
    graph = make_graph(nodes, {"x": (FLOAT, (17, 31))}, {"y": (17, 31)})
    _, model = export(tensors, graph, form="codebook")
    assert len(model.graph.initializer[0].raw_data) == (17 * 31 + 1) // 2
    np.testing.assert_array_equal(bits(weights_of(model)["w"]), bits(tensors["w"].decode()))


def test_operators_of_other_domains_are_kept(export, quantized, make_graph, rng):
    tensors = {"w": quantized(rng, 40, 40)}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("FusedMatMul", ["h", "w"], ["y"], domain="com.microsoft", alpha=0.5),
    ]
    graph = onnx.ModelProto.FromString(
        make_graph(nodes, {"x": (FLOAT, (2, 40))}, {"y": (2, 40)}, opset=17, ir_version=8)
    )
    graph.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    report, model = export(tensors, graph.SerializeToString(), form="codebook")
    assert report.tensors[0].form == "codebook uint4" and report.max_difference == 0
    assert model.graph.node[-1].domain == "com.microsoft"


def test_a_graph_that_cannot_be_raised_gets_uint8_at_its_own_opset(
    export, quantized, make_graph, monkeypatch, rng
):
    def refuse(model, version):
        raise RuntimeError(f"no adapter to {version}")

    monkeypatch.setattr("onnx.version_converter.convert_version", refuse)
    graph = make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": (FLOAT, (2, 40))}, {"y": (2, 40)}, opset=17
    )
    report, _ = export({"w": quantized(rng, 40, 40)}, graph, form="codebook")
    assert report.opset == 17 and report.tensors[0].form == "codebook uint8"
    assert "no adapter to 21" in report.notes[0]


def test_a_graph_that_only_the_checker_refuses_is_exported_with_a_note(export, quantized, make_graph, rng):
    tensors = {"w": quantized(rng, 8, 4, 3, 3), "scale": np.float32([2, 3]), "bias": np.float32([1, -1])}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h"]),
        helper.make_node("GroupNormalization", ["h", "scale", "bias"], ["y"], num_groups=2),
    ]
    inputs, outputs = {"x": (FLOAT, (1, 4, 6, 6))}, {"y": (1, 8, 4, 4)}
    report, _ = export(tensors, make_graph(nodes, inputs, outputs, opset=18), form="codebook")
    assert report.max_difference <= 1e-6 and report.tensors[0].form == "codebook uint8"
    assert report.opset == 18 and "GroupNormalization is deprecated" in report.notes[-1]


def test_names_already_in_the_graph_are_not_reused(export, quantized, make_graph, rng):
    tensors = {"w": quantized(rng, 40, 40)}
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("MatMul", ["a", "w"], ["b"]),
        helper.make_node("Relu", ["b"], ["y"]),
    ]
    graph = make_graph(nodes, {"x": (FLOAT, (2, 40))}, {"y": (2, 40)})
    report, _ = export(tensors, graph, form="codebook")
    assert report.max_difference == 0


def test_weights_used_inside_an_if_branch_are_restored(export, quantized, make_graph, rng):
    def branch(op_type):
        value = helper.make_tensor_value_info("o", FLOAT, (2, 40))
        return helper.make_graph([helper.make_node(op_type, ["x", "w"], ["o"])], "b", [], [value])

    tensors = {"w": quantized(rng, 40, 40)}
    nodes = [
        helper.make_node("If", ["flag"], ["y"], then_branch=branch("MatMul"), else_branch=branch("MatMul"))
    ]
    graph = make_graph(nodes, {"x": (FLOAT, (2, 40)), "flag": (TensorProto.BOOL, ())}, {"y": (2, 40)})
    for form in ("dense", "codebook"):
        report, _ = export(tensors, graph, form=form)
        assert report.max_difference <= 1e-6 and report.tensors[0].form.startswith(form)


def test_external_data_lies_in_one_file_beside_the_model(export, two_layers, run_file, rng):
    tensors, graph = two_layers
    report, model = export(tensors, graph, external_data=True)
    assert report.data_path is not None and report.data_path.name == "m.onnx.data"
    assert report.total_bytes == report.path.stat().st_size + report.data_path.stat().st_size
    raw = onnx.load(report.path, load_external_data=False)
    outside = {t.name for t in raw.graph.initializer if t.data_location == TensorProto.EXTERNAL}
    assert outside == {"w1", "w2"}
    np.testing.assert_array_equal(
        numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == "w2")),
        tensors["w2"].decode(),
    )
    assert run_file(report.path, {"x": np.ones((1, 40), np.float32)})[0].shape == (1, 10)


def test_models_that_pass_2_gib_get_external_data_by_themselves(export, two_layers, monkeypatch):
    tensors, graph = two_layers
    monkeypatch.setattr("nqconvert.export.model_file.MAX_MESSAGE_BYTES", 4000)
    report, _ = export(tensors, graph)
    assert report.data_path is not None and report.max_difference == 0
    report, _ = export(tensors, graph, form="codebook")
    assert report.data_path is None
    with pytest.raises(ConversionError, match="use external data"):
        export(tensors, graph, external_data=False)


def test_a_requested_opset_is_written_or_refused(export, two_layers):
    tensors, graph = two_layers
    report, model = export(tensors, graph, opset=17)
    assert report.opset == 17 and model.opset_import[0].version == 17
    report, _ = export(tensors, graph, form="codebook", opset=18)
    assert report.opset == 18 and report.tensors[0].form == "codebook uint8"
    with pytest.raises(ConversionError, match="opset 13"):
        export(tensors, graph, form="codebook", opset=12)
    with pytest.raises(ConversionError, match="opset 99"):
        export(tensors, graph, opset=99)


def test_an_older_graph_is_raised_for_codebooks(export, quantized, make_graph, rng):
    tensors = {"w": quantized(rng, 40, 40)}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Softmax", ["h"], ["y"], axis=1),
    ]
    graph = make_graph(nodes, {"x": (FLOAT, (2, 40))}, {"y": (2, 40)}, opset=9, ir_version=4)
    report, _ = export(tensors, graph, form="codebook")
    assert report.opset == 21 and report.tensors[0].form == "codebook uint4"


def test_exports_are_reproducible(export, two_layers):
    first = export(*two_layers, form="codebook")[0].path.read_bytes()
    assert export(*two_layers, form="codebook")[0].path.read_bytes() == first


def test_integer_tensors_and_tiny_ones_stay_dense(export, quantized, make_graph, rng):
    tensors = {
        "ids": nqformat.AffineTensor(
            k=rng.integers(0, 5, 400).astype(np.int32), step=1, dtype=nqformat.DType.INT64
        ),
        "tiny": quantized(rng, 5, n_entries=4),
    }
    nodes = [
        helper.make_node("Gather", ["x", "ids"], ["g"]),
        helper.make_node("ReduceSum", ["g"], ["s"]),
        helper.make_node("Add", ["s", "tiny"], ["y"]),
    ]
    report, _ = export(tensors, make_graph(nodes, {"x": (FLOAT, (5,))}, {"y": (5,)}), form="codebook")
    reasons = {t.name: t.reason for t in report.tensors}
    assert "not floating point" in reasons["ids"] and reasons["tiny"]


def test_random_inputs_grow_until_the_model_runs(export, quantized, make_graph, rng):
    tensors = {"w": quantized(rng, 6, 3, 5, 5)}
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"])]
    graph = make_graph(nodes, {"x": (FLOAT, ("n", 3, "h", "w_"))}, {"y": ("n", 6, "h2", "w2")})
    report, _ = export(tensors, graph)
    assert report.max_difference == 0


def test_given_inputs_are_used_for_the_comparison(export, quantized, make_graph, rng):
    tensors = {"w": quantized(rng, 40, 40)}
    graph = make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": (FLOAT, None)}, {"y": None}, opset=21
    )
    with pytest.raises(ConversionError, match="give feeds"):
        export(tensors, graph)
    with pytest.raises(ValueError, match="inputs"):
        export(tensors, graph, feeds={"z": np.zeros(1)})
    graph = make_graph(
        [helper.make_node("Sum", ["x", "z", "w"], ["y"])],
        {"x": (FLOAT, (40, 40)), "z": (FLOAT, (40, 40))},
        {"y": (40, 40)},
    )
    with pytest.raises(ValueError, match="by name"):
        export(tensors, graph, feeds=np.zeros((40, 40), np.float32))
    graph = make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": (FLOAT, None)}, {"y": None})
    with pytest.raises(ConversionError, match="cannot run"):
        export(tensors, graph, feeds={"x": np.zeros((2, 3), np.float32)})


def test_open_axes_with_one_symbol_are_equal(export, quantized, make_graph, rng):
    tensors = {"w": quantized(rng, 20, 20)}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Add", ["h", "state"], ["y"])]
    inputs = {"x": (FLOAT, ("batch", 20)), "state": (FLOAT, (3, "batch", 20))}
    report, _ = export(tensors, make_graph(nodes, inputs, {"y": (3, "batch", 20)}))
    assert report.max_difference == 0


def test_the_only_input_needs_no_name(export, two_layers, rng):
    tensors, graph = two_layers
    report, _ = export(tensors, graph, feeds=rng.normal(size=(7, 40)).astype(np.float32))
    assert report.max_difference == 0


def failing(tmp_path, match, error=ConversionError, **options):
    with pytest.raises(error, match=match):
        export_onnx(tmp_path / "m.nqz", tmp_path / "m.onnx", **options)
    assert not (tmp_path / "m.onnx").exists() and not list(tmp_path.glob(".m.onnx*"))


def test_a_file_without_a_graph_is_refused(tmp_path):
    nqformat.save_file({"w": np.ones(3, np.float32)}, tmp_path / "m.nqz")
    failing(tmp_path, "no graph")


def test_a_graph_that_reads_unknown_tensors_is_refused(tmp_path, two_layers):
    tensors, graph = two_layers
    del tensors["w2"]
    nqformat.save_file(tensors, tmp_path / "m.nqz", graph=graph)
    failing(tmp_path, "w2")


def test_a_damaged_graph_and_a_wrong_file_are_format_errors(tmp_path):
    nqformat.save_file({"w": np.ones(3, np.float32)}, tmp_path / "m.nqz", graph=b"\xff\xff\xff")
    failing(tmp_path, "ModelProto", FormatError)
    (tmp_path / "m.nqz").write_bytes(b"not a model")
    failing(tmp_path, "not a .nqz file", FormatError)


def test_bad_arguments_and_targets_are_refused(tmp_path, two_layers):
    tensors, graph = two_layers
    nqformat.save_file(tensors, tmp_path / "m.nqz", graph=graph)
    failing(tmp_path, "dense, codebook", ValueError, form="zip")
    with pytest.raises(FileNotFoundError, match="absent"):
        export_onnx(tmp_path / "m.nqz", tmp_path / "absent" / "m.onnx")
    with pytest.raises(IsADirectoryError):
        export_onnx(tmp_path / "m.nqz", tmp_path)


def test_outputs_that_differ_stop_the_export(tmp_path, two_layers, monkeypatch):
    tensors, graph = two_layers
    nqformat.save_file(tensors, tmp_path / "m.nqz", graph=graph)
    (tmp_path / "m.onnx").write_bytes(b"the old model")
    monkeypatch.setattr("nqconvert.export.building.pack_bits", lambda values, bits: bytes(values.size // 2))
    with pytest.raises(ConversionError, match="outputs differ"):
        export_onnx(tmp_path / "m.nqz", tmp_path / "m.onnx", form="codebook", opset=21)
    assert (tmp_path / "m.onnx").read_bytes() == b"the old model"
    assert {p.name for p in tmp_path.iterdir()} == {"m.nqz", "m.onnx"}
