"""What the session needs of an engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from nqformat.limits import Limits
from nqruntime.graph import Model, Node


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """Settings of a session that engines follow.

    Attributes
    ----------
    threads : int or None
        Threads for one run; None leaves the choice to the engine.
    memory : {"default", "low"}
    limits : Limits
    precision : {"float32", "int8"}
        ``int8`` lets layers round their inputs to bytes where that is faster.
    """

    threads: int | None
    memory: str
    limits: Limits
    precision: str = "float32"


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelChoice:
    """How one node runs.

    Attributes
    ----------
    node : str
        Place in the graph and first output, such as ``"#3 conv1"``.
    operator : str
    kernel : str
        What computes it.
    reason : str
        Why the native engine does not run it, or an empty string.
    seconds : float or None
        Shortest time of one run; None if it was not timed, or runs as a part of another node.
    weight_bytes : int
        Held for its weights; 0 if another node holds them.
    """

    node: str
    operator: str
    kernel: str
    reason: str = ""
    seconds: float | None = None
    weight_bytes: int = 0

    def __str__(self) -> str:
        """Return one line for people."""
        text = f"{self.node}: {self.operator}, {self.kernel}"
        return f"{text} ({self.reason})" if self.reason else text


class Engine(Protocol):
    """A graph that is ready to run; `run` may be called from several threads at once."""

    name: str

    @property
    def weight_bytes(self) -> int:
        """Bytes held for weights."""
        ...

    def run(self, output_names: Sequence[str], feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Compute the named outputs from checked inputs."""
        ...

    def explain(self, feeds: Mapping[str, np.ndarray] | None = None) -> list[KernelChoice]:
        """Say for each node how it runs; with inputs, also how long it takes on them, if that is known."""
        ...

    def close(self) -> None:
        """Release what the engine holds."""
        ...


def node_label(index: int, node: Node) -> str:
    """Name a node by its place and its own name or first output."""
    outputs = [name for name in node.outputs if name]
    return f"#{index} {node.name or (outputs[0] if outputs else '')}".rstrip()


def operator_label(node: Node) -> str:
    """Name a node's operator with its domain, if that is not ONNX's own."""
    return f"{node.domain}::{node.op_type}" if node.domain else node.op_type


def explain_nodes(model: Model, kernel: str, reasons: Mapping[int, str]) -> list[KernelChoice]:
    """Give every node of the main graph the same kernel."""
    return [
        KernelChoice(
            node=node_label(i, node),
            operator=operator_label(node),
            kernel=kernel,
            reason=reasons.get(i, ""),
        )
        for i, node in enumerate(model.graph.nodes)
    ]
