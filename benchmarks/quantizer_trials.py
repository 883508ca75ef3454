"""Why Hessian-weighted k-means wins or not: files of one network with one thing changed at a time.

What may be to blame, and the trial that shows it: sensitivities from too few images (their number is changed,
and two halves of the images are compared), layers of different mean sensitivity (means alone; every mean set
to one; a codebook for each layer), single large sensitivities (square roots), a diagonal that misses how
weights act together (predicted and measured divergence), entries that were not fine-tuned (one epoch).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from quantizer_curves import Point, Workbench, base_settings, log_softmax, ratio_at_equal_cost

from nqconvert.presets import ConvertSettings
from nqconvert.sensitivity.loss_check import check_losses
from nqconvert.sensitivity.settings import SensitivitySettings
from nqconvert.training.fine_tuning import FineTuning, fine_tune_centres
from nqformat import CodebookTensor

__all__ = ["Budget", "trials"]

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How much is tried.

    Attributes
    ----------
    images : tuple of int
        Calibration images of each measurement of sensitivities; the last is halved for the comparison.
    clusters, tuned_clusters, checked_clusters : rates
    n_test, n_checked, n_tuned : int
        Test images; calibration images for the check of predictions; training images of the epoch.
    """

    images: tuple[int, ...] = (50, 500, 4000)
    clusters: tuple[int, ...] = (12, 20, 34, 58)
    tuned_clusters: tuple[int, ...] = (12, 20, 34)
    checked_clusters: int = 34
    n_test: int = 2000
    n_checked: int = 300
    n_tuned: int = 2000


def trials(bench: Workbench, budget: Budget, say: Callable[[str], None]) -> dict[str, Any]:
    """Bytes at equal divergence, k-means of the same scope = 1, by what was changed."""
    images, labels = bench.network.test
    bench.network = replace(bench.network, test=(images[: budget.n_test], labels[: budget.n_test]))
    noise = measure_variants(bench, budget, say)
    runs = _Runs(bench=bench, clusters=budget.clusters, say=say)
    rows: dict[str, Any] = {
        label: runs.ratios(label, "global") for label in bench.sensitivities if label != "none"
    }
    most = f"fisher of {budget.images[-1]}"
    rows[f"{most}, a codebook for each layer"] = runs.ratios(most, "layer")
    return {
        "n_test": budget.n_test,
        "clusters": budget.clusters,
        "halves": noise,
        "ratios": rows,
        "fine_tuned": tuned_ratios(bench, budget, most, say),
        "prediction": {
            "kmeans": prediction(bench, budget, "none", most),
            "hessian-kmeans": prediction(bench, budget, most, most),
        },
    }


