"""Retraining with masked weights."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nqformat.optional_packages import require_package

from .loop import TrainingLoop
from .records import Progress, TrainingLog
from .stages import LoopSettings, Stage
from .technique import Technique
from .training_data import Loss, TrainingData

if TYPE_CHECKING:
    import torch

__all__ = ["retrain"]


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
    techniques: Sequence[Technique] = (),
    patience: int | None = None,
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
    techniques : sequence of Technique
        Methods that take part, such as :class:`StraightThrough` with ``first_stage=0``.
    patience : int, optional
        Stop after so many epochs without a better loss on `validation`.
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
    >>> from nqconvert.training import retrain
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
        techniques=techniques,
        patience=patience,
        progress=progress,
        checkpoint=checkpoint,
        resume=resume,
    )
    return loop.run()
