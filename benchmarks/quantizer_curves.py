"""Size against loss of quantizers on trained networks: what benchmarks/quantizers.py puts into tables."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from networks import Labelled, Network

import nqformat
from nqconvert import load_source
from nqconvert.encoding import Encoding
from nqconvert.presets import ConvertSettings
from nqconvert.quantization import QuantizedModel, is_weight
from nqconvert.sensitivity.settings import SensitivitySettings
from nqconvert.sensitivity.stage import StageData, source_sensitivities
from nqformat import Codebook, CodebookTensor
from nqformat.accounting import account
from nqruntime import InferenceSession

Sensitivities = Mapping[str, np.ndarray] | None
Measure = Literal["loss", "divergence"]
_BATCH = 500
_LEVELS = 5
_LEAST_SPAN = 1.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One written file, read back and run on the test samples.

    Attributes
    ----------
    fixed_bytes : float or None
        With indices of a fixed length; for k-means.
    loss, divergence : float
        Cross entropy, and mean Kullback-Leibler divergence of the file's answers from the network's own, in
        nats. Loss may fall by luck or because noise tempers a network that is too sure; divergence may not.
    seconds : float
        To quantize and encode.
    """

    method: str
    scope: str
    knob: str
    value: float
    file_bytes: int
    fixed_bytes: float | None
    loss: float
    divergence: float
    accuracy: float
    seconds: float


@dataclass(slots=True, kw_only=True)
class Workbench:
    """A network, its tensors as they are stored, and sensitivities by label."""

    network: Network
    source: Any
    sensitivities: dict[str, Sensitivities] = field(default_factory=dict)
    own_logits: np.ndarray | None = None

    @classmethod
    def of(cls, network: Network) -> Workbench:
        return cls(
            network=network,
            source=load_source(network.module, example_inputs=network.calibration[:2]),
            sensitivities={"none": None},
        )

    def measure(self, method: str, inputs: np.ndarray | None = None) -> float:
        """Measure sensitivities, on the calibration images if not told otherwise; returns the seconds."""
        calibration = self.network.calibration if inputs is None else inputs
        started = time.perf_counter()
        weights = {name: array for name, array in self.source.tensors.items() if is_weight(array)}
        found, _ = source_sensitivities(
            self.source,
            weights,
            method,
            StageData(module=self.network.module, calibration=calibration),
            SensitivitySettings(samples=len(calibration)),
        )
        assert found is not None
        self.sensitivities[method] = found
        return time.perf_counter() - started

    def take_moments(self, moments: Mapping[str, np.ndarray]) -> None:
        """Take Adam's second moments: their roots under the name ``adam``, themselves as ``adam v``."""
        weights = {name: array for name, array in self.source.tensors.items() if is_weight(array)}
        for label, power in (("adam", 0.5), ("adam v", 1.0)):
            self.sensitivities[label], _ = source_sensitivities(
                self.source,
                weights,
                "adam",
                StageData(module=self.network.module, optimizer_state=moments),
                SensitivitySettings(adam_power=power),
            )

    def measure_without_data(self, n_inputs: int = 500) -> None:
        """Measure sensitivities on normally distributed random inputs, under the name ``noise``."""
        shape = (n_inputs, *self.network.calibration.shape[1:])
        inputs = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        self.measure("becker", inputs)
        self.sensitivities["noise"] = self.sensitivities.pop("becker")

    def add_root(self, method: str) -> None:
        """Add square roots of measured sensitivities under the name ``root-...``."""
        found = self.sensitivities[method]
        assert found is not None
        self.sensitivities[f"root-{method}"] = {name: np.sqrt(array) for name, array in found.items()}

    def encoding(self, sensitivity: str) -> Encoding:
        return Encoding(source=self.source, sensitivities=self.sensitivities[sensitivity])

    def content(self, settings: ConvertSettings) -> tuple[bytes, QuantizedModel]:
        encoding = self.encoding(settings.sensitivity)
        model = encoding.quantize(settings)
        return encoding.content(settings, model), model

    def exact_content(self, tensors: Mapping[str, np.ndarray]) -> bytes:
        """Return a file of the network with other values of its tensors, bit for bit."""
        encoding = Encoding(source=replace(self.source, tensors={**self.source.tensors, **tensors}))
        settings = ConvertSettings(preset="lossless", method="none")
        return encoding.content(settings, encoding.quantize(settings))

    @staticmethod
    def graph_bytes(content: bytes) -> int:
        """What the graph takes in a file; coders of tensors alone do not store it."""
        with nqformat.from_bytes(content) as file:
            return account(file).graph

    def logits(self, content: bytes, inputs: np.ndarray) -> np.ndarray:
        """What a file answers, through ONNX Runtime."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.nqz"
            path.write_bytes(content)
            with InferenceSession(path, engine="ort", threads=1) as session:
                name = session.get_inputs()[0].name
                parts = [
                    session.run(None, {name: inputs[start : start + _BATCH]})[0]
                    for start in range(0, len(inputs), _BATCH)
                ]
        return np.concatenate(parts)

    def judge(self, content: bytes, data: Labelled) -> tuple[float, float]:
        """Cross entropy and accuracy of a file on images."""
        return loss_and_accuracy(self.logits(content, data[0]), data[1])

    def original(self, data: Labelled) -> tuple[float, float]:
        """Cross entropy and accuracy of the network itself."""
        return loss_and_accuracy(self._original_logits(data[0]), data[1])

    def _original_logits(self, inputs: np.ndarray) -> np.ndarray:
        settings = ConvertSettings(preset="lossless", method="none")
        return self.logits(self.content(settings)[0], inputs)

    def divergence(self, logits: np.ndarray) -> float:
        """Mean divergence of answers to the test samples from the network's own."""
        if self.own_logits is None:
            self.own_logits = self._original_logits(self.network.test[0])
        own, other = log_softmax(self.own_logits), log_softmax(logits)
        return float((np.exp(own) * (own - other)).sum(axis=1).mean())

    def point(self, settings: ConvertSettings, knob: str) -> Point:
        """Convert, read back, run on the test samples."""
        started = time.perf_counter()
        content, model = self.content(settings)
        seconds = time.perf_counter() - started
        return self.judged(settings, knob, content, model, seconds)

    def judged(
        self, settings: ConvertSettings, knob: str, content: bytes, model: QuantizedModel, seconds: float
    ) -> Point:
        """What a file is worth that was made with some settings."""
        logits = self.logits(content, self.network.test[0])
        loss, accuracy = loss_and_accuracy(logits, self.network.test[1])
        return Point(
            method=label_of(settings),
            scope=settings.scope,
            knob=knob,
            value=getattr(settings, knob),
            file_bytes=len(content),
            fixed_bytes=self.fixed_bytes(settings, model) if "kmeans" in settings.method else None,
            loss=loss,
            divergence=self.divergence(logits),
            accuracy=accuracy,
            seconds=seconds,
        )

    def fixed_bytes(self, settings: ConvertSettings, model: QuantizedModel) -> float:
        """The file with log2(k) bits for each value that is not a pruned zero, positions coded as they are.

        What the positions and all else take is measured: a file in which all entries but zero are one.
        """
        masks, n_values, n_entries = {}, 0, 1
        for name, tensor in model.tensors.items():
            if not isinstance(tensor, CodebookTensor):
                masks[name] = tensor
                continue
            is_value = (tensor.codebook.values != 0).astype(np.uint8)
            has_zeros = bool((is_value == 0).any())
            entries = np.float32([0.0, 1.0] if has_zeros else [1.0])
            indices = is_value[tensor.indices] if has_zeros else np.zeros(tensor.indices.shape, np.uint8)
            masks[name] = CodebookTensor(
                indices=indices,
                codebook=Codebook(values=entries, stored_as=tensor.codebook.stored_as),
                dtype=tensor.dtype,
            )
            n_values += int(np.count_nonzero(is_value[tensor.indices]))
            n_entries = max(n_entries, int(is_value.sum()))
        encoding = self.encoding(settings.sensitivity)
        rest = len(encoding.content(settings, QuantizedModel(tensors=masks, exact={})))
        return rest + n_values * math.log2(n_entries) / 8 + 2 * n_entries


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Logarithms of the shares that logits stand for, float64."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=1, keepdims=True))
    return wide


