from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from nqformat.errors import CorruptError, FormatError, LimitExceededError, UnsupportedFeatureError
from nqruntime.graph import AttributeKind
from nqruntime.graph_reader import MAX_GRAPH_DEPTH, read_model
from nqruntime.wire import bytes_field, varint_field


def float_value(name, shape):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def branch(name, body_input):
    node = helper.make_node("Mul", [body_input, "outer_weight"], [name])
    return helper.make_graph([node], name, [], [helper.make_tensor_value_info(name, 1, None)])


@pytest.fixture(scope="module")
def model():
    attributes = {
        "ratio": 0.5,
        "axis": -3,
        "mode": "constant",
        "pads": [1, 0, -1, 2**40],
        "scales": [0.5, 2.0],
        "words": ["a", "b"],
        "value": numpy_helper.from_array(np.arange(6, dtype=np.int64).reshape(2, 3)),
    }
    nodes = [
        helper.make_node("Anything", ["x", "weight", ""], ["y"], domain="my.domain", **attributes),
        helper.make_node(
            "If", ["flag"], ["z"], then_branch=branch("t", "y"), else_branch=branch("e", "hidden")
        ),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [float_value("x", ["batch", 3, None]), helper.make_tensor_value_info("flag", TensorProto.BOOL, [])],
        [float_value("z", None)],
        [numpy_helper.from_array(np.float32([1, 2]), "inline")],
    )
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("ai.onnx", 17), helper.make_opsetid("my.domain", 3)],
        ir_version=9,
    )


@pytest.fixture(scope="module")
def parsed(model):
    return read_model(model.SerializeToString())


def test_versions_are_read_and_the_long_domain_name_is_onnx_own(parsed):
    assert (parsed.ir_version, parsed.opset, parsed.opsets["my.domain"]) == (9, 17, 3)


def test_node_names_and_operands_are_read(parsed, model):
    node = parsed.graph.nodes[0]
    assert (node.op_type, node.domain, node.inputs, node.outputs) == (
        "Anything",
        "my.domain",
        ("x", "weight", ""),
        ("y",),
    )
    assert len(parsed.graph.nodes) == len(model.graph.node)


def test_attributes_of_every_kind_are_read(parsed):
    attributes = {name: a.value for name, a in parsed.graph.nodes[0].attributes.items()}
    assert attributes["ratio"] == 0.5
    assert attributes["axis"] == -3
    assert attributes["mode"] == b"constant"
    assert attributes["pads"] == (1, 0, -1, 2**40)
    assert attributes["scales"].tolist() == [0.5, 2.0]
    assert attributes["words"] == (b"a", b"b")
    assert attributes["value"].to_array().tolist() == [[0, 1, 2], [3, 4, 5]]


def test_inputs_keep_symbols_sizes_and_unknown_dimensions(parsed):
    assert parsed.graph.inputs[0].shape == ("batch", 3, None)
    assert parsed.graph.inputs[1].shape == ()
    assert parsed.graph.outputs[0].shape is None


def test_free_names_are_found_inside_branches_in_order_of_use(parsed):
    assert parsed.graph.free_names == ("weight", "hidden", "outer_weight")


def test_names_defined_inside_a_branch_are_not_free():
    body = helper.make_graph(
        [helper.make_node("Add", ["own", "shared"], ["inner"]), helper.make_node("Relu", ["inner"], ["out"])],
        "body",
        [],
        [float_value("out", None)],
        [numpy_helper.from_array(np.float32([1]), "own")],
    )
    graph = helper.make_graph(
        [helper.make_node("If", ["c"], ["r"], then_branch=body, else_branch=body)],
        "g",
        [helper.make_tensor_value_info("c", TensorProto.BOOL, [])],
        [float_value("r", None)],
    )
    assert read_model(helper.make_model(graph).SerializeToString()).graph.free_names == ("shared",)


