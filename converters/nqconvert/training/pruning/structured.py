"""Structured pruning: whole outputs of layers go, and the module becomes a smaller one."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from nqformat.errors import ConversionError

__all__ = ["Link", "find_links", "shrink", "unit_scores", "units_to_keep"]

_BETWEEN_MODULES = (
    torch.nn.ReLU,
    torch.nn.ReLU6,
    torch.nn.LeakyReLU,
    torch.nn.GELU,
    torch.nn.SiLU,
    torch.nn.Tanh,
    torch.nn.ELU,
    torch.nn.Hardswish,
    torch.nn.Dropout,
    torch.nn.Identity,
)
_CHANNEL_MODULES = (
    torch.nn.MaxPool1d,
    torch.nn.MaxPool2d,
    torch.nn.AvgPool1d,
    torch.nn.AvgPool2d,
    torch.nn.AdaptiveAvgPool2d,
    torch.nn.AdaptiveMaxPool2d,
    torch.nn.Dropout2d,
    torch.nn.Flatten,
    torch.nn.modules.batchnorm._BatchNorm,
)
_BETWEEN_FUNCTIONS = (
    torch.relu,
    torch.tanh,
    torch.nn.functional.relu,
    torch.nn.functional.gelu,
    torch.nn.functional.silu,
    torch.nn.functional.leaky_relu,
    torch.nn.functional.dropout,
)
_CHANNEL_FUNCTIONS = (
    torch.flatten,
    torch.nn.functional.max_pool1d,
    torch.nn.functional.max_pool2d,
    torch.nn.functional.avg_pool2d,
)
_BETWEEN_METHODS = ("relu", "tanh")
_FLATTENING = (torch.nn.Flatten, torch.flatten, "flatten")


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A layer whose outputs only one other layer reads.

    Attributes
    ----------
    layer, reader : str
        Names of modules.
    norms : tuple of str
        Batch norms between them.
    n_places : int
        Inputs of the reader for each output of the layer: more than 1 behind a flattening.
    """

    layer: str
    reader: str
    norms: tuple[str, ...]
    n_places: int


def find_links(module: torch.nn.Module) -> list[Link]:
    """Return the linear and convolution layers whose outputs can be taken away, in the order of the graph.

    Between such a layer and the one that reads it stand only activations that leave zero at zero and dropout,
    behind a convolution also pooling, batch norm and, before a linear layer, the flattening of all axes but
    the first. Layers that are used twice are left out.

    Raises
    ------
    ConversionError
        If torch.fx cannot trace the module.

    Examples
    --------
    >>> import torch
    >>> layers = [torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)]
    >>> [(link.layer, link.reader) for link in find_links(torch.nn.Sequential(*layers))]
    [('0', '2')]
    """
    import torch.fx

    try:
        graph = torch.fx.symbolic_trace(module).graph
    except Exception as error:
        raise ConversionError(f"structured pruning cannot trace the module: {error}") from error
    modules = dict(module.named_modules())
    calls = [node.target for node in graph.nodes if node.op == "call_module"]
    links = []
    for node in graph.nodes:
        if node.op != "call_module" or not _is_layer(modules[str(node.target)]):
            continue
        found = _reader_of(node, modules)
        if found is None:
            continue
        reader, norms = found
        names = (str(node.target), reader, *norms)
        if all(calls.count(name) == 1 for name in names) and _fits(modules, names[0], reader):
            n_places = _n_inputs(modules[reader]) // _n_outputs(modules[names[0]])
            links.append(Link(layer=names[0], reader=reader, norms=norms, n_places=n_places))
    return links


def _is_layer(layer: Any) -> bool:
    kinds = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
    return isinstance(layer, kinds) and getattr(layer, "groups", 1) == 1


def _reader_of(node: Any, modules: Mapping[str, Any]) -> tuple[str, tuple[str, ...]] | None:
    """Follow the only use of a node's value to the next layer."""
    channels = not isinstance(modules[str(node.target)], torch.nn.Linear)
    norms: list[str] = []
    flat = not channels
    while len(node.users) == 1:
        node = next(iter(node.users))
        what = modules[str(node.target)] if node.op == "call_module" else node.target
        if node.op == "call_module" and _is_layer(what):
            return (str(node.target), tuple(norms)) if flat == isinstance(what, torch.nn.Linear) else None
        if not _keeps_units(node.op, what, channels and not flat):
            return None
        if isinstance(what, torch.nn.modules.batchnorm._BatchNorm):
            norms.append(str(node.target))
        if what in _FLATTENING or isinstance(what, torch.nn.Flatten):
            if not _flattens_all(node, what):
                return None
            flat = True
    return None


def _keeps_units(kind: str, what: Any, channels: bool) -> bool:
    """Tell whether a step of the graph treats every output by itself and leaves zero at zero."""
    if kind == "call_module":
        return isinstance(what, _BETWEEN_MODULES) or (channels and isinstance(what, _CHANNEL_MODULES))
    if kind == "call_function":
        return what in _BETWEEN_FUNCTIONS or (channels and what in _CHANNEL_FUNCTIONS)
    return kind == "call_method" and (what in _BETWEEN_METHODS or (channels and what == "flatten"))


def _flattens_all(node: Any, what: Any) -> bool:
    """Tell whether a flattening joins all axes but the first."""
    if isinstance(what, torch.nn.Flatten):
        return (what.start_dim, what.end_dim) == (1, -1)
    given = [*node.args[1:], *([0, -1][len(node.args) - 1 :])]
    start, end = node.kwargs.get("start_dim", given[0]), node.kwargs.get("end_dim", given[1])
    return (start, end) == (1, -1)


