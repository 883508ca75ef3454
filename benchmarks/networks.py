"""Trained networks and real data of the benchmarks, from the folder that NQZ_DATA names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

CIFAR_MEAN = np.float32([0.485, 0.456, 0.406])
CIFAR_STD = np.float32([0.229, 0.224, 0.225])


class LeNet300(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(784, 300), nn.Linear(300, 100), nn.Linear(100, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.fc3(torch.relu(self.fc2(torch.relu(self.fc1(image.flatten(1))))))


class LeNet5(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(1, 20, 5), nn.Conv2d(20, 50, 5)
        self.fc1, self.fc2 = nn.Linear(800, 500), nn.Linear(500, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        hidden = nn.functional.max_pool2d(self.c1(image), 2)
        hidden = nn.functional.max_pool2d(self.c2(hidden), 2)
        return self.fc2(torch.relu(self.fc1(hidden.flatten(1))))


class _Block(nn.Module):
    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False), nn.BatchNorm2d(n_out)
        self.conv2, self.bn2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False), nn.BatchNorm2d(n_out)
        self.padding, self.stride = (n_out - n_in) // 2, stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        if self.stride != 1 or self.padding:
            x = nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.padding, self.padding))
        return torch.relu(y + x)


class CifarResNet(nn.Module):
    """ResNet-(6 `n_blocks` + 2) for 32 x 32 images; shortcuts drop pixels and add empty channels."""

    def __init__(self, n_blocks: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        n_in = 16
        for number, n_out in enumerate((16, 32, 64), start=1):
            blocks = []
            for block in range(n_blocks):
                blocks.append(_Block(n_in, n_out, 2 if number > 1 and block == 0 else 1))
                n_in = n_out
            setattr(self, f"layer{number}", nn.Sequential(*blocks))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


Labelled = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A trained network with its data: training images in two parts, and test images."""

    name: str
    module: nn.Module
    calibration: np.ndarray
    training: Labelled
    test: Labelled


def mnist_images(images: np.ndarray) -> np.ndarray:
    return (images.astype(np.float32) / 255).reshape(-1, 1, 28, 28)


def cifar_images(images: np.ndarray) -> np.ndarray:
    scaled = (images.astype(np.float32) / 255 - CIFAR_MEAN) / CIFAR_STD
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


def filled_lenet(name: str, module: nn.Module, folder: Path) -> nn.Module:
    """A LeNet with the weights of a file of the data folder."""
    weights = folder / "pruned_lenets" / f"{name}.pt"
    module.load_state_dict(torch.load(weights, weights_only=True))
    return module.eval()


def _lenet(name: str, module: nn.Module, folder: Path, load: Any) -> Network:
    module = filled_lenet(name, module, folder)
    images, labels = load.mnist("train")
    test_images, test_labels = load.mnist("test")
    return Network(
        name=name,
        module=module,
        calibration=mnist_images(images[:5000]),
        training=(mnist_images(images[-10000:]), labels[-10000:].astype(np.int64)),
        test=(mnist_images(test_images), test_labels.astype(np.int64)),
    )


def lenet300(folder: Path, load: Any) -> Network:
    """LeNet-300-100 of which 8 % of the weights are left."""
    return _lenet("lenet300_p8", LeNet300(), folder, load)


def lenet5(folder: Path, load: Any) -> Network:
    """LeNet-5 of which 8 % of the weights are left."""
    return _lenet("lenet5_p8", LeNet5(), folder, load)


def cifar_resnet(name: str, n_blocks: int, folder: Path) -> CifarResNet:
    """A ResNet with the weights of a file of the data folder."""
    state = torch.load(folder / "resnet_cifar10" / f"{name}.pt", weights_only=True)
    module = CifarResNet(n_blocks)
    module.load_state_dict({k.removeprefix("module."): v for k, v in state.get("state_dict", state).items()})
    return module.eval()


def resnet32(folder: Path, load: Any) -> Network:
    """ResNet-32 tuned on JPEG-recompressed CIFAR-10, dense; the first 5,000 test images."""
    module = cifar_resnet("resnet32_jpegft", 5, folder)
    images, labels = load.cifar10("train")
    test_images, test_labels = load.cifar10("test")
    return Network(
        name="resnet32_jpegft",
        module=module,
        calibration=cifar_images(images[:5000]),
        training=(cifar_images(images[-2000:]), labels[-2000:].astype(np.int64)),
        test=(cifar_images(test_images[:5000]), test_labels[:5000].astype(np.int64)),
    )


NETWORKS: dict[str, Callable[[Path, Any], Network]] = {
    "lenet300_p8": lenet300,
    "lenet5_p8": lenet5,
    "resnet32_jpegft": resnet32,
}
