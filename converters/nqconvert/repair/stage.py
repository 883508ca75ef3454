"""The stage behind quantization: all repairs that the settings ask for, in their order."""

from __future__ import annotations

from collections.abc import Mapping

from nqconvert.graphs.torch_graph import TorchGraph, UnsupportedOperatorError
from nqformat.errors import MissingDependencyError
from nqformat.optional_packages import require_package
from nqformat.tensor import Tensor

from .float_network import FloatNetwork
from .settings import RepairSettings

__all__ = ["repaired_tensors"]


def repaired_tensors(
    tensors: Mapping[str, Tensor], network: FloatNetwork, settings: RepairSettings
) -> tuple[Mapping[str, Tensor], tuple[str, ...]]:
    """Repair a quantized network on its calibration inputs.

    Without torch, or where an operator of the graph has no gradient here, nothing is repaired.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        Quantized, by stored name.
    network : FloatNetwork
    settings : RepairSettings

    Returns
    -------
    (tensors, what to tell the user)
    """
    if not settings.any_wanted:
        return tensors, ()
    assert network.source.graph is not None
    try:
        require_package("torch")
        graph = TorchGraph(network.source.graph)
    except (MissingDependencyError, UnsupportedOperatorError) as error:
        return tensors, (f"no repairs after quantization: {error}",)
    from .distillation import distil
    from .layer_outputs import match_outputs

    made, notes = match_outputs(tensors, network, graph, settings)
    if settings.distillation != "none":
        made, note = distil(made, network, graph, settings)
        notes = (*notes, note)
    return made, notes
