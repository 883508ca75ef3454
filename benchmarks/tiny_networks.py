"""Networks of MLPerf Tiny as PyTorch modules, with their published Keras weights."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

_EPSILON = 1e-3
_VARIABLE = ".ATTRIBUTES|VARIABLE_VALUE"
_NORM = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}


def _padded(x: torch.Tensor, module: nn.Conv2d) -> torch.Tensor:
    """Zeros around an image as Keras's ``same`` has them: with a stride, more of them behind."""
    pads: list[int] = []
    sizes = list(zip(x.shape[2:], module.kernel_size, module.stride, strict=True))
    for length, kernel, stride in reversed(sizes):
        missing = max(0, (-(-int(length) // stride) - 1) * stride + kernel - int(length))
        pads += [missing // 2, missing - missing // 2]
    return module(nn.functional.pad(x, pads))


class DSCNN(nn.Module):
    """Keyword spotting: 12 classes of MFCC images of 49 x 10, four depthwise-separable blocks."""

    def __init__(self) -> None:
        super().__init__()
        convs: list[nn.Module] = [nn.Conv2d(1, 64, (10, 4), 2)]
        for _ in range(4):
            convs += [nn.Conv2d(64, 64, 3, groups=64), nn.Conv2d(64, 64, 1)]
        self.convs = nn.ModuleList(convs)
        self.norms = nn.ModuleList([nn.BatchNorm2d(64, eps=_EPSILON) for _ in convs])
        self.dense = nn.Linear(64, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            assert isinstance(conv, nn.Conv2d)
            x = torch.relu(norm(_padded(x, conv)))
        return self.dense(x.mean((2, 3)))


class ResNet8(nn.Module):
    """CIFAR-10 classes of images of 32 x 32, values 0 to 255."""

    def __init__(self) -> None:
        super().__init__()
        shapes = [(3, 16, 3, 1), (16, 16, 3, 1), (16, 16, 3, 1), (16, 32, 3, 2), (32, 32, 3, 1)]
        shapes += [(16, 32, 1, 2), (32, 64, 3, 2), (64, 64, 3, 1), (32, 64, 1, 2)]
        self.convs = nn.ModuleList([nn.Conv2d(i, o, k, s) for i, o, k, s in shapes])
        widths = (16, 16, 16, 32, 32, 64, 64)
        self.norms = nn.ModuleList([nn.BatchNorm2d(n, eps=_EPSILON) for n in widths])
        self.dense = nn.Linear(64, 10)

    def _conv(self, x: torch.Tensor, number: int) -> torch.Tensor:
        conv = self.convs[number]
        assert isinstance(conv, nn.Conv2d)
        return _padded(x, conv)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norms[0](self._conv(x, 0)))
        y = torch.relu(self.norms[1](self._conv(x, 1)))
        x = torch.relu(x + self.norms[2](self._conv(y, 2)))
        for first, norm in ((3, 3), (6, 5)):
            y = torch.relu(self.norms[norm](self._conv(x, first)))
            y = self.norms[norm + 1](self._conv(y, first + 1))
            x = torch.relu(self._conv(x, first + 2) + y)
        return self.dense(x.mean((2, 3)))


def _kernel(array: np.ndarray) -> np.ndarray:
    """Keras's (height, width, in, out) or (in, out) as PyTorch's (out, in, ...)."""
    return np.transpose(array, (3, 2, 0, 1)) if array.ndim == 4 else array.T


def _filled(module: nn.Module, arrays: Mapping[str, np.ndarray]) -> nn.Module:
    own = module.state_dict()
    found = {n: torch.from_numpy(np.ascontiguousarray(a)).reshape(own[n].shape) for n, a in arrays.items()}
    module.load_state_dict({**own, **found})
    return module.eval()


def dscnn(tensors: Mapping[str, np.ndarray]) -> nn.Module:
    """DS-CNN with the tensors of a Keras checkpoint (``layer_with_weights-N|NAME|...``)."""
    arrays = {}

    def tensor(layer: int, name: str) -> np.ndarray:
        return tensors[f"layer_with_weights-{layer}|{name}|{_VARIABLE}"]

    for number in range(9):
        depthwise = number % 2 == 1
        kernel = tensor(2 * number, "depthwise_kernel" if depthwise else "kernel")
        turned = np.transpose(kernel, (2, 3, 0, 1)) if depthwise else _kernel(kernel)
        arrays[f"convs.{number}.weight"] = turned
        arrays[f"convs.{number}.bias"] = tensor(2 * number, "bias")
        for name, keras in _NORM.items():
            arrays[f"norms.{number}.{name}"] = tensor(2 * number + 1, keras)
    arrays["dense.weight"], arrays["dense.bias"] = _kernel(tensor(18, "kernel")), tensor(18, "bias")
    return _filled(DSCNN(), arrays)


def resnet8(tensors: Mapping[str, np.ndarray]) -> nn.Module:
    """ResNet-8 with the tensors of a Keras model (``model_weights|LAYER|LAYER|NAME:0``)."""
    arrays = {}

    def tensor(layer: str, number: int, name: str) -> np.ndarray:
        full = f"{layer}_{number}" if number else layer
        return tensors[f"model_weights|{full}|{full}|{name}:0"]

    for number in range(9):
        arrays[f"convs.{number}.weight"] = _kernel(tensor("conv2d", number, "kernel"))
        arrays[f"convs.{number}.bias"] = tensor("conv2d", number, "bias")
    for number in range(7):
        for name, keras in _NORM.items():
            arrays[f"norms.{number}.{name}"] = tensor("batch_normalization", number, keras)
    arrays["dense.weight"], arrays["dense.bias"] = (
        _kernel(tensor("dense", 0, "kernel")),
        tensor("dense", 0, "bias"),
    )
    return _filled(ResNet8(), arrays)
