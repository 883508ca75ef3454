"""Retraining with masked weights, and iterative magnitude pruning."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from nqformat.optional_packages import require_package

from .loop import EpochRecord, LoopSettings, Stage, TrainingLog, TrainingLoop
from .training_data import Loss, TrainingData

if TYPE_CHECKING:
    import torch

__all__ = ["EpochRecord", "PruningResult", "TrainingLog", "prunable_weights", "prune_and_retrain", "retrain"]

Progress = Callable[[EpochRecord], None]


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


def retrain(
    module: torch.nn.Module,
    loader: Iterable[Any],
    loss: Loss,
    *,
    masks: Mapping[str, Any] | None = None,
    epochs: int,
    lr: float = 1e-3,
    optimizer: str = "adam",
    schedule: str = "cosine",
    weight_decay: float = 0.0,
    seed: int = 0,
    validation: Iterable[Any] | None = None,
    progress: Progress | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = True,
) -> TrainingLog:
    """Train `module` in place while masked weights stay exactly zero after every step.

    The result depends on the seed only, given the module, the batches and the settings. With a
    checkpoint, every finished epoch is saved; a run that is interrupted (Ctrl-C included) and called
    again with the same arguments continues there and ends with the same weights as an uninterrupted one.
    That needs a loader that draws its order from torch's global generator, as a shuffling DataLoader does,
    or always gives the same order.

    Parameters
    ----------
    module : torch.nn.Module
    loader : iterable of (inputs, targets)
        Iterated once an epoch; inputs may be a tuple of arguments. A generator is refused.
    loss : callable
        ``loss(outputs, targets)`` as a scalar tensor.
    masks : mapping of parameter name to ndarray or tensor of bool, optional
        False where a weight stays zero.
    epochs : int
    lr : float
    optimizer : {"adam", "adamw", "sgd"}
    schedule : {"cosine", "constant"}
        Cosine falls to zero, step by step if the loader has a length, else epoch by epoch.
    weight_decay : float
    seed : int
    validation : iterable of (inputs, targets), optional
        If given, the module ends with the weights of least mean loss on it, the initial ones included.
    progress : callable, optional
        Called with an :class:`EpochRecord` after each epoch.
    checkpoint : path-like, optional
    resume : bool
        False starts afresh and overwrites the checkpoint.

    Returns
    -------
    TrainingLog

    Raises
    ------
    ConversionError
        If the loss becomes NaN or infinite, or the checkpoint belongs to another run.
    TypeError, ValueError
        If an argument is not allowed.
    MissingDependencyError
        If torch is missing.

    Source : Han, Pool, Tran, Dally 2015, section 3 (retraining the kept weights from their values)

    Examples
    --------
    >>> import torch
    >>> module = torch.nn.Linear(2, 1)
    >>> batches = [(torch.randn(8, 2), torch.zeros(8, 1))]
    >>> mask = torch.tensor([[True, False]])
    >>> log = retrain(module, batches, torch.nn.functional.mse_loss, masks={"weight": mask}, epochs=3)
    >>> len(log.records), module.weight[0, 1].item()
    (3, 0.0)
    """
    require_package("torch")
    stage = Stage(n_epochs=epochs, lr=lr, schedule=schedule, choose_best=validation is not None)
    loop = TrainingLoop(
        module,
        TrainingData(loader=loader, loss=loss, validation=validation),
        stages=[stage],
        settings=LoopSettings(optimizer=optimizer, weight_decay=weight_decay, seed=seed),
        masks=masks,
        progress=progress,
        checkpoint=checkpoint,
        resume=resume,
    )
    return loop.run()


def prunable_weights(module: torch.nn.Module) -> list[str]:
    """Return the parameter names of all linear and convolution weights, in the module's order.

    A weight that several layers share is listed once.

    Examples
    --------
    >>> import torch
    >>> prunable_weights(torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2)))
    ['0.weight']
    """
    torch = require_package("torch")
    kinds = (torch.nn.Linear, torch.nn.modules.conv._ConvNd)
    weights = {id(layer.weight) for layer in module.modules() if isinstance(layer, kinds)}
    return [name for name, parameter in module.named_parameters() if id(parameter) in weights]


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
    module, loader, loss, optimizer, weight_decay, seed, validation, progress, checkpoint, resume
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
    names = _checked_names(module, parameters)
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
            density=_cubic_density(density, step / steps),
            per_layer=tuple((name, _cubic_density(share, step / steps)) for name, share in final.items()),
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
        progress=progress,
        checkpoint=checkpoint,
        resume=resume,
    )
    log = loop.run()
    return PruningResult(masks=loop.masks, log=log)


def _cubic_density(final: float, fraction: float) -> float:
    """Density after a `fraction` of the pruning steps (Zhu, Gupta 2017, eq. 1)."""
    return final + (1.0 - final) * (1.0 - fraction) ** 3


def _checked_names(module: torch.nn.Module, parameters: Sequence[str] | None) -> list[str]:
    names = prunable_weights(module) if parameters is None else list(parameters)
    known = dict(module.named_parameters(remove_duplicate=False))
    for name in names:
        if name not in known:
            raise ValueError(f"parameters names {name!r}, which is no parameter of the module")
    if not names:
        raise ValueError("the module has no linear or convolution weights to prune")
    return names