def measure_variants(bench: Workbench, budget: Budget, say: Callable[[str], None]) -> dict[str, float]:
    """Measure sensitivities on some numbers of images; returns how two halves of the last agree."""
    inputs, most = bench.network.calibration, budget.images[-1]
    for count in budget.images[:-1]:
        seconds = bench.measure("fisher", inputs[:count])
        bench.sensitivities[f"fisher of {count}"] = bench.sensitivities.pop("fisher")
        say(f"fisher of {count}: {seconds:.0f} s")
    halves = []
    for part in (inputs[: most // 2], inputs[most // 2 : most]):
        bench.measure("fisher", part)
        halves.append(_known(bench.sensitivities.pop("fisher")))
    full = {name: (array + halves[1][name]) / 2 for name, array in halves[0].items()}
    label = f"fisher of {most}"
    bench.sensitivities |= {
        label: full,
        f"{label}, the layer's mean": {n: np.full_like(a, a.mean()) for n, a in full.items()},
        f"{label}, of mean one in each layer": {n: a / a.mean() for n, a in full.items()},
        f"{label}, square roots": {n: np.sqrt(a) for n, a in full.items()},
    }
    few = {count: _known(bench.sensitivities[f"fisher of {count}"]) for count in budget.images[:-1]}
    found = {f"{most // 2} and {most // 2}": _agreement(*halves)}
    return found | {f"{count} and {most}": _agreement(arrays, full) for count, arrays in few.items()}


def _known(arrays: Mapping[str, np.ndarray] | None) -> Arrays:
    assert arrays is not None
    return dict(arrays)


def _agreement(a: Arrays, b: Arrays) -> float:
    """Mean over layers of the correlation of the logarithms within a layer."""
    pairs = [(np.log(a[name]).reshape(-1), np.log(b[name]).reshape(-1)) for name in a]
    return float(np.mean([np.corrcoef(x, y)[0, 1] for x, y in pairs]))


@dataclass(slots=True, kw_only=True)
class _Runs:
    """Curves of k-means with some weights, each made once."""

    bench: Workbench
    clusters: tuple[int, ...]
    say: Callable[[str], None]
    curves: dict[tuple[str, str], list[Point]] = field(default_factory=dict)

    def ratios(self, label: str, scope: str) -> dict[str, float | None]:
        """With prefix codes and with codes of a fixed length."""
        first, other = self._curve("none", scope), self._curve(label, scope)
        found = {
            name: ratio_at_equal_cost(first, other, 0.0, measure="divergence", fixed=fixed)
            for name, fixed in (("huffman", False), ("fixed_length", True))
        }
        self.say(f"{label}, {scope}: {found}")
        return found

    def _curve(self, label: str, scope: str) -> list[Point]:
        if (label, scope) not in self.curves:
            settings = [settings_of(label, clusters=k, scope=scope) for k in self.clusters]
            self.curves[label, scope] = [self.bench.point(s, "clusters") for s in settings]
        return self.curves[label, scope]


def settings_of(label: str, *, clusters: int, scope: str = "global") -> ConvertSettings:
    """K-means without sensitivities, else Hessian-weighted."""
    method = "kmeans" if label == "none" else "hessian-kmeans"
    return base_settings(method=method, sensitivity=label, clusters=clusters, scope=scope)


def tuned_ratios(
    bench: Workbench, budget: Budget, label: str, say: Callable[[str], None]
) -> dict[str, float | None]:
    """Ratio of bytes before and after an epoch that trains the entries of all codebooks."""
    curves = {
        (name, tuned): [tuned_point(bench, budget, name, k, tuned=tuned) for k in budget.tuned_clusters]
        for name in ("none", label)
        for tuned in (False, True)
    }
    found = {
        "before": ratio_at_equal_cost(curves["none", False], curves[label, False], 0.0, measure="divergence"),
        "after": ratio_at_equal_cost(curves["none", True], curves[label, True], 0.0, measure="divergence"),
    }
    told = {f"{n}, {'tuned' if t else 'as made'}": [p.divergence for p in c] for (n, t), c in curves.items()}
    say(f"fine-tuned: {found}; divergences {told}")
    return found


def tuned_point(bench: Workbench, budget: Budget, label: str, clusters: int, *, tuned: bool) -> Point:
    """A file whose entries were trained to give the network's own answers to training images."""
    settings, encoding = settings_of(label, clusters=clusters), bench.encoding(label)
    model = encoding.quantize(settings)
    if tuned:
        inputs = torch.from_numpy(bench.network.calibration[: budget.n_tuned])
        own = soft_targets(bench.network.module, inputs)
        batches = list(zip(inputs.split(50), own.split(50), strict=True))
        tuning = FineTuning(loader=batches, loss=soft_loss, epochs=1)
        tensors, _ = fine_tune_centres(bench.network.module, model.tensors, bench.source.tensors, tuning)
        model = replace(model, tensors=tensors)
    return bench.judged(settings, "clusters", encoding.content(settings, model), model, 0.0)


def soft_targets(module: Any, inputs: torch.Tensor) -> torch.Tensor:
    """Shares that the network gives to the classes, on 250 samples at a time."""
    with torch.inference_mode():
        parts = [module(part).softmax(dim=1) for part in inputs.split(250)]
    return torch.cat(parts).clone()


def soft_loss(logits: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """Cross entropy with the network's own answers."""
    return -(shares * logits.log_softmax(dim=1)).sum(dim=1).mean()


def prediction(bench: Workbench, budget: Budget, made_with: str, label: str) -> dict[str, Any]:
    """What sensitivities predict for quantized tensors, one at a time and all, against what happens.

    The loss is cross entropy with the network's own answers: its change is the divergence, of which half the
    sum of Fisher information x squared change is the second-order term without cross terms.
    """
    model = bench.encoding(made_with).quantize(settings_of(made_with, clusters=budget.checked_clusters))
    made = {n: t.decode() for n, t in model.tensors.items() if isinstance(t, CodebookTensor)}
    inputs = bench.network.calibration[-budget.n_checked :]
    own = np.exp(log_softmax(bench.logits(bench.exact_content({}), inputs))).astype(np.float32)
    settings = SensitivitySettings(samples=budget.n_checked, loss=soft_loss)
    sensitivities = _known(bench.sensitivities[label])
    check = check_losses(bench.source, made, sensitivities, (inputs, own), settings)
    return {
        "predicted": check.together.predicted,
        "measured": check.together.measured,
        "sum of single tensors": sum(change.measured for change in check.tensors),
        "rank_correlation": check.rank_correlation,
    }
