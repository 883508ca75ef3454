"""The first stages of a conversion: load, retrain if there is data for it, measure, prune."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nqformat.errors import ConversionError
from nqformat.optional_packages import require_package

from .blas_threads import one_blas_thread
from .graphs.views import graph_arrays
from .obs.surgeon import CalibrationSettings, Surgeon, prepare_surgeon
from .obs.used_products import NO_PRODUCTS, used_products
from .presets import ConvertSettings
from .quantization import continuous_weights, is_weight
from .sensitivity.calibration import (
    WholeBatches,
    calibration_batches,
    feeds_of,
    fitting_batch_size,
    repeatable,
)
from .sensitivity.images import ImageFolder
from .sensitivity.settings import SensitivitySettings
from .sensitivity.stage import StageData, source_sensitivities
from .sources import ModelSource, Runner, is_module, load_source
from .sources.batch_axis import declared_samples, opened_source
from .training.preparation import prune_module, prune_tensors
from .training.training_data import Training

__all__ = [
    "Measured",
    "Network",
    "load_network",
    "network_calibration",
    "network_sensitivities",
    "network_surgeon",
    "settings_with_calibration",
]

Progress = Callable[[str], None]
_COMPARED_SAMPLES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A model that is to be quantized.

    Attributes
    ----------
    source : ModelSource
        After pruning with retraining, if there was any.
    run : callable or None
        Computes the outputs of the model as it was given.
    run_retrained : callable or None
        Computes those of the pruned and retrained model, where there was retraining.
    module : torch.nn.Module or None
        Whose weights are those of the source; None for files and state dicts.
    notes : tuple of str
        What retraining did.
    """

    source: ModelSource
    run: Runner | None
    run_retrained: Runner | None = None
    module: Any = None
    notes: tuple[str, ...] = ()

    def pruned(self, density: float | None) -> ModelSource:
        """Return the source, its weights pruned by magnitude unless retraining did that already."""
        if density is None or self.run_retrained is not None:
            return self.source
        return replace(self.source, tensors=prune_tensors(self.source.tensors, density))

    def feeds(self, example_inputs: Any) -> dict[str, np.ndarray]:
        """Return example inputs by input name; empty without a graph or without examples.

        Raises
        ------
        ConversionError
            If the number of examples is not that of the inputs.
        """
        source = self.source
        if source.graph is None or example_inputs is None:
            return {}
        if source.example_feeds:
            return source.example_feeds
        if isinstance(example_inputs, Mapping):
            return {name: np.asarray(value) for name, value in example_inputs.items()}
        values = example_inputs if isinstance(example_inputs, tuple | list) else (example_inputs,)
        if len(values) != len(source.input_names):
            raise ConversionError(
                f"{len(values)} example inputs given, the model takes {len(source.input_names)}: "
                f"{', '.join(source.input_names)}"
            )
        return {name: np.asarray(value) for name, value in zip(source.input_names, values, strict=True)}


