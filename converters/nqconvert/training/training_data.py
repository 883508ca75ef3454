"""What every training loop is given: batches, a loss, and batches to judge by."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

__all__ = ["Loss", "TrainingData"]

Loss = Callable[[Any, Any], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingData:
    """Batches and the loss on them.

    Attributes
    ----------
    loader : iterable of (inputs, targets)
        Iterated once an epoch.
    loss : callable
        ``loss(outputs, targets)`` as a scalar torch tensor.
    validation : iterable of (inputs, targets), optional
        The state of least mean loss on it is kept, the initial one included.
    """

    loader: Iterable[Any]
    loss: Loss
    validation: Iterable[Any] | None = None

    def __post_init__(self) -> None:
        _check_repeatable("loader", self.loader)
        if self.validation is not None:
            _check_repeatable("validation", self.validation)


def _check_repeatable(what: str, batches: Iterable[Any]) -> None:
    """Raise TypeError unless batches can be iterated once an epoch."""
    if not hasattr(batches, "__iter__"):
        raise TypeError(f"{what} must be an iterable of (inputs, targets), not {type(batches).__name__}")
    if hasattr(batches, "__next__"):
        raise TypeError(
            f"{what} is exhausted after one pass; pass a list, a DataLoader or another re-iterable"
        )
