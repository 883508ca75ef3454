"""Reading an ONNX ModelProto from untrusted bytes.

Field numbers are those of ONNX's ``onnx.proto``. Fields that do not change what a model computes are
skipped. Tensors that refer to files outside the model are refused wherever they stand.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np

from nqformat.errors import CorruptError, FormatError, LimitExceededError

from .graph import Attribute, AttributeKind, AttributeValue, Function, Graph, GraphValue, Model, Node
from .inline_tensor import InlineTensor
from .wire import (
    ElementBudget,
    expect_bytes,
    expect_float,
    expect_text,
    expect_varint,
    read_fields,
    read_fixed,
    read_varints,
    to_int64,
)

MAX_GRAPH_DEPTH = 16
MAX_GRAPH_ELEMENTS = 1 << 21

_SECTION = "GRAPH"
_EXTERNAL = 1
_INTEGER_FIELDS = {5: "int32_data", 7: "int64_data", 11: "uint64_data"}
_FLOAT_FIELDS = {4: ("float_data", "<f4"), 10: ("double_data", "<f8")}

_Parsed = TypeVar("_Parsed")


def read_model(content: bytes) -> Model:
    """Read a serialized ModelProto.

    Raises
    ------
    FormatError
        If the bytes are no ModelProto, hold no graph, nest graphs more than 16 deep, have more than about
        two million elements, or refer to files.

    Examples
    --------
    >>> read_model(bytes.fromhex("080842020a003a00")).ir_version
    8
    """
    budget = ElementBudget(MAX_GRAPH_ELEMENTS)
    ir_version = 0
    graph_parts: list[memoryview] = []
    opsets: dict[str, int] = {}
    functions: list[Function] = []
    for number, wire_type, value in read_fields(memoryview(content), budget):
        if number == 1:
            ir_version = to_int64(expect_varint(value, "ir_version"))
        elif number == 7:
            graph_parts.append(expect_bytes(value, wire_type, "graph"))
        elif number == 8:
            domain, version = _read_opset(expect_bytes(value, wire_type, "opset_import"), budget)
            opsets[domain] = max(version, opsets.get(domain, 0))
        elif number == 25:
            functions.append(_read_function(expect_bytes(value, wire_type, "functions"), budget))
    if not graph_parts:
        raise FormatError("the model has no graph", section=_SECTION)
    graph = _read_graph(_joined(graph_parts), budget, 0)
    return Model(graph=graph, ir_version=ir_version, opsets=opsets, functions=tuple(functions))


def _joined(parts: list[memoryview]) -> memoryview:
    """Join the parts of a message that stands more than once, which merges them."""
    return parts[0] if len(parts) == 1 else memoryview(b"".join(parts))


def _read_opset(message: memoryview, budget: ElementBudget) -> tuple[str, int]:
    domain, version = "", 0
    for number, wire_type, value in read_fields(message, budget):
        if number == 1:
            domain = expect_text(value, wire_type, "opset domain")
        elif number == 2:
            version = to_int64(expect_varint(value, "opset version"))
    return ("" if domain == "ai.onnx" else domain), version


def _read_function(message: memoryview, budget: ElementBudget) -> Function:
    name = domain = ""
    nodes: list[Node] = []
    for number, wire_type, value in read_fields(message, budget):
        if number == 1:
            name = expect_text(value, wire_type, "function name")
        elif number == 7:
            nodes.append(_read_node(expect_bytes(value, wire_type, "function node"), budget, 0))
        elif number == 10:
            domain = expect_text(value, wire_type, "function domain")
        elif number == 11:
            _read_attribute(expect_bytes(value, wire_type, "function attribute"), budget, 0)
    return Function(name=name, domain=domain, nodes=tuple(nodes))


def _read_graph(message: memoryview, budget: ElementBudget, depth: int) -> Graph:
    if depth > MAX_GRAPH_DEPTH:
        raise LimitExceededError(f"graphs nested more than {MAX_GRAPH_DEPTH} deep", section=_SECTION)
    nodes: list[Node] = []
    inputs: list[GraphValue] = []
    outputs: list[GraphValue] = []
    initializers: dict[str, InlineTensor] = {}
    sparse: list[str] = []
    for number, wire_type, value in read_fields(message, budget):
        if number == 1:
            nodes.append(_read_node(expect_bytes(value, wire_type, "node"), budget, depth))
        elif number == 5:
            tensor = _read_tensor(expect_bytes(value, wire_type, "initializer"), budget)
            if tensor.name in initializers:
                raise CorruptError(f"two initializers are named {tensor.name!r}", section=_SECTION)
            initializers[tensor.name] = tensor
        elif number == 11:
            inputs.append(_read_value(expect_bytes(value, wire_type, "input"), budget))
        elif number == 12:
            outputs.append(_read_value(expect_bytes(value, wire_type, "output"), budget))
        elif number == 15:
            sparse.append(_read_sparse(expect_bytes(value, wire_type, "sparse_initializer"), budget))
    return Graph(
        nodes=tuple(nodes),
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        initializers=initializers,
        sparse_initializers=tuple(sparse),
    )


def _read_node(message: memoryview, budget: ElementBudget, depth: int) -> Node:
    texts = {3: "", 4: "", 7: ""}
    inputs: list[str] = []
    outputs: list[str] = []
    attributes: dict[str, Attribute] = {}
    for number, wire_type, value in read_fields(message, budget):
        if number == 1:
            inputs.append(expect_text(value, wire_type, "node input"))
        elif number == 2:
            outputs.append(expect_text(value, wire_type, "node output"))
        elif number in texts:
            texts[number] = expect_text(value, wire_type, "node name, operator or domain")
        elif number == 5:
            attribute = _read_attribute(expect_bytes(value, wire_type, "attribute"), budget, depth)
            attributes[attribute.name] = attribute
    return Node(
        op_type=texts[4],
        domain="" if texts[7] == "ai.onnx" else texts[7],
        name=texts[3],
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        attributes=attributes,
    )


class _AttributeParts:
    """What the fields of one AttributeProto said, before its kind is known."""

    def __init__(self) -> None:
        self.name = ""
        self.kind_number = 0
        self.refers = False
        self.single: dict[AttributeKind, AttributeValue] = {}
        self.tensor_parts: list[memoryview] = []
        self.graph_parts: list[memoryview] = []
        self.floats: list[np.ndarray] = []
        self.ints: list[int] = []
        self.strings: list[bytes] = []
        self.tensors: list[InlineTensor] = []
        self.graphs: list[Graph] = []
        self.others: set[AttributeKind] = set()

    def present_kinds(self) -> set[AttributeKind]:
        """Kinds for which there is a value."""
        lists = {
            AttributeKind.FLOATS: self.floats,
            AttributeKind.INTS: self.ints,
            AttributeKind.STRINGS: self.strings,
            AttributeKind.TENSORS: self.tensors,
            AttributeKind.GRAPHS: self.graphs,
        }
        return set(self.single) | self.others | {kind for kind, values in lists.items() if values}

    def value(self, kind: AttributeKind) -> AttributeValue:
        """Return the value of that kind, with ONNX's defaults for an absent one."""
        if self.refers:
            return None
        if kind is AttributeKind.FLOATS:
            return np.concatenate(self.floats) if self.floats else np.zeros(0, dtype=np.float32)
        if kind is AttributeKind.INTS:
            return tuple(self.ints)
        if kind is AttributeKind.STRINGS:
            return tuple(self.strings)
        if kind is AttributeKind.TENSORS:
            return tuple(self.tensors)
        if kind is AttributeKind.GRAPHS:
            return tuple(self.graphs)
        defaults: dict[AttributeKind, AttributeValue] = {
            AttributeKind.FLOAT: 0.0,
            AttributeKind.INT: 0,
            AttributeKind.STRING: b"",
        }
        return self.single.get(kind, defaults.get(kind))


