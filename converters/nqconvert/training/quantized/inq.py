"""Incremental network quantization: parts of the weights become powers of two while the others train on."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nqconvert.quantizers.inq import power_entries
from nqconvert.training.loop import TrainingLoop
from nqconvert.training.records import Progress, TrainingLog
from nqconvert.training.stages import LoopSettings, Stage
from nqconvert.training.technique import Place, Run, Technique
from nqconvert.training.training_data import Loss, TrainingData
from nqconvert.training.weight_names import checked_names
from nqformat.optional_packages import require_package

if TYPE_CHECKING:
    import torch

__all__ = ["IncrementalQuantization", "quantize_incrementally"]

PORTIONS = (0.5, 0.75, 0.875, 1.0)


class IncrementalQuantization(Technique):
    """At the start of each stage the largest weights that are still free are quantized and stay so.

    Parameters
    ----------
    names : sequence of str
        Parameters to quantize; each has powers of two of its own.
    clusters : int
        Powers of two, those of both signs together; 16 with zero are the 5 bits of the paper.
    portions : sequence of float
        Accumulated share of the weights quantized from each stage on; the last one is 1. Zeros of a pruned
        network are not counted and stay zero.

    Source : Zhou, Yao, Guo, Xu, Chen 2017, "Incremental network quantization", section 2, algorithm 1
    """

    def __init__(
        self, names: Sequence[str], *, clusters: int = 16, portions: Sequence[float] = PORTIONS
    ) -> None:
        given = list(portions)
        if not given or given != sorted(given) or not given[0] > 0 or given[-1] != 1.0:
            raise ValueError(f"portions must ascend from above 0 to 1, not {given}")
        if not 2 <= clusters <= 128:
            raise ValueError(f"clusters must be 2 to 128, not {clusters}")
        self._names, self._clusters, self.portions = tuple(names), clusters, tuple(given)
        self._entries: dict[str, torch.Tensor] = {}
        self._fixed: dict[str, torch.Tensor] = {}
        self._pruned: dict[str, torch.Tensor] = {}
        self._held: dict[str, torch.Tensor] = {}

    def begin(self, run: Run, stage: int) -> None:
        """Quantize the next portion."""
        import torch

        for name in self._names:
            weight = run.parameters[name].data
            if name not in self._entries:
                entries = power_entries(float(weight.abs().max()), self._clusters)
                self._entries[name] = torch.from_numpy(entries.astype(np.float32))
                self._pruned[name] = weight == 0
                self._fixed[name] = self._pruned[name].clone()
            self._fix(name, weight, self.portions[min(stage, len(self.portions) - 1)])

    def _fix(self, name: str, weight: torch.Tensor, portion: float) -> None:
        import torch

        pruned, fixed = self._pruned[name], self._fixed[name]
        n_weights = int((~pruned).sum())
        n_wanted = round(portion * n_weights) - int((fixed & ~pruned).sum())
        magnitude = weight.abs().masked_fill(fixed, -1.0).reshape(-1)
        chosen = torch.zeros_like(magnitude, dtype=torch.bool)
        chosen[magnitude.topk(max(n_wanted, 0)).indices] = True
        chosen = chosen.view_as(weight)
        weight.copy_(torch.where(chosen, _nearest(weight, self._entries[name]), weight))
        self._fixed[name] = fixed | chosen

    def after_backward(self, run: Run) -> None:
        """Leave quantized weights alone."""
        for name, fixed in self._fixed.items():
            gradient = run.parameters[name].grad
            if gradient is not None:
                gradient.masked_fill_(fixed, 0)

    def before_step(self, run: Run, place: Place) -> None:
        """Remember quantized weights, which weight decay would move."""
        self._held = {name: run.parameters[name].detach().clone() for name in self._fixed}

    def after_step(self, run: Run, place: Place) -> None:
        """Put them back."""
        import torch

        for name, fixed in self._fixed.items():
            weight = run.parameters[name].data
            weight.copy_(torch.where(fixed, self._held[name], weight))

    def density(self) -> float | None:
        """Return the share of weights that are not pruned."""
        n_all = sum(pruned.numel() for pruned in self._pruned.values())
        return 1.0 - sum(int(pruned.sum()) for pruned in self._pruned.values()) / max(n_all, 1)

    def state(self) -> dict[str, Any]:
        """Return what is quantized."""
        return {"entries": self._entries, "fixed": self._fixed, "pruned": self._pruned}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what is quantized."""
        self._entries, self._fixed = dict(state["entries"]), dict(state["fixed"])
        self._pruned = dict(state["pruned"])

    def describe(self) -> str:
        """Return names and settings."""
        return repr(("inq", self._names, self._clusters, self.portions))


def _nearest(values: torch.Tensor, entries: torch.Tensor) -> torch.Tensor:
    """Return the nearest of ascending `entries`; between two of them the one that is farther from zero."""
    import torch

    middles = (entries[1:] + entries[:-1]) / 2
    place = torch.bucketize(values.abs(), middles, right=True)
    return entries[place] * values.sign()


def quantize_incrementally(
    module: torch.nn.Module,
    loader: Iterable[Any],
    loss: Loss,
    *,
    clusters: int = 16,
    portions: Sequence[float] = PORTIONS,
    epochs: int = 4,
    lr: float = 1e-3,
    optimizer: str = "adam",
    weight_decay: float = 0.0,
    seed: int = 0,
    validation: Iterable[Any] | None = None,
    parameters: Sequence[str] | None = None,
    progress: Progress | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = True,
) -> TrainingLog:
    """Turn the weights of a trained `module` into zero and powers of two, part by part.

    After each part the others are retrained. Biases and norms stay floating point and train to the end.

    Parameters
    ----------
    module, loader, loss, lr, optimizer, weight_decay, seed, validation, progress, checkpoint, resume
        As in :func:`nqconvert.training.retrain`.
    clusters, portions
        As in :class:`IncrementalQuantization`.
    epochs : int
        After each portion.
    parameters : sequence of str, optional
        Parameters to quantize; None: all linear and convolution weights.

    Returns
    -------
    TrainingLog

    Raises
    ------
    As :func:`nqconvert.training.retrain`.

    Source : Zhou, Yao, Guo, Xu, Chen 2017, "Incremental network quantization"

    Examples
    --------
    >>> import torch
    >>> module = torch.nn.Linear(8, 2)
    >>> batches = [(torch.randn(16, 8), torch.zeros(16, 2))]
    >>> log = quantize_incrementally(module, batches, torch.nn.functional.mse_loss, clusters=4, epochs=1)
    >>> module.weight.abs().unique().numel() <= 3
    True
    """
    require_package("torch")
    technique = IncrementalQuantization(
        checked_names(module, parameters), clusters=clusters, portions=portions
    )
    judged = validation is not None
    loop = TrainingLoop(
        module,
        TrainingData(loader=loader, loss=loss, validation=validation),
        stages=[
            Stage(n_epochs=epochs, lr=lr, schedule="cosine", choose_best=judged) for _ in technique.portions
        ],
        settings=LoopSettings(optimizer=optimizer, weight_decay=weight_decay, seed=seed),
        techniques=[technique],
        progress=progress,
        checkpoint=checkpoint,
        resume=resume,
    )
    return loop.run()
