"""Repairs of single layers: outputs of products and batch norms get the moments they had."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor as TorchTensor

from nqconvert.graphs.products import Product, find_products
from nqconvert.graphs.torch_graph import TorchGraph
from nqformat.optional_packages import require_package
from nqformat.tensor import Tensor

from .answers import divergence
from .float_network import FloatNetwork, decoded_float, one_thread
from .reencoding import is_free_vector, is_plain, scaled, with_changes, with_values
from .settings import RepairSettings

__all__ = ["match_outputs"]

_BATCH = 64
_JUDGED_SAMPLES = 256
_MAX_RATIO = 4.0
_LEAST = 1e-12


@dataclass(slots=True, kw_only=True)
class _Point:
    """A value of the graph, and what its repair needs to know of it.

    Attributes
    ----------
    axis : int
        Of the channels.
    weight, bias : str
        Stored tensors that are changed: the weight is scaled, the bias shifted; empty if they must not be.
    gain : str
        Scale of a batch norm; empty behind products.
    fused_bias : str
        Bias that the value holds already.
    shift, moments : ndarray
        Sums over samples.
    """

    axis: int
    weight: str = ""
    bias: str = ""
    gain: str = ""
    fused_bias: str = ""
    shift: Any = 0.0
    moments: list[Any] = field(default_factory=lambda: [0.0, 0.0, 0.0, 0.0])
    products: list[float] = field(default_factory=lambda: [0.0, 0.0])


def match_outputs(
    tensors: Mapping[str, Tensor], network: FloatNetwork, graph: TorchGraph, settings: RepairSettings
) -> tuple[Mapping[str, Tensor], tuple[str, ...]]:
    """Correct biases, batch norms and steps so that layers' outputs are like those before quantization.

    The network before quantization and the quantized one run side by side, and every correction is applied
    to the value it is measured at: layers behind it see corrected inputs. What is stored is the mean of the
    corrections of all batches; nothing, if the answers to some of the inputs come no nearer by it.

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

    Source : Nagel et al. 2019, "Data-free quantization through weight equalization and bias correction",
    section 4.2 (with calibration inputs)
    """
    points = _points(tensors, network, settings)
    if not points:
        return tensors, ()
    with one_thread(), torch.no_grad():
        decoded = _decoded(tensors)
        n_samples = _measure(points, decoded, network, graph)
        changes, notes = _matched(tensors, points, n_samples)
        candidates = [decoded, {**decoded, **_decoded(changes)}]
        before, after = _divergences(candidates, network, graph)
    if after < before:
        return with_changes(tensors, changes), notes
    return tensors, tuple(f"{note}, but undone: answers came no nearer" for note in notes)


def _divergences(
    candidates: list[dict[str, TorchTensor]], network: FloatNetwork, graph: TorchGraph
) -> list[float]:
    """Return how far the answers of each candidate are from those of the network before quantization."""
    expected = network.float_tensors()
    found = [network.graph_tensors(tensors) for tensors in candidates]
    totals, n_samples = [0.0] * len(found), 0
    answer = graph.output_names[0]
    for feeds in network.feeds(graph, most=_BATCH):
        if n_samples >= _JUDGED_SAMPLES:
            break
        wanted = graph.run(feeds, expected)[answer]
        for place, tensors in enumerate(found):
            totals[place] += float(divergence(wanted, graph.run(feeds, tensors)[answer])) * len(wanted)
        n_samples += len(wanted)
    return [total / n_samples for total in totals]


def _decoded(tensors: Mapping[str, Tensor]) -> dict[str, TorchTensor]:
    return {name: torch.from_numpy(decoded_float(tensor).copy()) for name, tensor in tensors.items()}


def _matched(
    tensors: Mapping[str, Tensor], points: Mapping[str, _Point], n_samples: int
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return what the mean corrections change."""
    changes: dict[str, Tensor] = {}
    made = with_changes(tensors, changes)
    _scale_weights(changes, made, points)
    counts: Counter[str] = Counter()
    for point in points.values():
        if point.gain:
            gain, offset = _norm_change([moment / n_samples for moment in point.moments])
            gains, offsets = made[point.gain], made[point.bias]
            changes[point.gain] = with_values(gains, decoded_float(gains) * gain)
            changes[point.bias] = with_values(offsets, decoded_float(offsets) * gain + offset)
            counts["batch norms re-estimated"] += 1
        elif point.bias:
            bias = made[point.bias]
            shift = np.reshape(point.shift / n_samples, bias.shape)
            changes[point.bias] = with_values(bias, decoded_float(bias) + shift)
            counts["biases corrected"] += 1
        counts["weights' scales fitted"] += bool(point.weight)
    return changes, tuple(f"{number} {what}" for what, number in counts.items() if number)