def _read_attribute(message: memoryview, budget: ElementBudget, depth: int) -> Attribute:
    parts = _AttributeParts()
    for field in read_fields(message, budget):
        _read_attribute_field(parts, field, budget, depth)
    if parts.tensor_parts:
        parts.single[AttributeKind.TENSOR] = _read_tensor(_joined(parts.tensor_parts), budget)
    if parts.graph_parts:
        parts.single[AttributeKind.GRAPH] = _read_graph(_joined(parts.graph_parts), budget, depth + 1)
    return Attribute(name=parts.name, kind=(kind := _attribute_kind(parts)), value=parts.value(kind))


def _attribute_kind(parts: _AttributeParts) -> AttributeKind:
    """Return the declared kind, or that of the only value present (models before IR version 2)."""
    present = parts.present_kinds()
    if parts.kind_number == 0 and len(present) == 1:
        return present.pop()
    try:
        kind = AttributeKind(parts.kind_number)
    except ValueError:
        raise CorruptError(
            f"attribute {parts.name!r} has kind {parts.kind_number}", section=_SECTION
        ) from None
    if present - {kind}:
        raise CorruptError(f"attribute {parts.name!r} has values of several kinds", section=_SECTION)
    if kind in (AttributeKind.TENSOR, AttributeKind.GRAPH) and not present and not parts.refers:
        raise CorruptError(f"attribute {parts.name!r} has no value", section=_SECTION)
    return kind


