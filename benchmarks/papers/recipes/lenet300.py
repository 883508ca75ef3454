"""Rows of LeNet-300-100."""

from __future__ import annotations

from typing import Any

import torch

from nqconvert.training import (
    AdaptiveSettings,
    GridSettings,
    SharingSettings,
    SurgerySettings,
    VariationalSettings,
    prunable_weights,
    share_weights_softly,
)
from nqconvert.training.sharing.mixture import MixtureSettings
from papers.data import Batches, cross_entropy
from papers.dense import TEACHER_LOSS, lenet300_augmented, lenet300_plain, own_teachers
from papers.methods import (
    Train,
    adaptive,
    first_seed,
    hashed,
    powers_of_two,
    surgery_with_labels,
    variational,
    with_outside_teacher,
)
from papers.recipe import Recipe, Work
from papers.sparse import SparseRecipe

_BYTES = 4 * 266_610
_PAPERS = "Han 40 x at 1.58 %; Ullrich 64 x at 1.94 %; Oktay 124 x at 1.9 %"
_PLAIN = first_seed(lenet300_plain)


def _with_own_teachers(density: float, grids: GridSettings) -> Train:
    """Train on the images as they are; the teachers are networks of the same kind, trained on the same."""
    recipe = SparseRecipe(
        loss=TEACHER_LOSS, surgery=SurgerySettings(density=density), epochs=18, final_epochs=10, grids=grids
    )

    def train(module: torch.nn.Module, work: Work) -> torch.nn.Module:
        mnist = work.data
        return recipe.train(module, Batches(mnist.images, mnist.labels, teacher=own_teachers(mnist)), work)

    return train


def _soft_sharing(settings: SharingSettings, epochs: int) -> Train:
    """Soft weight-sharing on the images as they are, labels alone."""

    def train(module: torch.nn.Module, work: Work) -> torch.nn.Module:
        result = share_weights_softly(
            module,
            Batches(work.data.images, work.data.labels, batch=500),
            cross_entropy,
            settings=settings,
            epochs=epochs,
            final_epochs=20,
            lr=5e-4,
            n_samples=len(work.data.images),
            parameters=prunable_weights(module),
            **work.judged(),
        )
        work.note_seconds(result.log)
        return module

    return train


def _row(**settings: Any) -> Recipe:
    """Return a row of LeNet-300-100, from the dense network trained on the images as they are by default."""
    return Recipe(**{"network": "LeNet-300-100", "fp32_bytes": _BYTES, "dense": _PLAIN, **settings})


LENET300: dict[str, Recipe] = {
    "lenet300-augmented": _row(
        method="surgery, grids, distillation",
        note="affine copies, LeNet-5 as teacher",
        dense=first_seed(lenet300_augmented),
        train=with_outside_teacher(
            SparseRecipe(
                loss=TEACHER_LOSS,
                surgery=SurgerySettings(density=0.022),
                epochs=28,
                final_epochs=12,
                grids=GridSettings(coarseness=1.6, vector_bits=4),
            ),
            plain_share=0.6,
        ),
        goals=((150, 1.50), (125, 1.90), (64, 1.50)),
        paper=_PAPERS,
    ),
    "lenet300-plain-125": _row(
        method="surgery, grids, own teachers, small",
        note="no augmentation, no outside teacher",
        train=_with_own_teachers(0.033, GridSettings(coarseness=1.6, vector_bits=4)),
        goals=((125, 1.90),),
        paper=_PAPERS,
    ),
    "lenet300-plain-64": _row(
        method="surgery, grids, own teachers",
        note="no augmentation, no outside teacher",
        train=_with_own_teachers(0.068, GridSettings(coarseness=1.4, vector_bits=5)),
        goals=((64, 1.50),),
        paper=_PAPERS,
    ),
    "lenet300-soft-weight-sharing": _row(
        method="soft weight-sharing, then training of the shared values",
        note="labels alone",
        train=_soft_sharing(
            SharingSettings(tau=1.4e-2, mixture=MixtureSettings(spread=0.6, deviation=0.25)), 90
        ),
        goals=((64, 1.94),),
        paper="Ullrich 64 x by formula, 1.89 -> 1.94 %",
    ),
    "lenet300-surgery": _row(
        method="surgery alone",
        note="labels alone, a tenth of the pixels dropped, weights stay float32",
        train=surgery_with_labels(SurgerySettings(density=0.0178), 24, 14, input_dropout=0.1),
        goals=(),
        paper="Guo 56 x by count, 2.28 -> 1.99 %",
    ),
    "lenet300-adaptive": _row(
        method="adaptive",
        note="no retraining",
        train=adaptive(AdaptiveSettings(max_rise=0.02, iterations=60, max_bits=6), 10_000),
        goals=(),
        paper="Khoram 64 x on LeNet-5, 0.65 -> 0.77 %",
    ),
    "lenet300-variational": _row(
        method="variational dropout alone",
        note="labels alone, weights stay float32",
        train=variational(VariationalSettings(), 24, 8),
        goals=(),
        paper="Molchanov 68 x by count, 1.64 -> 1.92 %",
    ),
    "lenet300-inq": _row(
        method="incremental powers of two",
        note="labels alone, 5 bits",
        train=powers_of_two(3),
        goals=(),
        paper="Zhou: 5 bits without loss, AlexNet 42.76 -> 42.61 %",
    ),
    "lenet300-hashed": _row(
        method="hashed, an eighth of the values",
        note="labels alone",
        train=hashed(0.125, 30, 0.2),
        goals=(),
        paper="Chen 8 x by count, 1.45 % with 1,000 units in one hidden layer",
    ),
}