def _fits(modules: Mapping[str, Any], layer: str, reader: str) -> bool:
    n_inputs, n_outputs = _n_inputs(modules[reader]), _n_outputs(modules[layer])
    behind_channels = isinstance(modules[reader], torch.nn.Linear) and n_inputs % n_outputs == 0
    return n_inputs == n_outputs or (behind_channels and not isinstance(modules[layer], torch.nn.Linear))


def _n_outputs(layer: Any) -> int:
    return int(layer.weight.shape[0])


def _n_inputs(layer: Any) -> int:
    return int(layer.weight.shape[1])


def _by_unit(weight: torch.Tensor, n_places: int) -> torch.Tensor:
    """Return a reader's weight with an axis for units: (outputs, units, everything else)."""
    return weight.reshape(weight.shape[0], weight.shape[1] // n_places, -1)


def unit_scores(module: torch.nn.Module, link: Link) -> torch.Tensor:
    """Return how much each output of a layer matters: root mean square going in times that coming out.

    Zero where nothing goes in (no weight, no bias) or nothing comes out. Shape (outputs,).

    Source : Li, Kadav, Durdanovic, Samet, Graf 2017, "Pruning filters for efficient convnets", section 3,
        with both sides instead of one and squares instead of magnitudes
    """
    modules = dict(module.named_modules())
    layer, reader = modules[link.layer], modules[link.reader]
    going_in = layer.weight.detach().flatten(1).square().mean(1)
    if layer.bias is not None:
        going_in = going_in + layer.bias.detach().square() / layer.weight[0].numel()
    coming_out = _by_unit(reader.weight.detach(), link.n_places).square().mean((0, 2))
    return (going_in * coming_out).sqrt()


def units_to_keep(module: torch.nn.Module, counts: Mapping[str, int]) -> dict[str, torch.Tensor]:
    """Return the outputs of highest score, by layer.

    Parameters
    ----------
    module : torch.nn.Module
    counts : mapping of layer name to int
        Outputs to keep of each.

    Returns
    -------
    dict of str to tensor of int64, ascending

    Raises
    ------
    ValueError
        If a layer cannot be shrunk, or not to that many.
    """
    links = {link.layer: link for link in find_links(module)}
    kept = {}
    for name, count in counts.items():
        if name not in links:
            raise ValueError(f"{name!r} cannot be shrunk; these can: {', '.join(links)}")
        scores = unit_scores(module, links[name])
        if not 1 <= count <= scores.numel():
            raise ValueError(f"{name!r} has {scores.numel()} outputs, {count} cannot be kept")
        kept[name] = scores.topk(count).indices.sort().values
    return kept


def shrink(module: torch.nn.Module, keep: Mapping[str, Sequence[int] | torch.Tensor] | None = None) -> Any:
    """Return a copy of `module` without some outputs of its layers, and without what reads them.

    Parameters
    ----------
    module : torch.nn.Module
    keep : mapping of layer name to sequence of int, optional
        Outputs to keep. None: all that matter at all (:func:`unit_scores` above zero), at least one; the
        module then computes the same, up to rounding, if no batch norm stands between.

    Returns
    -------
    torch.nn.Module

    Raises
    ------
    ValueError
        If a layer cannot be shrunk.
    ConversionError
        If torch.fx cannot trace the module.
    """
    links = {link.layer: link for link in find_links(module)}
    small = copy.deepcopy(module)
    chosen: dict[str, Any] = {}
    if keep is None:
        for name, link in links.items():
            alive = torch.nonzero(unit_scores(module, link))[:, 0]
            chosen[name] = alive if alive.numel() and not link.norms else None
    else:
        chosen.update(keep)
    modules = dict(small.named_modules())
    for name, units in chosen.items():
        if name not in links:
            raise ValueError(f"{name!r} cannot be shrunk; these can: {', '.join(links)}")
        if units is not None:
            _take(modules, links[name], torch.as_tensor(units, dtype=torch.int64))
    return small


def _take(modules: Mapping[str, Any], link: Link, units: torch.Tensor) -> None:
    layer, reader = modules[link.layer], modules[link.reader]
    layer.weight = torch.nn.Parameter(layer.weight.detach()[units].clone())
    if layer.bias is not None:
        layer.bias = torch.nn.Parameter(layer.bias.detach()[units].clone())
    for norm in (modules[name] for name in link.norms):
        for field in ("weight", "bias"):
            if getattr(norm, field) is not None:
                setattr(norm, field, torch.nn.Parameter(getattr(norm, field).detach()[units].clone()))
        for field in ("running_mean", "running_var"):
            if getattr(norm, field) is not None:
                setattr(norm, field, getattr(norm, field)[units].clone())
        norm.num_features = units.numel()
    shape = reader.weight.shape
    taken = _by_unit(reader.weight.detach(), link.n_places)[:, units]
    reader.weight = torch.nn.Parameter(
        taken.reshape(shape[0], units.numel() * link.n_places, *shape[2:]).clone()
    )
    n_outputs = "out_features" if isinstance(layer, torch.nn.Linear) else "out_channels"
    n_inputs = "in_features" if isinstance(reader, torch.nn.Linear) else "in_channels"
    setattr(layer, n_outputs, units.numel())
    setattr(reader, n_inputs, units.numel() * link.n_places)
