"""Ways to train that rows of several networks share."""

from __future__ import annotations

from collections.abc import Callable

import torch

from nqconvert.training import (
    AdaptiveSettings,
    SurgerySettings,
    VariationalSettings,
    prune_by_surgery,
    prune_variational,
    quantize_adaptively,
    quantize_incrementally,
    train_hashed,
)

from .data import Batches, Data, answers, cross_entropy
from .dense import augmented, first_affine_copy
from .recipe import Work
from .sparse import SparseRecipe

Train = Callable[[torch.nn.Module, Work], torch.nn.Module]


def first_seed(build: Callable[[Data, int], torch.nn.Module]) -> Callable[[Data], torch.nn.Module]:
    """Start every seed's retraining from the same dense network."""
    return lambda data: build(data, 0)


def with_outside_teacher(recipe: SparseRecipe, plain_share: float) -> Train:
    """Train on affine copies with LeNet-5 as the teacher."""

    def train(module: torch.nn.Module, work: Work) -> torch.nn.Module:
        return recipe.train(module, augmented(work.data, plain_share=plain_share), work)

    return train


def taught_by_itself(recipe: SparseRecipe, batch: int, *, on_grids: bool = True) -> Train:
    """Train with the dense network that it starts from as the teacher."""

    def train(module: torch.nn.Module, work: Work) -> torch.nn.Module:
        data = work.data
        teacher = answers(module, data.images)
        loader = Batches(data.images, data.labels, batch=batch, teacher=teacher)
        return recipe.train(module, loader, work, on_grids=on_grids)

    return train


def surgery_with_labels(
    settings: SurgerySettings, epochs: int, final_epochs: int, *, input_dropout: float
) -> Train:
    """Dynamic network surgery as the paper has it: labels and floating-point weights."""

    def train(module: torch.nn.Module, work: Work) -> torch.nn.Module:
        data = work.data
        result = prune_by_surgery(
            module,
            Batches(data.images, data.labels, input_dropout=input_dropout),
            cross_entropy,
            settings=settings,
            epochs=epochs,
            final_epochs=final_epochs,
            **work.judged(),
        )
        work.note_seconds(result.log)
        work.facts["paper_ratio"] = 1.0 / result.density
        return module

    return train


def adaptive(settings: AdaptiveSettings, n_images: int, *, moved: bool = False) -> Train:
    """Adaptive quantization on the first training images, or affine copies of them, without retraining."""

    def train(module: torch.nn.Module, work: Work) -> torch.nn.Module:
        data = work.data
        images = first_affine_copy(data) if moved else data.images
        loader = Batches(images[:n_images], data.labels[:n_images], shuffled=False)
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


def variational(settings: VariationalSettings, epochs: int, final_epochs: int) -> Train:
    """Sparse variational dropout as the paper has it: labels, images as they are, floating-point weights."""

    def train(module: torch.nn.Module, work: Work) -> torch.nn.Module:
        result = prune_variational(
            module,
            Batches(work.data.images, work.data.labels),
            cross_entropy,
            settings=settings,
            epochs=epochs,
            final_epochs=final_epochs,
            n_samples=len(work.data.images),
            **work.judged(),
        )
        work.note_seconds(result.log)
        work.facts["paper_ratio"] = 1.0 / result.density
        return module

    return train


def powers_of_two(epochs: int) -> Train:
    """Incremental quantization to 5 bits, labels alone; biases stay floating point."""

    def train(module: torch.nn.Module, work: Work) -> torch.nn.Module:
        log = quantize_incrementally(
            module,
            Batches(work.data.images, work.data.labels),
            cross_entropy,
            epochs=epochs,
            **work.judged(),
        )
        work.note_seconds(log)
        work.facts["paper_ratio"] = 32.0 / 5.0
        return module

    return train


def hashed(share: float, epochs: int, input_dropout: float) -> Train:
    """Hashed weights trained with labels alone, from values of the dense network at each bucket."""

    def train(module: torch.nn.Module, work: Work) -> torch.nn.Module:
        result = train_hashed(
            module,
            Batches(work.data.images, work.data.labels, input_dropout=input_dropout),
            cross_entropy,
            share=share,
            epochs=epochs,
            **work.judged(),
        )
        work.note_seconds(result.log)
        work.facts["paper_ratio"] = 1.0 / result.share
        work.hashed.append(result)
        return module

    return train
