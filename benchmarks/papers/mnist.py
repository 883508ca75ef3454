"""MNIST for retraining: the split, and affine copies of the training images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from harness import loaders, required_data_folder

from .data import Data

N_VALIDATION = 5000
_AFFINE_SEED = 12345
_ROTATION, _SCALE, _SHEAR, _SHIFT = 0.2, 0.12, 0.15, 2.0 / 14
_CHUNK = 5000


def load_mnist() -> Data:
    """Return MNIST; the last 5,000 training images are for choices."""
    load = loaders(required_data_folder())
    images, labels = (torch.from_numpy(array) for array in load.mnist("train"))
    test_images, test_labels = (torch.from_numpy(array) for array in load.mnist("test"))
    images, test_images, labels = images[:, None], test_images[:, None], labels.long()
    return Data(
        images=images[:-N_VALIDATION],
        labels=labels[:-N_VALIDATION],
        validation_images=images[-N_VALIDATION:],
        validation_labels=labels[-N_VALIDATION:],
        test_images=test_images,
        test_labels=test_labels.long(),
    )


def affine_copies(images: torch.Tensor, n_copies: int, folder: Path) -> torch.Tensor:
    """The images and `n_copies` randomly turned, scaled, sheared and shifted ones, remembered in `folder`."""
    path = folder / f"mnist_affine_{n_copies}.npy"
    if not path.exists():
        generator = torch.Generator().manual_seed(_AFFINE_SEED)
        parts = [images, *(_affine(images, generator) for _ in range(n_copies))]
        np.save(path, torch.cat(parts).numpy())
    return torch.from_numpy(np.load(path))


def _affine(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    def uniform(n: int, limit: float) -> torch.Tensor:
        return (2 * torch.rand(n, generator=generator) - 1) * limit

    made = []
    for part in images.split(_CHUNK):
        n = len(part)
        angle, shear = uniform(n, _ROTATION), uniform(n, _SHEAR)
        scale_x, scale_y = (1 + uniform(n, _SCALE) for _ in range(2))
        shift_x, shift_y = uniform(n, _SHIFT), uniform(n, _SHIFT)
        cos, sin = torch.cos(angle), torch.sin(angle)
        rows = [
            torch.stack([cos * scale_x, -sin * scale_y + shear, shift_x], 1),
            torch.stack([sin * scale_x, cos * scale_y, shift_y], 1),
        ]
        grid = torch.nn.functional.affine_grid(torch.stack(rows, 1), [n, 1, 28, 28], align_corners=False)
        turned = torch.nn.functional.grid_sample(part.float(), grid, align_corners=False)
        made.append(turned.round().clamp(0, 255).to(torch.uint8))
    return torch.cat(made)
