"""Bring all weights of an ONNX model into the initializers of its main graph."""

from __future__ import annotations

from typing import Any

import numpy as np

from nqformat.errors import ConversionError
from nqformat.optional_packages import require_package

from .onnx_tensor import array_of, n_elements, proto_of, stored_dtype
from .scope import all_names, node_subgraphs, rename_uses, unique_name, walk_nodes

INLINE_CONSTANT_BYTES = 64
INLINE_INTEGER_BYTES = 1024

_SHAPE_LIKE_INPUTS = {("Resize", 1), ("Resize", 2), ("Upsample", 1)}


def hoist_initializers(model: Any) -> dict[str, str]:
    """Turn weights in Constant nodes, sparse initializers and nested graphs into main-graph initializers.

    The model computes the same as before. Small constants stay where they are. Functions local to
    the model are inlined first, so that constants inside them are found as well.

    Parameters
    ----------
    model : onnx.ModelProto
        Changed in place.

    Returns
    -------
    dict of str to str
        Why a weight stays inside the graph, by its name.
    """
    _inline_functions(model)
    _drop_mandatory_inputs(model)
    reasons: dict[str, str] = {}
    taken = all_names(model.graph)
    _densify_sparse_initializers(model.graph)
    _hoist_constants(model.graph, model.graph, taken, reasons)
    _hoist_nested(model.graph, model.graph, taken, reasons)
    return reasons


def belongs_in_table(proto: Any, *, constant: bool = False) -> bool:
    """Tell whether a TensorProto goes into the tensor table of the file instead of the graph.

    Parameters
    ----------
    proto : onnx.TensorProto
    constant : bool
        Whether it is the value of a Constant node: those stay inline up to 64 bytes.
    """
    dtype = stored_dtype(proto)
    if dtype is None:
        return False
    n_bytes = n_elements(proto) * dtype.itemsize
    if not dtype.is_float:
        return n_bytes > INLINE_INTEGER_BYTES
    return n_bytes > INLINE_CONSTANT_BYTES if constant else n_elements(proto) > 1


def unsupported_reason(proto: Any) -> str | None:
    """Say that a TensorProto has a type which a .nqz file cannot store, or return None."""
    if stored_dtype(proto) is not None:
        return None
    label = require_package("onnx").TensorProto.DataType.Name(proto.data_type)
    return f"stays in the graph: ONNX type {label} has no place in the tensor table"


def large_attributes(graph: Any) -> dict[str, str]:
    """Return why large attributes stay in the graph, by the first output of their node and their name."""
    return {
        f"{node.output[0]}.{attribute.name}": (
            f"stays in the graph: attribute {attribute.name!r} of a node {node.op_type}"
        )
        for node in walk_nodes(graph)
        if not _is_constant(node)
        for attribute in node.attribute
        if not (attribute.HasField("g") or attribute.graphs) and attribute.ByteSize() > INLINE_INTEGER_BYTES
    }


def shape_like_names(graph: Any) -> set[str]:
    """Return names of float inputs that decide shapes; shape inference must see their values."""
    return {
        name
        for node in walk_nodes(graph)
        for position, name in enumerate(node.input)
        if name and (node.op_type, position) in _SHAPE_LIKE_INPUTS
    }


def _inline_functions(model: Any) -> None:
    """Replace calls of model-local functions by their bodies."""
    if not model.functions:
        return
    require_package("onnx")
    from onnx import inliner

    try:
        inlined = inliner.inline_local_functions(model)
    except Exception as error:
        raise ConversionError(f"functions of the model cannot be inlined: {error}") from error
    model.CopyFrom(inlined)


def _drop_mandatory_inputs(model: Any) -> None:
    """Remove initializers from the inputs of models older than IR 4, where each had to be listed."""
    if model.ir_version >= 4:
        return
    names = {tensor.name for tensor in model.graph.initializer}
    kept = [value for value in model.graph.input if value.name not in names]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    model.ir_version = 4


def _densify_sparse_initializers(graph: Any) -> None:
    """Replace sparse initializers by dense ones with the same values."""
    for sparse in graph.sparse_initializer:
        graph.initializer.append(_dense_proto(sparse, sparse.values.name))
    del graph.sparse_initializer[:]


