"""An ONNX graph as a differentiable function of its tensors, run by PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from nqformat.errors import ConversionError
from nqformat.optional_packages import require_package

from .scope import node_attributes

__all__ = ["TorchGraph", "UnsupportedOperatorError"]


class UnsupportedOperatorError(ConversionError):
    """The graph holds an operator without a differentiable counterpart here."""


class TorchGraph:
    """Runs a graph node by node on torch tensors, so that any value in it has a gradient.

    The operators are those of convolutional, recurrent-free and transformer networks; subgraphs are not run.

    Parameters
    ----------
    graph : bytes
        ONNX ModelProto whose large tensors may be missing from its initializers.
    """

    def __init__(self, graph: bytes) -> None:
        from .torch_operators import OPERATORS

        onnx = require_package("onnx")
        model = onnx.ModelProto.FromString(graph)
        self._nodes = list(model.graph.node)
        self._opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=1)
        inline = [i for i in model.graph.initializer if i.raw_data or _has_data(i)]
        self._inline = {i.name: torch_tensor(onnx.numpy_helper.to_array(i)) for i in inline}
        self.input_names = tuple(v.name for v in model.graph.input if v.name not in self._inline)
        self.output_names = tuple(v.name for v in model.graph.output)
        self._calls: list[Callable[..., Any]] = []
        for node in self._nodes:
            if node.domain not in ("", "ai.onnx") or node.op_type not in OPERATORS:
                raise UnsupportedOperatorError(f"operator {node.op_type!r} has no gradient here")
            self._calls.append(OPERATORS[node.op_type])
        self._attributes = [node_attributes(node) for node in self._nodes]
        self._last_use = self._last_uses()

    def run(
        self,
        feeds: Mapping[str, Any],
        tensors: Mapping[str, Any],
        *,
        watch: Collection[str] = (),
        replace: Callable[[str, Any], Any] | None = None,
    ) -> dict[str, Any]:
        """Compute outputs and watched values.

        Parameters
        ----------
        feeds, tensors : mapping of str to torch.Tensor
            Inputs and weights.
        watch : collection of str
            Further values wanted.
        replace : callable, optional
            ``replace(name, value)`` may put another tensor in place of each computed value.

        Returns
        -------
        dict of str to torch.Tensor
            Outputs and watched values by name.
        """
        values: dict[str, Any] = {**self._inline, **tensors, **feeds}
        wanted = {*watch, *self.output_names}
        for place, node in enumerate(self._nodes):
            inputs = [values[name] if name else None for name in node.input]
            made = self._calls[place](inputs, self._attributes[place], len(node.output), self._opset)
            results = made if isinstance(made, tuple | list) else (made,)
            for name, value in zip(node.output, results, strict=False):
                values[name] = value if replace is None else replace(name, value)
            for name in node.input:
                if self._last_use.get(name) == place and name not in wanted:
                    values.pop(name, None)
        return {name: values[name] for name in wanted}

    def fitting_samples(
        self, feeds: Mapping[str, np.ndarray], tensors: Mapping[str, np.ndarray], most_values: int
    ) -> int:
        """Return how many samples have at most so many elements in all values of the graph; at least 1.

        Parameters
        ----------
        feeds, tensors : mapping of str to ndarray
            Inputs, of which axis 0 counts samples, and weights.
        most_values : int
        """
        torch = require_package("torch")
        n_values = 0

        def counted(name: str, value: Any) -> Any:
            nonlocal n_values
            n_values += value.numel()
            return value

        with torch.no_grad():
            self.run(
                {name: torch_tensor(array) for name, array in feeds.items()},
                {name: torch_tensor(array) for name, array in tensors.items()},
                replace=counted,
            )
        n_samples = len(next(iter(feeds.values())))
        return max(1, most_values * n_samples // max(1, n_values))

    def _last_uses(self) -> dict[str, int]:
        return {name: place for place, node in enumerate(self._nodes) for name in node.input if name}


def _has_data(initializer: Any) -> bool:
    fields = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")
    return any(len(getattr(initializer, field)) for field in fields) or 0 in initializer.dims


def torch_tensor(array: np.ndarray) -> Any:
    """Return an array as a torch tensor that shares its memory, or of a copy if it must not be written."""
    import torch

    return torch.from_numpy(array if array.flags.writeable else np.array(array))
