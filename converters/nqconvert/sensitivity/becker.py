"""Second derivatives by backpropagation, layer by layer, without terms between weights."""

from __future__ import annotations

from typing import Any

import numpy as np

from nqconvert.sources.torch_module import evaluation_mode
from nqformat.errors import ConversionError
from nqformat.optional_packages import require_package

from .becker_rules import Step, rule_of
from .calibration import Batch, calibration_batches, has_targets, torch_batch
from .gradients import sensitivity_arrays
from .losses import first_output, output_curvature, sampled_targets
from .settings import SensitivitySettings

__all__ = ["measure_becker"]


def measure_becker(module: Any, calibration: Any, settings: SensitivitySettings) -> dict[str, np.ndarray]:
    """Propagate diagonal second derivatives from the loss to every weight (method ``becker``).

    For y = W x and a = f(y): ``d2L/dy_i^2 = f'(y_i)^2 d2L/da_i^2`` (the term with f'' is dropped, so that
    nothing is negative), ``d2L/dW_ij^2 = sum d2L/dy_i^2 x_j^2`` and ``d2L/dx_j^2 = sum_i W_ij^2
    d2L/dy_i^2``; a convolution sums over its positions. As cheap as a gradient, and deterministic.

    Defined for linear and convolution layers, batch norm, elementwise activations, pooling, sums of two
    branches, padding and reshaping. The module must be traceable by ``torch.fx``. Labels matter only for
    losses other than cross entropy and squared error.

    Raises
    ------
    ConversionError
        If the module cannot be traced or has a layer without a rule; names the layer.

    Source : Becker, LeCun 1988, "Improving the convergence of back-propagation learning with second order
    methods", section 3; Choi, El-Khamy, Lee 2017, section 3.4
    """
    torch = require_package("torch")
    with evaluation_mode(module):
        graph = _traced(module)
        names = {id(parameter): name for name, parameter in module.named_parameters()}
        sums = {
            name: torch.zeros_like(p, requires_grad=False)
            for name, p in module.named_parameters()
            if p.is_floating_point()
        }
        done = 0
        labelled = has_targets(calibration)
        generator = torch.Generator().manual_seed(settings.seed)
        for given in calibration_batches(
            calibration, batch_size=settings.batch_size, samples=settings.samples
        ):
            batch = torch_batch(given, module)
            tape = _Tape(graph, names, sums)
            outputs = tape.forward(batch)
            targets = batch.targets if labelled else None
            if targets is None and settings.loss is not None:
                targets = sampled_targets(outputs, settings, generator)
            tape.backward(output_curvature(outputs, targets, settings))
            done += batch.n_samples
            settings.progress(f"sensitivity: {done} of at most {settings.samples} samples")
    return sensitivity_arrays(sums, done)


def _traced(module: Any) -> Any:
    require_package("torch")
    import torch
    import torch.fx

    if torch.fx.Tracer().is_leaf_module(module, ""):
        module = torch.nn.Sequential(module)  # tracing would look inside a layer that stands alone
    try:
        return torch.fx.symbolic_trace(module)
    except Exception as error:
        raise ConversionError(
            f"'becker' cannot trace {type(module).__name__} ({type(error).__name__}); "
            "use the sensitivity 'fisher'"
        ) from error


class _Tape:
    """Values of one forward pass, and the way back through them."""

    def __init__(self, graph: Any, names: dict[int, str], sums: dict[str, Any]) -> None:
        self._graph = graph
        self._layers = dict(graph.named_modules())
        self._names = names
        self._sums = sums
        self._values: dict[Any, Any] = {}
        self._curvatures: dict[Any, Any] = {}

    def forward(self, batch: Batch) -> Any:
        """Run the traced module and keep every value."""
        import torch
        import torch.fx

        values = self._values

        class Recorder(torch.fx.Interpreter):
            def run_node(self, n: Any) -> Any:
                values[n] = super().run_node(n)
                return values[n]

        arguments = list(batch.args)
        for node in self._graph.graph.nodes:
            if node.op == "placeholder" and node.target in batch.kwargs:
                arguments.append(batch.kwargs[node.target])
        with torch.no_grad():
            return Recorder(self._graph).run(*arguments)

    def backward(self, curvature: Any) -> None:
        """Propagate the curvature of the first output; parameters' shares are added to the sums."""
        import torch

        with torch.no_grad():
            for node in reversed(self._graph.graph.nodes):
                if node.op == "output":
                    self._curvatures[self._output_node(node)] = curvature
                elif node in self._curvatures and node.op not in ("placeholder", "get_attr"):
                    self._step(node, self._curvatures.pop(node))

    def _output_node(self, node: Any) -> Any:
        result = node.args[0]
        while not hasattr(result, "op"):
            result = first_output(result) if hasattr(result, "detach") else next(iter(_values_of(result)))
        return result

    def _step(self, node: Any, curvature: Any) -> None:
        layer = self._layers.get(node.target) if node.op == "call_module" else None
        what = type(layer).__name__ if layer is not None else getattr(node.target, "__name__", node.target)
        rule = rule_of(node, layer)
        if rule is None:
            raise ConversionError(
                f"'becker' has no rule for {what} (node {node.name}); use the sensitivity 'fisher'"
            )
        step = Step(
            node=node,
            layer=layer,
            curvature=curvature,
            output=self._values[node],
            value_of=lambda argument: self._values[argument] if hasattr(argument, "op") else argument,
            add_parameter=self._add_parameter,
        )
        for source, share in rule(step):
            if hasattr(source, "op") and hasattr(self._values.get(source), "is_floating_point"):
                known = self._curvatures.get(source)
                self._curvatures[source] = share if known is None else known + share

    def _add_parameter(self, parameter: Any, share: Any) -> None:
        name = self._names.get(id(parameter))
        if name in self._sums:
            self._sums[name] += share


def _values_of(structure: Any) -> Any:
    return structure.values() if hasattr(structure, "values") else structure
