"""The sensitivity stage of a conversion: which method fits the model and the data, and what it gave."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nqconvert.sources import ModelSource
from nqconvert.sources.state_dict import array_of_torch
from nqformat.errors import ConversionError

from . import get_sensitivity
from .binding import BoundSensitivities, bind_sensitivities
from .settings import SensitivitySettings

__all__ = ["AUTO", "StageData", "source_sensitivities"]

AUTO = "auto"
_FLOOR = 1e-3
_OF_TENSORS = ("adam",)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageData:
    """What the caller brings for measuring.

    Attributes
    ----------
    module : torch.nn.Module or None
        With the weights that are converted; None for files and state dicts.
    calibration : object
        See :func:`nqconvert.sensitivity.calibration.calibration_batches`.
    loss : callable or None
    optimizer_state : path, mapping or None
    """

    module: Any = None
    calibration: Any = None
    loss: Callable[[Any, Any], Any] | None = None
    optimizer_state: Any = None


def source_sensitivities(
    source: ModelSource,
    weights: Mapping[str, np.ndarray],
    method: str,
    data: StageData,
    settings: SensitivitySettings,
) -> tuple[dict[str, np.ndarray] | None, tuple[str, ...]]:
    """Measure the sensitivities of a source's weights.

    ``auto`` takes ``adam`` if there is an optimizer's state, ``fisher`` for a module with calibration data,
    ``activation`` for a graph with calibration data, else ``none``. Sensitivities below a thousandth of a
    tensor's mean are raised to it: calibration data never shows every input. All are taken to `power` then.

    Parameters
    ----------
    source : ModelSource
        Before pruning.
    weights : mapping of str to ndarray
        The tensors of the source that will be quantized.
    method : str
    data : StageData
    settings : SensitivitySettings

    Returns
    -------
    (sensitivities by tensor name or None, notes)

    Raises
    ------
    ConversionError
        If the method cannot work on what there is.
    """
    chosen = _chosen(method, source, data)
    if chosen == "none":
        missing = "no sensitivities: there is no calibration data and no optimizer state"
        return None, (missing,) if method == AUTO else ()
    started = time.perf_counter()
    settings = replace(settings, loss=data.loss, optimizer_state=data.optimizer_state)
    measure = get_sensitivity(chosen)
    if chosen == "activation":
        arrays = {n: a for n, a in measure(source, data.calibration, settings).items() if n in weights}
        notes = _notes_of_missing([name for name in weights if name not in arrays])
    else:
        model, parameters = _measured_model(chosen, source, data)
        bound = bind_sensitivities(weights, parameters, dict(measure(model, data.calibration, settings)))
        arrays, notes = bound.arrays, _notes_of(bound)
    if not arrays:
        raise ConversionError(f"the sensitivity {chosen!r} fits none of the model's weights")
    seconds = time.perf_counter() - started
    return _raised(_floored(arrays), settings.power), (
        f"sensitivities by {chosen!r} took {seconds:.1f} s",
        *notes,
    )


def _chosen(method: str, source: ModelSource, data: StageData) -> str:
    if method != AUTO:
        return method
    if data.optimizer_state is not None:
        return "adam"
    if data.calibration is None:
        return "none"
    if data.module is not None:
        return "fisher"
    return "none" if source.graph is None else "activation"


def _measured_model(
    method: str, source: ModelSource, data: StageData
) -> tuple[Any, Mapping[str, np.ndarray]]:
    """Return what the method is applied to, and its parameters as arrays."""
    if data.module is not None:
        return data.module, {n: array_of_torch(n, p) for n, p in data.module.named_parameters()}
    if method in _OF_TENSORS:
        return source.tensors, source.tensors
    raise ConversionError(
        f"the sensitivity {method!r} needs a torch module; for ONNX models there is 'activation'"
    )


def _notes_of(bound: BoundSensitivities) -> list[str]:
    notes = _notes_of_missing(bound.missing)
    if bound.rescaled:
        notes.append(f"sensitivities rescaled for folded batch norms: {', '.join(bound.rescaled)}")
    if bound.looked_up:
        notes.append(f"sensitivities matched value by value: {', '.join(bound.looked_up)}")
    return notes


def _notes_of_missing(missing: Any) -> list[str]:
    return [f"no sensitivities, the mean of the others used: {', '.join(missing)}"] if missing else []


def _raised(arrays: dict[str, np.ndarray], power: float) -> dict[str, np.ndarray]:
    if power == 1.0:
        return arrays
    return {name: np.power(array, np.float32(power)) for name, array in arrays.items()}


def _floored(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    floored = {}
    for name, array in arrays.items():
        least = np.float32(_FLOOR * float(array.mean(dtype=np.float64)))
        floored[name] = np.maximum(array, least, dtype=np.float32)
    return floored
