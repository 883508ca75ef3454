"""An ONNX graph in stretches that ONNX Runtime runs one after the other, with changing tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nqformat.dtypes import dtype_of
from nqformat.optional_packages import require_package

from .onnx_tensor import ONNX_OF_DTYPE
from .ort_session import open_session, run_session
from .scope import free_names, node_subgraphs

__all__ = ["Stretches"]


@dataclass(slots=True, kw_only=True)
class _Stretch:
    """Nodes that follow one another.

    Attributes
    ----------
    nodes : list of NodeProto
    reads : tuple of str
        Values and tensors that the nodes take from outside.
    makes : tuple of str
        Values of the nodes that are needed later.
    keeps : frozenset of str
        All values that are needed later.
    session : onnxruntime.InferenceSession or None
        From the first run until it is closed.
    """

    nodes: list[Any]
    reads: tuple[str, ...]
    makes: tuple[str, ...]
    keeps: frozenset[str]
    session: Any = None


class Stretches:
    """Runs a graph a stretch at a time; between stretches only values that are still needed exist.

    Parameters
    ----------
    model : onnx.ModelProto
        Without its large tensors.
    tensors : iterable of str
        Names of these.
    cuts : sequence of str
        Values of the graph: a stretch begins with each node that makes one of them.

    Examples
    --------
    >>> from onnx import TensorProto, helper
    >>> nodes = [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("MatMul", ["a", "w"], ["y"])]
    >>> x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in "xy")
    >>> graph, opset = helper.make_graph(nodes, "g", [x], [y]), helper.make_opsetid("", 17)
    >>> model = helper.make_model(graph, opset_imports=[opset], ir_version=8)
    >>> stretches = Stretches(model, ["w"], ["y"])
    >>> values = stretches.run(0, {"x": np.float32([[-1, 2]])}, {})
    >>> values
    {'a': array([[0., 2.]], dtype=float32)}
    >>> stretches.needed_after(0)
    frozenset({'a'})
    >>> stretches.run(1, values, {"w": np.eye(2, dtype=np.float32)})["y"]
    array([[0., 2.]], dtype=float32)
    """

    def __init__(self, model: Any, tensors: Iterable[str], cuts: Sequence[str]) -> None:
        self._model = model
        self._inline = {tensor.name: tensor for tensor in model.graph.initializer}
        self._stretches = self._cut({*tensors, *self._inline}, frozenset(cuts))

    def __len__(self) -> int:
        return len(self._stretches)

    def run(
        self, number: int, values: Mapping[str, np.ndarray], tensors: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """Return what a stretch makes of the values that later stretches need.

        Parameters
        ----------
        number : int
        values : mapping of str to ndarray
            The graph's inputs and what stretches before returned; only what the nodes read is looked at.
        tensors : mapping of str to ndarray

        Raises
        ------
        ConversionError
            If ONNX Runtime cannot run the nodes.
        """
        stretch = self._stretches[number]
        feeds = {name: values[name] if name in values else tensors[name] for name in stretch.reads}
        if not stretch.makes:
            return {}
        if stretch.session is None:
            stretch.session = self._session(stretch, feeds)
        return dict(zip(stretch.makes, run_session(stretch.session, feeds), strict=True))

    def needed_after(self, number: int) -> frozenset[str]:
        """Return the values, made in this stretch or before, that later ones or the caller need."""
        return self._stretches[number].keeps

    def close(self, number: int) -> None:
        """Give back what a stretch's session holds of memory; another run would open it again."""
        self._stretches[number].session = None

    def _cut(self, fixed: set[str], cuts: frozenset[str]) -> list[_Stretch]:
        parts: list[list[Any]] = [[]]
        for node in self._model.graph.node:
            if cuts.intersection(node.output):
                parts.append([])
            parts[-1].append(node)
        needed = frozenset(value.name for value in self._model.graph.output) - fixed
        found = []
        for nodes in reversed(parts):
            made = list(dict.fromkeys(name for node in nodes for name in node.output if name))
            read = list(dict.fromkeys(name for node in nodes for name in _reads(node)))
            makes = tuple(name for name in made if name in needed)
            reads = tuple(name for name in read if name not in made and name not in self._inline)
            found.append(_Stretch(nodes=nodes, reads=reads, makes=makes, keeps=needed))
            needed = (needed - set(made)) | (frozenset(reads) - fixed)
        return found[::-1]

    def _session(self, stretch: _Stretch, feeds: Mapping[str, np.ndarray]) -> Any:
        """Open a session that takes tensors like any value, so that they may change."""
        onnx = require_package("onnx")
        model = onnx.ModelProto(ir_version=self._model.ir_version)
        model.opset_import.extend(self._model.opset_import)
        model.functions.extend(self._model.functions)
        graph = model.graph
        graph.name = "stretch"
        graph.node.extend(stretch.nodes)
        read = {name for node in stretch.nodes for name in _reads(node)}
        graph.initializer.extend(tensor for name, tensor in self._inline.items() if name in read)
        for name, value in feeds.items():
            kind = ONNX_OF_DTYPE[dtype_of(value)]
            graph.input.append(onnx.helper.make_tensor_value_info(name, kind, None))
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in stretch.makes)
        return open_session(model.SerializeToString())


def _reads(node: Any) -> list[str]:
    """Return what a node and the graphs in it take from outside of them."""
    inner = [name for body in node_subgraphs(node) for name in free_names(body)]
    return [name for name in (*node.input, *inner) if name]
