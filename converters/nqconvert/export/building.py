"""A graph while its weights are replaced by nodes that decode them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nqconvert.graphs.onnx_tensor import ONNX_OF_DTYPE
from nqconvert.graphs.scope import all_names, short_names, unique_name, walk_graphs
from nqformat.dtypes import DType
from nqformat.optional_packages import require_package

from .pending import PendingInitializer, array_initializer, integers_initializer

UINT2_OPSET, UINT4_OPSET = 25, 21
NODE_BYTES = 40
"""About what one more node takes in a model file, or one more initializer without its content."""

_LOWEST_IR = {UINT4_OPSET: 10, UINT2_OPSET: 13}
_UINT8, _INT8, _UINT16, _INT16, _INT32, _INT64, _UINT4, _INT4, _UINT2 = 2, 3, 4, 5, 6, 7, 21, 22, 25


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedType:
    """An ONNX integer type of 2 to 16 bits.

    Attributes
    ----------
    label : str
    data_type : int
        TensorProto.DataType number.
    bits : int
    lowest, highest : int
    opset : int
        First opset whose Cast and DequantizeLinear take it.
    """

    label: str
    data_type: int
    bits: int
    lowest: int
    highest: int
    opset: int

    def n_bytes(self, n_elements: int) -> int:
        """Bytes of so many elements in ``raw_data``."""
        return -(-n_elements * self.bits // 8)

    def pack(self, values: np.ndarray) -> bytes:
        """Return the ``raw_data`` of integers; of those that share a byte the first is in the low bits."""
        if self.bits >= 8:
            kind = "i" if self.lowest < 0 else "u"
            return values.astype(f"<{kind}{self.bits // 8}").tobytes()
        return pack_bits(values, self.bits)


UINT2 = PackedType(label="uint2", data_type=_UINT2, bits=2, lowest=0, highest=3, opset=UINT2_OPSET)
UINT4 = PackedType(label="uint4", data_type=_UINT4, bits=4, lowest=0, highest=15, opset=UINT4_OPSET)
INT4 = PackedType(label="int4", data_type=_INT4, bits=4, lowest=-8, highest=7, opset=UINT4_OPSET)
UINT8 = PackedType(label="uint8", data_type=_UINT8, bits=8, lowest=0, highest=255, opset=13)
INT8 = PackedType(label="int8", data_type=_INT8, bits=8, lowest=-128, highest=127, opset=13)
UINT16 = PackedType(label="uint16", data_type=_UINT16, bits=16, lowest=0, highest=65535, opset=13)
INT16 = PackedType(
    label="int16", data_type=_INT16, bits=16, lowest=-(1 << 15), highest=(1 << 15) - 1, opset=21
)


def pack_bits(values: np.ndarray, bits: int) -> bytes:
    """Pack the low `bits` (2 or 4) of integers, the first of a byte in its low bits, zeros at the end."""
    per_byte = 8 // bits
    flat = values.reshape(-1).astype(np.int8).view(np.uint8) & np.uint8((1 << bits) - 1)
    flat = np.append(flat, np.zeros(-flat.size % per_byte, dtype=np.uint8))
    packed = np.zeros(flat.size // per_byte, dtype=np.uint8)
    for place in range(per_byte):
        packed |= flat[place::per_byte] << np.uint8(bits * place)
    return packed.tobytes()


def index_type(n_entries: int, opset: int, *, gathered: bool = False) -> PackedType:
    """Return the narrowest type for indices below `n_entries`; Gather takes rows of whole bytes only."""
    narrow = () if gathered else (UINT2, UINT4)
    for kind in (*narrow, UINT8):
        if n_entries <= kind.highest + 1 and kind.opset <= opset:
            return kind
    return UINT16


@dataclass(slots=True, kw_only=True)
class GraphRewrite:
    """A graph while its weights are replaced.

    Attributes
    ----------
    model : onnx.ModelProto
        Changed in place.
    opset : int
    taken : set of str
        Names that are in use.
    pending : list of PendingInitializer
    decoders : list of onnx.NodeProto
        Nodes that come before all others.
    """

    model: Any
    opset: int
    taken: set[str]
    pending: list[PendingInitializer] = field(default_factory=list)
    decoders: list[Any] = field(default_factory=list)
    _shared: dict[tuple[int, tuple[int, ...], bytes], str] = field(default_factory=dict)
    _short: Iterator[str] = field(init=False)

    def __post_init__(self) -> None:
        """Look for short names among those that are free."""
        self._short = short_names(self.taken)

    @classmethod
    def of(cls, model: Any, opset: int) -> GraphRewrite:
        """Start with a model at that opset."""
        return cls(model=model, opset=opset, taken=all_names(model.graph))

    def finish(self) -> None:
        """Put the decoding nodes before the others."""
        nodes = [*self.decoders, *(copy_of(node) for node in self.model.graph.node)]
        del self.model.graph.node[:]
        self.model.graph.node.extend(nodes)

    def name(self, wanted: str = "") -> str:
        """Return an unused name like `wanted`, or the shortest that there is."""
        name = unique_name(wanted, self.taken) if wanted else next(self._short)
        self.taken.add(name)
        return name

    def add_array(self, array: np.ndarray, dtype: DType, *, name: str = "") -> str:
        """Add an initializer of storage bits, shared by all that want the same one; return its name."""
        key = (ONNX_OF_DTYPE[dtype], array.shape, array.tobytes())
        if key not in self._shared:
            self._shared[key] = self.name(name)
            self.pending.append(array_initializer(self._shared[key], array, dtype))
        return self._shared[key]

    def add_integers(self, values: tuple[int, ...]) -> str:
        """Add a short vector of int64, shared by all that want the same one; return its name."""
        key = (_INT64, (len(values),), repr(values).encode())
        if key not in self._shared:
            self._shared[key] = self.name()
            self.pending.append(integers_initializer(self._shared[key], values))
        return self._shared[key]

    def add_packed(self, values: np.ndarray, kind: PackedType, *, name: str = "") -> str:
        """Add an initializer of narrow integers; return its name."""
        if kind.opset in _LOWEST_IR:
            self.model.ir_version = max(self.model.ir_version, _LOWEST_IR[kind.opset])
        made = self.name(name)
        self.pending.append(
            PendingInitializer(
                name=made,
                data_type=kind.data_type,
                shape=values.shape,
                n_bytes=kind.n_bytes(values.size),
                read=lambda: kind.pack(values),
            )
        )
        return made

    def import_domain(self, domain: str, version: int) -> None:
        """Import a domain of operators."""
        if all(opset.domain != domain for opset in self.model.opset_import):
            opset = self.model.opset_import.add()
            opset.domain, opset.version = domain, version

    def after_gathers(self, name: str, source: str, decode: Any) -> None:
        """Let all Gather nodes that take rows of `name` take them of `source`, and decode these rows.

        Parameters
        ----------
        decode : callable
            Takes the name of the gathered rows and the name that the decoded ones must have; returns nodes.
        """
        for graph in walk_graphs(self.model.graph):
            nodes = []
            for node in graph.node:
                nodes.append(copy_of(node))
                if is_gather_of(node, name):
                    rows = self.name()
                    nodes[-1].input[0], nodes[-1].output[0] = source, rows
                    nodes += decode(rows, node.output[0])
            if len(nodes) > len(graph.node):
                del graph.node[:]
                graph.node.extend(nodes)


class Chain:
    """Nodes that decode a weight, one after the other.

    Parameters
    ----------
    rewrite : GraphRewrite
    start : str
        Value that the first node takes.
    """

    def __init__(self, rewrite: GraphRewrite, start: str) -> None:
        self._rewrite = rewrite
        self.value = start
        self.nodes: list[Any] = []

    def add(self, op_type: str, *others: str, table_first: bool = False, **attributes: Any) -> str:
        """Append a node that takes what the last one gave, and others; return the name of what it gives."""
        inputs = [*others, self.value] if table_first else [self.value, *others]
        self.value = self._rewrite.name()
        self.nodes.append(make_node(op_type, inputs, self.value, **attributes))
        return self.value

    def constant(self, array: np.ndarray, dtype: DType) -> str:
        """Add an initializer; return its name."""
        return self._rewrite.add_array(array, dtype)

    def integers(self, values: tuple[int, ...]) -> str:
        """Add a vector of int64; return its name."""
        return self._rewrite.add_integers(values)

    def reshape(self, shape: tuple[int, ...]) -> None:
        """Append a Reshape."""
        self.add("Reshape", self.integers(shape))

    def end(self, name: str) -> None:
        """Let the last node give `name`, and put all before the other nodes of the graph."""
        self.name_last(name)
        self._rewrite.decoders.extend(self.nodes)

    def name_last(self, name: str) -> None:
        """Let the last node give `name`."""
        self.nodes[-1].output[0] = name
        self.value = name


def make_node(op_type: str, inputs: list[str], output: str, **attributes: Any) -> Any:
    """Return a NodeProto with one output."""
    return require_package("onnx").helper.make_node(op_type, inputs, [output], **attributes)


def is_gather_of(node: Any, name: str) -> bool:
    """Tell whether a node is a Gather of rows of `name`."""
    if node.op_type != "Gather" or node.domain not in ("", "ai.onnx") or node.input[0] != name:
        return False
    return all(attribute.name != "axis" or attribute.i == 0 for attribute in node.attribute)


def copy_of(message: Any) -> Any:
    """Return an independent copy of a protobuf message."""
    copy = type(message)()
    copy.CopyFrom(message)
    return copy
