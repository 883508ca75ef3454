"""A corpus of graphs that keep their weights where converters forget to look."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
RNG = np.random.default_rng(3)
LEVELS = RNG.normal(size=16).astype(np.float32)
X = RNG.normal(size=(3, 12)).astype(np.float32)


def weight(*shape: int) -> np.ndarray:
    """Sixteen values, so that there is something to compress."""
    return LEVELS[RNG.integers(0, 16, size=shape)]


def info(name: str, shape: tuple[Any, ...] | None, kind: int = FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def constant(name: str, **attributes: Any) -> Any:
    return helper.make_node("Constant", [], [name], **attributes)


def model(
    nodes: list[Any],
    initializers: list[Any] | None = None,
    *,
    inputs: list[Any] | None = None,
    outputs: list[Any] | None = None,
    opset: int = 20,
    ir: int = 9,
    **more: Any,
) -> Any:
    graph = helper.make_graph(
        nodes, "g", inputs or [info("x", (3, 12))], outputs or [info("y", None)], initializers or []
    )
    opsets = [helper.make_opsetid("", opset), *more.pop("opsets", [])]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir, **more)


def product(name: str = "w") -> list[Any]:
    return [helper.make_node("MatMul", ["x", name], ["y"])]


def initializer(array: np.ndarray, name: str = "w") -> Any:
    return numpy_helper.from_array(array, name)


def typed_data(array: np.ndarray) -> Any:
    return helper.make_tensor("w", FLOAT, array.shape, array.reshape(-1))


def floats_of_constant() -> Any:
    nodes = [constant("f", value_floats=weight(120).tolist()), helper.make_node("Reshape", ["f", "s"], ["w"])]
    return model([*nodes, *product()], [initializer(np.array([12, 10]), "s")])


def half_in_int32_data() -> Any:
    bits = weight(12, 10).astype(np.float16).view(np.uint16).reshape(-1)
    proto = TensorProto(name="w", data_type=TensorProto.FLOAT16, dims=[12, 10], int32_data=bits.tolist())
    return model([constant("h", value=proto), helper.make_node("Cast", ["h"], ["w"], to=FLOAT), *product()])


def sparse(name: str) -> Any:
    values = initializer(weight(30), name)
    places = np.sort(RNG.choice(120, 30, replace=False)).astype(np.int64)
    return helper.make_sparse_tensor(values, initializer(places, "places"), [12, 10])


def sparse_initializer() -> Any:
    made = model(product())
    made.graph.sparse_initializer.append(sparse("w"))
    return made


def branch(nodes: list[Any], initializers: list[Any], output: str = "o") -> Any:
    return helper.make_graph(nodes, "b", [], [info(output, None)], initializers)


def if_branches() -> Any:
    def made() -> Any:
        nodes = [
            constant("c", value=initializer(weight(12, 10))),
            helper.make_node("MatMul", ["x", "c"], ["m"]),
        ]
        nodes.append(helper.make_node("Add", ["m", "b"], ["o"]))
        return branch(nodes, [initializer(weight(1, 10), "b")])

    nodes = [
        helper.make_node("ReduceSum", ["x"], ["s"], keepdims=0),
        helper.make_node("Greater", ["s", "zero"], ["flag"]),
        helper.make_node("If", ["flag"], ["y"], then_branch=made(), else_branch=made()),
    ]
    return model(nodes, [initializer(np.float32(0), "zero")])


def loop_body(inner: list[Any], initializers: list[Any]) -> Any:
    inputs = [info("i", (), INT64), info("go", (), BOOL), info("h", (3, 12))]
    outputs = [info("go_on", (), BOOL), info("h_next", None)]
    nodes = [helper.make_node("Identity", ["go"], ["go_on"]), *inner]
    return helper.make_graph(nodes, "body", inputs, outputs, initializers)


def loop(inner: list[Any], initializers: list[Any]) -> Any:
    node = helper.make_node("Loop", ["n", "", "x"], ["y"], body=loop_body(inner, initializers))
    return model([node], [initializer(np.int64(3), "n")])


def plain_loop() -> Any:
    inner = [
        constant("c", value=typed_data(weight(12, 12))),
        helper.make_node("MatMul", ["h", "c"], ["m"]),
        helper.make_node("Mul", ["m", "v"], ["h_next"]),
    ]
    return loop(inner, [initializer(weight(1, 12), "v")])


def if_in_loop() -> Any:
    branches = {
        f"{which}_branch": branch(
            [constant("c", value=initializer(weight(12, 12))), helper.make_node("MatMul", ["h", "c"], ["o"])],
            [],
        )
        for which in ("then", "else")
    }
    return loop([helper.make_node("If", ["go"], ["h_next"], **branches)], [])


def scan() -> Any:
    body = helper.make_graph(
        [helper.make_node("Gemm", ["s", "c"], ["t"]), helper.make_node("Add", ["t", "row"], ["s_next"])],
        "body",
        [info("s", (1, 12)), info("row", (12,))],
        [info("s_next", (1, 12))],
        [initializer(weight(12, 12), "c")],
    )
    node = helper.make_node("Scan", ["start", "x"], ["y"], body=body, num_scan_inputs=1)
    return model([node], [initializer(np.zeros((1, 12), np.float32), "start")])


def overridable() -> Any:
    inputs = [info("x", (3, 12)), info("w", (12, 10))]
    return model(product(), [initializer(weight(12, 10))], inputs=inputs)


def behind(op_type: str, array: np.ndarray, *others: str, **attributes: Any) -> Any:
    made = [initializer(array, "stored"), initializer(np.array([12, 10]), "shape")]
    return model([helper.make_node(op_type, ["stored", *others], ["w"], **attributes), *product()], made)


def shared() -> Any:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Add", ["a", "w"], ["b"]),
        helper.make_node("Gemm", ["b", "w2"], ["y"], transB=1),
    ]
    w = weight(12, 12)
    inputs = [info("x", (12, 12))]
    return model(nodes, [initializer(w), initializer(w.copy(), "w2")], inputs=inputs)


def quantized_channels() -> Any:
    q = RNG.integers(-127, 128, (120, 12)).astype(np.int8)
    scale = RNG.uniform(0.01, 0.1, 120).astype(np.float32)
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "scale"], ["w"], axis=0),
        helper.make_node("Gemm", ["x", "w"], ["y"], transB=1),
    ]
    return model(nodes, [initializer(q, "q"), initializer(scale, "scale")])


def n_bits() -> Any:
    packed = RNG.integers(0, 256, (80, 1, 16)).astype(np.uint8)
    scale = RNG.uniform(0.01, 0.1, (80, 1)).astype(np.float32)
    node = helper.make_node(
        "MatMulNBits", ["x", "q", "scale"], ["y"], domain="com.microsoft", K=12, N=80, bits=4, block_size=32
    )
    opsets = [helper.make_opsetid("com.microsoft", 1)]
    return model([node], [initializer(packed, "q"), initializer(scale, "scale")], opsets=opsets)


def four_bits() -> Any:
    packed = RNG.integers(0, 256, 12 * 300 // 2).astype(np.uint8).tobytes()
    q = TensorProto(name="q", data_type=TensorProto.INT4, dims=[12, 300], raw_data=packed)
    nodes = [helper.make_node("DequantizeLinear", ["q", "scale"], ["w"]), *product()]
    return model(nodes, [q, initializer(np.float32(0.1), "scale")], opset=21, ir=10)


def four_bits_in_a_branch() -> Any:
    def made() -> Any:
        q = four_bits().graph.initializer[0]
        nodes = [constant("c", value=q), helper.make_node("DequantizeLinear", ["c", "scale"], ["d"])]
        scale = initializer(np.float32(0.1), "scale")
        return branch([*nodes, helper.make_node("MatMul", ["x", "d"], ["o"])], [scale])

    nodes = [
        helper.make_node("ReduceSum", ["x"], ["s"], keepdims=0),
        helper.make_node("Greater", ["s", "zero"], ["flag"]),
        helper.make_node("If", ["flag"], ["y"], then_branch=made(), else_branch=made()),
    ]
    return model(nodes, [initializer(np.float32(0), "zero")], opset=21, ir=10)


def function() -> Any:
    body = [constant("w", value=initializer(weight(12, 10))), helper.make_node("MatMul", ["a", "w"], ["b"])]
    local = helper.make_function("local", "Layer", ["a"], ["b"], body, [helper.make_opsetid("", 20)])
    nodes = [helper.make_node("Layer", ["x"], ["y"], domain="local")]
    return model(nodes, opsets=[helper.make_opsetid("local", 1)], functions=[local])


def attributes() -> Any:
    offset, scale = RNG.normal(size=(2, 300)).astype(np.float32)
    node = helper.make_node("Scaler", ["x"], ["y"], domain="ai.onnx.ml", offset=offset, scale=scale)
    return model([node], inputs=[info("x", (3, 300))], opsets=[helper.make_opsetid("ai.onnx.ml", 3)])


def outputs_that_are_weights() -> Any:
    nodes = [*product(), constant("c", value=initializer(weight(5, 5)))]
    made = [initializer(weight(12, 10))]
    return model(nodes, made, outputs=[info("y", None), info("w", (12, 10)), info("c", (5, 5))])


def batch_norm() -> Any:
    vectors = [initializer(RNG.uniform(0.5, 2, 8).astype(np.float32), n) for n in "abcd"]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h"]),
        helper.make_node("BatchNormalization", ["h", *"abcd"], ["y"]),
    ]
    return model(nodes, [initializer(weight(8, 3, 3, 3)), *vectors], inputs=[info("x", (2, 3, 6, 6))])


def integer_table() -> Any:
    table = RNG.integers(0, 12, 400)
    nodes = [
        helper.make_node("Gather", ["x", "table"], ["wide"], axis=1),
        helper.make_node("MatMul", ["wide", "w"], ["y"]),
    ]
    return model(nodes, [initializer(table, "table"), initializer(weight(400, 3))])


def resize() -> Any:
    sizes = initializer(np.float32([1, 1, 2, 2]), "sizes")
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h"]),
        helper.make_node("Resize", ["h", "", "sizes"], ["y"], mode="nearest"),
    ]
    return model(nodes, [initializer(weight(8, 3, 3, 3)), sizes], inputs=[info("x", (2, 3, 6, 6))])


def of_type(kind: int, array: np.ndarray) -> Any:
    cast = helper.make_node("Cast", ["stored"], ["w"], to=FLOAT)
    if kind == TensorProto.BFLOAT16:
        bits = (array.view(np.uint32) >> 16).astype(np.uint16)
        stored = TensorProto(name="stored", data_type=kind, dims=array.shape, raw_data=bits.tobytes())
    else:
        stored = initializer(array.astype(helper.tensor_dtype_to_np_dtype(kind)), "stored")
    return model([cast, *product()], [stored])


def old_opset() -> Any:
    inputs = [info("x", (3, 12)), info("w", (12, 10)), info("b", (10,))]
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"])
    made = [initializer(weight(12, 10)), initializer(weight(10), "b")]
    return model([node], made, inputs=inputs, opset=7, ir=3)


def float8() -> Any:
    bits = RNG.integers(0, 0x60, 120).astype(np.uint8)
    q = TensorProto(name="q", data_type=TensorProto.FLOAT8E4M3FN, dims=[12, 10], raw_data=bits.tobytes())
    return model([helper.make_node("Cast", ["q"], ["w"], to=FLOAT), *product()], [q])


def sparse_coordinates() -> Any:
    flat = np.sort(RNG.choice(120, 30, replace=False)).astype(np.int64)
    places = initializer(np.stack(np.unravel_index(flat, (12, 10)), axis=1), "places")
    made = model([helper.make_node("Add", ["x", "w"], ["y"])], inputs=[info("x", (12, 10))])
    made.graph.sparse_initializer.append(
        helper.make_sparse_tensor(initializer(weight(30), "w"), places, [12, 10])
    )
    return made


def function_in_a_function() -> Any:
    """Two calls of a function that calls another one; both have weights, and names in common."""
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("local", 1)]
    inner = helper.make_function(
        "local",
        "Inner",
        ["a"],
        ["b"],
        [constant("w", value=initializer(weight(12, 12))), helper.make_node("MatMul", ["a", "w"], ["b"])],
        opsets[:1],
    )
    body = [
        constant("w", value=initializer(weight(1, 12))),
        helper.make_node("Inner", ["a"], ["h"], domain="local"),
        helper.make_node("Add", ["h", "w"], ["b"]),
    ]
    outer = helper.make_function("local", "Outer", ["a"], ["b"], body, opsets)
    nodes = [
        helper.make_node("Outer", ["x"], ["h"], domain="local"),
        helper.make_node("Outer", ["h"], ["y"], domain="local"),
    ]
    return model(nodes, opsets=opsets[1:], functions=[inner, outer])


def sequence() -> Any:
    nodes = [
        helper.make_node("SequenceConstruct", ["w0", "w1"], ["list"]),
        helper.make_node("SequenceAt", ["list", "one"], ["w"]),
        *product(),
    ]
    weights = [initializer(weight(12, 10), "w0"), initializer(weight(12, 10), "w1")]
    return model(nodes, [*weights, initializer(np.int64(1), "one")])


def optional() -> Any:
    nodes = [
        helper.make_node("Optional", ["stored"], ["maybe"]),
        helper.make_node("OptionalGetElement", ["maybe"], ["w"]),
        *product(),
    ]
    return model(nodes, [initializer(weight(12, 10), "stored")])


def empty() -> Any:
    nodes = [helper.make_node("Concat", ["stored", "nothing"], ["w"], axis=1), *product()]
    return model(nodes, [initializer(weight(12, 10), "stored"), initializer(weight(12, 0), "nothing")])


def scalars() -> Any:
    nodes = [
        constant("c", value=initializer(np.float32(0.5))),
        constant("d", value_float=0.25),
        *[helper.make_node("Mul", [a, b], [o]) for a, b, o in (("x", "c", "e"), ("e", "d", "f"))],
        helper.make_node("Mul", ["f", "scale"], ["g"]),
        helper.make_node("Add", ["g", "single"], ["h"]),
        helper.make_node("MatMul", ["h", "w"], ["y"]),
    ]
    arrays = [np.float32(2), np.float32([3])]
    made = [initializer(a, n) for a, n in zip(arrays, ("scale", "single"), strict=True)]
    return model(nodes, [*made, initializer(weight(12, 10))])


def equal_names_in_branches() -> Any:
    def made(columns: int) -> Any:
        nodes = [
            constant("c", value=initializer(weight(columns, 10))),
            helper.make_node("MatMul", ["x", "w"], ["h"]),
            helper.make_node("MatMul", ["h", "c"], ["o"]),
        ]
        return branch(nodes, [initializer(weight(12, columns))])

    nodes = [
        helper.make_node("ReduceSum", ["x"], ["s"], keepdims=0),
        helper.make_node("Greater", ["s", "zero"], ["flag"]),
        helper.make_node("If", ["flag"], ["y"], then_branch=made(7), else_branch=made(30)),
    ]
    return model(nodes, [initializer(np.float32(0), "zero")])


def names_beyond_ascii() -> Any:
    nodes = [
        helper.make_node("MatMul", ["x", "gewichte/größe"], ["层"]),
        helper.make_node("Add", ["层", "bias \N{GREEK SMALL LETTER BETA}"], ["y"]),
    ]
    made = [initializer(weight(12, 10), "gewichte/größe")]
    return model(nodes, [*made, initializer(weight(40)[:10], "bias \N{GREEK SMALL LETTER BETA}")])


def doubles_in_double_data() -> Any:
    stored = helper.make_tensor("stored", TensorProto.DOUBLE, [12, 10], weight(120).astype(np.float64))
    return model([helper.make_node("Cast", ["stored"], ["w"], to=FLOAT), *product()], [stored])


def mask_of_booleans() -> Any:
    mask = initializer(RNG.random((40, 60)) < 0.5, "mask")
    nodes = [helper.make_node("Where", ["mask", "w", "x"], ["y"])]
    return model(nodes, [mask, initializer(weight(40, 60))], inputs=[info("x", (40, 60))])


def texts() -> Any:
    table = helper.make_tensor("table", TensorProto.STRING, [300], [f"word {i}".encode() for i in range(300)])
    nodes = [
        helper.make_node("ArgMax", ["x"], ["best"], axis=1, keepdims=0),
        helper.make_node("Gather", ["table", "best"], ["label"]),
        *product(),
    ]
    outputs = [info("label", (3,), TensorProto.STRING), info("y", None)]
    return model(nodes, [table, initializer(weight(12, 10))], outputs=outputs)


GRAPHS: dict[str, Callable[[], Any]] = {
    "Constant with raw data": lambda: model([constant("w", value=initializer(weight(12, 10))), *product()]),
    "Constant with float_data": lambda: model([constant("w", value=typed_data(weight(12, 10))), *product()]),
    "Constant with halves in int32_data": half_in_int32_data,
    "Constant with value_floats": floats_of_constant,
    "Constant with sparse_value": lambda: model([constant("w", sparse_value=sparse("v")), *product()]),
    "sparse initializer": sparse_initializer,
    "branches of If": if_branches,
    "body of Loop": plain_loop,
    "If inside Loop": if_in_loop,
    "body of Scan": scan,
    "graph input with a default": overridable,
    "behind Transpose": lambda: behind("Transpose", weight(10, 12), perm=[1, 0]),
    "behind Identity": lambda: behind("Identity", weight(12, 10)),
    "behind Reshape": lambda: behind("Reshape", weight(2, 60), "shape"),
    "behind Cast from float16": lambda: of_type(TensorProto.FLOAT16, weight(12, 10)),
    "behind Cast from bfloat16": lambda: of_type(TensorProto.BFLOAT16, weight(12, 10)),
    "behind Cast from float64": lambda: of_type(TensorProto.DOUBLE, weight(12, 10)),
    "shared and repeated": shared,
    "int8 with DequantizeLinear": quantized_channels,
    "MatMulNBits": n_bits,
    "int4 initializer": four_bits,
    "int4 in branches": four_bits_in_a_branch,
    "function of the model": function,
    "attributes of an operator": attributes,
    "weights that are outputs": outputs_that_are_weights,
    "batch norm": batch_norm,
    "table of integers": integer_table,
    "scales of Resize": resize,
    "opset 7, weights listed as inputs": old_opset,
    "float8 initializer": float8,
    "sparse initializer by coordinates": sparse_coordinates,
    "function in a function": function_in_a_function,
    "sequence of weights": sequence,
    "optional weight": optional,
    "empty tensor": empty,
    "scalars": scalars,
    "equal names in branches": equal_names_in_branches,
    "names beyond ASCII": names_beyond_ascii,
    "doubles in double_data": doubles_in_double_data,
    "mask of booleans": mask_of_booleans,
    "table of texts": texts,
    "opset 26": lambda: model(product(), [initializer(weight(12, 10))], opset=26, ir=13),
}
