"""Next characters of Python's own standard library, and a small transformer for them."""

from __future__ import annotations

import torch
from character_model import CharacterModel, Texts, library_texts
from torch import nn

from .data import Data

_VALIDATION_SHARE = 20
_N_TRAINING, _N_VALIDATION, _N_TEST = 28_800, 1000, 2000


class CharacterClassifier(nn.Module):
    """Logits of shape (n, characters, places), as torch's cross entropy takes them."""

    def __init__(self) -> None:
        super().__init__()
        self.model = CharacterModel()

    def forward(self, characters: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(characters)
        return logits.transpose(1, 2)


def load_characters() -> Data:
    """Return stretches of 64 characters; the last twentieth of the training text is for choices."""
    texts = library_texts()
    n_held_out = len(texts.training) // _VALIDATION_SHARE
    split = Texts(training=texts.training[:-n_held_out], test=texts.training[-n_held_out:])
    images, labels = _windows(split, "training", _N_TRAINING)
    validation_images, validation_labels = _windows(split, "test", _N_VALIDATION)
    test_images, test_labels = _windows(texts, "test", _N_TEST)
    return Data(
        images=images,
        labels=labels,
        validation_images=validation_images,
        validation_labels=validation_labels,
        test_images=test_images,
        test_labels=test_labels,
    )


def _windows(texts: Texts, part: str, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    inputs, targets = texts.windows(part, n, seed=0)
    return torch.from_numpy(inputs), torch.from_numpy(targets)
