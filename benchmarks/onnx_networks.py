"""Networks for the ONNX benchmarks: exported here with random weights, or out of Python packages."""

from __future__ import annotations

import importlib.util
import warnings
import zipfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from networks import CifarResNet, LeNet5
from torch import nn


class Bottleneck(nn.Module):
    """Inverted bottleneck of MobileNetV2."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        hidden = 6 * n_in
        self.body = nn.Sequential(
            nn.Conv2d(n_in, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(),
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(),
            nn.Conv2d(hidden, n_out, 1, bias=False),
            nn.BatchNorm2d(n_out),
        )
        self.is_residual = stride == 1 and n_in == n_out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x) if self.is_residual else self.body(x)


def mobile_net() -> nn.Module:
    """Like MobileNetV2, half as wide and seven blocks deep."""
    widths = [16, 16, 24, 24, 32, 32, 48, 48]
    blocks = [Bottleneck(a, b, 2 if a != b else 1) for a, b in pairwise(widths)]
    head = [nn.Conv2d(48, 160, 1), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(160, 100)]
    stem = [nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6()]
    return nn.Sequential(*stem, *blocks, *head)


class Layer(nn.Module):
    """Encoder layer of BERT, one matrix for queries, keys and values."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.heads = width // 32

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = self.inner(x).reshape(x.shape[0], x.shape[1], 3, self.heads, 32).permute(2, 0, 3, 1, 4)
        q, k, v = parts[0], parts[1], parts[2]
        mixed = torch.softmax(q @ k.transpose(2, 3) / 32**0.5, dim=-1) @ v
        x = self.first(x + self.outer(mixed.transpose(1, 2).reshape(x.shape)))
        return self.second(x + self.down(nn.functional.gelu(self.up(x))))


class Encoder(nn.Module):
    """Like BERT: two layers."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(4000, width), nn.Embedding(64, width)
        self.layers = nn.Sequential(Layer(width), Layer(width))
        self.head = nn.Linear(width, 2)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.words(ids) + self.places(torch.arange(ids.shape[1]))
        return self.head(self.layers(x).mean(1))


class Recurrent(nn.Module):
    """LSTM or GRU and a classifier."""

    def __init__(self, kind: type[nn.RNNBase], *, bidirectional: bool) -> None:
        super().__init__()
        self.rnn = kind(40, 96, 2, batch_first=True, bidirectional=bidirectional)
        self.head = nn.Linear(192 if bidirectional else 96, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(x)[0].mean(1))


class Tied(nn.Module):
    """Embedding whose transpose gives the scores."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.head = nn.Embedding(800, 64), nn.Linear(64, 64), nn.Linear(64, 800)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.mix(self.embed(ids))))


class UNet(nn.Module):
    """Two scales, one enlarged by ConvTranspose, one by Resize."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, 1, 1), nn.Conv2d(16, 32, 3, 2, 1)
        self.third = nn.Conv2d(32, 48, 3, 2, 1)
        self.up, self.middle = nn.ConvTranspose2d(48, 32, 2, 2), nn.Conv2d(64, 32, 3, 1, 1)
        self.last = nn.Conv2d(48, 4, 3, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = torch.relu(self.first(x))
        b = torch.relu(self.second(a))
        c = torch.relu(self.third(b))
        d = torch.relu(self.middle(torch.cat([self.up(c), b], 1)))
        wide = nn.functional.interpolate(d, scale_factor=2.0, mode="bilinear", align_corners=False)
        return self.last(torch.cat([wide, a], 1))


def _noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def _ids(*shape: int, below: int) -> torch.Tensor:
    return torch.randint(0, below, shape, generator=torch.Generator().manual_seed(2))


TORCH_NETWORKS: dict[str, tuple[Callable[[], nn.Module], torch.Tensor]] = {
    "LeNet-5": (LeNet5, _noise(2, 1, 28, 28)),
    "ResNet-32": (lambda: CifarResNet(5), _noise(2, 3, 32, 32)),
    "MobileNetV2-like": (mobile_net, _noise(2, 3, 64, 64)),
    "BERT-like encoder": (Encoder, _ids(2, 24, below=4000)),
    "BiLSTM": (lambda: Recurrent(nn.LSTM, bidirectional=True), _noise(2, 20, 40)),
    "GRU": (lambda: Recurrent(nn.GRU, bidirectional=False), _noise(2, 20, 40)),
    "tied embedding": (Tied, _ids(2, 16, below=800)),
    "U-Net": (UNet, _noise(1, 3, 32, 32)),
}
_LIGHT = "backend/test/data/light"
_PACKAGED = {"silero-vad": ("silero_vad", "*.onnx"), "basic-pitch": ("basic_pitch", "**/*.onnx")}


def module_and_input(name: str) -> tuple[nn.Module, torch.Tensor]:
    """A network with random weights and statistics of batch norms, and an input."""
    make, example = TORCH_NETWORKS[name]
    torch.manual_seed(7)
    module = make().eval()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.running_mean, std=0.2)
            nn.init.uniform_(part.running_var, 0.5, 2)
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, std=0.2)
    return module, example


def export_network(name: str, path: Path, *, dynamo: bool = False) -> None:
    """Write a network as PyTorch exports it; the older exporter takes no seconds."""
    module, example = module_and_input(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (example,), str(path), dynamo=dynamo, opset_version=18, verbose=False)


def light_models() -> dict[str, Path]:
    """Models of the onnx package's own tests; their weights are made by operators."""
    folder = Path(importlib.util.find_spec("onnx").submodule_search_locations[0]) / _LIGHT
    return {path.stem: path for path in sorted(folder.glob("light_*.onnx"))}


def packaged_models(wheels: Path | None, target: Path) -> dict[str, Path]:
    """Models in installed packages, or in wheels that ``pip download --no-deps`` brought into a folder."""
    found: dict[str, Path] = {}
    for title, (package, pattern) in _PACKAGED.items():
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.submodule_search_locations:
            root = Path(spec.submodule_search_locations[0])
        elif wheels is not None and (archives := sorted(wheels.glob(f"{package}-*.whl"))):
            root = target / package
            with zipfile.ZipFile(archives[-1]) as archive:
                archive.extractall(root, [n for n in archive.namelist() if n.endswith(".onnx")])
            pattern = "**/*.onnx"
        else:
            continue
        found.update({f"{title} {path.stem}": path for path in sorted(root.glob(pattern))})
    return found


def reduced(arrays: dict[str, np.ndarray], *, density: float | None = None) -> dict[str, Any]:
    """Weights rounded to 16 evenly spaced values, and pruned, to measure export forms on."""
    from nqformat import AffineTensor

    made: dict[str, Any] = {}
    for name, array in arrays.items():
        if array.dtype != np.float32 or array.ndim < 2 or array.size < 256 or not array.any():
            made[name] = array
            continue
        values = array
        if density is not None:
            values = np.where(np.abs(array) >= np.quantile(np.abs(array), 1 - density), array, 0)
        step = float(np.float32(np.abs(values).max() / 7.5))
        k = np.clip(np.rint(values / step), -8, 7).astype(np.int32)
        if density is not None:
            k = np.where((k == 0) & (values != 0), np.sign(values), k).astype(np.int32)
        made[name] = AffineTensor(k=k, step=step)
    return made