def test_a_graph_output_that_nothing_computes_is_a_tensor_of_the_file():
    graph = helper.make_graph([], "g", [], [float_value("weight", [3])])
    assert read_model(helper.make_model(graph).SerializeToString()).graph.free_names == ("weight",)


TENSORS = {
    "float raw": numpy_helper.from_array(np.float32([[1.5, -2]]), "t"),
    "float list": helper.make_tensor("t", TensorProto.FLOAT, [2], [1.5, -2.0]),
    "double list": helper.make_tensor("t", TensorProto.DOUBLE, [1], [0.1]),
    "int64 list": helper.make_tensor("t", TensorProto.INT64, [2], [-(2**63), 2**63 - 1]),
    "int32 list": helper.make_tensor("t", TensorProto.INT32, [2], [-5, 5]),
    "int8 list": helper.make_tensor("t", TensorProto.INT8, [2], [-128, 127]),
    "uint8 list": helper.make_tensor("t", TensorProto.UINT8, [2], [0, 255]),
    "uint16 list": helper.make_tensor("t", TensorProto.UINT16, [1], [65535]),
    "uint32 list": helper.make_tensor("t", TensorProto.UINT32, [1], [2**32 - 1]),
    "uint64 list": helper.make_tensor("t", TensorProto.UINT64, [1], [2**64 - 1]),
    "bool list": helper.make_tensor("t", TensorProto.BOOL, [3], [True, False, True]),
    "bool raw": numpy_helper.from_array(np.array([True, False]), "t"),
    "half list": helper.make_tensor("t", TensorProto.FLOAT16, [2], [0.5, -3.0]),
    "half raw": numpy_helper.from_array(np.float16([0.5]), "t"),
    "scalar": numpy_helper.from_array(np.float32(4), "t"),
    "empty": numpy_helper.from_array(np.zeros((0, 3), np.int32), "t"),
}


@pytest.mark.parametrize("proto", TENSORS.values(), ids=TENSORS.keys())
def test_inline_tensors_hold_the_values_that_onnx_reads(proto):
    graph = helper.make_graph([], "g", [], [], [proto])
    tensor = read_model(helper.make_model(graph).SerializeToString()).graph.initializers["t"]
    expected = numpy_helper.to_array(proto)
    assert tensor.to_array().dtype == expected.dtype
    assert tensor.to_array().shape == expected.shape
    np.testing.assert_array_equal(tensor.to_array(), expected)


def test_bfloat16_comes_as_bits():
    values = np.array([1.5, -2.0], dtype=ml_dtypes.bfloat16)
    proto = helper.make_tensor("t", TensorProto.BFLOAT16, [2], values)
    graph = helper.make_graph([], "g", [], [], [proto])
    tensor = read_model(helper.make_model(graph).SerializeToString()).graph.initializers["t"]
    np.testing.assert_array_equal(tensor.to_array(), values.view(np.uint16))


@pytest.mark.parametrize(
    "proto",
    [
        helper.make_tensor("t", TensorProto.STRING, [1], [b"a"]),
        helper.make_tensor("t", TensorProto.INT4, [2], [1, 2]),
        helper.make_tensor("t", TensorProto.COMPLEX64, [1], [1 + 2j]),
    ],
    ids=["string", "int4", "complex"],
)
def test_element_types_without_a_numpy_form_are_unsupported(proto):
    graph = helper.make_graph([], "g", [], [], [proto])
    tensor = read_model(helper.make_model(graph).SerializeToString()).graph.initializers["t"]
    with pytest.raises(UnsupportedFeatureError, match="'t'"):
        tensor.to_array()


def test_values_that_do_not_fill_the_shape_are_corrupt():
    proto = numpy_helper.from_array(np.float32([1, 2, 3]), "t")
    proto.dims[0] = 4
    graph = helper.make_graph([], "g", [], [], [proto])
    with pytest.raises(CorruptError, match=r"'t'.*holds 3"):
        read_model(helper.make_model(graph).SerializeToString()).graph.initializers["t"].to_array()


