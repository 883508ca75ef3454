"""The sparse recipe: surgery while the network trains, then grids, with a teacher's answers all along."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

from nqconvert.training import shrink
from nqconvert.training.pruning.surgery import SurgerySettings, prune_by_surgery
from nqconvert.training.quantized.straight_through import GridSettings, StraightThrough

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
        self, module: torch.nn.Module, loader: Iterable[Any], work: Work, *, on_grids: bool = True
    ) -> torch.nn.Module:
        """Train in place; weights and biases end on their grids, unless that is not wanted.

        Returns a smaller network with the same outputs: units that nothing reads or that read nothing go.
        """
        weights = [name for name, parameter in module.named_parameters() if parameter.ndim > 1]
        vectors = [name for name, parameter in module.named_parameters() if parameter.ndim < 2]
        result = prune_by_surgery(
            module,
            loader,
            self.loss,
            settings=self.surgery,
            epochs=self.epochs,
            final_epochs=self.final_epochs,
            lr=self.lr,
            parameters=weights,
            techniques=[StraightThrough(weights, vectors, self.grids)] if on_grids else [],
            **work.judged(),
        )
        work.note_seconds(result.log)
        smaller: torch.nn.Module = shrink(module)
        return smaller
