"""The conversion pipeline: load, prune, quantize, encode, verify, report."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

import nqformat
from nqformat.errors import ConversionError, MissingDependencyError
from nqformat.files import replaced_when_done

from .encoding import Encoding
from .presets import ConvertSettings, preset_settings
from .quantization import QuantizedModel, is_weight
from .quantizers import get_quantizer
from .report import Report, measure_file
from .search import Target, search_rate
from .sensitivity.settings import SensitivitySettings
from .sensitivity.stage import StageData, source_sensitivities
from .sources import ModelSource, Runner, is_module, load_source
from .training.fine_tuning import FineTuning, fine_tune_centres
from .training.stage import Training, prune_module, prune_tensors
from .verification import OutputComparison, compare_outputs, weight_snr_db

__all__ = ["convert"]

Progress = Callable[[str], None]
Evaluation = Callable[[Runner], float]


def convert(
    model: Any,
    path: str | os.PathLike[str],
    *,
    example_inputs: Any = None,
    weights: Any = None,
    preset: str = "auto",
    training: Training | None = None,
    evaluate: Evaluation | None = None,
    method: str | None = None,
    clusters: int | None = None,
    scope: str | None = None,
    density: float | None = None,
    rest: str | None = None,
    step: float | None = None,
    rate_penalty: float | None = None,
    width: int | None = None,
    product: bool | None = None,
    sensitivity: str | None = None,
    samples: int | None = None,
    calibration: Any = None,
    loss: Callable[[Any, Any], Any] | None = None,
    optimizer_state: Any = None,
    fine_tuning: FineTuning | None = None,
    target_bits: float | None = None,
    target_size: float | None = None,
    target_ratio: float | None = None,
    seed: int | None = None,
    strict: bool = False,
    edge: bool = False,
    prefer: str = "size",
    full_metadata: bool = False,
    dynamic_batch: bool = True,
    progress: Progress | None = None,
) -> Report:
    """Convert a model to a .nqz file, re-read the file and report what it holds.

    Parameters
    ----------
    model : path, mapping, onnx.ModelProto or torch.nn.Module
        See :func:`nqconvert.sources.load_source`.
    path : path-like
        The .nqz file; replaced only when everything before succeeded.
    example_inputs : array, tensor, sequence or mapping, optional
        Needed for a module; with them, outputs of the original and of the re-read file are compared.
    weights : path or mapping, optional
        State dict for a module.
    preset : str
        A name of :data:`nqconvert.presets.PRESETS`.
    training : Training, optional
        Lets ``deep-compression`` prune and retrain the module (a copy of it).
    evaluate : callable, optional
        Takes a function from feeds to outputs and returns an accuracy; called for the original and for the
        file.
    method, clusters, scope, density, rest, step, rate_penalty, width, product, sensitivity, samples, seed
        Override single settings of the preset; see :class:`~nqconvert.presets.ConvertSettings`.
    calibration : array, tuple, mapping or iterable, optional
        Inputs, or inputs with targets, to measure sensitivities on; see
        :func:`nqconvert.sensitivity.calibration.calibration_batches`.
    loss : callable, optional
        ``loss(outputs, targets)`` that sensitivities are about; cross entropy if not given.
    optimizer_state : path or mapping, optional
        State of the Adam optimizer (sensitivity ``adam``).
    fine_tuning : FineTuning, optional
        Trains the entries of the codebooks of a module.
    target_bits, target_size, target_ratio : float, optional
        Bound on the whole file, one of: bits for each value of the model, bytes, original bytes over file
        bytes. The step, rate penalty or number of clusters is searched.
    strict : bool
        Fail if a weight matrix would be left raw.
    edge : bool
        Leave the directory uncompressed.
    prefer : {"size", "speed"}
        ``size`` takes every coding that saves bytes; ``speed`` only those that decode fastest.
    full_metadata : bool
        Store all settings and accuracies instead of method, seed and version.
    dynamic_batch : bool
        Leave axis 0 of a module's inputs open.
    progress : callable, optional
        Called with a line for each stage.

    Returns
    -------
    Report

    Raises
    ------
    ConversionError
        If the model cannot be represented, holds NaN, or `strict` or a target cannot be met; nothing is
        written.
    ValueError
        If a preset, method or setting is unknown.
    MissingDependencyError
        If an optional package is missing; names the extra.
    """
    started = time.perf_counter()
    say = progress or _silent
    settings = preset_settings(
        preset,
        method=method,
        clusters=clusters,
        scope=scope,
        density=density,
        rest=rest,
        step=step,
        rate_penalty=rate_penalty,
        width=width,
        product=product,
        sensitivity=sensitivity,
        samples=samples,
        seed=seed,
    )
    target = Target(bits=target_bits, size=target_size, ratio=target_ratio)
    get_quantizer(settings.method)
    pruned, notes = prune_module(model, settings, training, weights, say)
    say("loading the model")
    source = load_source(
        model if pruned is None else pruned,
        example_inputs=example_inputs,
        weights=weights if pruned is None else None,
        dynamic_batch=dynamic_batch,
    )
    run = source.run if pruned is None else _original_runner(model, weights, example_inputs, source)
    originals = source.tensors
    module = _module_of(model, weights, pruned)
    sensitivities, sensitivity_notes = source_sensitivities(
        source,
        {name: array for name, array in originals.items() if is_weight(array)},
        settings.sensitivity,
        StageData(module=module, calibration=calibration, loss=loss, optimizer_state=optimizer_state),
        SensitivitySettings(samples=settings.samples, seed=settings.seed, progress=say),
    )
    if pruned is None and settings.density is not None:
        source = replace(source, tensors=prune_tensors(originals, settings.density))
    say(f"quantizing {len(source.tensors)} tensors ({settings.method})")
    encoding = Encoding(
        source=source, sensitivities=sensitivities, full_metadata=full_metadata, edge=edge, prefer=prefer
    )
    max_bytes = target.max_bytes(
        original_bytes=sum(array.nbytes for array in originals.values()),
        n_values=sum(array.size for array in originals.values()),
    )
    if max_bytes is None:
        quantized = encoding.quantize(settings)
    else:
        found = search_rate(settings, encoding.attempt, max_bytes, say)
        quantized, settings = found.model, found.settings
    tuning_notes: tuple[str, ...] = ()
    if fine_tuning is not None:
        quantized, tuning_notes = _fine_tuned(module, quantized, originals, fine_tuning, say)
    _check_strict(quantized.exact, source, strict)
    feeds = _feeds(source, example_inputs)
    before = _evaluate(evaluate, run)
    say("encoding")
    with replaced_when_done(path) as staged:
        nqformat.save_file(
            encoding.tensors(quantized),
            staged,
            graph=source.graph,
            metadata=encoding.metadata(settings),
            edge=edge,
            prefer=prefer,
        )
        _check_bound(staged, max_bytes)
        say("verifying the written file")
        outputs, retrained, note = _compare_outputs(
            run, None if pruned is None else source.run, staged, source, feeds
        )
        after = _evaluate(evaluate, _file_runner(staged)) if evaluate is not None else None
        snr = weight_snr_db(originals, nqformat.load_file(staged))
        measured = measure_file(staged)
    return Report(
        path=os.fspath(path),
        preset=settings.preset,
        method=settings.method,
        file=measured,
        original_bytes=sum(array.nbytes for array in originals.values()),
        outputs=outputs,
        retrained_outputs=retrained,
        weight_snr_db=snr,
        accuracy=None if before is None or after is None else (before, after),
        exact={**quantized.exact, **source.reasons},
        notes=(*source.notes, *notes, *sensitivity_notes, *tuning_notes, *note),
        warnings=_warnings(settings, outputs, retrained),
        seconds=time.perf_counter() - started,
    )


def _silent(line: str) -> None:
    """Report no progress."""


def _module_of(model: Any, weights: Any, pruned: Any) -> Any:
    """Return the torch module whose weights are converted, or None."""
    if pruned is not None:
        return pruned
    if not is_module(model):
        return None
    if weights is None:
        return model
    from .sources.torch_module import module_with_weights

    return module_with_weights(model, weights)


def _fine_tuned(
    module: Any,
    quantized: QuantizedModel,
    originals: Mapping[str, np.ndarray],
    tuning: FineTuning,
    say: Progress,
) -> tuple[QuantizedModel, tuple[str, ...]]:
    if module is None:
        raise ConversionError("fine-tuning needs a torch module; files and state dicts cannot be trained")
    tensors, log = fine_tune_centres(
        module,
        quantized.tensors,
        originals,
        tuning,
        progress=lambda record: say(f"fine-tuning centres: epoch {record.epoch} of {tuning.epochs}"),
    )
    first, best = log.records[0].validation_loss, log.records[log.best_epoch].validation_loss
    note = f"centres fine-tuned in {len(log.records) - 1} epochs, those of epoch {log.best_epoch} kept"
    if first is not None and best is not None:
        note += f": validation loss {first:.4g} -> {best:.4g}"
    return replace(quantized, tensors=tensors), (note,)


def _check_bound(path: os.PathLike[str], max_bytes: int | None) -> None:
    """Make sure that no file that misses its bound is kept."""
    written = os.stat(path).st_size
    if max_bytes is not None and written > max_bytes:
        raise ConversionError(f"the file has {written:,} bytes, the bound is {max_bytes:,}")


def _original_runner(model: Any, weights: Any, example_inputs: Any, source: ModelSource) -> Runner:
    """Return the runner of the module before pruning."""
    from .sources.torch_module import module_runner

    return module_runner(model, example_inputs, source.input_names, weights=weights)


def _warnings(
    settings: ConvertSettings, outputs: OutputComparison | None, retrained: OutputComparison | None
) -> tuple[str, ...]:
    """Return what to look at; retraining changes the scale of outputs on purpose."""
    if outputs is None or settings.method == "none":
        return ()
    if retrained is None:
        return outputs.warnings
    return (*retrained.warnings, *(warning for warning in outputs.warnings if "agreement" in warning))


def _check_strict(exact: Mapping[str, str], source: ModelSource, strict: bool) -> None:
    """Fail if a weight matrix is left raw, or inside the graph, and that is not wanted."""
    left = {name: reason for name, reason in exact.items() if is_weight(source.tensors[name])}
    left.update(source.reasons)
    if strict and left:
        listed = "; ".join(f"{name}: {reason}" for name, reason in left.items())
        raise ConversionError(f"strict: these weights are not compressed: {listed}")


def _feeds(source: ModelSource, example_inputs: Any) -> dict[str, np.ndarray]:
    """Return the example inputs by input name; empty without a graph or without examples."""
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


def _evaluate(evaluate: Evaluation | None, run: Runner | None) -> float | None:
    if evaluate is None:
        return None
    if run is None:
        raise ConversionError("an evaluation needs a model that can run; a state dict has no graph")
    return float(evaluate(run))


def _file_runner(path: os.PathLike[str]) -> Runner:
    """Return a function that runs a .nqz file."""
    from nqruntime import InferenceSession

    session = InferenceSession(path)
    return lambda feeds: session.run(None, feeds)


def _compare_outputs(
    run: Runner | None,
    run_retrained: Runner | None,
    path: os.PathLike[str],
    source: ModelSource,
    feeds: Mapping[str, np.ndarray],
) -> tuple[OutputComparison | None, OutputComparison | None, tuple[str, ...]]:
    """Compare the original, and the retrained network if there is one, with the re-read file."""
    if run is None or source.graph is None:
        return None, None, ("the model has no graph, so its outputs were not compared",)
    if not feeds:
        return None, None, ("no example inputs were given, so outputs were not compared",)
    try:
        written = _file_runner(path)(feeds)
    except MissingDependencyError as error:
        return None, None, (f"outputs were not compared: {error}",)
    retrained = None if run_retrained is None else compare_outputs(run_retrained(feeds), written)
    return compare_outputs(run(feeds), written), retrained, ()