def _read_attribute_field(
    parts: _AttributeParts, field: tuple[int, int, int | memoryview], budget: ElementBudget, depth: int
) -> None:
    number, wire_type, value = field
    if number == 1:
        parts.name = expect_text(value, wire_type, "attribute name")
    elif number == 2:
        parts.single[AttributeKind.FLOAT] = expect_float(value, wire_type, "attribute f")
    elif number == 3:
        parts.single[AttributeKind.INT] = to_int64(expect_varint(value, "attribute i"))
    elif number == 4:
        parts.single[AttributeKind.STRING] = bytes(expect_bytes(value, wire_type, "attribute s"))
    elif number == 5:
        parts.tensor_parts.append(expect_bytes(value, wire_type, "attribute t"))
    elif number == 6:
        parts.graph_parts.append(expect_bytes(value, wire_type, "attribute g"))
    elif number == 7:
        parts.floats.append(read_fixed(value, wire_type, "<f4", "attribute floats"))
    elif number == 8:
        parts.ints.extend(read_varints(value, wire_type, budget, "attribute ints"))
    elif number == 9:
        parts.strings.append(bytes(expect_bytes(value, wire_type, "attribute strings")))
    elif number == 10:
        parts.tensors.append(_read_tensor(expect_bytes(value, wire_type, "attribute tensors"), budget))
    elif number == 11:
        parts.graphs.append(
            _read_graph(expect_bytes(value, wire_type, "attribute graphs"), budget, depth + 1)
        )
    elif number == 20:
        parts.kind_number = expect_varint(value, "attribute type")
    elif number == 21:
        parts.refers = bool(expect_text(value, wire_type, "ref_attr_name"))
    elif number in (22, 23):
        _read_sparse(expect_bytes(value, wire_type, "attribute sparse_tensor"), budget)
        parts.others.add(AttributeKind.SPARSE_TENSOR if number == 22 else AttributeKind.SPARSE_TENSORS)
    elif number in (14, 15):
        parts.others.add(AttributeKind.TYPE_PROTO if number == 14 else AttributeKind.TYPE_PROTOS)


