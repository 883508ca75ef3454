"""Labelled data of a recipe, batches of it, and what networks answer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """Images of shape (n, channels, height, width), uint8 pixels or float32, with int64 labels.

    Texts are int64 of shape (n, places), with a label for each place. Choices are made on the validation
    part, which no network is trained on.
    """

    images: torch.Tensor
    labels: torch.Tensor
    validation_images: torch.Tensor
    validation_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor


def as_inputs(images: torch.Tensor) -> torch.Tensor:
    """What networks take: pixels from 0 to 1, anything else as it is."""
    return images.float() / 255 if images.dtype is torch.uint8 else images


class Batches:
    """Shuffled batches in an order drawn from torch's global generator, or batches in order.

    Parameters
    ----------
    images, labels : tensors
        Of one set of images, or of several copies of it behind one another, the first without changes.
    batch : int
    teacher : tensor, optional
        A teacher's logits for all images; batches then have ``(labels, logits)`` as targets.
    n_items : int, optional
        Images an epoch; None: all of them once.
    plain_share : float
        Share of images taken from the first copy, if there are several.
    n_plain : int, optional
        Images of one copy.
    input_dropout : float
        Share of pixels set to zero.
    """

    def __init__(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        *,
        batch: int = 250,
        teacher: torch.Tensor | None = None,
        n_items: int | None = None,
        plain_share: float = 0.0,
        n_plain: int | None = None,
        input_dropout: float = 0.0,
        shuffled: bool = True,
    ) -> None:
        self._images, self._labels, self._teacher = images, labels, teacher
        self._batch, self._shuffled = batch, shuffled
        self._n_items = n_items or len(images)
        self._input_dropout = input_dropout
        self._plain_share, self._n_plain = plain_share, n_plain or len(images)

    def __len__(self) -> int:
        return math.ceil(self._n_items / self._batch)

    def __iter__(self) -> Iterator[Any]:
        for places in self._order().split(self._batch):
            labels = self._labels[places % len(self._labels)]
            targets: Any = labels if self._teacher is None else (labels, self._teacher[places])
            inputs = as_inputs(self._images[places])
            if self._input_dropout:
                inputs = torch.nn.functional.dropout(inputs, self._input_dropout)
            yield inputs, targets

    def _order(self) -> torch.Tensor:
        n_all, n_plain = len(self._images), self._n_plain
        if not self._shuffled:
            return torch.arange(self._n_items)
        if n_all == n_plain:
            return torch.randperm(n_all)[: self._n_items]
        n_first = round(self._plain_share * self._n_items)
        first = torch.randperm(n_plain)[:n_first]
        others = n_plain + torch.randperm(n_all - n_plain)[: self._n_items - len(first)]
        together = torch.cat([first, others])
        return together[torch.randperm(len(together))]


def in_order(images: torch.Tensor, labels: torch.Tensor) -> Batches:
    """Batches for validation."""
    return Batches(images, labels, batch=1000, shuffled=False)


def answers(module: torch.nn.Module, images: torch.Tensor, path: Path | None = None) -> torch.Tensor:
    """Logits of a network for all images, remembered at `path`."""
    if path is not None and path.exists():
        return torch.from_numpy(np.load(path))
    module.eval()
    with torch.no_grad():
        made = torch.cat([module(as_inputs(part)) for part in images.split(1000)])
    if path is not None:
        np.save(path, made.numpy())
    return made


def errors(module: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> np.ndarray:
    """Whether each image, or place of a text, is classified wrongly."""
    wrong: np.ndarray = (answers(module, images).argmax(1) != labels).numpy()
    return wrong


def cross_entropy(logits: torch.Tensor, targets: Any) -> torch.Tensor:
    """Cross entropy with the labels alone, also where a teacher's logits stand beside them."""
    labels = targets[0] if isinstance(targets, (tuple, list)) else targets
    return torch.nn.functional.cross_entropy(logits, labels)
