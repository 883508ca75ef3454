"""Split an ONNX model into a small graph and a table of tensors.

The graph keeps what computes: nodes, inputs, outputs, small integer constants. Float tensors move
into the table and are found again by name: a node input that is neither a graph input, nor a node
output, nor an inline initializer, names a tensor of the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nqformat.errors import ConversionError
from nqformat.tensor import ViewTensor

from .binding import Binding, bind_tensors, equal_view, may_be_tied
from .hoisting import belongs_in_table, large_attributes, shape_like_names, unsupported_reason
from .onnx_tensor import array_of
from .scope import all_names, count_uses, defined_names, node_subgraphs, rename_uses, short_names, walk_graphs

_ANNOTATIONS = ("doc_string", "metadata_props", "value_info", "quantization_annotation")


@dataclass(frozen=True, slots=True, kw_only=True)
class SlimGraph:
    """A slimmed graph and the tensors that were taken out of it.

    Attributes
    ----------
    graph : bytes
        Serialized ModelProto.
    tensors : dict of str to ndarray
    views : dict of str to ViewTensor
        Names in the graph that are made of stored tensors, and further names for these.
    reasons : dict of str to str
        Why a weight stays inline, by name.
    duplicates : dict of str to str
        Former name of each tensor that is now read under another name, with that name.
    equal : dict of str to str
        Tensors of the model with the content of a stored one, with that one's name.
    unused : tuple of str
        Tensors of the model that the graph does not read.
    changed : tuple of str
        Tensors of the model whose values the exporter changed.
    unread : tuple of str
        Weights of the graph that nothing reads, left out.
    """

    graph: bytes
    tensors: dict[str, np.ndarray]
    views: dict[str, ViewTensor] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    duplicates: dict[str, str] = field(default_factory=dict)
    equal: dict[str, str] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()


def slim_graph(
    model: Any,
    *,
    model_tensors: Mapping[str, np.ndarray] | None = None,
    large: Mapping[str, np.ndarray] | None = None,
) -> SlimGraph:
    """Take the tensors out of `model` and reduce the rest to what computes.

    Parameters
    ----------
    model : onnx.ModelProto
        With its weights in the initializers of the main graph; changed in place.
    model_tensors : mapping of str to ndarray, optional
        The model's own tensors, to which graph tensors are bound by content.
    large : mapping of str to ndarray, optional
        Content of initializers that have none in the model.

    Returns
    -------
    SlimGraph
        The same model always gives the same bytes.
    """
    graph = model.graph
    outputs = {value.name for value in graph.output}
    reasons, moved, unread = _take_initializers(graph, large or {})
    reserved = all_names(graph) - set(moved)
    bound = {name: array for name, array in moved.items() if name not in outputs}
    binding = bind_tensors(bound, model_tensors, reserved=reserved | (set(moved) & outputs))
    rename_uses(graph, binding.renames)
    tensors = binding.tensors | {name: array for name, array in moved.items() if name in outputs}
    views = binding.views | _further_names(binding, reserved | set(tensors), own=model_tensors is None)
    reasons |= large_attributes(graph)
    _clear_annotations(model)
    _shorten_names(graph, kept=set(tensors) | set(views))
    return SlimGraph(
        graph=model.SerializeToString(deterministic=True),
        tensors=tensors,
        views=views,
        reasons=reasons,
        duplicates=binding.renames,
        equal=binding.equal,
        unused=binding.unused,
        changed=binding.changed,
        unread=unread,
    )


def _further_names(binding: Binding, taken: set[str], *, own: bool) -> dict[str, ViewTensor]:
    """Return views under the other names that the model, or without one the graph, had for a content."""
    others = binding.renames if own else binding.equal
    return {
        name: equal_view(stored, binding.tensors[stored])
        for name, stored in others.items()
        if name not in taken and stored in binding.tensors and may_be_tied(binding.tensors[stored])
    }


def _take_initializers(
    graph: Any, large: Mapping[str, np.ndarray]
) -> tuple[dict[str, str], dict[str, np.ndarray], tuple[str, ...]]:
    """Remove the initializers that go into the tensor table, and those that nothing reads.

    Returns why others stay, what was moved, and the names of weights that nothing reads.
    """
    uses = count_uses(graph)
    inputs = {value.name for value in graph.input}
    shape_like = shape_like_names(graph)
    reasons: dict[str, str] = {}
    moved: dict[str, np.ndarray] = {}
    inline, unread = [], []
    for proto in graph.initializer:
        name = proto.name
        if not uses[name] and name not in inputs:
            unread += [name] if belongs_in_table(proto) else []
            continue
        reason = _inline_reason(proto, inputs, shape_like)
        if reason is None and belongs_in_table(proto):
            moved[name] = large[name] if name in large else array_of(proto)
            continue
        inline.append(_copy(proto))
        if reason is not None:
            reasons[name] = reason
    del graph.initializer[:]
    graph.initializer.extend(inline)
    return reasons, moved, tuple(unread)


def _inline_reason(proto: Any, inputs: set[str], shape_like: set[str]) -> str | None:
    """Say why an initializer must stay in the graph, if there is a reason worth telling."""
    if proto.name in inputs:
        return "stays in the graph: it is also a graph input, which a caller may override"
    if proto.name in shape_like:
        return "stays in the graph: shape inference needs its values"
    return unsupported_reason(proto)


def _copy(message: Any) -> Any:
    """Return an independent copy of a protobuf message."""
    copy = type(message)()
    copy.CopyFrom(message)
    return copy


def _clear_annotations(model: Any) -> None:
    """Drop everything that does not change what the model computes."""
    for name in ("doc_string", "producer_name", "producer_version", "domain", "model_version"):
        model.ClearField(name)
    for name in ("metadata_props", "training_info", "configuration"):
        _clear_if_known(model, name)
    for graph in walk_graphs(model.graph):
        graph.name = "g"
        _clear_all(graph, _ANNOTATIONS)
        for value in (*graph.input, *graph.output, *graph.initializer):
            _clear_all(value, _ANNOTATIONS)
        for node in graph.node:
            _clear_all(node, ("name", "doc_string", "metadata_props", "device_configurations"))
            for attribute in node.attribute:
                _clear_all(attribute, ("doc_string",))
                if attribute.HasField("t"):
                    _clear_all(attribute.t, ("doc_string", "metadata_props", "name"))
    _drop_default_attributes(model)
    used = {node.domain for graph in walk_graphs(model.graph) for node in graph.node} | {""}
    used |= {node.domain for function in model.functions for node in function.node}
    used |= {function.domain for function in model.functions}
    kept = [_copy(opset) for opset in model.opset_import if opset.domain in used or opset.domain == "ai.onnx"]
    del model.opset_import[:]
    model.opset_import.extend(kept)


def _drop_default_attributes(model: Any) -> None:
    """Drop attributes that say what the operator's schema says anyway."""
    import onnx

    opsets = {opset.domain: opset.version for opset in model.opset_import}
    for graph in walk_graphs(model.graph):
        for node in graph.node:
            try:
                schema = onnx.defs.get_schema(node.op_type, opsets.get(node.domain, 1), node.domain)
            except onnx.defs.SchemaError:
                continue
            kept = [_copy(a) for a in node.attribute if not _is_default(a, schema.attributes.get(a.name))]
            del node.attribute[:]
            node.attribute.extend(kept)


