"""What a training run tells of itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

__all__ = ["EpochRecord", "Progress", "TrainingLog"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochRecord:
    """What one epoch came to.

    Attributes
    ----------
    stage, epoch : int
        Counted from 0; plain retraining has one stage, gradual pruning one for each step and a last one.
    n_epochs : int
        Epochs of the stage.
    density : float
        Kept share of the weights that have masks; 1.0 if none has.
    train_loss : float
        Mean over the epoch.
    validation_loss : float or None
    lr : float
        At the start of the epoch.
    seconds : float
        That the epoch took.
    seconds_left : float
        Estimated for the rest of the run.
    """

    stage: int
    epoch: int
    n_epochs: int
    density: float
    train_loss: float
    validation_loss: float | None
    lr: float
    seconds: float = field(default=0.0, compare=False)
    seconds_left: float = field(default=0.0, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingLog:
    """History of a run.

    Attributes
    ----------
    records : tuple of EpochRecord
        All epochs, those before a resumption included.
    best_validation_loss : float or None
        That of the weights that were restored at the end, if validation chose them.
    n_resumed : int
        How many of the epochs were taken from the checkpoint.
    """

    records: tuple[EpochRecord, ...]
    best_validation_loss: float | None
    n_resumed: int


Progress = Callable[[EpochRecord], None]
