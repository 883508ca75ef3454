"""Rows of ResNet-32."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import nqconvert
import nqformat
from nqconvert import FineTuning, RepairSettings
from nqconvert.quantizers.grids import find_grid
from nqconvert.training import (
    GridSettings,
    StraightThrough,
    Taught,
    prunable_weights,
    prune_and_retrain,
    retrain,
)
from papers.cifar import BothCheckpoints, MovedImages, load_cifar, resnet32_checkpoint
from papers.data import Data, as_inputs
from papers.dense import TEACHER_LOSS
from papers.methods import Train
from papers.recipe import Recipe, Work

_N_CALIBRATION = 512
_SEEDS = 1000
_N_FISHER_BATCHES = 10


def _checkpoint(data: Data) -> torch.nn.Module:
    return resnet32_checkpoint()


def _contiguous(module: torch.nn.Module) -> torch.nn.Module:
    """Return a copy in the memory layout that conversions take."""
    return copy.deepcopy(module).to(memory_format=torch.contiguous_format).eval()


def post_trained(module: torch.nn.Module, data: Data, rate_penalty: float, path: Path) -> dict[str, float]:
    """Put the weights on grids by error feedback through layer Hessians; returns each weight's step.

    The module gets the quantized weights; biases stay as they are.
    """
    if not path.exists():
        images = data.images[torch.from_numpy(np.random.default_rng(0).permutation(len(data.images)))]
        calibration = as_inputs(images[:_N_CALIBRATION]).numpy()
        nqconvert.convert(
            _contiguous(module),
            path,
            example_inputs=calibration[:64],
            calibration=calibration,
            preset="post-training",
            rate_penalty=rate_penalty,
            repairs=RepairSettings(distillation="none"),
        )
    steps = {}
    for name, values in _take_weights(module, path).items():
        grid = find_grid(np.unique(values))
        if grid is None or grid.offset != 0:
            raise ValueError(f"{name} is on no grid through zero")
        steps[name] = grid.step
    return steps


def _take_weights(module: torch.nn.Module, path: Path) -> dict[str, np.ndarray]:
    """Put a file's weights of linear and convolution layers into the module, and return them."""
    with nqformat.safe_open(path) as file:
        weights = {name: file.get_tensor(name) for name in prunable_weights(module)}
    for name, values in weights.items():
        module.get_parameter(name).data.copy_(torch.from_numpy(values))
    return weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """Epochs of training on the grids, over which the learning rate falls to zero.

    Attributes
    ----------
    epochs, n_items : int
        Of `n_items` images each.
    lr : float
    both : bool
        The shared ResNet-32 and ResNet-20 teach together, instead of the float network alone.
    vector_bits : int
    """

    epochs: int
    n_items: int = 9000
    lr: float = 5e-4
    both: bool = False
    vector_bits: int = 8


def _loader(module: torch.nn.Module, work: Work, n_items: int, *, both: bool) -> Taught:
    """Return moved images with a teacher's answers: of the network as it is now, or of both checkpoints."""
    teacher = BothCheckpoints() if both else copy.deepcopy(module)
    return Taught(MovedImages(work.data, n_items=n_items), teacher.eval())


def _bytes_of(module: torch.nn.Module, data: Data, path: Path) -> int:
    nqconvert.convert(
        _contiguous(module), path, example_inputs=as_inputs(data.validation_images[:64]), preset="lossless"
    )
    return path.stat().st_size


def _fit(module: torch.nn.Module, loader: Taught, names: list[str], max_bytes: int, work: Work) -> None:
    """Zero the weights that matter least, by their squares times those of gradients, until the file fits."""
    weights = [module.get_parameter(name) for name in names]
    squares = [torch.zeros_like(weight) for weight in weights]
    torch.manual_seed(work.seed)
    module.eval()
    for (images, targets), _ in zip(loader, range(_N_FISHER_BATCHES), strict=False):
        gradients = torch.autograd.grad(TEACHER_LOSS(module(images), targets), weights)
        for total, gradient in zip(squares, gradients, strict=True):
            total += gradient**2
    scores = torch.cat([(w.detach() ** 2 * g).reshape(-1) for w, g in zip(weights, squares, strict=True)])
    order = scores[scores > 0].sort().values
    start = [weight.detach().clone() for weight in weights]
    least, most = 0, len(order) // 20
    while most - least > len(order) // 2000:
        middle = (least + most) // 2
        _cut(weights, start, scores, float(order[middle]))
        if _bytes_of(module, work.data, work.checkpoint.with_suffix(".fit.nqz")) <= max_bytes:
            most = middle
        else:
            least = middle
    _cut(weights, start, scores, float(order[most]))


def _cut(
    weights: list[torch.nn.Parameter], start: list[torch.Tensor], scores: torch.Tensor, threshold: float
) -> None:
    parts = scores.split([weight.numel() for weight in weights])
    for weight, value, score in zip(weights, start, parts, strict=True):
        weight.data.copy_(torch.where(score.view_as(value) <= threshold, 0.0, value))


