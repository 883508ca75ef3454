"""The whole network: which tensors have Hessians, and one penalty for all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from nqconvert.array_spool import ArraySpool
from nqconvert.graphs.products import Product
from nqconvert.graphs.torch_graph import TorchGraph, UnsupportedOperatorError
from nqconvert.graphs.views import graph_arrays
from nqconvert.quantizers.rate import estimate_bits
from nqconvert.repair.float_network import FloatNetwork
from nqconvert.sensitivity.calibration import calibration_batches, feeds_of, fitting_batch_size
from nqconvert.sources.model_source import ModelSource
from nqformat.dtypes import DType, dtype_of
from nqformat.errors import ConversionError, MissingDependencyError
from nqformat.optional_packages import require_package
from nqformat.tensor import (
    AffineTensor,
    Codebook,
    CodebookTensor,
    Tensor,
    affine_values,
    round_codebook,
)

from . import NO_CALIBRATION
from .layer import Layer, prepare_layer
from .plain import add_plain_moments, normalise_outputs
from .scratch import Scratch, release
from .sequential import Decision, run_sequentially
from .statistics import LayerHessians, largest_hessian_bytes, new_hessians
from .surgery import LayerResult, quantize_layer, step_at
from .used_products import NO_PRODUCTS, used_products

__all__ = [
    "DEFAULT_RATE_PENALTY",
    "CalibrationSettings",
    "Operation",
    "Surgeon",
    "prepare_surgeon",
]

DEFAULT_RATE_PENALTY = 0.01
_STEPS = (1.0, 1.25, 1.625)
"""Of an octave: with few bits, so that small multiples are exact in float16."""
_PATIENCE = 2
_DECISION_SHARE = 0.15
_MAX_VALUES = 1 << 22
_MAX_CODEBOOK = 32
_LEAST_STEP = 1e-30
_LEAST_BUDGET, _VALUES_BUDGET = 1 << 24, 1 << 22
_PREMIUM_REACH = 40.0
_PREMIUM_ROUNDS = 13
_PREMIUM_GROWTH = 1.05


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationSettings:
    """What is looked at to measure Hessians.

    Attributes
    ----------
    samples : int
        Most calibration samples to use.
    seed : int
        For random mixtures of classes and outputs.
    hessian : {"inputs", "identity"}
        ``identity`` needs no calibration inputs: all weights of a layer count alike, and the error of a
        layer as a share of its weights.
    progress : callable
        Called with a line of text.
    """

    samples: int = 1000
    seed: int = 0
    hessian: str = "inputs"
    progress: Callable[[str], None] = print


@dataclass(frozen=True, slots=True, kw_only=True)
class Bias:
    """A bias that took up errors.

    Attributes
    ----------
    values : ndarray of float64, shape (n,)
    tensor : AffineTensor
        On the grid that the penalty asks for.
    """

    values: np.ndarray
    tensor: AffineTensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """A network quantized with one penalty.

    Attributes
    ----------
    tensors : dict of str to Tensor
        Weights by the names of stored tensors.
    biases : dict of str to Bias
        Biases that took up errors.
    loss : float
        Predicted rise of the loss.
    notes : tuple of str
        What could not be done.
    """

    tensors: dict[str, Tensor]
    biases: dict[str, Bias]
    loss: float
    notes: tuple[str, ...] = ()


@dataclass(slots=True, kw_only=True)
class Surgeon:
    """Hessians of a network's layers, inverted, and what was tried with them.

    Attributes
    ----------
    layers : dict of str to Layer
        By the name of the stored tensor.
    permutations : dict of str to tuple of int
        How a stored tensor is turned into the layer's weight, where the graph reads a view of it.
    network : FloatNetwork or None
        What repairs after quantization compare with.
    notes : tuple of str
        What the user should know.
    scratch : Scratch
        Keeps what was tried.
    """

    layers: dict[str, Layer]
    dtypes: dict[str, DType]
    permutations: dict[str, tuple[int, ...]] = field(default_factory=dict)
    network: FloatNetwork | None = None
    notes: tuple[str, ...] = ()
    scratch: Scratch = field(default_factory=lambda: Scratch(budget_bytes=_LEAST_BUDGET))
    _tried: dict[tuple[str, int, float], LayerResult] = field(default_factory=dict)
    _premiums: dict[tuple[float, float], float] = field(default_factory=dict)

    @property
    def n_weights(self) -> int:
        """Number of weights that are not zero."""
        return sum(int(np.count_nonzero(layer.matrices)) for layer in self.layers.values())

    def operate(
        self, rate_penalty: float | None, density: float | None = None, *, sequential: bool = False
    ) -> Operation:
        """Quantize all layers.

        Parameters
        ----------
        rate_penalty : float or None
            Loss that one bit for every weight may cost, in nats; None: a hundredth.
        density : float or None
            Most weights that are not zero, as a share of all: those go first whose removal costs least loss,
            whatever layer they are in.
        sequential : bool
            Quantize once more with the steps that were found, each layer for inputs that are quantized
            already (:func:`nqconvert.obs.sequential.run_sequentially`), if the graph can be run in parts.

        Source : pruning by one threshold of the loss: Hassibi, Stork 1993; Frantar, Alistarh 2023
        """
        penalty = (DEFAULT_RATE_PENALTY if rate_penalty is None else rate_penalty) / max(1, self.n_weights)
        tensors: dict[str, Tensor] = {}
        biases: dict[str, Bias] = {}
        loss = 0.0
        results, notes = self._results(penalty, density, sequential=sequential)
        for name, best in results.items():
            loss += best.loss
            tensors[name] = self._tensor(name, best)
            bias = self.layers[name].statistics.product.bias
            if bias is not None and (made := self._bias(name, best, penalty)):
                biases[bias] = made
        return Operation(tensors=tensors, biases=biases, loss=loss, notes=notes)

    def _results(
        self, penalty: float, density: float | None, *, sequential: bool
    ) -> tuple[dict[str, LayerResult], tuple[str, ...]]:
        """Return the result of least cost for every layer, with at most the weights that a density allows."""
        most = math.inf
        premium = 0.0
        if density is not None:
            most = density * sum(layer.matrices.size for layer in self.layers.values())
            premium = self._premium(penalty, most)
        notes: tuple[str, ...] = ()
        while True:
            found = {name: self._best(name, layer, penalty, premium) for name, layer in self.layers.items()}
            if sequential and not notes and self.network is not None and _n_kept(found) <= most:
                try:
                    found = self._sequential(self.network, found, penalty, premium)
                except (ConversionError, MissingDependencyError) as error:
                    notes = (f"no sequential calibration: {error}",)
            if _n_kept(found) <= most:
                return found, notes
            premium *= _PREMIUM_GROWTH

    def _sequential(
        self, network: FloatNetwork, found: Mapping[str, LayerResult], penalty: float, premium: float
    ) -> dict[str, LayerResult]:
        """Quantize all layers again with their steps, in the order of the graph."""
        arrays = network.source.tensors
        results: dict[str, LayerResult] = {}

        def decide(name: str, layer: Layer) -> Decision:
            step = found[name].step
            made = self._decided(layer, step, penalty, premium)
            results[name] = replace(made, integers=self.scratch.kept(made.integers))
            product = layer.statistics.product
            weight = (made.integers * np.float32(step)).astype(arrays[name].dtype)
            bias = self._bias(name, made, penalty)
            if bias is None or product.bias is None:
                return Decision(weight=weight, bias=None)
            values = bias.tensor.decode().reshape(arrays[product.bias].shape)
            return Decision(weight=weight, bias=values)

        run_sequentially(network, self.layers, decide, ArraySpool(budget_bytes=_VALUES_BUDGET))
        return {name: results[name] for name in found}

    def _bias(self, name: str, result: LayerResult, penalty: float) -> Bias | None:
        """Return a bias that took up errors, on the grid that the penalty asks for."""
        layer = self.layers[name]
        bias = layer.statistics.product.bias
        if bias is None or result.bias is None:
            return None
        grid = _on_grid(result.bias, self.dtypes[bias], layer.bias_curvature, penalty)
        return Bias(values=result.bias, tensor=grid)

    def _premium(self, penalty: float, most: float) -> float:
        """Return the loss at which removals leave at most so many weights, by bisection of its logarithm."""
        key = (penalty, most)
        if key in self._premiums:
            return self._premiums[key]
        steps = {name: self._best(name, layer, penalty).step for name, layer in self.layers.items()}

        def n_kept(premium: float) -> int:
            return sum(
                int(np.count_nonzero(self._decided(layer, steps[name], penalty, premium).integers))
                for name, layer in self.layers.items()
            )

        low, high = -_PREMIUM_REACH, _PREMIUM_REACH
        unit = max(penalty, _LEAST_STEP)
        if n_kept(0.0) <= most:
            high = -math.inf
        for _ in range(_PREMIUM_ROUNDS if high > low else 0):
            middle = (low + high) / 2
            if n_kept(unit * 2.0**middle) <= most:
                high = middle
            else:
                low = middle
        self._premiums[key] = unit * 2.0**high
        return self._premiums[key]

    def _best(self, name: str, layer: Layer, penalty: float, premium: float = 0.0) -> LayerResult:
        """Return the result of least cost among steps around the one that theory gives."""
        start = round(len(_STEPS) * math.log2(max(step_at(layer.curvature, penalty), _LEAST_STEP)))
        results = {start: self._result(name, layer, start, penalty, premium)}
        for direction in (1, -1):
            place, worse = start, 0
            while worse < _PATIENCE:
                least = min(result.cost(penalty, premium) for result in results.values())
                place += direction
                results[place] = self._result(name, layer, place, penalty, premium)
                worse = 0 if results[place].cost(penalty, premium) < least else worse + 1
        return min(results.values(), key=lambda result: (result.cost(penalty, premium), result.bits))

    def _result(self, name: str, layer: Layer, place: int, penalty: float, premium: float) -> LayerResult:
        """Quantize with a step of the grid; without outputs' own Hessians, independent of `penalty`."""
        step = math.ldexp(_STEPS[place % len(_STEPS)], place // len(_STEPS))
        if layer.rows:
            return self._decided(layer, step, penalty, premium)
        key = (name, place, premium)
        if key not in self._tried:
            made = self._decided(layer, step, penalty, premium)
            self._tried[key] = replace(made, integers=self.scratch.kept(made.integers))
        return self._tried[key]

    def _decided(self, layer: Layer, step: float, penalty: float, premium: float) -> LayerResult:
        """Quantize with a step; its own penalty decides for layers without outputs' own Hessians."""
        if not layer.rows:
            fitting = layer.curvature * step * step * math.log(2.0) / 12.0
            penalty = _DECISION_SHARE * fitting
        return quantize_layer(layer, step, penalty, premium)

    def _tensor(self, name: str, result: LayerResult) -> Tensor:
        integers = np.asarray(result.integers).astype(np.int32)
        release(result.integers)
        if name in self.permutations:
            integers = np.transpose(integers, np.argsort(self.permutations[name]))
        affine = AffineTensor(k=np.ascontiguousarray(integers), step=result.step, dtype=self.dtypes[name])
        return _smaller(affine)


def _smaller(affine: AffineTensor) -> Tensor:
    """Return a tensor with a codebook if that is estimated to take fewer bytes."""
    entries, indices = np.unique(affine.k, return_inverse=True)
    if entries.size > _MAX_CODEBOOK or not affine.dtype.is_float:
        return affine
    values = affine_values(entries, affine.step, affine.offset)
    fitting = (
        d for d in (DType.FLOAT16, DType.BFLOAT16) if np.array_equal(round_codebook(values, d), values)
    )
    codebook = Codebook(values=values, stored_as=next(fitting, DType.FLOAT32))
    shaped = indices.reshape(affine.k.shape).astype(np.uint16)
    made = CodebookTensor(indices=shaped, codebook=codebook, dtype=affine.dtype)
    return made if estimate_bits(made) < estimate_bits(affine) else affine


def _n_kept(results: Mapping[str, LayerResult]) -> int:
    """Return how many weights are not zero."""
    return sum(int(np.count_nonzero(result.integers)) for result in results.values())


def _on_grid(bias: np.ndarray, dtype: DType, curvature: float, penalty: float) -> AffineTensor:
    """Round biases to the grid that the penalty asks for."""
    largest = float(np.abs(bias).max(initial=0.0))
    step = step_at(curvature, penalty) if curvature > 0 and penalty > 0 else 0.0
    step = float(np.float32(max(step, largest / (1 << 20), _LEAST_STEP)))
    return AffineTensor(k=np.rint(bias / step).astype(np.int32), step=step, dtype=dtype)


def prepare_surgeon(
    source: ModelSource,
    weights: Mapping[str, np.ndarray],
    calibration: Any,
    settings: CalibrationSettings,
) -> Surgeon:
    """Measure and invert the Hessians of all weights that products of the graph use.

    With torch, Gauss-Newton Hessians of the network's answer (:mod:`nqconvert.obs.gauss_newton`); without it,
    or where an operator of the graph has no gradient here, second moments of the layers' inputs
    (:mod:`nqconvert.obs.plain`).

    Parameters
    ----------
    source : ModelSource
        With a graph.
    weights : mapping of str to ndarray
        Those of its tensors that shall be quantized.
    calibration : object
        See :func:`nqconvert.sensitivity.calibration.calibration_batches`; targets are not used.
    settings : CalibrationSettings

    Raises
    ------
    ConversionError
        If there is no calibration data or no graph, or no weight has a product.
    """
    without_inputs = calibration is None and settings.hessian != "identity"
    if without_inputs or source.graph is None:
        raise ConversionError(NO_CALIBRATION)
    arrays = graph_arrays(source.tensors, source.views)
    model = require_package("onnx").ModelProto.FromString(source.graph)
    used = used_products(model.graph, arrays, weights, source.views)
    if not used:
        raise ConversionError(NO_PRODUCTS)
    largest = max(largest_hessian_bytes(found[0], arrays[found[0].weight]) for found in used.values())
    scratch = Scratch(budget_bytes=max(largest, _LEAST_BUDGET))
    hessians, notes = _measured(
        source, model, arrays, used, calibration=calibration, settings=settings, scratch=scratch
    )
    layers = {}
    for name, products in used.items():
        product = products[0]
        bias = None if product.bias is None else arrays[product.bias]
        layers[name] = prepare_layer(hessians.pop(name), arrays[product.weight], bias, scratch)
        settings.progress(f"inverting Hessians: {len(layers)} of {len(used)} layers")
    left = [name for name in weights if name not in layers]
    if left:
        notes = (*notes, f"quantized without Hessians, no product of the graph uses them: {', '.join(left)}")
    return Surgeon(
        layers=layers,
        dtypes={name: dtype_of(array) for name, array in source.tensors.items()},
        permutations={
            name: source.views[products[0].weight].permutation
            for name, products in used.items()
            if products[0].weight != name
        },
        network=None
        if calibration is None
        else FloatNetwork(
            source=source,
            calibration=calibration,
            samples=settings.samples,
            seed=settings.seed,
            progress=settings.progress,
        ),
        notes=notes,
        scratch=scratch,
    )


def _measured(
    source: ModelSource,
    model: Any,
    arrays: Mapping[str, np.ndarray],
    used: Mapping[str, list[Product]],
    *,
    calibration: Any,
    settings: CalibrationSettings,
    scratch: Scratch,
) -> tuple[dict[str, LayerHessians], tuple[str, ...]]:
    """Measure by gradients if possible, else from inputs alone."""

    def feeds(most: int | None = None) -> Iterator[dict[str, np.ndarray]]:
        fitting = fitting_batch_size(calibration)
        size = fitting if most is None else min(most, fitting)
        for batch in calibration_batches(calibration, batch_size=size, samples=settings.samples):
            yield feeds_of(batch, source.input_names)

    def empty(*, rows: bool) -> dict[str, LayerHessians]:
        return {
            name: new_hessians(p, arrays[p[0].weight], rows=rows, scratch=scratch) for name, p in used.items()
        }

    assert source.graph is not None
    if settings.hessian == "identity":
        hessians = empty(rows=False)
        for layer in hessians.values():
            layer.set_identity()
            normalise_outputs(layer, arrays[layer.product.weight])
        return hessians, ("Hessians are the identity, as asked for: no inputs were looked at",)
    try:
        require_package("torch")
        graph = TorchGraph(source.graph)
    except (MissingDependencyError, UnsupportedOperatorError) as error:
        hessians = empty(rows=False)
        add_plain_moments(list(hessians.values()), model, arrays, feeds(), settings.progress)
        return hessians, (f"Hessians from layers' inputs alone, all layers alike: {error}",)
    from .gauss_newton import GaussNewtonSettings, add_gauss_newton

    hessians = empty(rows=True)
    measured = GaussNewtonSettings(seed=settings.seed)
    layers = list(hessians.values())
    most = graph.fitting_samples(next(feeds(1)), arrays, _MAX_VALUES)
    add_gauss_newton(layers, graph, arrays, feeds(most), settings=measured, progress=settings.progress)
    return hessians, ()
