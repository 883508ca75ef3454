"""Sequential calibration: each layer aims at its former output from inputs that are quantized already."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nqconvert.array_spool import ArraySpool, Kept
from nqconvert.graphs.products import Product
from nqconvert.graphs.stretches import Stretches
from nqconvert.graphs.views import graph_arrays
from nqconvert.memory import return_freed_memory
from nqconvert.repair.float_network import FloatNetwork
from nqformat.optional_packages import require_package

from .factoring import factor_in_place, invert_in_place
from .layer import Layer
from .positions import inputs_at, n_positions, outputs_at

__all__ = ["Decision", "Moments", "aimed_layer", "run_sequentially"]

DAMPING = 0.1
_CONSTANT_DAMPING = 1e-6
_MAX_POSITIONS = 1 << 15
_MAX_BATCH = 32

Values = dict[str, np.ndarray]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """A layer's weight and bias as the quantized network has them.

    Attributes
    ----------
    weight : ndarray
        In the weight's shape and dtype.
    bias : ndarray or None
        None if it stays as it was.
    """

    weight: np.ndarray
    bias: np.ndarray | None


@dataclass(slots=True, kw_only=True)
class Moments:
    """Sums over positions of a layer.

    Attributes
    ----------
    inputs : ndarray of float64, shape (groups, inputs, inputs)
        ``sum x~ x~^T`` of inputs x~ in the quantized network; the constant 1 of a bias counts as the last.
    missing : ndarray of float64, shape (groups, outputs, inputs)
        ``sum d x~^T`` of what the outputs d lack.
    """

    inputs: np.ndarray
    missing: np.ndarray

    def add(self, inputs: np.ndarray, missing: np.ndarray) -> None:
        """Add positions: float32 of shapes (groups, inputs, positions) and (groups, outputs, positions)."""
        for group, (seen, lacks) in enumerate(zip(inputs, missing, strict=True)):
            self.inputs[group] += seen @ seen.T
            self.missing[group] += lacks @ seen.T


def aimed_layer(layer: Layer, moments: Moments) -> Layer:
    """Return a layer whose float weights make up for the errors of its inputs, in the least-squares sense.

    With inputs x~ for x, rows of weights w become ``w + E[d x~^T] (E[x~ x~^T] + damping)^-1`` where the
    output lacks ``d = w (x - x~)``. Without damping and more in d that is ``w E[x x~^T] E[x~ x~^T]^-1``.
    Weights of a pruned layer that are zero stay zero.

    Parameters
    ----------
    layer : Layer
        With one block of inputs.
    moments : Moments
        Used up.

    Source : Li et al. 2025, "GPTAQ: efficient finetuning-free quantization for asymmetric calibration",
    section 3, with a damped inverse
    """
    n_free = layer.statistics.n_free
    matrices = layer.matrices.copy()
    n_inputs = matrices.shape[2]
    shifts = np.zeros(matrices.shape[:2])
    for group, (weights, square, missing) in enumerate(
        zip(matrices, moments.inputs, moments.missing, strict=True)
    ):
        _damp(square, n_inputs)
        change = _changes(square, missing, _kept(layer, group), n_free)
        weights += change[:, :n_inputs]
        if n_free:
            shifts[group] = change[:, n_inputs]
    bias = None if layer.bias is None else layer.bias + shifts.reshape(-1)
    return replace(layer, matrices=matrices, bias=bias)


def _damp(square: np.ndarray, n_inputs: int) -> None:
    places = np.arange(n_inputs)
    mean = float(np.diag(square)[:n_inputs].mean())
    square[places, places] += DAMPING * mean if mean > 0 else 1.0
    square[n_inputs:, n_inputs:] *= 1 + _CONSTANT_DAMPING


def _kept(layer: Layer, group: int) -> list[np.ndarray] | None:
    """Return the inputs of each output that have a weight; None if all do."""
    if layer.rows:
        n_outputs = layer.matrices.shape[1]
        return [row.kept for row in layer.rows[group * n_outputs : (group + 1) * n_outputs]]
    if layer.zeros is None:
        return None
    return [np.flatnonzero(~zeros) for zeros in layer.zeros[group]]


def _changes(
    damped: np.ndarray, missing: np.ndarray, kept: list[np.ndarray] | None, n_free: int
) -> np.ndarray:
    """Return what is added to the weights (and the bias) of each output; `damped` may be overwritten."""
    if kept is None:
        factor_in_place(damped)
        invert_in_place(damped)
        solved: np.ndarray = (missing @ damped.T) @ damped
        return solved
    changes = np.zeros_like(missing)
    constant = np.arange(missing.shape[1] - n_free, missing.shape[1])
    for change, wanted, some in zip(changes, missing, kept, strict=True):
        places = np.append(some, constant).astype(np.int64)
        change[places] = np.linalg.solve(damped[np.ix_(places, places)], wanted[places])
    return changes


def run_sequentially(
    network: FloatNetwork,
    layers: Mapping[str, Layer],
    decide: Callable[[str, Layer], Decision],
    spool: ArraySpool,
) -> None:
    """Decide on all layers in the order of the graph, each with the inputs that its predecessors leave it.

    The network before quantization and the quantized one run side by side, a layer at a time, each once; what
    lies between two layers is kept for all samples, in a temporary file if it is much. Where a layer's output
    is added to another value, such as the bypass of a residual block, it makes up for that value's error,
    too. Layers that several products share, or with several blocks of inputs, keep their weights as the aim.

    Parameters
    ----------
    network : FloatNetwork
    layers : dict of str to Layer
        By stored name.
    decide : callable
        Quantizes a layer.
    spool : ArraySpool
        Of the values.

    Raises
    ------
    ConversionError
        If ONNX Runtime cannot run a part of the graph, or values cannot be written to a file.
    """
    walk = _Walk(network, layers, spool)
    for name, layer in walk.in_order():
        made = decide(name, layer)
        walk.replace(layer.statistics.product, made)


@dataclass(slots=True, kw_only=True)
class _Side:
    """One of the two networks: its tensors, and by batch of samples the values that are needed further on."""

    tensors: Values
    batches: list[dict[str, Kept]]


class _KeptValues(Mapping[str, np.ndarray]):
    """Values that are read when they are asked for."""

    def __init__(self, kept: Mapping[str, Kept], spool: ArraySpool) -> None:
        self._kept, self._spool = kept, spool

    def __getitem__(self, name: str) -> np.ndarray:
        return self._spool.get(self._kept[name])

    def __contains__(self, name: object) -> bool:
        return name in self._kept

    def __iter__(self) -> Iterator[str]:
        return iter(self._kept)

    def __len__(self) -> int:
        return len(self._kept)


class _Walk:
    """Both networks, run up to the same layer."""

    def __init__(self, network: FloatNetwork, layers: Mapping[str, Layer], spool: ArraySpool) -> None:
        source = network.source
        assert source.graph is not None
        model = require_package("onnx").ModelProto.FromString(source.graph)
        arrays = graph_arrays(source.tensors, source.views)
        self._before = _Side(tensors=arrays, batches=[])
        self._now = _Side(tensors=dict(arrays), batches=[])
        self._network, self._spool = network, spool
        self._partners = _added_values(model.graph, arrays)
        outputs = [value for node in model.graph.node for value in node.output]
        firsts = {layer.statistics.products[0].output: name for name, layer in layers.items()}
        self._order = [(firsts[value], value) for value in outputs if value in firsts]
        self._layers = layers
        self._stretches = Stretches(model, arrays, [value for _, value in self._order])
        self._random = np.random.default_rng(network.seed)

    def in_order(self) -> Iterator[tuple[str, Layer]]:
        """Yield layers as they shall be quantized; :meth:`replace` follows each."""
        n_samples = 0
        for feeds in self._network.arrays(most=_MAX_BATCH):
            n_samples += len(next(iter(feeds.values())))
            for side in (self._before, self._now):
                side.batches.append({name: self._spool.put(value) for name, value in feeds.items()})
        self._advance(0)
        for number, (name, value) in enumerate(self._order):
            layer = self._layers[name]
            share = number / len(self._order)
            self._network.progress(f"sequential calibration: {share:.0%} of the layers, {n_samples} samples")
            if number and len(layer.statistics.products) == len(layer.statistics.blocks) == 1:
                layer = aimed_layer(layer, self._moments(layer, value, n_samples))
            yield name, layer
            if number + 1 < len(self._order):
                self._advance(number + 1)
            if len(layer.statistics.products) == 1:
                weight = layer.statistics.product.weight
                self._now.tensors[weight] = self._before.tensors[weight]

    def replace(self, product: Product, made: Decision) -> None:
        """Let the quantized network go on with a quantized layer, until its products are behind."""
        self._now.tensors[product.weight] = made.weight
        if product.bias is not None and made.bias is not None:
            self._now.tensors[product.bias] = made.bias

    def _advance(self, number: int) -> None:
        """Run a stretch of both networks on all samples."""
        needed = self._stretches.needed_after(number)
        for side in (self._before, self._now):
            for values in side.batches:
                made = self._stretches.run(number, _KeptValues(values, self._spool), side.tensors)
                for name in [name for name in values if name not in needed]:
                    self._spool.drop(values.pop(name))
                values.update({name: self._spool.put(value) for name, value in made.items()})
        self._stretches.close(number)
        return_freed_memory()

    def _moments(self, layer: Layer, output: str, n_samples: int) -> Moments:
        product, n_free = layer.statistics.product, layer.statistics.n_free
        n_groups, n_outputs, n_inputs = layer.matrices.shape
        sums = Moments(
            inputs=np.zeros((n_groups, n_inputs + n_free, n_inputs + n_free)),
            missing=np.zeros((n_groups, n_outputs, n_inputs + n_free)),
        )
        weights = layer.matrices.astype(np.float32, copy=False)
        for kept in zip(self._before.batches, self._now.batches, strict=True):
            before, now = (_KeptValues(values, self._spool) for values in kept)
            seen = now[product.activation]
            n_most = n_positions(product, seen)
            n_some = min(n_most, -(-_MAX_POSITIONS * len(seen) // n_samples))
            places = np.sort(self._random.choice(n_most, n_some, replace=False))
            inputs = inputs_at(product, seen, places)
            lacks = weights @ (inputs_at(product, before[product.activation], places) - inputs)
            partner = self._partners.get(output)
            if partner in now and product.operator != "ConvTranspose":
                lacks += outputs_at(product, before[partner], places)
                lacks -= outputs_at(product, now[partner], places)
            if n_free:
                inputs = np.concatenate([inputs, np.ones_like(inputs[:, :1])], axis=1)
            sums.add(inputs, lacks)
        return sums


def _added_values(graph: Any, tensors: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Return, for values that are only added to another value, that one; an added tensor may lie between."""
    uses = Counter(name for node in graph.node for name in node.input)
    adds = [tuple(node.input) for node in graph.node if node.op_type == "Add"]
    shifted = {
        value: node.output[0]
        for node in graph.node
        if node.op_type == "Add"
        for value, tensor in (tuple(node.input), tuple(reversed(node.input)))
        if tensor in tensors and uses[value] == 1
    }
    partners: dict[str, str] = {}
    for left, right in adds:
        if left in tensors or right in tensors:
            continue
        for value, other in ((left, right), (right, left)):
            if uses[value] == 1 and value != other:
                partners[value] = other
    return {**partners, **{value: partners[added] for value, added in shifted.items() if added in partners}}