def _points(
    tensors: Mapping[str, Tensor], network: FloatNetwork, settings: RepairSettings
) -> dict[str, _Point]:
    model = require_package("onnx").ModelProto.FromString(network.source.graph)
    uses = Counter(name for node in model.graph.node for name in node.input)

    def free(name: str) -> bool:
        return name in tensors and uses[name] == 1 and is_free_vector(tensors[name])

    found: dict[str, _Point] = {}
    if settings.corrects_biases or settings.scale_fit:
        shapes = {
            name: tuple(tensor.shape) for name, tensor in (*tensors.items(), *network.source.views.items())
        }
        for product in find_products(model.graph, shapes):
            weight, bias = _whole(product.weight, network), product.bias or ""
            point = _Point(
                axis=-1 if product.operator == "MatMul" else 1,
                weight=weight if settings.scale_fit and weight and is_plain(tensors[weight]) else "",
                bias=bias if settings.corrects_biases and free(bias) else "",
                fused_bias=_fused_bias(product),
            )
            if point.weight or point.bias:
                found[product.output] = point
    for node in model.graph.node if settings.batch_norm else ():
        if node.op_type == "BatchNormalization" and free(node.input[1]) and free(node.input[2]):
            found[node.output[0]] = _Point(axis=1, gain=node.input[1], bias=node.input[2])
    return found


def _whole(name: str, network: FloatNetwork) -> str:
    """Return the stored tensor of which a weight of the graph is all elements; empty if there is none."""
    view = network.source.views.get(name)
    if view is None:
        return name
    stored = view.sources[0].name
    whole = len(view.sources) == 1 and np.prod(view.shape) == network.source.tensors[stored].size
    return stored if whole else ""


def _fused_bias(product: Product) -> str:
    return product.bias or "" if product.operator != "MatMul" else ""


def _measure(
    points: dict[str, _Point],
    decoded: Mapping[str, TorchTensor],
    network: FloatNetwork,
    graph: TorchGraph,
) -> int:
    before = network.float_tensors()
    now = network.graph_tensors(decoded)
    n_samples = 0
    for feeds in network.feeds(graph, most=_BATCH):
        n_batch = len(next(iter(feeds.values())))
        expected: dict[str, TorchTensor] = {}

        def keep(name: str, value: Any, expected: dict[str, TorchTensor] = expected) -> Any:
            if name in points:
                expected[name] = value
            return value

        def correct(
            name: str, value: Any, expected: dict[str, TorchTensor] = expected, n: int = n_batch
        ) -> Any:
            if name not in points:
                return value
            return _corrected(points[name], expected.pop(name), value, now, n)

        graph.run(feeds, before, replace=keep)
        graph.run(feeds, now, replace=correct)
        n_samples += n_batch
        network.progress(f"matching layers' outputs: {n_samples} samples")
    return n_samples


def _corrected(
    point: _Point, wanted: TorchTensor, value: TorchTensor, tensors: Mapping[str, TorchTensor], n: int
) -> TorchTensor:
    """Add a batch's moments to the point's, and return the value as the batch's own would repair it."""
    axes = [axis for axis in range(value.ndim) if axis != point.axis % value.ndim]
    mean, wanted_mean = value.mean(axes, keepdim=True), wanted.mean(axes, keepdim=True)
    if point.gain:
        moments = [mean, value.var(axes, False, keepdim=True)]
        moments += [wanted_mean, wanted.var(axes, False, keepdim=True)]
        for place, moment in enumerate(moments):
            point.moments[place] = point.moments[place] + n * moment.double().reshape(-1).numpy()
        gain, offset = _norm_change([moment.numpy() for moment in moments])
        return value * torch.from_numpy(gain) + torch.from_numpy(offset)
    if point.weight:
        centred = value - mean
        within = float((centred * (wanted - wanted_mean)).double().sum())
        square = float(centred.double().square().sum())
        point.products[0] += within
        point.products[1] += square
        scaled_by = _ratio(within, square)
        if point.fused_bias:
            bias = tensors[point.fused_bias].reshape(mean.shape)
            value, mean = bias + (value - bias) * scaled_by, bias + (mean - bias) * scaled_by
        else:
            value, mean = value * scaled_by, mean * scaled_by
    if point.bias:
        shift = wanted_mean - mean
        point.shift = point.shift + n * shift.double().reshape(-1).numpy()
        value = value + shift
    return value


def _norm_change(moments: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return factor and summand by channel that give a value its former mean and deviation."""
    mean, variance, wanted_mean, wanted_variance = moments
    ratio = np.sqrt((wanted_variance + _LEAST) / (variance + _LEAST))
    gain = np.clip(ratio, 1 / _MAX_RATIO, _MAX_RATIO)
    return gain, wanted_mean - gain * mean


def _ratio(within: float, square: float) -> float:
    ratio = within / square if square > 0 else 1.0
    return float(np.clip(ratio, 1 / _MAX_RATIO, _MAX_RATIO))


def _scale_weights(
    changes: dict[str, Tensor], tensors: Mapping[str, Tensor], points: Mapping[str, _Point]
) -> None:
    """Scale every weight by least squares over all products that it is in."""
    sums: dict[str, list[float]] = {}
    for point in points.values():
        if point.weight:
            total = sums.setdefault(point.weight, [0.0, 0.0])
            total[0] += point.products[0]
            total[1] += point.products[1]
    for name, (within, square) in sums.items():
        changes[name] = scaled(tensors[name], _ratio(within, square))
