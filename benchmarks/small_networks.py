"""Small dense networks of the benchmarks: two with the moments of their optimizer, one recurrent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from networks import Network
from torch import nn

_RATE = 8000
_FRAME, _HOP, _BANDS, _FRAMES = 256, 160, 24, 48
_HIDDEN = 64
_EPOCHS = 14


@dataclass(frozen=True, slots=True, kw_only=True)
class SmallNetwork:
    """A network, and Adam's second moments by parameter name if they are known."""

    network: Network
    moments: dict[str, np.ndarray] | None = None


class ResNet8(nn.Module):
    """MLPerf Tiny's network for 32 x 32 images, padded as Keras pads."""

    def __init__(self) -> None:
        super().__init__()
        channels = [(3, 16), (16, 16), (16, 16), (16, 32), (32, 32), (16, 32), (32, 64), (64, 64), (32, 64)]
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 1 if i in (5, 8) else 3, stride=2 if i in (3, 5, 6, 8) else 1)
            for i, (a, b) in enumerate(channels)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(n, eps=1e-3) for n in (16, 16, 16, 32, 32, 64, 64))
        self.dense = nn.Linear(64, 10)

    def _part(self, x: torch.Tensor, conv: int, norm: int) -> torch.Tensor:
        before = 0 if self.convs[conv].stride[0] == 2 else 1
        return self.norms[norm](self.convs[conv](nn.functional.pad(x, (before, 1, before, 1))))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self._part(image, 0, 0))
        x = torch.relu(x + self._part(torch.relu(self._part(x, 1, 1)), 2, 2))
        x = torch.relu(self.convs[5](x) + self._part(torch.relu(self._part(x, 3, 3)), 4, 4))
        x = torch.relu(self.convs[8](x) + self._part(torch.relu(self._part(x, 6, 5)), 7, 6))
        return self.dense(x.mean((2, 3)))


class DsCnn(nn.Module):
    """MLPerf Tiny's network for keywords: a convolution, then four depthwise and pointwise ones."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(1, 64, (10, 4), stride=2)])
        for _ in range(4):
            self.convs.extend([nn.Conv2d(64, 64, 3, padding=1, groups=64), nn.Conv2d(64, 64, 1)])
        self.norms = nn.ModuleList(nn.BatchNorm2d(64, eps=1e-3) for _ in range(9))
        self.dense = nn.Linear(64, 12)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        x = nn.functional.pad(features, (1, 1, 4, 5))
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = torch.relu(norm(conv(x)))
        return self.dense(x.mean((2, 3)))


class SpokenDigits(nn.Module):
    """An LSTM over frames, judged by its mean output."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(_BANDS, _HIDDEN, num_layers=2, batch_first=True)
        self.out = nn.Linear(_HIDDEN, 10)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return self.out(self.lstm(frames)[0].mean(1))


def _torch_layout(array: np.ndarray, *, depthwise: bool = False) -> np.ndarray:
    if array.ndim == 4:
        return np.ascontiguousarray(array.transpose((2, 3, 0, 1) if depthwise else (3, 2, 0, 1)))
    return np.ascontiguousarray(array.T)


def _set(module: nn.Module, values: dict[str, np.ndarray]) -> None:
    state = module.state_dict()
    state.update({name: torch.from_numpy(array) for name, array in values.items()})
    module.load_state_dict(state)
    module.eval()


_NORM = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}


def resnet8(folder: Path, load: Any) -> SmallNetwork:
    """ResNet-8 for CIFAR-10 (JPEG-recompressed here), with its Adam moments."""

    def renamed(stored: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = {}
        for key, array in stored.items():
            words = key.removesuffix("|v:0").split("|")
            layer, leaf = words[2], words[-1].partition(":")[0]
            number = int(layer.rpartition("_")[2]) if layer[-1].isdigit() and "_" in layer else 0
            number = 0 if layer == "conv2d" else number
            if layer.startswith("batch"):
                place = layer.removeprefix("batch_normalization").removeprefix("_") or "0"
                found[f"norms.{place}.{_NORM[leaf]}"] = array
            else:
                name = "dense" if layer == "dense" else f"convs.{number}"
                found[f"{name}.{'weight' if leaf == 'kernel' else 'bias'}"] = _torch_layout(array)
        return found

    module = ResNet8()
    _set(module, renamed({k: a for k, a in load.resnet8().items() if k.startswith("model_weights")}))
    moments = renamed({k: a for k, a in load.resnet8(True).items() if k.endswith("|v:0")})
    images, labels = load.cifar10("train")
    test_images, test_labels = load.cifar10("test")
    network = Network(
        name="resnet8",
        module=module,
        calibration=_channels_first(images[:500]),
        training=(_channels_first(images[-2000:]), labels[-2000:].astype(np.int64)),
        test=(_channels_first(test_images[:2000]), test_labels[:2000].astype(np.int64)),
    )
    return SmallNetwork(network=network, moments=moments)


def _channels_first(images: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2).astype(np.float32))


