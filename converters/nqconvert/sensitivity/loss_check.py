"""What the diagonal approximation is worth: predicted against measured change of the loss."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nqconvert.graphs.onnx_tensor import ONNX_OF_DTYPE, proto_of
from nqconvert.graphs.ort_session import open_session
from nqconvert.sources.model_source import ModelSource
from nqformat.dtypes import dtype_of
from nqformat.errors import ConversionError
from nqformat.optional_packages import require_package

from . import predicted_loss_change
from .calibration import Batch, calibration_batches, feeds_of
from .losses import loss_of, sampled_targets
from .settings import SensitivitySettings

__all__ = ["LossChange", "LossCheck", "check_losses"]

_MAX_TENSORS = 32
_MAX_MODEL_BYTES = (1 << 31) - 1
_SHOWN = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class LossChange:
    """Change of the loss with one tensor quantized and all others as they were.

    Attributes
    ----------
    name : str
    predicted : float
        Half the sum of sensitivity x squared change of the weights, in the units of the sensitivities.
    measured : float
        Mean loss afterwards less the mean loss before.
    """

    name: str
    predicted: float
    measured: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LossCheck:
    """Predicted and measured changes, tensor by tensor and all together.

    Attributes
    ----------
    original_loss : float
    n_samples : int
    tensors : tuple of LossChange
        Those of the largest prediction, at most 32, the largest first.
    together : LossChange
        All tensors quantized; its prediction is the sum over all.
    seconds : float
    """

    original_loss: float
    n_samples: int
    tensors: tuple[LossChange, ...]
    together: LossChange
    seconds: float

    @property
    def correlation(self) -> float | None:
        """Pearson's correlation over tensors; None for fewer than three or if nothing changes."""
        return _correlation(*self._columns())

    @property
    def rank_correlation(self) -> float | None:
        """Spearman's correlation over tensors: whether the order is right, whatever the scale."""
        predicted, measured = self._columns()
        return _correlation(_ranks(predicted), _ranks(measured))

    def _columns(self) -> tuple[np.ndarray, np.ndarray]:
        predicted = np.array([change.predicted for change in self.tensors])
        return predicted, np.array([change.measured for change in self.tensors])

    def to_json(self) -> dict[str, Any]:
        """Return the check as plain JSON types."""
        changes = [
            {"name": c.name, "predicted": c.predicted, "measured": c.measured}
            for c in (*self.tensors, self.together)
        ]
        return {
            "original_loss": self.original_loss,
            "n_samples": self.n_samples,
            "changes": changes,
            "correlation": self.correlation,
            "rank_correlation": self.rank_correlation,
            "seconds": self.seconds,
        }

    def __str__(self) -> str:
        both, shown = self.together, self.tensors[:_SHOWN]
        lines = [
            f"loss {self.original_loss:.4g} on {self.n_samples} samples: predicted change "
            f"{both.predicted:.3g}, measured {both.measured:.3g} ({self.seconds:.1f} s)"
        ]
        if self.correlation is not None and self.rank_correlation is not None:
            lines.append(
                f"one tensor at a time: correlation of predicted and measured {self.correlation:.3f}, of "
                f"their ranks {self.rank_correlation:.3f}, over {len(self.tensors)} tensors"
            )
        lines += [f"  {c.name}: predicted {c.predicted:.3g}, measured {c.measured:.3g}" for c in shown]
        return "\n".join(lines)


def check_losses(
    source: ModelSource,
    quantized: Mapping[str, np.ndarray],
    sensitivities: Mapping[str, np.ndarray],
    calibration: Any,
    settings: SensitivitySettings,
) -> LossCheck:
    """Quantize one tensor at a time, measure the loss and compare with what the sensitivities predict.

    Runs the graph in ONNX Runtime once for each tensor and twice more. Without targets in the calibration
    data, labels are drawn from the original network's outputs, once for all runs.

    Parameters
    ----------
    source : ModelSource
        With a graph.
    quantized : mapping of str to ndarray
        Decoded values by tensor name, in the shapes of the source's.
    sensitivities : mapping of str to ndarray
        Of some of the tensors.
    calibration : object
        See :func:`nqconvert.sensitivity.calibration.calibration_batches`.
    settings : SensitivitySettings
        Loss, samples, batch size and seed.

    Returns
    -------
    LossCheck

    Raises
    ------
    ConversionError
        If there is no graph, the model is too large for ONNX Runtime to take from memory, or labels cannot
        be drawn.

    Source : Choi, El-Khamy, Lee 2017, eq. (5) and (7)
    """
    started = time.perf_counter()
    changed = {n: quantized[n] for n in sensitivities if n in quantized}
    predictions = {
        name: predicted_loss_change(source.tensors, {name: array}, sensitivities)
        for name, array in changed.items()
    }
    network = _Network(source, list(changed))
    batches = list(_labelled(network, calibration, settings))
    original = network.loss(batches, {}, settings)
    names = sorted(predictions, key=lambda name: -predictions[name])
    changes = []
    for name in names[:_MAX_TENSORS]:
        measured = network.loss(batches, {name: changed[name]}, settings) - original
        changes.append(LossChange(name=name, predicted=predictions[name], measured=measured))
        settings.progress(f"checking losses: {len(changes)} of {min(len(names), _MAX_TENSORS)} tensors")
    together = network.loss(batches, changed, settings) - original
    return LossCheck(
        original_loss=original,
        n_samples=sum(batch.n_samples for batch in batches),
        tensors=tuple(changes),
        together=LossChange(name="(all)", predicted=sum(predictions.values()), measured=together),
        seconds=time.perf_counter() - started,
    )