def loss_and_accuracy(logits: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Cross entropy in nats and the share of right answers."""
    loss = -float(log_softmax(logits)[np.arange(len(labels)), labels].mean())
    return loss, float((logits.argmax(axis=1) == labels).mean())


def label_of(settings: ConvertSettings) -> str:
    weighted = {"none": "", "fisher": " + fisher", "root-fisher": " + root of fisher"}
    if settings.method == "hessian-kmeans" and settings.sensitivity == "fisher":
        return "hessian-kmeans"
    return settings.method + weighted.get(settings.sensitivity, f" + {settings.sensitivity}")


def base_settings(**changes: Any) -> ConvertSettings:
    return replace(
        ConvertSettings(preset="", scope="global", rest="bfloat16", smaller_of_lossless=False, clusters=256),
        **changes,
    )


def costs_and_bytes(
    points: Iterable[Point], measure: Measure, original: float, *, fixed: bool
) -> list[tuple[float, float]]:
    """What each file costs (rise of the loss, or divergence) and its bytes; without those that cost none."""
    costs = [(p.loss - original if measure == "loss" else p.divergence, p) for p in points]
    found = [(cost, p.fixed_bytes if fixed else p.file_bytes) for cost, p in costs]
    return [(cost, size) for cost, size in found if cost > 0 and size is not None]


def bytes_at(known: list[tuple[float, float]], costs: np.ndarray) -> np.ndarray:
    """Bytes at given costs: a parabola through (log cost, log bytes) by least squares.

    Several rates decide each figure, so that the luck of one rounding does not.
    """
    x, y = np.log(np.array(known)).T
    return np.asarray(np.exp(np.polyval(np.polyfit(x, y, max(1, min(2, len(x) - 2))), np.log(costs))))


def ratio_at_equal_cost(
    first: list[Point],
    other: list[Point],
    original: float,
    *,
    measure: Measure = "loss",
    fixed: bool = False,
) -> float | None:
    """Mean ratio of bytes to those of the first curve, over the costs that both curves span.

    Nothing is extrapolated: None if the curves have next to no cost in common, or too few points.

    Parameters
    ----------
    original : float
        Loss of the network itself.
    """
    known = [costs_and_bytes(points, measure, original, fixed=fixed) for points in (first, other)]
    if min(map(len, known)) < 2:
        return None
    low = max(min(cost for cost, _ in curve) for curve in known)
    high = min(max(cost for cost, _ in curve) for curve in known)
    if high < _LEAST_SPAN * low:
        return None
    costs = np.geomspace(low, high, _LEVELS)
    sizes = [bytes_at(curve, costs) for curve in known]
    return float(np.exp(np.log(sizes[1] / sizes[0]).mean()))


def ratios_to_first(
    curves: Mapping[str, list[Point]], original: float, *, measure: Measure = "loss", fixed: bool = False
) -> dict[str, float | None]:
    """Return :func:`ratio_at_equal_cost` of each curve to the first."""
    first = next(iter(curves.values()))
    return {
        name: ratio_at_equal_cost(first, points, original, measure=measure, fixed=fixed)
        for name, points in curves.items()
    }
