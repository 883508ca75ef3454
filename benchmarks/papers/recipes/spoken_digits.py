"""Rows of networks for spoken digits."""

from __future__ import annotations

from nqconvert.training.pruning.surgery import SurgerySettings
from nqconvert.training.quantized.straight_through import GridSettings
from papers.dense import TEACHER_LOSS, spoken_cnn, spoken_lstm
from papers.methods import first_seed, taught_by_itself
from papers.recipe import Recipe
from papers.sparse import SparseRecipe
from papers.spoken import load_spoken_digits


def _sparse(density: float) -> SparseRecipe:
    return SparseRecipe(
        loss=TEACHER_LOSS,
        surgery=SurgerySettings(density=density),
        epochs=20,
        final_epochs=24,
        grids=GridSettings(coarseness=3.0, vector_bits=5),
    )


_CNN, _LSTM = _sparse(0.04), _sparse(0.05)

SPOKEN_DIGITS: dict[str, Recipe] = {
    "spoken-cnn": Recipe(
        network="Spoken-digit CNN",
        method="surgery, grids, own teacher",
        note="300 test recordings",
        fp32_bytes=4 * 169_872,
        dense=first_seed(spoken_cnn),
        train=taught_by_itself(_CNN, 50),
        rival=taught_by_itself(_CNN, 50, on_grids=False),
        goals=(),
        share_of_rival=0.6,
        paper="NNCodec after the same training",
        load=load_spoken_digits,
    ),
    "spoken-lstm": Recipe(
        network="Spoken-digit LSTM",
        method="surgery, grids, own teacher",
        note="300 test recordings",
        fp32_bytes=4 * 100_618,
        dense=first_seed(spoken_lstm),
        train=taught_by_itself(_LSTM, 50),
        rival=taught_by_itself(_LSTM, 50, on_grids=False),
        goals=(),
        share_of_rival=0.6,
        paper="NNCodec after the same training",
        load=load_spoken_digits,
    ),
}