class _Network:
    """The source's graph with some of its tensors as inputs that have a default."""

    def __init__(self, source: ModelSource, names: list[str]) -> None:
        if source.graph is None:
            raise ConversionError("losses cannot be checked: the model has no graph")
        self._source = source
        model = require_package("onnx").ModelProto.FromString(source.graph)
        arrays = {**source.tensors, **self._views({})}
        if sum(array.nbytes for array in arrays.values()) + model.ByteSize() > _MAX_MODEL_BYTES:
            raise ConversionError("losses cannot be checked: more than 2 GiB of weights")
        model.graph.initializer.extend(proto_of(name, array) for name, array in arrays.items())
        model.ir_version = max(model.ir_version, 4)  # from here on an initializer may also be an input
        declared = {value.name for value in model.graph.input}
        for name in (*names, *source.views):
            if name not in declared:
                model.graph.input.append(_value_info(name, arrays[name]))
        self._session = open_session(model.SerializeToString())

    def outputs(self, batch: Batch, replaced: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Run a batch with some tensors replaced, and the views of them."""
        feeds = {**feeds_of(batch, self._source.input_names), **replaced}
        if replaced:
            feeds.update(self._views(replaced))
        return list(self._session.run(None, feeds))

    def loss(
        self, batches: list[Batch], replaced: Mapping[str, np.ndarray], settings: SensitivitySettings
    ) -> float:
        """Return the mean loss over all samples."""
        torch = require_package("torch")
        total, n_samples = 0.0, 0
        for batch in batches:
            outputs = _as_torch(self.outputs(batch, replaced))
            with torch.inference_mode():
                total += float(loss_of(settings)(outputs, batch.targets)) * batch.n_samples
            n_samples += batch.n_samples
        return total / n_samples

    def _views(self, replaced: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        tensors = {**self._source.tensors, **replaced}
        return {name: view.assemble(tensors) for name, view in self._source.views.items()}


def _labelled(network: _Network, calibration: Any, settings: SensitivitySettings) -> Iterator[Batch]:
    """Yield batches with targets as torch tensors, drawn where there are none."""
    torch = require_package("torch")
    generator = torch.Generator().manual_seed(settings.seed)
    for batch in calibration_batches(calibration, batch_size=settings.batch_size, samples=settings.samples):
        if batch.targets is None:
            outputs = _as_torch(network.outputs(batch, {}))
            yield replace(batch, targets=sampled_targets(outputs, settings, generator))
        else:
            given = Batch(kwargs={}, targets=batch.targets).mapped(_tensor_of)
            yield replace(batch, targets=given.targets)


def _as_torch(outputs: list[np.ndarray]) -> Any:
    """Return the outputs as a module gives them: one tensor, or several."""
    tensors = [_tensor_of(output) for output in outputs]
    return tensors[0] if len(tensors) == 1 else tuple(tensors)


def _tensor_of(value: Any) -> Any:
    torch = require_package("torch")
    return value if isinstance(value, torch.Tensor) else torch.from_numpy(np.array(value))


def _value_info(name: str, array: np.ndarray) -> Any:
    helper = require_package("onnx.helper")
    return helper.make_tensor_value_info(name, ONNX_OF_DTYPE[dtype_of(array)], array.shape)


def _ranks(values: np.ndarray) -> np.ndarray:
    return np.argsort(np.argsort(values, kind="stable"), kind="stable").astype(np.float64)


def _correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    if a.size < 3 or not (np.ptp(a) > 0 and np.ptp(b) > 0):
        return None
    return float(np.corrcoef(a, b)[0, 1])
