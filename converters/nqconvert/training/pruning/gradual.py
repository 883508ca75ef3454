"""Iterative magnitude pruning with retraining in between."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from nqconvert.training.loop import TrainingLoop
from nqconvert.training.records import Progress, TrainingLog
from nqconvert.training.stages import LoopSettings, Stage
from nqconvert.training.training_data import Loss, TrainingData
from nqconvert.training.weight_names import checked_names
from nqformat.optional_packages import require_package

from .schedule import cubic_density

if TYPE_CHECKING:
    import torch

__all__ = ["PruningResult", "prune_and_retrain"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PruningResult:
    """Outcome of :func:`prune_and_retrain`.

    Attributes
    ----------
    masks : dict of parameter name to ndarray of bool
        True where a weight was kept.
    log : TrainingLog
    """

    masks: dict[str, np.ndarray]
    log: TrainingLog

    @property
    def density(self) -> float:
        """Kept share of all masked weights."""
        n_weights = sum(mask.size for mask in self.masks.values())
        return sum(int(np.count_nonzero(mask)) for mask in self.masks.values()) / max(n_weights, 1)


def prune_and_retrain(
    module: torch.nn.Module,
    loader: Iterable[Any],
    loss: Loss,
    *,
    density: float,
    per_layer: Mapping[str, float] | None = None,
    scope: str = "global",
    steps: int = 10,
    epochs_per_step: int = 2,
    final_epochs: int | None = None,
    lr: float = 1e-3,
    optimizer: str = "adam",
    schedule: str = "cosine",
    weight_decay: float = 1e-4,
    seed: int = 0,
    validation: Iterable[Any] | None = None,
    patience: int | None = None,
    parameters: Sequence[str] | None = None,
    progress: Progress | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = True,
) -> PruningResult:
    """Prune a trained `module` in place by magnitude, little by little, retraining after each step.

    Before step t of T the density of a layer is ``d + (1 - d) (1 - t/T)^3``: many weights go while there
    are plenty, few at the end. A weight once pruned stays zero. Steps have a constant learning
    rate; the last retraining follows `schedule` and, given `validation`, ends with its best epoch.

    Parameters
    ----------
    module, loader, loss, optimizer, weight_decay, seed, validation, patience, progress, checkpoint, resume
        As in :func:`retrain`.
    density : float, above 0 and at most 1
        Final share of weights kept.
    per_layer : mapping of parameter name to float, optional
        Final densities of single layers, such as gentler ones for the first and the last.
    scope : {"global", "layer"}
        One threshold for all layers without a density of their own, or the same density in each. A global
        threshold lost less in every trial, but may leave little of a layer whose weights are all small.
    steps, epochs_per_step : int
        Pruning steps, and epochs after each.
    final_epochs : int or None
        Epochs after the last step's own; None: as many as in all steps together.
    parameters : sequence of str, optional
        Parameters to prune; None: :func:`prunable_weights`.

    Returns
    -------
    PruningResult

    Raises
    ------
    As :func:`retrain`; ValueError also if there is nothing to prune or `per_layer` names something else.

    Source : Han, Pool, Tran, Dally 2015, section 3.3; Zhu, Gupta 2017, "To prune, or not to prune", eq. (1)
    """
    require_package("torch")
    names = checked_names(module, parameters)
    final = dict(per_layer or {})
    for what, share in [("density", density), *final.items()]:
        if not 0.0 < share <= 1.0:
            raise ValueError(f"density must be above 0 and at most 1, but {what} is {share}")
    for name in final:
        if name not in names:
            raise ValueError(f"per_layer names {name!r}, which is not pruned; pruned are: {', '.join(names)}")
    if steps < 1 or epochs_per_step < 0:
        raise ValueError(f"steps must be at least 1 and epochs_per_step 0, not {steps} and {epochs_per_step}")
    stages = [
        Stage(
            n_epochs=epochs_per_step,
            lr=lr,
            schedule="constant",
            density=cubic_density(density, step / steps),
            per_layer=tuple((name, cubic_density(share, step / steps)) for name, share in final.items()),
        )
        for step in range(1, steps + 1)
    ]
    n_final = steps * epochs_per_step if final_epochs is None else final_epochs
    stages.append(Stage(n_epochs=n_final, lr=lr, schedule=schedule, choose_best=validation is not None))
    loop = TrainingLoop(
        module,
        TrainingData(loader=loader, loss=loss, validation=validation),
        stages=stages,
        settings=LoopSettings(optimizer=optimizer, weight_decay=weight_decay, seed=seed, scope=scope),
        prunable=names,
        patience=patience,
        progress=progress,
        checkpoint=checkpoint,
        resume=resume,
    )
    log = loop.run()
    return PruningResult(masks=loop.masks, log=log)