@pytest.mark.parametrize("place", ["initializer", "attribute", "branch", "function", "sparse"])
def test_tensors_that_refer_to_files_are_refused_wherever_they_stand(place):
    proto = TensorProto(name="t", data_type=1, dims=[1], data_location=TensorProto.EXTERNAL)
    proto.external_data.add(key="location", value="/etc/passwd")
    constant = helper.make_node("Constant", [], ["c"], value=proto)
    graph = helper.make_graph([], "g", [], [])
    functions = []
    if place == "initializer":
        graph.initializer.append(proto)
    elif place == "attribute":
        graph.node.append(constant)
    elif place == "branch":
        body = helper.make_graph([constant], "b", [], [])
        graph.node.append(helper.make_node("If", ["c"], [], then_branch=body, else_branch=body))
    elif place == "sparse":
        graph.sparse_initializer.add().values.CopyFrom(proto)
    else:
        functions = [helper.make_function("d", "F", [], ["c"], [constant], [helper.make_opsetid("", 17)])]
    content = helper.make_model(graph, functions=functions).SerializeToString()
    with pytest.raises(CorruptError, match="outside"):
        read_model(content)


def test_a_graph_that_stands_twice_is_merged_as_protobuf_merges(model):
    added = numpy_helper.from_array(np.float32([5]), "weight").SerializeToString()
    content = model.SerializeToString() + bytes_field(7, bytes_field(5, added))
    merged = read_model(content).graph
    assert "weight" in merged.initializers
    assert merged.free_names == ("hidden", "outer_weight")


def test_deeply_nested_graphs_exceed_the_limit():
    graph = b""
    for _ in range(MAX_GRAPH_DEPTH + 2):
        attribute = bytes_field(1, b"body") + bytes_field(6, graph) + varint_field(20, 5)
        graph = bytes_field(1, bytes_field(4, b"Loop") + bytes_field(5, attribute))
    with pytest.raises(LimitExceededError, match="nested"):
        read_model(bytes_field(7, graph))


def test_an_attribute_without_a_declared_kind_takes_that_of_its_value():
    attribute = bytes_field(1, b"axis") + varint_field(3, 2)
    node = bytes_field(4, b"Flatten") + bytes_field(5, attribute)
    found = read_model(bytes_field(7, bytes_field(1, node))).graph.nodes[0].attributes["axis"]
    assert (found.kind, found.value) == (AttributeKind.INT, 2)


@pytest.mark.parametrize("content", [b"", b"\x08\x08", b"PK\x03\x04not a model", b"\x3a\x05abc"])
def test_bytes_that_are_no_model_are_a_format_error(content):
    with pytest.raises(FormatError):
        read_model(content)


def read_everything(content):
    parsed = read_model(content)
    parsed.graph.free_names  # noqa: B018
    for tensor in parsed.graph.initializers.values():
        tensor.to_array()
    for node in parsed.graph.nodes:
        for attribute in node.attributes.values():
            if attribute.kind is AttributeKind.TENSOR and attribute.value is not None:
                attribute.value.to_array()


def test_every_prefix_parses_or_is_a_format_error(model):
    content = model.SerializeToString()
    for n_bytes in range(len(content)):
        try:
            read_everything(content[:n_bytes])
        except (FormatError, UnsupportedFeatureError):
            continue


def test_mutated_bytes_parse_or_raise_our_own_errors(model):
    rng = np.random.default_rng(3)
    content = np.frombuffer(model.SerializeToString(), dtype=np.uint8)
    n_errors = 0
    for _ in range(1200):
        mutated = content.copy()
        places = rng.integers(0, content.size, size=rng.integers(1, 4))
        mutated[places] = rng.integers(0, 256, size=places.size)
        try:
            read_everything(mutated.tobytes())
        except (FormatError, UnsupportedFeatureError):
            n_errors += 1
    assert n_errors > 200