def dscnn(folder: Path, load: Any) -> SmallNetwork:
    """DS-CNN for keywords, with its Adam moments; one half of the recordings calibrates, the other tests."""

    def renamed(stored: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = {}
        for key, array in stored.items():
            layer, leaf = int(key.split("|")[0].rpartition("-")[2]), key.split("|")[1]
            if layer == 18:
                found[f"dense.{'weight' if leaf == 'kernel' else 'bias'}"] = _torch_layout(array)
            elif layer % 2:
                found[f"norms.{layer // 2}.{_NORM[leaf]}"] = array
            elif leaf == "bias":
                found[f"convs.{layer // 2}.bias"] = array
            else:
                found[f"convs.{layer // 2}.weight"] = _torch_layout(array, depthwise="depthwise" in leaf)
        return found

    module = DsCnn()
    _set(module, renamed(load.kws_dscnn()))
    moments = renamed({k: a for k, a in load.kws_dscnn(True).items() if "|v|" in k})
    features, labels = load.kws()
    features, labels = features[:, None], labels.astype(np.int64)
    network = Network(
        name="dscnn",
        module=module,
        calibration=features[::2],
        training=(features[::2], labels[::2]),
        test=(features[1::2], labels[1::2]),
    )
    return SmallNetwork(network=network, moments=moments)


def spoken_digits(folder: Path, load: Any) -> SmallNetwork:
    """A two-layer LSTM for spoken digits, trained here with a fixed seed."""
    train, test = (_features(load.fsdd(split)) for split in ("train", "test"))
    torch.manual_seed(0)
    module = SpokenDigits()
    inputs, labels = (torch.from_numpy(part) for part in train)
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _EPOCHS)
    for _ in range(_EPOCHS):
        for rows in torch.randperm(len(labels)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(inputs[rows]), labels[rows]).backward()
            optimizer.step()
        schedule.step()
    moments = {name: optimizer.state[p]["exp_avg_sq"].numpy() for name, p in module.named_parameters()}
    every_fifth = slice(None, None, 5)
    network = Network(
        name="spoken digits, LSTM",
        module=module.eval(),
        calibration=train[0][every_fifth],
        training=(train[0][every_fifth], train[1][every_fifth]),
        test=test,
    )
    return SmallNetwork(network=network, moments=moments)


def _features(recordings: tuple[list[np.ndarray], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Logarithms of the energy in bands that widen with their pitch, of 48 frames from the start."""
    waves, labels = recordings
    edges = np.unique(np.rint(np.geomspace(2, _FRAME // 2, _BANDS + 12)).astype(int))[-_BANDS - 1 :]
    window = np.hanning(_FRAME)
    found = np.zeros((len(waves), _FRAMES, _BANDS), np.float32)
    for row, wave in enumerate(waves):
        padded = np.pad(wave.astype(np.float64) / 32768, (0, _FRAME))
        starts = np.arange(min(_FRAMES, 1 + (wave.size - 1) // _HOP)) * _HOP
        frames = padded[starts[:, None] + np.arange(_FRAME)] * window
        power = np.square(np.abs(np.fft.rfft(frames)))
        energy = np.add.reduceat(power, edges[:-1], axis=1)
        found[row, : len(starts)] = (np.log(energy + 1e-6) + 6) / 4
    return found, labels.astype(np.int64)


SMALL_NETWORKS: dict[str, Callable[[Path, Any], SmallNetwork]] = {
    "resnet8": resnet8,
    "dscnn": dscnn,
    "lstm": spoken_digits,
}
