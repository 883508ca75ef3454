"""The sparse recipe: surgery while the network trains, then grids, with a teacher's answers all along."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from nqconvert.training import prunable_weights, shrink
from nqconvert.training.pruning.surgery import SurgerySettings, prune_by_surgery
from nqconvert.training.quantized.straight_through import GridSettings, StraightThrough

from .data import Batches, in_order
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

    def train(
        self, module: torch.nn.Module, loader: Batches, work: Work, *, on_grids: bool = True
    ) -> torch.nn.Module:
        """Train in place; weights and biases end on their grids, unless that is not wanted.

        Returns a smaller network with the same outputs: units that nothing reads or that read nothing go.
        """
        weights = prunable_weights(module)
        vectors = [name for name, _ in module.named_parameters() if name not in weights]
        result = prune_by_surgery(
            module,
            loader,
            self.loss,
            settings=self.surgery,
            epochs=self.epochs,
            final_epochs=self.final_epochs,
            lr=self.lr,
            seed=work.seed,
            validation=in_order(work.data.validation_images, work.data.validation_labels),
            techniques=[StraightThrough(weights, vectors, self.grids)] if on_grids else [],
            checkpoint=work.checkpoint,
            progress=work.progress,
        )
        work.note_seconds(result.log)
        smaller: torch.nn.Module = shrink(module)
        return smaller
