"""All rows. Settings were chosen on the last 5,000 training images."""

from __future__ import annotations

from collections.abc import Callable

import torch

from nqconvert.training import prunable_weights, retrain
from nqconvert.training.pruning.structured import shrink, units_to_keep
from nqconvert.training.pruning.surgery import SurgerySettings, prune_by_surgery
from nqconvert.training.quantized.adaptive import AdaptiveSettings, quantize_adaptively
from nqconvert.training.quantized.straight_through import GridSettings
from nqconvert.training.sharing.mixture import MixtureSettings
from nqconvert.training.sharing.soft_weight_sharing import SharingSettings, share_weights_softly

from .data import Batches, Data, answers, cross_entropy, in_order
from .dense import (
    TEACHER_LOSS,
    augmented,
    lenet5_augmented,
    lenet300_augmented,
    lenet300_plain,
    own_teachers,
    spoken_cnn,
)
from .recipe import Recipe, Work
from .sparse import SparseRecipe
from .spoken import load_spoken_digits

LENET300_BYTES = 4 * 266_610
LENET5_BYTES = 4 * 431_080
SPOKEN_BYTES = 4 * 169_872
_LENET300_PAPERS = "Han 40 x at 1.58 %; Ullrich 64 x at 1.94 %; Oktay 124 x at 1.9 %"
_LENET5_PAPERS = "Choi 51.25 x at 0.72 %; Ullrich 162 x at 0.97 %; Havasi 555 x at 0.69 %"

Train = Callable[[torch.nn.Module, Work], torch.nn.Module]


def _with_own_teachers(recipe: SparseRecipe) -> Train:
    """Train on the images as they are; the teachers are networks of the same kind, trained on the same."""

    def train(module: torch.nn.Module, work: Work) -> torch.nn.Module:
        mnist = work.data
        return recipe.train(module, Batches(mnist.images, mnist.labels, teacher=own_teachers(mnist)), work)

    return train


def _with_outside_teacher(recipe: SparseRecipe, plain_share: float) -> Train:
    """Train on affine copies with LeNet-5 as the teacher."""

    def train(module: torch.nn.Module, work: Work) -> torch.nn.Module:
        return recipe.train(module, augmented(work.data, plain_share=plain_share), work)

    return train


def _shrunk_first(counts: dict[str, int], epochs: int, recipe: SparseRecipe, plain_share: float) -> Train:
    """Take the least important outputs away, mend the smaller network, and train it like the others."""

    def train(module: torch.nn.Module, work: Work) -> torch.nn.Module:
        small = shrink(module, units_to_keep(module, counts))
        loader = augmented(work.data, plain_share=plain_share)
        log = retrain(
            small,
            loader,
            TEACHER_LOSS,
            epochs=epochs,
            lr=recipe.lr,
            seed=work.seed,
            checkpoint=work.checkpoint.with_suffix(".small"),
            progress=work.progress,
        )
        work.note_seconds(log)
        return recipe.train(small, loader, work)

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
            lr=5e-4,
            seed=work.seed,
            n_samples=len(work.data.images),
            parameters=prunable_weights(module),
            checkpoint=work.checkpoint,
            progress=work.progress,
        )
        work.note_seconds(result.log)
        return module

    return train


def _surgery_with_labels(settings: SurgerySettings, epochs: int, final_epochs: int) -> Train:
    """Dynamic network surgery as the paper has it: labels, images as they are, floating-point weights."""

    def train(module: torch.nn.Module, work: Work) -> torch.nn.Module:
        mnist = work.data
        result = prune_by_surgery(
            module,
            Batches(mnist.images, mnist.labels),
            cross_entropy,
            settings=settings,
            epochs=epochs,
            final_epochs=final_epochs,
            lr=1e-3,
            seed=work.seed,
            validation=in_order(mnist.validation_images, mnist.validation_labels),
            checkpoint=work.checkpoint,
            progress=work.progress,
        )
        work.note_seconds(result.log)
        work.facts["paper_ratio"] = 1.0 / result.density
        return module

    return train


def _adaptive(settings: AdaptiveSettings, n_images: int) -> Train:
    """Adaptive quantization on the first training images, without retraining."""

    def train(module: torch.nn.Module, work: Work) -> torch.nn.Module:
        mnist = work.data
        loader = Batches(mnist.images[:n_images], mnist.labels[:n_images], shuffled=False)
        result = quantize_adaptively(
            module,
            loader,
            cross_entropy,
            settings=settings,
            progress=lambda record: print(record, flush=True),
        )
        work.facts["paper_ratio"] = 32.0 / result.mean_bits
        return module

    return train


def _taught_by_itself(recipe: SparseRecipe, batch: int, *, on_grids: bool = True) -> Train:
    """Train with the dense network that it starts from as the teacher."""

    def train(module: torch.nn.Module, work: Work) -> torch.nn.Module:
        data = work.data
        teacher = answers(module, data.images)
        loader = Batches(data.images, data.labels, batch=batch, teacher=teacher)
        return recipe.train(module, loader, work, on_grids=on_grids)

    return train


