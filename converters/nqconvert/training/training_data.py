"""What every training loop is given: batches, a loss, and batches to judge by."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Loss", "Training", "TrainingData", "count_samples", "n_items"]

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


def count_samples(loader: Iterable[Any]) -> int:
    """Return how many samples an epoch has: the length of a DataLoader's dataset, else counted in one pass.

    Examples
    --------
    >>> import torch
    >>> count_samples([(torch.zeros(8, 2), torch.zeros(8)), (torch.zeros(3, 2), torch.zeros(3))])
    11
    """
    dataset = getattr(loader, "dataset", None)
    if dataset is not None and hasattr(dataset, "__len__"):
        return len(dataset)
    return sum(n_items(targets) for _, targets in loader)


def n_items(targets: Any) -> int:
    """Return how many samples a batch with these targets has."""
    while isinstance(targets, (tuple, list)) and targets:
        targets = targets[0]
    return int(targets.shape[0]) if getattr(targets, "ndim", 0) else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Training(TrainingData):
    """What retraining needs, besides the data.

    Attributes
    ----------
    method : str or None
        A name of :data:`nqconvert.training.methods.METHODS`: ``magnitude``, ``surgery``, ``variational``
        (prune), ``sparse-grids``, ``soft-weight-sharing``, ``inq``, ``adaptive``, ``rate`` (quantize; the
        file keeps what they make with method ``none``), ``hashed`` (the same with any method). Those that
        quantize fold batch norms before. None: what the preset is about, else ``magnitude``.
    epochs : int
        Of all methods but ``magnitude`` and ``adaptive``; ``soft-weight-sharing`` adds an eighth for the
        shared values.
    steps, epochs_per_step : int
        Pruning steps, and epochs after each (``magnitude``).
    final_epochs : int or None
        Epochs after the last step's own; None: as many as in all steps together.
    lr : float
    scope : {"layer", "global"} or None
        The same density in each layer, or one ranking of all weights, by magnitude for ``magnitude``: smaller
        for networks whose layers have like scales, dangerous for others. None: ``global`` for
        ``sparse-grids``, which ranks by sensitivity, else ``layer``.
    per_layer : mapping of parameter name to float
        Final densities of single layers.
    patience : int or None
        Stop after so many epochs without a better loss on `validation`, in methods that prune.
    options : mapping of str to number
        Further settings of the method, such as ``tau`` of soft weight-sharing; those of its settings class,
        for ``sparse-grids`` also ``coarseness`` and those of surgery.
    checkpoint : path-like, optional
        File from which an interrupted run goes on.
    """

    method: str | None = None
    epochs: int = 30
    steps: int = 10
    epochs_per_step: int = 2
    final_epochs: int | None = None
    lr: float = 1e-3
    scope: str | None = None
    per_layer: Mapping[str, float] = field(default_factory=dict)
    patience: int | None = None
    options: Mapping[str, float] = field(default_factory=dict)
    checkpoint: str | os.PathLike[str] | None = None
