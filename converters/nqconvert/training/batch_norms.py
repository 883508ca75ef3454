"""Batch norms of a module, folded into the layers before them."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from nqformat.optional_packages import require_package

if TYPE_CHECKING:
    import torch

__all__ = ["fold_batch_norms"]


def fold_batch_norms(module: torch.nn.Module) -> tuple[torch.nn.Module, tuple[str, ...]]:
    """Return a copy of `module` whose batch norms are part of the convolution or linear layer before them.

    Exporters fold them, too, and would take weights off the grid or the shared values that training gave
    them; so fold before such training. Outputs in evaluation mode stay the same up to rounding; in training
    mode there are no statistics of batches any more.

    Parameters
    ----------
    module : torch.nn.Module

    Returns
    -------
    (torch.nn.Module, tuple of str)
        The copy, with identities in the place of folded norms, and the names of the layers that took one.
        A norm stays where torch.fx cannot trace the module, where its layer feeds something else as well, and
        where either is used twice or shares its weight.

    Examples
    --------
    >>> import torch
    >>> layers = [torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU()]
    >>> small, folded = fold_batch_norms(torch.nn.Sequential(*layers))
    >>> folded, type(small[1]).__name__
    (('0',), 'Identity')
    """
    torch = require_package("torch")
    from torch.nn.utils import fusion

    copied = copy.deepcopy(module)
    folded = []
    for layer_name, norm_name in _pairs(copied):
        layer, norm = copied.get_submodule(layer_name), copied.get_submodule(norm_name)
        was_training = layer.training
        if isinstance(layer, torch.nn.Linear):
            fused = fusion.fuse_linear_bn_eval(layer.eval(), norm.eval())
        else:
            transposed = isinstance(layer, torch.nn.modules.conv._ConvTransposeNd)
            fused = fusion.fuse_conv_bn_eval(layer.eval(), norm.eval(), transpose=transposed)
        _replace(copied, layer_name, fused.train(was_training))
        _replace(copied, norm_name, torch.nn.Identity().train(was_training))
        folded.append(layer_name)
    return copied, tuple(folded)


def _replace(module: torch.nn.Module, name: str, part: torch.nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(module.get_submodule(parent), own, part)


def _pairs(module: torch.nn.Module) -> list[tuple[str, str]]:
    """Return the names of layers and of the batch norms that alone read them."""
    import torch.fx

    norms = torch.nn.modules.batchnorm._BatchNorm
    modules = dict(module.named_modules())
    if not any(isinstance(part, norms) for part in modules.values()):
        return []
    try:
        graph = torch.fx.symbolic_trace(module).graph
    except Exception:  # anything that a module's code may raise on proxies
        return []
    calls = [str(node.target) for node in graph.nodes if node.op == "call_module"]
    found = []
    for node in graph.nodes:
        if node.op != "call_module" or not isinstance(modules[str(node.target)], norms):
            continue
        before = node.args[0] if node.args else None
        if getattr(before, "op", "") != "call_module" or len(before.users) != 1:
            continue
        pair = str(before.target), str(node.target)
        if all(calls.count(name) == 1 for name in pair) and _folds(module, *map(modules.get, pair)):
            found.append(pair)
    return found


def _folds(module: torch.nn.Module, layer: Any, norm: Any) -> bool:
    """Tell whether a norm has fixed statistics of the channels that the layer makes with its own weight."""
    import torch

    kinds = (torch.nn.Linear, torch.nn.modules.conv._ConvNd)
    if not isinstance(layer, kinds) or norm.running_mean is None:
        return False
    if isinstance(layer, torch.nn.modules.conv._ConvTransposeNd) and layer.groups > 1:
        return False
    owners = [part for part in module.modules() if getattr(part, "weight", None) is layer.weight]
    n_made = layer.out_features if isinstance(layer, torch.nn.Linear) else layer.out_channels
    return len(owners) == 1 and bool(n_made == norm.num_features)