def _dense_proto(sparse: Any, name: str) -> Any:
    """Return a SparseTensorProto as a dense TensorProto."""
    values = array_of(sparse.values)
    indices = array_of(sparse.indices).astype(np.int64)
    shape = tuple(sparse.dims)
    dense = np.zeros(shape, dtype=values.dtype)
    try:
        flat = indices if indices.ndim == 1 else np.ravel_multi_index(tuple(indices.T), shape)
        dense.reshape(-1)[flat] = values
    except (ValueError, IndexError) as error:
        raise ConversionError(f"sparse initializer {name!r} is malformed: {error}") from None
    return proto_of(name, dense)


def _constant_proto(node: Any) -> Any | None:
    """Return the value of a Constant node as a TensorProto; None for scalars and strings."""
    proto = None
    for attribute in node.attribute:
        if attribute.name == "value":
            proto = attribute.t
        elif attribute.name == "sparse_value":
            proto = _dense_proto(attribute.sparse_tensor, node.output[0])
        elif attribute.name == "value_floats":
            proto = proto_of("", np.array(attribute.floats, dtype=np.float32))
        elif attribute.name == "value_ints":
            proto = proto_of("", np.array(attribute.ints, dtype=np.int64))
    return proto


def _hoist_constants(graph: Any, main: Any, taken: set[str], reasons: dict[str, str]) -> None:
    """Move large Constant nodes of `graph` into the initializers of `main`."""
    outputs = {value.name for value in graph.output}
    nodes, renames, n_hoisted = [], {}, 0
    for node in graph.node:
        proto = _constant_proto(node) if _is_constant(node) else None
        if proto is None or not belongs_in_table(proto, constant=True):
            nodes.append(_copy(node))
            if proto is not None and proto.ByteSize() > INLINE_INTEGER_BYTES:
                reasons |= _named_reason(node.output[0], unsupported_reason(proto))
            continue
        n_hoisted += 1
        name = node.output[0]
        keeps_name = graph is main and name not in outputs
        hoisted = name if keeps_name else unique_name(name, taken)
        main.initializer.append(_named_copy(proto, hoisted))
        if name in outputs:
            nodes.append(require_package("onnx").helper.make_node("Identity", [hoisted], [name]))
        elif not keeps_name:
            renames[name] = hoisted
    if n_hoisted:
        del graph.node[:]
        graph.node.extend(nodes)
        rename_uses(graph, renames)


def _is_constant(node: Any) -> bool:
    """Tell whether a node is ONNX's own Constant."""
    return bool(node.op_type == "Constant" and node.domain in ("", "ai.onnx"))


def _hoist_nested(graph: Any, main: Any, taken: set[str], reasons: dict[str, str]) -> None:
    """Hoist the constants and initializers of all graphs nested in `graph`, innermost last."""
    for node in graph.node:
        for body in node_subgraphs(node):
            _densify_sparse_initializers(body)
            _hoist_constants(body, main, taken, reasons)
            _hoist_body_initializers(body, main, taken, reasons)
            _hoist_nested(body, main, taken, reasons)


def _hoist_body_initializers(body: Any, main: Any, taken: set[str], reasons: dict[str, str]) -> None:
    """Move the initializers of one nested graph into `main` under names that are unique in the model."""
    inputs = {value.name for value in body.input}
    outputs = {value.name for value in body.output}
    kept, renames = [], {}
    for proto in body.initializer:
        if not belongs_in_table(proto):
            kept.append(_copy(proto))
            reasons |= _named_reason(proto.name, unsupported_reason(proto))
        elif proto.name in inputs or proto.name in outputs:
            reasons[proto.name] = "input or output of a nested graph"
            kept.append(_copy(proto))
        else:
            renames[proto.name] = unique_name(proto.name, taken)
            main.initializer.append(_named_copy(proto, renames[proto.name]))
    del body.initializer[:]
    body.initializer.extend(kept)
    rename_uses(body, renames)


def _named_reason(name: str, reason: str | None) -> dict[str, str]:
    """Return a reason by name, if there is one."""
    return {} if reason is None else {name: reason}


def _copy(message: Any) -> Any:
    """Return an independent copy of a protobuf message."""
    copy = type(message)()
    copy.CopyFrom(message)
    return copy


def _named_copy(proto: Any, name: str) -> Any:
    """Return a copy of a TensorProto under another name."""
    copy = _copy(proto)
    copy.name = name
    return copy
