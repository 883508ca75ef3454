"""CIFAR-10 (JPEG-recompressed) for retraining: the split, moved images, and ResNet-32 without batch norms."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from harness import loaders, required_data_folder
from networks import CIFAR_MEAN, CIFAR_STD, CifarResNet, cifar_resnet
from torch import nn

from nqconvert.training import fold_batch_norms

from .data import Batches, Data

N_VALIDATION = 5000
_SHIFT = 4


class PixelResNet(nn.Module):
    """A ResNet for pixels from 0 to 1 whose batch norms are folded into its convolutions.

    The exporter would fold them, too, and then a weight on a grid would leave it.
    """

    def __init__(self, network: CifarResNet) -> None:
        super().__init__()
        self.network, _ = fold_batch_norms(network.eval())
        self.register_buffer("mean", torch.from_numpy(CIFAR_MEAN).reshape(1, 3, 1, 1))
        self.register_buffer("deviation", torch.from_numpy(CIFAR_STD).reshape(1, 3, 1, 1))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.network((pixels - self.mean) / self.deviation)
        return logits


def load_cifar() -> Data:
    """Return CIFAR-10 as recompressed by JPEG; the last 5,000 training images are for choices."""
    load = loaders(required_data_folder())
    images, labels = _tensors(*load.cifar10("train"))
    test_images, test_labels = _tensors(*load.cifar10("test"))
    return Data(
        images=images[:-N_VALIDATION],
        labels=labels[:-N_VALIDATION],
        validation_images=images[-N_VALIDATION:],
        validation_labels=labels[-N_VALIDATION:],
        test_images=test_images,
        test_labels=test_labels,
    )


def _tensors(images: np.ndarray, labels: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images of shape (n, 3, 32, 32), uint8, and labels, int64."""
    channels_first = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    return torch.from_numpy(channels_first), torch.from_numpy(labels).long()


def resnet32_checkpoint() -> nn.Module:
    """The shared ResNet-32 that was tuned on these images, in the memory layout that trains fastest."""
    return _checkpoint("resnet32_jpegft", 5)


def _checkpoint(name: str, n_blocks: int) -> nn.Module:
    network = PixelResNet(cifar_resnet(name, n_blocks, required_data_folder()))
    return network.to(memory_format=torch.channels_last).eval()


class BothCheckpoints(nn.Module):
    """Mean logits of the shared ResNet-32 and ResNet-20, as a teacher."""

    def __init__(self) -> None:
        super().__init__()
        self.networks = nn.ModuleList([resnet32_checkpoint(), _checkpoint("resnet20_jpegft", 3)])

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.stack([network(pixels) for network in self.networks]).mean(0)


class MovedImages:
    """Batches of images shifted by up to 4 pixels and mirrored at random; new pixels have the mean colour."""

    def __init__(self, data: Data, *, batch: int = 128, n_items: int | None = None) -> None:
        self._batches = Batches(data.images, data.labels, batch=batch, n_items=n_items)
        self._edge = torch.from_numpy(CIFAR_MEAN).reshape(1, 3, 1, 1)

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Any]:
        for images, labels in self._batches:
            yield self._moved(images).contiguous(memory_format=torch.channels_last), labels

    def _moved(self, images: torch.Tensor) -> torch.Tensor:
        n, _, height, width = images.shape
        centred = nn.functional.pad(images - self._edge, (_SHIFT,) * 4) + self._edge
        rows = torch.randint(0, 2 * _SHIFT + 1, (n, 1)) + torch.arange(height)
        columns = torch.randint(0, 2 * _SHIFT + 1, (n, 1)) + torch.arange(width)
        mirrored = torch.rand(n, 1) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
        places = torch.arange(n)[:, None, None]
        return centred.permute(0, 2, 3, 1)[places, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