def _read_tensor(message: memoryview, budget: ElementBudget) -> InlineTensor:
    name = ""
    element_number = n_strings = 0
    dims: list[int] = []
    raw: bytes | None = None
    floats: dict[str, list[np.ndarray]] = {}
    integers: dict[str, list[int]] = {}
    for number, wire_type, value in read_fields(message, budget):
        if number == 1:
            dims.extend(read_varints(value, wire_type, budget, "tensor dims"))
        elif number == 2:
            element_number = expect_varint(value, "tensor data_type")
        elif number in _FLOAT_FIELDS:
            field, dtype = _FLOAT_FIELDS[number]
            floats.setdefault(field, []).append(read_fixed(value, wire_type, dtype, field))
        elif number in _INTEGER_FIELDS:
            field = _INTEGER_FIELDS[number]
            integers.setdefault(field, []).extend(read_varints(value, wire_type, budget, field))
        elif number == 6:
            n_strings += 1
        elif number == 8:
            name = expect_text(value, wire_type, "tensor name")
        elif number == 9:
            raw = bytes(expect_bytes(value, wire_type, "tensor raw_data"))
        elif number == 13 or (number == 14 and value == _EXTERNAL):
            raise CorruptError(
                "the graph refers to a file outside it for the values of a tensor, which is not allowed",
                section=_SECTION,
            )
    return InlineTensor(
        name=name,
        element_number=element_number,
        shape=tuple(dims),
        raw=raw,
        floats={field: np.concatenate(arrays) for field, arrays in floats.items()},
        integers=integers,
        n_strings=n_strings,
    )


def _read_sparse(message: memoryview, budget: ElementBudget) -> str:
    """Check a SparseTensorProto and return the name of its values."""
    name = ""
    for number, wire_type, value in read_fields(message, budget):
        if number == 1:
            name = _read_tensor(expect_bytes(value, wire_type, "sparse values"), budget).name
        elif number == 2:
            _read_tensor(expect_bytes(value, wire_type, "sparse indices"), budget)
    return name


def _read_value(message: memoryview, budget: ElementBudget) -> GraphValue:
    name = ""
    type_parts: list[memoryview] = []
    for number, wire_type, value in read_fields(message, budget):
        if number == 1:
            name = expect_text(value, wire_type, "value name")
        elif number == 2:
            type_parts.append(expect_bytes(value, wire_type, "value type"))
    if not type_parts:
        return GraphValue(name=name, element_number=0, shape=None)
    tensor = _only_field(_joined(type_parts), 1, budget, _read_tensor_type)
    if tensor is None:
        return GraphValue(name=name, element_number=0, shape=None, is_tensor=False)
    return GraphValue(name=name, element_number=tensor[0], shape=tensor[1])


def _only_field(
    message: memoryview,
    wanted: int,
    budget: ElementBudget,
    parse: Callable[[memoryview, ElementBudget], _Parsed],
) -> _Parsed | None:
    """Parse the message in field `wanted`; None if it is absent."""
    parts = [
        expect_bytes(value, wire_type, "value type")
        for number, wire_type, value in read_fields(message, budget)
        if number == wanted
    ]
    return parse(_joined(parts), budget) if parts else None


def _read_tensor_type(
    message: memoryview, budget: ElementBudget
) -> tuple[int, tuple[int | str | None, ...] | None]:
    element_number = 0
    shape_parts: list[memoryview] = []
    for number, wire_type, value in read_fields(message, budget):
        if number == 1:
            element_number = expect_varint(value, "element type")
        elif number == 2:
            shape_parts.append(expect_bytes(value, wire_type, "shape"))
    return element_number, (_read_shape(_joined(shape_parts), budget) if shape_parts else None)


def _read_shape(message: memoryview, budget: ElementBudget) -> tuple[int | str | None, ...]:
    return tuple(
        _read_dimension(expect_bytes(value, wire_type, "dimension"), budget)
        for number, wire_type, value in read_fields(message, budget)
        if number == 1
    )


def _read_dimension(message: memoryview, budget: ElementBudget) -> int | str | None:
    size: int | str | None = None
    for number, wire_type, value in read_fields(message, budget):
        if number == 1:
            size = to_int64(expect_varint(value, "dimension"))
        elif number == 2:
            size = expect_text(value, wire_type, "dimension symbol") or None
    return size if not isinstance(size, int) or size >= 0 else None
