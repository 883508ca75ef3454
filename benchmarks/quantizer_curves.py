"""Size against loss of quantizers on trained networks: what benchmarks/quantizers.py puts into tables."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

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
_BATCH = 500
_LEVELS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One written file, read back and run."""

    method: str
    scope: str
    knob: str
    value: float
    file_bytes: int
    fixed_bytes: float | None
    loss: float
    accuracy: float
    seconds: float


@dataclass(slots=True, kw_only=True)
class Workbench:
    """A network, its tensors as they are stored, and sensitivities by label."""

    network: Network
    source: Any
    sensitivities: dict[str, Sensitivities] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

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

    def judge(self, content: bytes, data: Labelled) -> tuple[float, float]:
        """Cross entropy and accuracy of a file on images, through ONNX Runtime."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.nqz"
            path.write_bytes(content)
            with InferenceSession(path, engine="ort", threads=1) as session:
                name = session.get_inputs()[0].name
                images, labels = data
                logits = [
                    session.run(None, {name: images[start : start + _BATCH]})[0]
                    for start in range(0, len(images), _BATCH)
                ]
        return loss_and_accuracy(np.concatenate(logits), labels)

    def original(self, data: Labelled) -> tuple[float, float]:
        settings = ConvertSettings(preset="lossless", method="none")
        return self.judge(self.content(settings)[0], data)

    def point(self, settings: ConvertSettings, knob: str) -> Point:
        started = time.perf_counter()
        content, model = self.content(settings)
        seconds = time.perf_counter() - started
        loss, accuracy = self.judge(content, self.network.test)
        return Point(
            method=label_of(settings),
            scope=settings.scope,
            knob=knob,
            value=getattr(settings, knob),
            file_bytes=len(content),
            fixed_bytes=self.fixed_bytes(settings, model) if "kmeans" in settings.method else None,
            loss=loss,
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


def loss_and_accuracy(logits: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    chosen = wide[np.arange(len(labels)), labels]
    loss = float((np.log(np.exp(wide).sum(axis=1)) - chosen).mean())
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


def bytes_at_losses(
    points: Iterable[Point], rises: np.ndarray, original: float, *, fixed: bool
) -> np.ndarray:
    """Bytes at given rises of the loss: a parabola through (log rise, log bytes) by least squares.

    Several rates decide each figure, so that the luck of one rounding does not.
    """
    kept = [(p.loss - original, p.fixed_bytes if fixed else p.file_bytes) for p in points]
    usable = [(math.log(rise), math.log(size)) for rise, size in kept if rise > 0 and size is not None]
    x, y = (np.array(column) for column in zip(*usable, strict=True))
    return np.asarray(np.exp(np.polyval(np.polyfit(x, y, min(2, len(x) - 2)), np.log(rises))))


def common_rises(curves: Mapping[str, list[Point]], original: float) -> np.ndarray:
    """Rises of the loss that all curves span, evenly in the logarithm."""
    spans = []
    for points in curves.values():
        rises = [p.loss - original for p in points if p.loss > original]
        spans.append((min(rises), max(rises)))
    low, high = max(a for a, _ in spans), min(b for _, b in spans)
    return np.geomspace(low, high, _LEVELS)


def against_first(
    curves: Mapping[str, list[Point]], original: float, *, fixed: bool = False
) -> dict[str, Any]:
    """Mean ratio of bytes to those of the first curve, at the same losses."""
    rises = common_rises(curves, original)
    sizes = {name: bytes_at_losses(points, rises, original, fixed=fixed) for name, points in curves.items()}
    first = next(iter(sizes.values()))
    return {
        "rises": rises.tolist(),
        "bytes": {name: np.round(size).tolist() for name, size in sizes.items()},
        "ratio": {name: float(np.exp(np.log(size / first).mean())) for name, size in sizes.items()},
    }


def ratio_at_equal_loss(first: list[Point], other: list[Point], original: float) -> float | None:
    """Mean ratio of bytes to those of the first curve; None if the curves have no loss in common."""
    curves = {"first": first, "other": other}
    rises = common_rises(curves, original)
    if rises[0] >= rises[-1]:
        return None
    return float(against_first(curves, original)["ratio"]["other"])
