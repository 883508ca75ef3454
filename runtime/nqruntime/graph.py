"""A network as nodes and names: what the graph of a .nqz file becomes once it is read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TypeAlias

import numpy as np

from .inline_tensor import InlineTensor


class AttributeKind(IntEnum):
    """ONNX's AttributeProto.AttributeType."""

    FLOAT = 1
    INT = 2
    STRING = 3
    TENSOR = 4
    GRAPH = 5
    FLOATS = 6
    INTS = 7
    STRINGS = 8
    TENSORS = 9
    GRAPHS = 10
    SPARSE_TENSOR = 11
    SPARSE_TENSORS = 12
    TYPE_PROTO = 13
    TYPE_PROTOS = 14


AttributeValue: TypeAlias = (
    "float | int | bytes | InlineTensor | Graph | np.ndarray | tuple[int, ...] | tuple[bytes, ...]"
    " | tuple[InlineTensor, ...] | tuple[Graph, ...] | None"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribute:
    """A node's attribute.

    Attributes
    ----------
    name : str
    kind : AttributeKind
    value : float, int, bytes, InlineTensor, Graph, ndarray of float32 (FLOATS), a tuple of them, or None
        None for kinds that hold sparse tensors or types, which nothing here computes with, and for
        attributes of a model-local function that refer to the caller's.
    """

    name: str
    kind: AttributeKind
    value: AttributeValue


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One operator call; an empty input or output name means that it is left out."""

    op_type: str
    domain: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Attribute]

    @property
    def subgraphs(self) -> Iterator[Graph]:
        """Graphs in the node's attributes."""
        for attribute in self.attributes.values():
            if isinstance(attribute.value, Graph):
                yield attribute.value
            elif isinstance(attribute.value, tuple):
                yield from (value for value in attribute.value if isinstance(value, Graph))


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphValue:
    """A declared input or output.

    Attributes
    ----------
    name : str
    element_number : int
        ONNX number of the element type; 0 if undeclared.
    shape : tuple of (int, str or None), or None
        A fixed size, a symbol, or an unknown size for each dimension; None if even the rank is unknown.
    is_tensor : bool
        False for sequences, maps, optional and sparse values.
    """

    name: str
    element_number: int
    shape: tuple[int | str | None, ...] | None
    is_tensor: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """Nodes in the order of computation, with the values they start from and end in.

    Attributes
    ----------
    initializers : dict of str to InlineTensor
    sparse_initializers : tuple of str
        Names of initializers in ONNX's own sparse form.
    """

    nodes: tuple[Node, ...]
    inputs: tuple[GraphValue, ...]
    outputs: tuple[GraphValue, ...]
    initializers: dict[str, InlineTensor]
    sparse_initializers: tuple[str, ...] = ()

    @property
    def defined_names(self) -> set[str]:
        """Names that the graph itself gives a value, nested graphs left out."""
        names = {value.name for value in self.inputs}
        names.update(self.initializers, self.sparse_initializers)
        for node in self.nodes:
            names.update(node.outputs)
        return names

    @property
    def free_names(self) -> tuple[str, ...]:
        """Names that the graph reads, also inside nested graphs, and does not define, in order of first use.

        For the main graph of a .nqz file these are the names of its tensors.
        """
        found: dict[str, None] = {}
        for node in self.nodes:
            found.update(dict.fromkeys(node.inputs))
            for body in node.subgraphs:
                found.update(dict.fromkeys(body.free_names))
        found.update(dict.fromkeys(value.name for value in self.outputs))
        defined = self.defined_names
        return tuple(name for name in found if name and name not in defined)


@dataclass(frozen=True, slots=True, kw_only=True)
class Function:
    """A model-local function, of which only the nodes are read."""

    name: str
    domain: str
    nodes: tuple[Node, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A graph with the versions it is written for.

    Attributes
    ----------
    ir_version : int
    opsets : dict of str to int
        Version of each imported operator domain; ONNX's own domain is the empty string.
    """

    graph: Graph
    ir_version: int
    opsets: dict[str, int]
    functions: tuple[Function, ...] = field(default=())

    @property
    def opset(self) -> int:
        """Version of ONNX's own operators; 0 if the model imports none."""
        return self.opsets.get("", 0)