_SPOKEN = SparseRecipe(
    loss=TEACHER_LOSS,
    surgery=SurgerySettings(density=0.04),
    epochs=30,
    final_epochs=20,
    grids=GridSettings(coarseness=1.6, vector_bits=5),
)


def _first(build: Callable[[Data, int], torch.nn.Module]) -> Callable[[Data], torch.nn.Module]:
    return lambda mnist: build(mnist, 0)


RECIPES: dict[str, Recipe] = {
    "lenet300-augmented": Recipe(
        network="LeNet-300-100",
        method="surgery, grids, distillation",
        note="affine copies, LeNet-5 as teacher",
        fp32_bytes=LENET300_BYTES,
        dense=_first(lenet300_augmented),
        train=_with_outside_teacher(
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
        paper=_LENET300_PAPERS,
    ),
    "lenet300-plain-125": Recipe(
        network="LeNet-300-100",
        method="surgery, grids, own teachers, small",
        note="no augmentation, no outside teacher",
        fp32_bytes=LENET300_BYTES,
        dense=_first(lenet300_plain),
        train=_with_own_teachers(
            SparseRecipe(
                loss=TEACHER_LOSS,
                surgery=SurgerySettings(density=0.033),
                epochs=18,
                final_epochs=10,
                grids=GridSettings(coarseness=1.6, vector_bits=4),
            )
        ),
        goals=((125, 1.90),),
        paper=_LENET300_PAPERS,
    ),
    "lenet300-plain-64": Recipe(
        network="LeNet-300-100",
        method="surgery, grids, own teachers",
        note="no augmentation, no outside teacher",
        fp32_bytes=LENET300_BYTES,
        dense=_first(lenet300_plain),
        train=_with_own_teachers(
            SparseRecipe(
                loss=TEACHER_LOSS,
                surgery=SurgerySettings(density=0.068),
                epochs=18,
                final_epochs=10,
                grids=GridSettings(coarseness=1.4, vector_bits=5),
            )
        ),
        goals=((64, 1.50),),
        paper=_LENET300_PAPERS,
    ),
    "lenet300-soft-weight-sharing": Recipe(
        network="LeNet-300-100",
        method="soft weight-sharing",
        note="labels alone",
        fp32_bytes=LENET300_BYTES,
        dense=_first(lenet300_plain),
        train=_soft_sharing(SharingSettings(mixture=MixtureSettings(spread=0.6, deviation=0.25)), 30),
        goals=((64, 1.94),),
        paper="Ullrich 64 x by formula, 1.89 -> 1.94 %",
    ),
    "lenet300-surgery": Recipe(
        network="LeNet-300-100",
        method="surgery alone",
        note="labels alone, weights stay float32",
        fp32_bytes=LENET300_BYTES,
        dense=_first(lenet300_plain),
        train=_surgery_with_labels(SurgerySettings(density=0.0178), 14, 10),
        goals=(),
        paper="Guo 56 x by count, 2.28 -> 1.99 %",
    ),
    "lenet300-adaptive": Recipe(
        network="LeNet-300-100",
        method="adaptive",
        note="no retraining",
        fp32_bytes=LENET300_BYTES,
        dense=_first(lenet300_plain),
        train=_adaptive(AdaptiveSettings(max_rise=0.02, iterations=40), 10_000),
        goals=(),
        paper="Khoram 64 x on LeNet-5, 0.65 -> 0.77 %",
    ),
    "lenet5-adaptive": Recipe(
        network="LeNet-5",
        method="adaptive",
        note="no retraining",
        fp32_bytes=LENET5_BYTES,
        dense=_first(lenet5_augmented),
        train=_adaptive(AdaptiveSettings(max_rise=0.02, iterations=30), 5_000),
        goals=(),
        paper="Khoram 64 x, 0.65 -> 0.77 %",
    ),
    "spoken-cnn": Recipe(
        network="Spoken-digit CNN",
        method="surgery, grids, own teacher",
        note="300 test recordings",
        fp32_bytes=SPOKEN_BYTES,
        dense=_first(spoken_cnn),
        train=_taught_by_itself(_SPOKEN, 50),
        rival=_taught_by_itself(_SPOKEN, 50, on_grids=False),
        goals=(),
        paper="NNCodec after the same training",
        load=load_spoken_digits,
    ),
    "lenet5-small": Recipe(
        network="LeNet-5",
        method="filters and units first, then surgery, grids, distillation",
        note="affine copies, the dense network as teacher",
        fp32_bytes=LENET5_BYTES,
        dense=_first(lenet5_augmented),
        train=_shrunk_first(
            {"c1": 8, "c2": 16, "fc1": 100},
            3,
            SparseRecipe(
                loss=TEACHER_LOSS,
                surgery=SurgerySettings(density=0.15),
                epochs=10,
                final_epochs=7,
                grids=GridSettings(coarseness=1.6, vector_bits=5),
            ),
            plain_share=0.8,
        ),
        goals=((400, 0.97), (120, 0.80)),
        paper=_LENET5_PAPERS,
    ),
}
