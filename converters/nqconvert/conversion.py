"""The conversion pipeline: load, prune, measure, quantize, encode, verify, report."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nqformat.dtypes import DType
from nqformat.errors import ConversionError
from nqformat.files import replaced_when_done
from nqformat.tensor import HashedTensor, ViewTensor

from .accuracy import Drop, Evaluation, Score, drop_between, score_of
from .encoding import Encoding
from .memory import PeakMemory, StageClock, return_freed_memory
from .network import (
    Measured,
    Network,
    load_network,
    network_calibration,
    network_sensitivities,
    network_surgeon,
    settings_with_calibration,
)
from .presets import ConvertSettings, preset_settings
from .quantization import QuantizedModel, is_weight
from .quantizers import get_quantizer
from .repair.settings import RepairSettings
from .report import Report, measure_file
from .search import SEARCHING, Attempt, Target, search_drop
from .sensitivity.loss_check import LossCheck, check_losses
from .sensitivity.settings import SensitivitySettings
from .sources import ModelSource
from .training.fine_tuning import FineTuning, fine_tune_centres
from .training.training_data import Training
from .verification import file_runner, verify_file

__all__ = ["convert"]

Progress = Callable[[str], None]


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
    sensitivity_power: float | None = None,
    calibration: Any = None,
    loss: Callable[[Any, Any], Any] | None = None,
    optimizer_state: Any = None,
    hessian: str | None = None,
    repairs: RepairSettings | None = None,
    fine_tuning: FineTuning | None = None,
    target_bits: float | None = None,
    target_size: float | None = None,
    target_ratio: float | None = None,
    max_drop: float | None = None,
    seed: int | None = None,
    strict: bool = False,
    edge: bool = False,
    prefer: str = "size",
    full_metadata: bool = False,
    dynamic_batch: bool = True,
    dynamic_axes: Mapping[str, Sequence[int]] | None = None,
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
        Data to retrain the module (a copy of it) with, and the method; see
        :class:`~nqconvert.training.training_data.Training`.
    evaluate : callable, optional
        Takes a function from feeds to outputs; returns an accuracy, or an array with the score of each sample
        (right or wrong, or a loss with its sign turned), which the drop has an interval from. Called for
        the original and for the file, each time on the same samples.
    method, clusters, scope, density, rest, step, rate_penalty, width, product : optional
        Override single settings of the preset; see :class:`~nqconvert.presets.ConvertSettings`.
    sensitivity, samples, sensitivity_power, seed : optional
        Override single settings of the preset; see :class:`~nqconvert.presets.ConvertSettings`.
    calibration : array, tuple, mapping, iterable, callable or ImageFolder, optional
        Inputs, or inputs with targets, to measure sensitivities and layer Hessians on; with them preset
        ``auto`` takes method ``obs``. See
        :func:`nqconvert.sensitivity.calibration.calibration_batches`.
    loss : callable, optional
        ``loss(outputs, targets)`` that sensitivities are about; cross entropy if not given.
    optimizer_state : path or mapping, optional
        State of the Adam optimizer (sensitivity ``adam``).
    hessian : {"inputs", "identity"}, optional
        ``identity`` lets method ``obs`` work without calibration inputs.
    repairs : RepairSettings, optional
        What follows method ``obs``: distillation, corrections of biases, norms and scales.
    fine_tuning : FineTuning, optional
        Trains the entries of the codebooks of a module.
    target_bits, target_size, target_ratio : float, optional
        Bound on the whole file, one of: bits for each value of the model, bytes, original bytes over file
        bytes. The step, rate penalty or number of clusters is searched.
    max_drop : float, optional
        Most percentage points of accuracy (a share of 1, by `evaluate`) that may be lost; the smallest file
        found in ten evaluations is written. A file counts if it loses nothing on the samples, or if the
        paired 95 % interval of its drop is within the bound; see :class:`nqconvert.accuracy.Drop`.
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
    dynamic_axes : mapping of str to sequence of int, optional
        Further axes of a module's inputs to leave open, by the names of the arguments of ``forward``.
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
    clock = StageClock()
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
        sensitivity_power=sensitivity_power,
        hessian=hessian,
        repairs=repairs,
        seed=seed,
    )
    target = Target(bits=target_bits, size=target_size, ratio=target_ratio)
    _check_drop(max_drop, evaluate, target)
    get_quantizer(settings.method)
    with PeakMemory() as memory:
        with clock.stage("load"):
            network = load_network(
                model,
                settings,
                example_inputs=example_inputs,
                weights=weights,
                training=training,
                dynamic_batch=dynamic_batch,
                dynamic_axes=dynamic_axes,
                progress=say,
            )
            measured = network_calibration(network, calibration, settings.samples)
            calibration = measured.calibration
            examples = network.feeds(example_inputs)
            feeds = examples or measured.feeds
            return_freed_memory()
        method_notes: tuple[str, ...] = ()
        if preset == "auto" and method is None and sensitivity is None and calibration is not None:
            settings, method_notes = settings_with_calibration(settings, network.source)
        with clock.stage("sensitivities"):
            sensitivities, sensitivity_notes = network_sensitivities(
                measured.network(network),
                settings,
                calibration=calibration,
                loss=loss,
                optimizer_state=optimizer_state,
                progress=say,
            )
        source = network.pruned(None if settings.method == "obs" else settings.density)
        with clock.stage("Hessians"):
            surgeon = network_surgeon(measured.source(source), settings, calibration, say)
            return_freed_memory()
        encoding = Encoding(
            source=source,
            sensitivities=sensitivities,
            surgeon=surgeon,
            full_metadata=full_metadata,
            edge=edge,
            prefer=prefer,
        )
        max_bytes = encoding.max_bytes(target)
        with clock.stage("evaluate"):
            before = None if evaluate is None else score_of(evaluate, network.run)
        with clock.stage("quantize"):
            if max_drop is None or evaluate is None or before is None:
                quantized = _quantize(encoding, settings, max_bytes, say)
            else:
                say(f"{SEARCHING}at most {max_drop:g} percentage points below {before.mean:.4f}")
                judge = _judge(encoding, evaluate, before)
                found = search_drop(settings, encoding.attempt, judge, max_drop, say)
                quantized = _Quantized(model=found.model, settings=found.settings)
        if fine_tuning is not None:
            with clock.stage("fine-tune"):
                quantized = _fine_tune(network, quantized, fine_tuning, say)
        _check_strict(quantized.model.exact, network.source, strict)
        losses = _LossCheck()
        if calibration is not None and (loss is not None or evaluate is not None):
            with clock.stage("check losses"):
                checked = SensitivitySettings(
                    samples=settings.samples, seed=settings.seed, loss=loss, progress=say
                )
                losses = _check_losses(measured, encoding, quantized.model, checked)
        surgeon_notes = surgeon.notes if surgeon else ()
        surgeon, encoding = None, replace(encoding, surgeon=None)
        return_freed_memory()
        say("encoding")
        with replaced_when_done(path) as staged:
            with clock.stage("encode"):
                encoding.write(quantized.settings, quantized.model, staged)
            _check_bound(staged, max_bytes)
            return_freed_memory()
            say("verifying the written file")
            with clock.stage("verify"):
                verification = verify_file(staged, network, feeds, evaluate)
                file = measure_file(staged)
    after = verification.score
    drop = None if before is None or after is None else drop_between(before, after)
    warnings = () if settings.method == "none" else verification.warnings
    if max_drop is None and drop is not None and drop.warning:
        warnings = (*warnings, drop.warning)
    notes = (
        *network.source.notes,
        *network.notes,
        *method_notes,
        *sensitivity_notes,
        *surgeon_notes,
        *quantized.model.notes,
        *quantized.notes,
        *losses.notes,
    )
    return Report(
        path=os.fspath(path),
        preset=settings.preset,
        method=settings.method,
        file=file,
        original_bytes=sum(array.nbytes for array in network.source.tensors.values()),
        outputs=verification.outputs,
        retrained_outputs=verification.retrained_outputs,
        weight_snr_db=verification.weight_snr_db,
        accuracy=None if before is None or after is None else (before.mean, after.mean),
        exact={**quantized.model.exact, **network.source.reasons},
        notes=(*notes, *verification.notes, *_compared_with(examples, feeds)),
        warnings=warnings,
        seconds=time.perf_counter() - started,
        stage_seconds=clock.seconds,
        peak_bytes=memory.peak_bytes,
        loss_check=losses.found,
        drop=drop,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _LossCheck:
    """Predicted against measured losses, or why they could not be measured."""

    found: LossCheck | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Quantized:
    """A quantized model and the settings that made it, searched ones included."""

    model: QuantizedModel
    settings: ConvertSettings
    notes: tuple[str, ...] = ()


def _silent(line: str) -> None:
    """Report no progress."""


def _quantize(
    encoding: Encoding, settings: ConvertSettings, max_bytes: int | None, say: Progress
) -> _Quantized:
    """Quantize with the settings given, or with those that a search finds for a bound."""
    say(f"quantizing {len(encoding.source.tensors)} tensors ({settings.method})")
    if max_bytes is None:
        return _Quantized(model=encoding.quantize(settings), settings=settings)
    found = encoding.fitting_attempt(settings, max_bytes, say)
    return _Quantized(model=found.model, settings=found.settings)


def _judge(encoding: Encoding, evaluate: Evaluation, before: Score) -> Callable[[Attempt], Drop]:
    """Return a function that tells what the file of an attempt loses."""

    def judge(attempt: Attempt) -> Drop:
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "attempt.nqz")
            encoding.write(attempt.settings, attempt.model, path)
            return drop_between(before, score_of(evaluate, file_runner(path)))

    return judge


def _check_drop(max_drop: float | None, evaluate: Evaluation | None, target: Target) -> None:
    if max_drop is None:
        return
    if evaluate is None:
        raise ValueError("max_drop needs evaluate, a function that returns an accuracy")
    if target != Target():
        raise ValueError("max_drop and a target for the size cannot be given together")
    if not max_drop >= 0:
        raise ValueError(f"max_drop must not be negative, but is {max_drop}")


def _fine_tune(network: Network, quantized: _Quantized, tuning: FineTuning, say: Progress) -> _Quantized:
    """Train the codebooks' entries on the network's module."""
    if network.module is None:
        raise ConversionError("fine-tuning needs a torch module; files and state dicts cannot be trained")
    tensors, log = fine_tune_centres(
        network.module,
        quantized.model.tensors,
        network.source.tensors,
        tuning,
        progress=lambda record: say(f"fine-tuning centres: epoch {record.epoch} of {tuning.epochs}"),
    )
    first, best = log.records[0].validation_loss, log.records[log.best_epoch].validation_loss
    note = f"centres fine-tuned in {len(log.records) - 1} epochs, those of epoch {log.best_epoch} kept"
    if first is not None and best is not None:
        note += f": validation loss {first:.4g} -> {best:.4g}"
    return replace(quantized, model=replace(quantized.model, tensors=tensors), notes=(note,))


def _check_losses(
    measured: Measured, encoding: Encoding, model: QuantizedModel, settings: SensitivitySettings
) -> _LossCheck:
    """Compare what the sensitivities predict with the loss of the quantized network."""
    source, sensitivities = measured.source(encoding.source), encoding.sensitivities
    if not sensitivities or source.graph is None:
        return _LossCheck()
    made = {name: model.tensors[name] for name in sensitivities}
    quantized = {
        name: tensor.decode()
        for name, tensor in made.items()
        if not isinstance(tensor, HashedTensor | ViewTensor) and tensor.dtype is DType.FLOAT32
    }
    try:
        return _LossCheck(
            found=check_losses(source, quantized, sensitivities, measured.calibration, settings)
        )
    except ConversionError as error:
        return _LossCheck(notes=(f"predicted and measured losses were not compared: {error}",))


def _compared_with(examples: Mapping[str, Any], feeds: Mapping[str, Any]) -> tuple[str, ...]:
    """Say so if outputs were compared on calibration inputs, which quantization saw."""
    if examples or not feeds:
        return ()
    n_samples = len(next(iter(feeds.values())))
    named = "first calibration input" if n_samples == 1 else f"first {n_samples} calibration inputs"
    return (f"outputs were compared on the {named}",)


def _check_bound(path: os.PathLike[str], max_bytes: int | None) -> None:
    """Make sure that no file that misses its bound is kept."""
    written = os.stat(path).st_size
    if max_bytes is not None and written > max_bytes:
        raise ConversionError(f"the file has {written:,} bytes, the bound is {max_bytes:,}")


def _check_strict(exact: Mapping[str, str], source: ModelSource, strict: bool) -> None:
    """Fail if a weight matrix is left raw, or inside the graph, and that is not wanted."""
    left = {name: reason for name, reason in exact.items() if is_weight(source.tensors[name])}
    left.update(source.reasons)
    if strict and left:
        listed = "; ".join(f"{name}: {reason}" for name, reason in left.items())
        raise ConversionError(f"strict: these weights are not compressed: {listed}")