def _grids_trained(rate_penalty: float, *rounds: Round, max_bytes: int | None = None) -> Train:
    """Quantize after training, then train on the grids; zeros stay. Weights are cut until the file fits."""

    def train(module: torch.nn.Module, work: Work) -> torch.nn.Module:
        loaders = [_loader(module, work, chosen.n_items, both=chosen.both) for chosen in rounds]
        steps = post_trained(module, work.data, rate_penalty, work.checkpoint.with_suffix(".start.nqz"))
        vectors = [name for name, _ in module.named_parameters() if name not in steps]
        masks = {name: module.get_parameter(name).detach() != 0 for name in steps}
        for number, (chosen, loader) in enumerate(zip(rounds, loaders, strict=True)):
            grids = GridSettings(vector_bits=chosen.vector_bits, first_stage=0)
            log = retrain(
                module,
                loader,
                TEACHER_LOSS,
                masks=masks,
                techniques=[StraightThrough((), vectors, grids, steps=steps)],
                epochs=chosen.epochs,
                lr=chosen.lr,
                **{**work.followed(f".round{number}"), "seed": work.seed + _SEEDS * number},
            )
            work.note_seconds(log)
        if max_bytes is not None:
            _fit(module, loaders[-1], list(steps), max_bytes, work)
        return module

    return train


def _float_trained(epochs: int, *, n_items: int, lr: float) -> Train:
    """Train the float network on as the quantized ones are, with the same teacher."""

    def train(module: torch.nn.Module, work: Work) -> torch.nn.Module:
        loader = _loader(module, work, n_items, both=False)
        work.note_seconds(retrain(module, loader, TEACHER_LOSS, epochs=epochs, lr=lr, **work.followed()))
        return module

    return train


def _deep_compression(density: float, *, n_items: int) -> Train:
    """Prune by magnitude, retrain, share 16 values a layer by k-means and train those, labels alone."""

    def train(module: torch.nn.Module, work: Work) -> torch.nn.Module:
        loader = MovedImages(work.data, n_items=n_items)
        result = prune_and_retrain(
            module,
            loader,
            torch.nn.functional.cross_entropy,
            density=density,
            steps=6,
            epochs_per_step=1,
            final_epochs=6,
            lr=5e-4,
            **work.followed(),
        )
        work.note_seconds(result.log)
        path = work.checkpoint.with_suffix(".shared.nqz")
        nqconvert.convert(
            _contiguous(module),
            path,
            example_inputs=as_inputs(work.data.images[:64]),
            preset="deep-compression",
            fine_tuning=FineTuning(
                loader=loader, loss=torch.nn.functional.cross_entropy, epochs=1, seed=work.seed
            ),
            seed=work.seed,
        )
        _take_weights(module, path)
        return module

    return train


def _row(**settings: Any) -> Recipe:
    """Return a row of ResNet-32, from the shared checkpoint."""
    return Recipe(
        network="ResNet-32, JPEG-recompressed CIFAR-10",
        fp32_bytes=4 * 464_154,
        dense=_checkpoint,
        load=load_cifar,
        **settings,
    )


RESNET32: dict[str, Recipe] = {
    "resnet32": _row(
        method="layer Hessians, then grids and distillation",
        note="the shared checkpoint as start and teacher",
        train=_grids_trained(0.8, Round(epochs=6)),
        goals=((24, None),),
        paper="Choi 22.17 x by formula, 7.42 -> 7.32 % on exact CIFAR-10",
    ),
    "resnet32-longer": _row(
        method="layer Hessians, then grids and distillation, longer",
        note="the shared checkpoint as start and teacher",
        train=_grids_trained(0.66, Round(epochs=28), Round(epochs=24)),
        goals=((24, None),),
        paper="Choi 22.17 x by formula, 7.42 -> 7.32 % on exact CIFAR-10",
    ),
    "resnet32-both": _row(
        method="layer Hessians, then grids and distillation, longer, then from two teachers",
        note="the shared ResNet-32 as start, in the end with ResNet-20 as teacher",
        train=_grids_trained(
            0.66,
            Round(epochs=28),
            Round(epochs=24),
            Round(epochs=50, both=True, vector_bits=7),
            max_bytes=4 * 464_154 // 24,
        ),
        goals=((24, None),),
        paper="Choi 22.17 x by formula, 7.42 -> 7.32 % on exact CIFAR-10",
    ),
    "resnet32-float": _row(
        method="float weights, trained on with the same images and teacher",
        note="what retraining alone does, at a tenth of the learning rate",
        train=_float_trained(6, n_items=9000, lr=5e-5),
        goals=(),
        paper="",
    ),
    "resnet32-deep-compression": _row(
        method="deep compression: magnitude pruning, 16 shared values a layer, Huffman",
        note="labels alone",
        train=_deep_compression(0.3, n_items=6000),
        goals=(),
        paper="Choi's k-means 18.25 x by formula, 7.42 -> 7.36 % on exact CIFAR-10",
    ),
}
