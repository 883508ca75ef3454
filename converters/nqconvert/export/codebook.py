"""Weights as a table look-up inside the exported graph.

``Cast(indices to int32) -> Gather(codebook)`` gives the decoded weights bit for bit. ONNX Runtime computes it
once, when it loads the model; from then on the model runs like a dense one. Embedding tables are looked up
after the rows are gathered, so that they stay small in memory too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nqconvert.graphs.scope import all_names, count_uses, defined_names, unique_name, walk_graphs
from nqformat import TensorInfo
from nqformat.dtypes import DType
from nqformat.optional_packages import require_package

from .codebook_table import CodebookTable, read_table
from .pending import PendingInitializer, array_initializer, dense_initializer
from .report import ExportedTensor
from .restore import StoredModel, TensorFile

UINT4_OPSET = 21
UINT4_ENTRIES = 16
_UINT4_IR = 10
_NODE_BYTES = 160
_UINT8, _UINT16, _INT32, _UINT4 = 2, 4, 6, 21


@dataclass(frozen=True, slots=True, kw_only=True)
class CodebookPlan:
    """Which tensors of a model become tables.

    Attributes
    ----------
    tables : dict of str to CodebookTable
    reasons : dict of str to str
        Why each other tensor stays dense.
    embeddings : frozenset of str
        Tables that are only ever gathered from.
    """

    tables: dict[str, CodebookTable]
    reasons: dict[str, str]
    embeddings: frozenset[str]

    @property
    def wants_uint4(self) -> bool:
        """Whether some tensor is smaller with 4-bit indices."""
        return any(
            table.n_entries <= UINT4_ENTRIES and name not in self.embeddings
            for name, table in self.tables.items()
        )


@dataclass(slots=True, kw_only=True)
class _Rewrite:
    """A graph while its weights are replaced by look-ups."""

    model: Any
    uint4: bool
    taken: set[str]
    pending: list[PendingInitializer] = field(default_factory=list)
    tensors: list[ExportedTensor] = field(default_factory=list)
    decoders: list[Any] = field(default_factory=list)
    codebooks: dict[tuple[int, bytes], str] = field(default_factory=dict)


def plan_codebooks(file: TensorFile, stored: StoredModel) -> CodebookPlan:
    """Decide which tensors become tables; a table must be smaller than the dense tensor."""
    tables: dict[str, CodebookTable] = {}
    reasons: dict[str, str] = {}
    for info in stored.tensors:
        table = read_table(file, info)
        if isinstance(table, str):
            reasons[info.name] = table
        elif _table_bytes(table) >= info.plain_bytes:
            reasons[info.name] = "a codebook would not be smaller"
        else:
            tables[info.name] = table
    return CodebookPlan(tables=tables, reasons=reasons, embeddings=_embeddings(stored.model.graph, tables))


def apply_codebooks(
    file: TensorFile, infos: tuple[TensorInfo, ...], model: Any, plan: CodebookPlan, *, uint4: bool
) -> tuple[list[PendingInitializer], tuple[ExportedTensor, ...]]:
    """Add the look-ups to `model` and return the initializers that it then needs.

    Parameters
    ----------
    file : TensorFile
    infos : tuple of TensorInfo
    model : onnx.ModelProto
        Changed in place.
    plan : CodebookPlan
    uint4 : bool
        Whether indices below 16 may be stored in 4 bits (opset 21).
    """
    if uint4:
        model.ir_version = max(model.ir_version, _UINT4_IR)
    rewrite = _Rewrite(model=model, uint4=uint4, taken=all_names(model.graph))
    for info in infos:
        table = plan.tables.get(info.name)
        if table is None:
            rewrite.pending.append(dense_initializer(file, info))
            reason = plan.reasons[info.name]
            rewrite.tensors.append(_exported(info, "dense", info.plain_bytes, reason))
        elif info.name in plan.embeddings:
            _add_gathered_lookup(rewrite, info, table)
        else:
            _add_lookup(rewrite, info, table)
    nodes = [*rewrite.decoders, *(_copy(node) for node in model.graph.node)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return rewrite.pending, tuple(rewrite.tensors)


def pack_nibbles(indices: np.ndarray) -> bytes:
    """Pack indices below 16 two to a byte, the first in the low half, as ONNX stores uint4."""
    flat = indices.reshape(-1).astype(np.uint8)
    if flat.size % 2:
        flat = np.append(flat, np.uint8(0))
    return (flat[0::2] | (flat[1::2] << np.uint8(4))).tobytes()


def _add_lookup(rewrite: _Rewrite, info: TensorInfo, table: CodebookTable) -> None:
    """Decode a weight under its own name before all other nodes."""
    name = info.name
    indices = _add_indices(rewrite, info, table, uint4=rewrite.uint4 and table.n_entries <= UINT4_ENTRIES)
    codebook = _add_codebook(rewrite, name, table)
    decoder = _Chain(rewrite, name, indices.name)
    decoder.add("Cast", "index", to=_INT32)
    if table.offsets is not None:
        decoder.add("Add", "place", decoder.constant("group", table.offsets, DType.INT32))
    decoder.add("Gather", "entry", codebook, table_first=True, axis=0)
    if table.columns:
        decoder.reshape("columns", (-1, table.columns))
        decoder.add("Transpose", "rows", perm=[1, 0])
    if table.scales is not None:
        decoder.reshape("blocks", (-1, table.scales.size, table.span))
        decoder.add("Mul", "scaled", decoder.constant("scales", table.scales, DType.FLOAT32))
    if table.shape is not None:
        decoder.reshape("whole", table.shape)
    decoder.end()
    _report_table(rewrite, info, table, indices)


class _Chain:
    """Nodes that decode a weight, one after the other."""

    def __init__(self, rewrite: _Rewrite, name: str, start: str) -> None:
        self._rewrite = rewrite
        self._name = name
        self._last = start
        self._nodes: list[Any] = []

    def add(
        self, op_type: str, label: str, *others: str, table_first: bool = False, **attributes: Any
    ) -> None:
        """Append a node that takes what the last one gave, and others."""
        inputs = [*others, self._last] if table_first else [self._last, *others]
        self._last = unique_name(f"{self._name}.{label}", self._rewrite.taken)
        self._nodes.append(
            require_package("onnx").helper.make_node(op_type, inputs, [self._last], **attributes)
        )

    def constant(self, label: str, array: np.ndarray, dtype: DType) -> str:
        """Add an initializer; return its name."""
        name = unique_name(f"{self._name}.{label}", self._rewrite.taken)
        self._rewrite.pending.append(array_initializer(name, array, dtype))
        return name

    def reshape(self, label: str, shape: tuple[int, ...]) -> None:
        """Append a Reshape."""
        wanted = self.constant(f"{label}.shape", np.array(shape, dtype=np.int64), DType.INT64)
        self.add("Reshape", label, wanted)

    def end(self) -> None:
        """Let the last node give the weight."""
        self._nodes[-1].output[0] = self._name
        self._rewrite.decoders.extend(self._nodes)


def _add_gathered_lookup(rewrite: _Rewrite, info: TensorInfo, table: CodebookTable) -> None:
    """Gather rows of indices first, then look up the values of those rows only."""
    indices = _add_indices(rewrite, info, table, uint4=False)
    codebook = _add_codebook(rewrite, info.name, table)
    helper = require_package("onnx").helper
    for graph in walk_graphs(rewrite.model.graph):
        nodes = []
        for node in graph.node:
            nodes.append(_copy(node))
            if not node.input or node.input[0] != info.name:
                continue
            rows = unique_name(f"{info.name}.rows", rewrite.taken)
            wide = unique_name(f"{info.name}.index", rewrite.taken)
            nodes[-1].input[0], nodes[-1].output[0] = indices.name, rows
            nodes.append(helper.make_node("Cast", [rows], [wide], to=_INT32))
            nodes.append(helper.make_node("Gather", [codebook, wide], [node.output[0]], axis=0))
        if len(nodes) > len(graph.node):
            del graph.node[:]
            graph.node.extend(nodes)
    _report_table(rewrite, info, table, indices)


def _add_indices(
    rewrite: _Rewrite, info: TensorInfo, table: CodebookTable, *, uint4: bool
) -> PendingInitializer:
    """Add the initializer with the indices of a tensor."""
    n_bytes, data_type = table.indices.nbytes, _UINT8 if table.indices.itemsize == 1 else _UINT16
    if uint4:
        n_bytes, data_type = (table.indices.size + 1) // 2, _UINT4
    pending = PendingInitializer(
        name=unique_name(f"{info.name}.indices", rewrite.taken),
        data_type=data_type,
        shape=table.indices.shape,
        n_bytes=n_bytes,
        read=lambda: pack_nibbles(table.indices) if uint4 else table.indices.tobytes(),
    )
    rewrite.pending.append(pending)
    return pending


def _add_codebook(rewrite: _Rewrite, tensor_name: str, table: CodebookTable) -> str:
    """Add the initializer with the table's entries, shared by tensors with the same ones; return its name."""
    key = (int(table.dtype), table.entries.tobytes())
    if key not in rewrite.codebooks:
        rewrite.codebooks[key] = unique_name(f"{tensor_name}.codebook", rewrite.taken)
        rewrite.pending.append(array_initializer(rewrite.codebooks[key], table.entries, table.dtype))
    return rewrite.codebooks[key]


