"""Rows of LeNet-5."""

from __future__ import annotations

from typing import Any

import torch

from nqconvert.training.pruning.surgery import SurgerySettings
from nqconvert.training.quantized.adaptive import AdaptiveSettings
from nqconvert.training.quantized.straight_through import GridSettings
from papers.dense import TEACHER_LOSS, augmented, lenet5_augmented
from papers.methods import Train, adaptive, first_seed
from papers.recipe import Recipe, Work
from papers.sparse import SparseRecipe

_BYTES = 4 * 431_080
_MENDING_EPOCHS, _PLAIN_SHARE = 3, 0.8
_PAPERS = "Choi 51.25 x at 0.72 %; Ullrich 162 x at 0.97 %; Havasi 555 x at 0.69 %"


def _shrunk_first(counts: dict[str, int], *, density: float, vector_bits: int) -> Train:
    """Take the least important outputs away, mend the smaller network, and train it like the others."""
    recipe = SparseRecipe(
        loss=TEACHER_LOSS,
        surgery=SurgerySettings(density=density),
        epochs=10,
        final_epochs=7,
        grids=GridSettings(coarseness=1.6, vector_bits=vector_bits),
    )

    def train(module: torch.nn.Module, work: Work) -> torch.nn.Module:
        loader = augmented(work.data, plain_share=_PLAIN_SHARE)
        return recipe.train_smaller(module, counts, loader, work, mending_epochs=_MENDING_EPOCHS)

    return train


def _row(**settings: Any) -> Recipe:
    """Return a row of LeNet-5, from the dense network trained on affine copies."""
    return Recipe(network="LeNet-5", fp32_bytes=_BYTES, dense=first_seed(lenet5_augmented), **settings)


LENET5: dict[str, Recipe] = {
    "lenet5-small": _row(
        method="filters and units first, then surgery, grids, distillation",
        note="affine copies, the dense network as teacher",
        train=_shrunk_first({"c1": 8, "c2": 16, "fc1": 100}, density=0.15, vector_bits=5),
        goals=((400, 0.97), (120, 0.80)),
        paper=_PAPERS,
    ),
    "lenet5-near": _row(
        method="filters and units first, then surgery, grids, distillation, nearer",
        note="affine copies, the dense network as teacher",
        train=_shrunk_first({"c1": 12, "c2": 28, "fc1": 200}, density=0.12, vector_bits=6),
        goals=((120, 0.71),),
        paper=_PAPERS,
    ),
    "lenet5-adaptive": _row(
        method="adaptive",
        note="no retraining, bound on affine copies",
        train=adaptive(AdaptiveSettings(max_rise=0.055, iterations=60, max_bits=6), 5_000, moved=True),
        goals=(),
        paper="Khoram 64 x, 0.65 -> 0.77 %",
    ),
}
