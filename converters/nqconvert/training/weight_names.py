"""Which parameters of a module are weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nqformat.optional_packages import require_package

if TYPE_CHECKING:
    import torch

__all__ = ["checked_names", "prunable_weights", "vectors", "weights_of_all_layers"]


def prunable_weights(module: torch.nn.Module) -> list[str]:
    """Return the parameter names of all linear and convolution weights, in the module's order.

    A weight that several layers share is listed once.

    Examples
    --------
    >>> import torch
    >>> prunable_weights(torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2)))
    ['0.weight']
    """
    torch = require_package("torch")
    kinds = (torch.nn.Linear, torch.nn.modules.conv._ConvNd)
    weights = {id(layer.weight) for layer in module.modules() if isinstance(layer, kinds)}
    return [name for name, parameter in module.named_parameters() if id(parameter) in weights]


def weights_of_all_layers(module: torch.nn.Module) -> list[str]:
    """Return the names of all weights, embeddings and recurrent ones included, in the module's order.

    Those are the floating-point parameters of which at least two axes are longer than 1.

    Examples
    --------
    >>> import torch
    >>> weights_of_all_layers(torch.nn.Sequential(torch.nn.Embedding(9, 4), torch.nn.LayerNorm(4)))
    ['0.weight']
    """
    return [name for name, parameter in module.named_parameters() if _is_matrix(parameter)]


def vectors(module: torch.nn.Module) -> list[str]:
    """Return the names of the other floating-point parameters: biases, norms, single factors."""
    named = module.named_parameters()
    return [name for name, value in named if value.is_floating_point() and not _is_matrix(value)]


def _is_matrix(parameter: torch.Tensor) -> bool:
    return parameter.is_floating_point() and sum(length > 1 for length in parameter.shape) > 1


def checked_names(module: torch.nn.Module, parameters: Sequence[str] | None) -> list[str]:
    """Return `parameters`, or :func:`prunable_weights` if None.

    Raises
    ------
    ValueError
        If there is none, or one is no parameter of the module.
    """
    names = prunable_weights(module) if parameters is None else list(parameters)
    known = dict(module.named_parameters(remove_duplicate=False))
    for name in names:
        if name not in known:
            raise ValueError(f"parameters names {name!r}, which is no parameter of the module")
    if not names:
        raise ValueError("the module has no linear or convolution weights to prune")
    return names