def _is_default(attribute: Any, declared: Any) -> bool:
    """Tell whether an attribute has the value that its declaration gives it when it is missing."""
    if declared is None or declared.required or declared.default_value.type != attribute.type:
        return False
    default = _copy(declared.default_value)
    default.name = attribute.name
    default.ClearField("doc_string")
    return bool(
        default.SerializeToString(deterministic=True) == attribute.SerializeToString(deterministic=True)
    )


def _clear_all(message: Any, names: tuple[str, ...]) -> None:
    """Clear those fields of `message` that its type has."""
    for name in names:
        _clear_if_known(message, name)


def _clear_if_known(message: Any, name: str) -> None:
    """Clear a field if this version of onnx knows it."""
    if name in message.DESCRIPTOR.fields_by_name:
        message.ClearField(name)


def _shorten_names(graph: Any, *, kept: set[str]) -> None:
    """Shorten names of values that nothing outside the graph can see.

    Inputs, outputs and initializers of the main graph keep theirs. Every definition gets a name of
    its own, so that nested graphs never hide a name of an enclosing one.
    """
    fixed = kept | {value.name for value in (*graph.input, *graph.output)}
    fixed |= {tensor.name for tensor in graph.initializer}
    undefined = fixed - set(defined_names(graph)) - kept
    if undefined:
        raise ConversionError(f"graph outputs that nothing computes: {', '.join(sorted(undefined))}")
    _shorten_scope(graph, {name: name for name in fixed}, short_names(fixed))


def _shorten_scope(graph: Any, visible: dict[str, str], names: Iterator[str]) -> None:
    """Rename the definitions of one graph and everything that reads them."""
    scope = dict(visible)
    scope.update((name, next(names)) for name in defined_names(graph) if name not in visible)
    _apply_names(graph, scope)
    for node in graph.node:
        for body in node_subgraphs(node):
            own = set(defined_names(body))
            inner = {name: new for name, new in scope.items() if name not in own}
            _shorten_scope(body, inner, names)


def _apply_names(graph: Any, scope: Mapping[str, str]) -> None:
    """Write the new names into the nodes and declarations of one graph, nested graphs left out."""
    for node in graph.node:
        node.input[:] = [scope.get(name, name) for name in node.input]
        node.output[:] = [scope.get(name, name) for name in node.output]
    for value in (*graph.input, *graph.output, *graph.initializer):
        value.name = scope.get(value.name, value.name)
