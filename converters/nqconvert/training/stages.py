"""Stages of a training run and what stays the same in all of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["LoopSettings", "Stage"]

_OPTIMIZERS = ("adam", "adamw", "sgd")
_SCHEDULES = ("cosine", "constant")
_SCOPES = ("layer", "global")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopSettings:
    """What stays the same in all stages.

    Attributes
    ----------
    optimizer : {"adam", "adamw", "sgd"}
        sgd has momentum 0.9.
    weight_decay : float
    seed : int
    scope : {"layer", "global"}
        Of the pruning threshold.
    """

    optimizer: str
    weight_decay: float
    seed: int
    scope: str = "layer"

    def __post_init__(self) -> None:
        if self.optimizer not in _OPTIMIZERS:
            raise ValueError(f"optimizer must be one of {', '.join(_OPTIMIZERS)}, not {self.optimizer!r}")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise ValueError(f"weight_decay must not be negative, but is {self.weight_decay}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, but is {self.seed}")
        if self.scope not in _SCOPES:
            raise ValueError(f"scope must be one of {', '.join(_SCOPES)}, not {self.scope!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Epochs with one optimizer and one set of masks.

    Attributes
    ----------
    n_epochs : int
    lr : float
    schedule : {"cosine", "constant"}
    density : float or None
        Prune the prunable weights to this density first; None keeps the masks as they are.
    per_layer : tuple of (name, density)
        Densities of single tensors.
    choose_best : bool
        End with the weights of least validation loss, those at the start of the stage included.
    """

    n_epochs: int
    lr: float
    schedule: str
    density: float | None = None
    per_layer: tuple[tuple[str, float], ...] = ()
    choose_best: bool = False

    def __post_init__(self) -> None:
        if self.n_epochs < 0:
            raise ValueError(f"epochs must not be negative, but are {self.n_epochs}")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise ValueError(f"lr must be a positive number, not {self.lr}")
        if self.schedule not in _SCHEDULES:
            raise ValueError(f"schedule must be one of {', '.join(_SCHEDULES)}, not {self.schedule!r}")

    def lr_at(self, fraction: float) -> float:
        """Return the learning rate after a `fraction` of the stage."""
        if self.schedule == "constant":
            return self.lr
        return self.lr * 0.5 * (1.0 + math.cos(math.pi * fraction))
