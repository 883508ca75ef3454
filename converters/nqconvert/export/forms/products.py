"""Products that take a weight."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nqconvert.graphs.scope import node_attributes, walk_graphs

__all__ = ["products_of"]


def products_of(graph: Any, name: str) -> Iterator[bool]:
    """Yield, for each plain product whose second factor a tensor is, whether it is taken transposed.

    Plain are MatMul, and Gemm that neither scales nor transposes its input.
    """
    for scope in walk_graphs(graph):
        for node in scope.node:
            if node.domain not in ("", "ai.onnx") or list(node.input[1:2]) != [name]:
                continue
            if node.op_type == "MatMul":
                yield False
            elif node.op_type == "Gemm":
                attributes = {"alpha": 1.0, "beta": 1.0, "transA": 0, **node_attributes(node)}
                if (attributes["alpha"], attributes["beta"], attributes["transA"]) == (1.0, 1.0, 0):
                    yield bool(attributes.get("transB", 0))
