"""What methods of pruning share: masks that a first stage finds and later stages keep."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from nqconvert.training.loop import TrainingLoop
from nqconvert.training.records import Progress
from nqconvert.training.stages import LoopSettings, Stage
from nqconvert.training.technique import Run, Technique
from nqconvert.training.training_data import Loss, TrainingData

from .gradual import PruningResult

if TYPE_CHECKING:
    import torch

__all__ = ["Masking", "train_in_two_stages"]


class Masking(Technique):
    """Masks by parameter name, True where a weight is kept; the network computes with masked weights."""

    def __init__(self) -> None:
        self._keep: dict[str, torch.Tensor] = {}

    @property
    def masks(self) -> dict[str, Any]:
        """True where a weight is kept, as arrays by parameter name."""
        return {name: keep.cpu().numpy().copy() for name, keep in self._keep.items()}

    def effective(self, values: dict[str, torch.Tensor]) -> None:
        """Mask the weights."""
        for name, keep in self._keep.items():
            values[name] = values[name].masked_fill(~keep, 0)

    def density(self) -> float | None:
        """Return the kept share."""
        n_weights = sum(keep.numel() for keep in self._keep.values())
        return sum(int(keep.sum()) for keep in self._keep.values()) / max(n_weights, 1)

    def _zero_pruned_weights(self, run: Run) -> None:
        for name, keep in self._keep.items():
            run.parameters[name].data.masked_fill_(~keep, 0)

    def _zero_pruned_gradients(self, run: Run) -> None:
        for name, keep in self._keep.items():
            gradient = run.parameters[name].grad
            if gradient is not None:
                gradient.masked_fill_(~keep, 0)


def train_in_two_stages(
    module: torch.nn.Module,
    loader: Iterable[Any],
    loss: Loss,
    *,
    masking: Masking,
    techniques: Sequence[Technique],
    epochs: int,
    final_epochs: int,
    lr: float,
    optimizer: str,
    weight_decay: float,
    seed: int,
    validation: Iterable[Any] | None,
    patience: int | None,
    progress: Progress | None,
    checkpoint: str | os.PathLike[str] | None,
    resume: bool,
) -> PruningResult:
    """Find masks for `epochs` at a constant learning rate, then train under them at a falling one.

    Parameters
    ----------
    module, loader, loss, epochs, final_epochs, lr, optimizer, weight_decay, seed, validation, patience,
    progress, checkpoint, resume
        As in :func:`nqconvert.training.retrain`; of the second stage the best epoch by validation is kept.
    masking : Masking
    techniques : sequence of Technique
        Further methods, after it.
    """
    loop = TrainingLoop(
        module,
        TrainingData(loader=loader, loss=loss, validation=validation),
        stages=[
            Stage(n_epochs=epochs, lr=lr, schedule="constant"),
            Stage(n_epochs=final_epochs, lr=lr, schedule="cosine", choose_best=validation is not None),
        ],
        settings=LoopSettings(optimizer=optimizer, weight_decay=weight_decay, seed=seed),
        techniques=[masking, *techniques],
        patience=patience,
        progress=progress,
        checkpoint=checkpoint,
        resume=resume,
    )
    log = loop.run()
    return PruningResult(masks=masking.masks, log=log)