def _report_table(
    rewrite: _Rewrite, info: TensorInfo, table: CodebookTable, indices: PendingInitializer
) -> None:
    """Note how a tensor was exported."""
    label = {_UINT4: "uint4", _UINT8: "uint8", _UINT16: "uint16"}[indices.data_type]
    n_bytes = indices.n_bytes + table.side_bytes
    rewrite.tensors.append(_exported(info, f"codebook {label}", n_bytes))


def _exported(info: TensorInfo, form: str, stored_bytes: int, reason: str = "") -> ExportedTensor:
    """Make the report line of one tensor."""
    return ExportedTensor(
        name=info.name, form=form, stored_bytes=stored_bytes, dense_bytes=info.plain_bytes, reason=reason
    )


def _table_bytes(table: CodebookTable) -> int:
    """Return the bytes of a table in the model, nodes included, with the widest indices it may get."""
    n_nodes = 1 + (table.offsets is not None) + 2 * (table.scales is not None) + 2 * bool(table.columns)
    return table.indices.nbytes + table.side_bytes + _NODE_BYTES * n_nodes


def _embeddings(graph: Any, tables: Mapping[str, CodebookTable]) -> frozenset[str]:
    """Return the tables whose only consumers are Gather nodes that take rows of them."""
    gathered: dict[str, int] = {}
    hidden: set[str] = set()
    for scope in walk_graphs(graph):
        for name in _gathered_names(scope):
            gathered[name] = gathered.get(name, 0) + 1
        hidden.update(set(defined_names(scope)) & set(tables))
    uses = count_uses(graph)
    plain = [name for name, table in tables.items() if table.shape is None]
    return frozenset(name for name in plain if gathered.get(name, 0) == uses[name] and name not in hidden)


def _gathered_names(graph: Any) -> Iterator[str]:
    """Yield what the Gather nodes of one graph take their rows from."""
    for node in graph.node:
        if node.op_type == "Gather" and node.domain in ("", "ai.onnx"):
            yield node.input[0]


def _copy(message: Any) -> Any:
    """Return an independent copy of a protobuf message."""
    copy = type(message)()
    copy.CopyFrom(message)
    return copy