def load_network(
    model: Any,
    settings: ConvertSettings,
    *,
    example_inputs: Any = None,
    weights: Any = None,
    training: Training | None = None,
    dynamic_batch: bool = True,
    dynamic_axes: Mapping[str, Sequence[int]] | None = None,
    progress: Progress,
) -> Network:
    """Load a model; with training data, prune and retrain a copy of it first.

    Parameters
    ----------
    model, example_inputs, weights, training, dynamic_batch, dynamic_axes
        As in :func:`nqconvert.convert`.
    settings : ConvertSettings
        Density and seed are used, if there is training data.
    progress : callable
        Called with a line for each step.

    Raises
    ------
    As :func:`nqconvert.convert`.
    """
    retraining = prune_module(model, settings, training, weights, progress)
    progress("loading the model")
    if retraining is None:
        source = load_source(
            model,
            example_inputs=example_inputs,
            weights=weights,
            dynamic_batch=dynamic_batch,
            dynamic_axes=dynamic_axes,
            fold_batch_norms=settings.method != "none",
        )
        return Network(source=source, run=source.run, module=_module_of(model, weights))
    retrained, done = retraining
    source = load_source(
        retrained, example_inputs=example_inputs, dynamic_batch=dynamic_batch, dynamic_axes=dynamic_axes
    )
    from .sources.torch_module import module_runner

    return Network(
        source=source if done.settle is None else done.settle(source),
        run=module_runner(model, example_inputs, source.input_names, weights=weights),
        run_retrained=source.run,
        module=retrained,
        notes=(done.note,),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a network is measured with.

    Attributes
    ----------
    calibration : object
        In a form that every stage can go through, in batches that the graph takes; None if there is none.
    graph : bytes or None
        The source's, with axis 0 of its inputs open where that changes no output.
    feeds : dict of str to ndarray
        The first samples by input name; empty without calibration data.
    """

    calibration: Any
    graph: bytes | None
    feeds: dict[str, np.ndarray]

    def source(self, source: ModelSource) -> ModelSource:
        """Return a source with the graph to measure."""
        return replace(source, graph=self.graph)

    def network(self, network: Network) -> Network:
        """Return a network with the graph to measure."""
        return replace(network, source=self.source(network.source))


def network_calibration(network: Network, calibration: Any, samples: int) -> Measured:
    """Return calibration data and the graph that takes it.

    Raises
    ------
    ConversionError
        If there are fewer samples than the graph takes at once.
    As :meth:`nqconvert.ImageFolder.inputs`.
    """
    source = network.source
    if isinstance(calibration, ImageFolder):
        calibration = calibration.inputs(source, samples)
    calibration = repeatable(calibration, samples)
    if calibration is None or source.graph is None:
        return Measured(calibration=calibration, graph=source.graph, feeds={})
    n_declared = declared_samples(source)
    if n_declared is None:
        feeds = _first_feeds(source, calibration, min(_COMPARED_SAMPLES, fitting_batch_size(calibration)))
        return Measured(calibration=calibration, graph=source.graph, feeds=feeds)
    feeds = _first_feeds(source, calibration, 2 * n_declared)
    if not feeds:
        return Measured(calibration=calibration, graph=source.graph, feeds={})
    first = {name: value[:n_declared] for name, value in feeds.items()}
    complete = all(len(value) == 2 * n_declared for value in feeds.values())
    if complete and (opened := opened_source(source, feeds, n_declared)) is not None:
        return Measured(calibration=calibration, graph=opened.graph, feeds=first)
    batches = WholeBatches(calibration, n_declared, samples)
    return Measured(calibration=batches, graph=source.graph, feeds=first)


def _first_feeds(source: ModelSource, calibration: Any, n_samples: int) -> dict[str, np.ndarray]:
    """Return the first samples; empty where they have other names than the graph's inputs."""
    batch = next(calibration_batches(calibration, batch_size=n_samples, samples=n_samples))
    try:
        return feeds_of(batch, source.input_names)
    except ConversionError:
        return {}


def network_sensitivities(
    network: Network,
    settings: ConvertSettings,
    *,
    calibration: Any = None,
    loss: Callable[[Any, Any], Any] | None = None,
    optimizer_state: Any = None,
    progress: Progress,
) -> tuple[dict[str, np.ndarray] | None, tuple[str, ...]]:
    """Measure the sensitivities of all weights as the settings say.

    Returns
    -------
    (sensitivities by tensor name or None, notes)

    Raises
    ------
    As :func:`nqconvert.sensitivity.stage.source_sensitivities`.
    """
    return source_sensitivities(
        network.source,
        {name: array for name, array in network.source.tensors.items() if is_weight(array)},
        settings.sensitivity,
        StageData(module=network.module, calibration=calibration, loss=loss, optimizer_state=optimizer_state),
        SensitivitySettings(
            samples=settings.samples,
            seed=settings.seed,
            power=settings.sensitivity_power,
            progress=progress,
        ),
    )


def settings_with_calibration(
    settings: ConvertSettings, source: ModelSource
) -> tuple[ConvertSettings, tuple[str, ...]]:
    """Return settings of method ``obs`` if a weight has a product, else those given; a note if none has."""
    if source.graph is None or not (weights := continuous_weights(source.tensors)):
        return settings, ()
    graph = require_package("onnx").ModelProto.FromString(source.graph).graph
    if used_products(graph, graph_arrays(source.tensors, source.views), weights, source.views):
        return replace(settings, method="obs"), ()
    return settings, (f"{NO_PRODUCTS}, so method {settings.method!r} was taken",)


def network_surgeon(
    source: ModelSource, settings: ConvertSettings, calibration: Any, progress: Progress
) -> Surgeon | None:
    """Measure the Hessians of a pruned source's layers, if the method needs them.

    Raises
    ------
    ConversionError
        If method ``obs`` is wanted and cannot work.
    """
    if settings.method != "obs":
        return None
    started = time.perf_counter()
    measured = CalibrationSettings(
        samples=settings.samples, seed=settings.seed, hessian=settings.hessian, progress=progress
    )
    with one_blas_thread():
        surgeon = prepare_surgeon(source, continuous_weights(source.tensors), calibration, measured)
    took = f"Hessians of {len(surgeon.layers)} layers took {time.perf_counter() - started:.1f} s"
    return replace(surgeon, notes=(took, *surgeon.notes))


def _module_of(model: Any, weights: Any) -> Any:
    """Return the torch module whose weights are converted, or None."""
    if not is_module(model):
        return None
    if weights is None:
        return model
    from .sources.torch_module import module_with_weights

    return module_with_weights(model, weights)
