"""The sparse recipe: surgery while the network trains, then grids, with a teacher's answers all along."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from nqconvert.training import (
    GridSettings,
    SparseGridSettings,
    SurgerySettings,
    prune_by_surgery,
    retrain,
    shrink,
    train_sparse_on_grids,
    units_to_keep,
)
from nqconvert.training.weight_names import weights_of_all_layers

from .recipe import Work


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseRecipe:
    """Settings of one row; chosen on the validation images."""

    loss: Any
    surgery: SurgerySettings
    epochs: int
    final_epochs: int
    lr: float = 2e-3
    grids: GridSettings = field(default_factory=GridSettings)

    def train_smaller(
        self,
        module: torch.nn.Module,
        counts: Mapping[str, int],
        loader: Iterable[Any],
        work: Work,
        *,
        mending_epochs: int,
        on_grids: bool = True,
    ) -> torch.nn.Module:
        """Take the least important outputs of layers away, mend the smaller network, and train it."""
        small: torch.nn.Module = shrink(module, units_to_keep(module, counts))
        log = retrain(small, loader, self.loss, epochs=mending_epochs, lr=self.lr, **work.followed(".small"))
        work.note_seconds(log)
        return self.train(small, loader, work, on_grids=on_grids)

    def train(
        self, module: torch.nn.Module, loader: Iterable[Any], work: Work, *, on_grids: bool = True
    ) -> torch.nn.Module:
        """Train in place; weights and biases end on their grids, unless that is not wanted.

        Returns a smaller network with the same outputs: units that nothing reads or that read nothing go.
        """
        same: dict[str, Any] = {
            "epochs": self.epochs,
            "final_epochs": self.final_epochs,
            "lr": self.lr,
            "parameters": weights_of_all_layers(module),
            **work.judged(),
        }
        if on_grids:
            settings = SparseGridSettings(surgery=self.surgery, grids=self.grids, teacher_share=0.0)
            result = train_sparse_on_grids(module, loader, self.loss, settings=settings, **same)
        else:
            result = prune_by_surgery(module, loader, self.loss, settings=self.surgery, **same)
        work.note_seconds(result.log)
        smaller: torch.nn.Module = shrink(module)
        return smaller
