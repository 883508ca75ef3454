"""Distillation: what is stored as floating point, and integers on request, trained on unlabelled inputs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from nqconvert.graphs.products import find_products
from nqconvert.graphs.torch_graph import TorchGraph
from nqformat.optional_packages import require_package
from nqformat.tensor import Tensor

from .answers import divergence
from .float_network import FloatNetwork, decoded_float, one_thread
from .reencoding import with_changes
from .settings import RepairSettings
from .trained import Trained, trained_tensor

__all__ = ["distil"]

_BATCH = 100
_LEAST_BATCHES = 16
_HOLDOUT = 8
_LEAST_SAMPLES = 16
_MOST_EPOCHS, _LEAST_EPOCHS = 8, 4
_MAX_MULTIPLICATIONS = 6e10


@dataclass(frozen=True, slots=True, kw_only=True)
class _Batch:
    feeds: dict[str, Any]
    before: Any


def distil(
    tensors: Mapping[str, Tensor], network: FloatNetwork, graph: TorchGraph, settings: RepairSettings
) -> tuple[Mapping[str, Tensor], str]:
    """Train a quantized network to answer its calibration inputs as the network before quantization does.

    An eighth of the inputs is not trained on; the tensors of the epoch with the least divergence on it are
    kept, those given if no epoch was better.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        Quantized, by stored name.
    network : FloatNetwork
    graph : TorchGraph
        Of the network.
    settings : RepairSettings

    Returns
    -------
    (tensors, what to tell the user)

    Source : Hinton, Vinyals, Dean 2015; straight-through rounding: Bengio et al. 2013
    """
    with one_thread(), torch.random.fork_rng(devices=[]):
        feeds = network.feeds(graph, most=_BATCH, n_batches=_LEAST_BATCHES)
        n_samples = sum(_n_samples(batch) for batch in feeds)
        if n_samples < _LEAST_SAMPLES or len(feeds) < 2:
            return tensors, f"no distillation: {n_samples} calibration inputs are too few"
        n_epochs = settings.distillation_epochs or _fitting_epochs(feeds[0], n_samples, network, graph)
        if n_epochs < _LEAST_EPOCHS and settings.distillation_epochs is None:
            return tensors, "no distillation, it would take long: distillation_epochs asks for it"
        batches = _answered(feeds, network, graph)
        n_held_out = -(-len(batches) // _HOLDOUT)
        student = _Student(tensors, network, graph, weights=settings.distillation == "weights")
        training, held_out = batches[:-n_held_out], batches[-n_held_out:]
        return student.run(training, held_out, n_epochs)


def _n_samples(feeds: Mapping[str, Any]) -> int:
    return len(next(iter(feeds.values())))


def _answered(feeds: list[dict[str, Any]], network: FloatNetwork, graph: TorchGraph) -> list[_Batch]:
    """Run the network before quantization."""
    before = network.float_tensors()
    answer = graph.output_names[0]
    with torch.no_grad():
        return [_Batch(feeds=batch, before=graph.run(batch, before)[answer]) for batch in feeds]


def _fitting_epochs(
    feeds: Mapping[str, Any], n_samples: int, network: FloatNetwork, graph: TorchGraph
) -> int:
    """Return how many passes keep to the most multiplications, counted on one batch."""
    model = require_package("onnx").ModelProto.FromString(network.source.graph)
    tensors = network.float_tensors()
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    products = {product.output: product for product in find_products(model.graph, shapes)}
    n_done = 0

    def counted(name: str, value: Any) -> Any:
        nonlocal n_done
        if name in products:
            n_done += products[name].multiplications(value.numel())
        return value

    with torch.no_grad():
        graph.run(feeds, tensors, replace=counted)
    n_all = n_done * n_samples / _n_samples(feeds)
    return int(min(_MOST_EPOCHS, _MAX_MULTIPLICATIONS // max(1.0, n_all)))


class _Student:
    def __init__(
        self, tensors: Mapping[str, Tensor], network: FloatNetwork, graph: TorchGraph, *, weights: bool
    ) -> None:
        self._tensors = tensors
        self._network, self._graph = network, graph
        self._trained: dict[str, Trained] = {}
        self._fixed = {}
        for name, tensor in tensors.items():
            made = trained_tensor(tensor, weights=weights)
            if made is None:
                self._fixed[name] = torch.from_numpy(decoded_float(tensor).copy())
            else:
                self._trained[name] = made

    def run(
        self, training: list[_Batch], held_out: list[_Batch], n_epochs: int
    ) -> tuple[Mapping[str, Tensor], str]:
        groups = [
            {"params": [parameter], "lr": rate, "first": rate}
            for trained in self._trained.values()
            for parameter, rate in trained.groups
        ]
        optimizer = torch.optim.Adam(groups)
        generator = torch.Generator().manual_seed(self._network.seed)
        start = least = self._measured(held_out)
        kept, kept_epoch = dict[str, Tensor](), 0
        n_steps, step = n_epochs * len(training), 0
        for epoch in range(1, n_epochs + 1):
            for place in torch.randperm(len(training), generator=generator).tolist():
                for group in optimizer.param_groups:
                    group["lr"] = group["first"] * 0.5 * (1 + math.cos(math.pi * step / n_steps))
                optimizer.zero_grad(set_to_none=True)
                self._divergence(training[place]).backward()
                optimizer.step()
                step += 1
            found = self._measured(held_out)
            self._network.progress(f"distilling: epoch {epoch} of {n_epochs}, divergence {found:.4g}")
            if found < least:
                least, kept, kept_epoch = found, self._changes(), epoch
        note = f"distillation: divergence {start:.4g} -> {least:.4g}, epoch {kept_epoch} of {n_epochs} kept"
        return with_changes(self._tensors, kept), note

    def _divergence(self, batch: _Batch) -> Any:
        values = {**self._fixed, **{name: trained.value() for name, trained in self._trained.items()}}
        outputs = self._graph.run(batch.feeds, self._network.graph_tensors(values))
        return divergence(batch.before, outputs[self._graph.output_names[0]])

    def _measured(self, batches: list[_Batch]) -> float:
        total = 0.0
        with torch.no_grad():
            for batch in batches:
                total += float(self._divergence(batch)) * len(batch.before)
        return total / sum(len(batch.before) for batch in batches)

    def _changes(self) -> dict[str, Tensor]:
        """Return what is trained."""
        return {name: trained.tensor() for name, trained in self._trained.items()}
