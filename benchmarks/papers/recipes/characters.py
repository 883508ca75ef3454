"""Rows of a small transformer for characters."""

from __future__ import annotations

import copy

import torch

from nqconvert.training import GridSettings, SurgerySettings, Taught
from papers.characters import CharacterClassifier, load_characters
from papers.data import Batches, Data
from papers.dense import TEACHER_LOSS, Dense
from papers.methods import Train
from papers.recipe import Recipe, Work
from papers.sparse import SparseRecipe

_BATCH, _N_ITEMS = 32, 4800
_N_HIDDEN, _MENDING_EPOCHS = 256, 2
_COUNTS = {f"model.layers.{number}.wide": _N_HIDDEN for number in range(3)}
_SPARSE = SparseRecipe(
    loss=TEACHER_LOSS,
    surgery=SurgerySettings(density=0.22),
    epochs=6,
    final_epochs=20,
    grids=GridSettings(coarseness=2.8, vector_bits=6),
)


def _dense(data: Data) -> torch.nn.Module:
    loader = Batches(data.images, data.labels, batch=_BATCH, n_items=9600)
    recipe = Dense(name="character_transformer", build=CharacterClassifier, epochs=8, loader=loader)
    return recipe.trained(data, 0)


def _train(*, on_grids: bool) -> Train:
    def train(module: torch.nn.Module, work: Work) -> torch.nn.Module:
        batches = Batches(work.data.images, work.data.labels, batch=_BATCH, n_items=_N_ITEMS)
        loader = Taught(batches, copy.deepcopy(module).eval())
        return _SPARSE.train_smaller(
            module, _COUNTS, loader, work, mending_epochs=_MENDING_EPOCHS, on_grids=on_grids
        )

    return train


CHARACTERS: dict[str, Recipe] = {
    "characters": Recipe(
        network="Character transformer, Python's standard library",
        method="hidden units first, then surgery, grids, own teacher",
        note="error: next characters",
        fp32_bytes=4 * sum(parameter.numel() for parameter in CharacterClassifier().parameters()),
        dense=_dense,
        train=_train(on_grids=True),
        rival=_train(on_grids=False),
        goals=(),
        share_of_rival=0.6,
        paper="NNCodec after the same training",
        load=load_characters,
    ),
}
