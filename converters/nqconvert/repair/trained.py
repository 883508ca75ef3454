"""Quantized tensors as functions of what distillation may change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor as TorchTensor

from nqformat.tensor import MAX_AFFINE_K, AffineTensor, CodebookTensor, RawTensor, Tensor, round_codebook

from .reencoding import is_free_vector, is_plain, precision_of, with_entries, with_values

__all__ = ["Group", "Trained", "trained_tensor"]

Group = tuple[TorchTensor, float]
"""A parameter and its learning rate."""

_STEP_RATE = 0.01
_WEIGHT_RATE = 0.03
_BIAS_RATE = 0.1
_ENTRY_RATE = 0.02
_VECTOR_RATE = 0.01
_MAX_RATIO = 8.0


class Trained(Protocol):
    """A tensor that is trained."""

    @property
    def groups(self) -> Sequence[Group]:
        """Parameters and their learning rates."""
        ...

    def value(self) -> TorchTensor:
        """Return what the graph reads, differentiable."""
        ...

    def tensor(self) -> Tensor:
        """Return the tensor as it is stored."""
        ...


class _Rounded(torch.autograd.Function):
    """Rounding with the gradient of the identity (Bengio et al. 2013)."""

    @staticmethod
    def forward(ctx: Any, value: TorchTensor, rounding: Callable[[TorchTensor], TorchTensor]) -> TorchTensor:
        return rounding(value)

    @staticmethod
    def backward(ctx: Any, gradient: TorchTensor) -> tuple[TorchTensor, None]:
        return gradient, None


def _rounded(value: TorchTensor, rounding: Callable[[TorchTensor], TorchTensor]) -> TorchTensor:
    made: TorchTensor = _Rounded.apply(value, rounding)  # type: ignore[no-untyped-call]
    return made


class _Looked(torch.autograd.Function):
    """Entries of a codebook by index; the gradient of an entry is the sum over its members (Han 2016, 3)."""

    @staticmethod
    def forward(ctx: Any, entries: TorchTensor, indices: TorchTensor) -> TorchTensor:
        ctx.indices, ctx.n_entries = indices, entries.numel()
        return entries[indices]

    @staticmethod
    def backward(ctx: Any, gradient: TorchTensor) -> tuple[TorchTensor, None]:
        flat = torch.bincount(
            ctx.indices.reshape(-1), weights=gradient.reshape(-1).double(), minlength=ctx.n_entries
        )
        return flat.to(gradient.dtype), None


class _Weights:
    """Integers of a uniform grid times its step; zeros stay."""

    def __init__(self, tensor: AffineTensor, *, moving: bool) -> None:
        self._given = tensor
        k = torch.from_numpy(tensor.k.astype(np.float32))
        self._kept = k != 0
        self._integers = k.requires_grad_(moving)
        self._log_step = torch.zeros((), requires_grad=True)
        self.groups: list[Group] = [(self._log_step, _STEP_RATE)]
        if moving:
            self.groups.append((self._integers, _WEIGHT_RATE))

    def value(self) -> TorchTensor:
        integers = self._integers
        if integers.requires_grad:
            integers = _rounded(integers, torch.round) * self._kept
        return integers * (self._given.step * self._log_step.exp())

    def tensor(self) -> Tensor:
        k = torch.where(self._kept, self._integers.detach().round(), 0.0).numpy()
        ratio = float(np.clip(np.exp(self._log_step.item()), 1 / _MAX_RATIO, _MAX_RATIO))
        return AffineTensor(
            k=np.clip(k, 1 - MAX_AFFINE_K, MAX_AFFINE_K - 1).astype(np.int32),
            step=float(np.float32(self._given.step * ratio)),
            dtype=self._given.dtype,
        )


class _Bias:
    """A vector on a uniform grid, free to move on it."""

    def __init__(self, tensor: AffineTensor) -> None:
        self._given = tensor
        self._integers = torch.from_numpy(tensor.k.astype(np.float32)).requires_grad_()
        self.groups: list[Group] = [(self._integers, _BIAS_RATE)]

    def value(self) -> TorchTensor:
        return _rounded(self._integers, torch.round) * self._given.step

    def tensor(self) -> Tensor:
        return with_values(self._given, self._integers.detach().round().double().numpy() * self._given.step)


class _Entries:
    """A codebook of the tensor's own; a zero stays zero."""

    def __init__(self, tensor: CodebookTensor) -> None:
        self._given = tensor
        values = tensor.codebook.values
        self._indices = torch.from_numpy(tensor.indices.astype(np.int64))
        self._kept = torch.from_numpy(values != 0)
        self._entries = torch.from_numpy(values.copy()).requires_grad_()
        gap = float(np.diff(values[[values.argmin(), values.argmax()]])[0]) / values.size
        self.groups: list[Group] = [(self._entries, _ENTRY_RATE * gap)]

    def _stored(self, entries: TorchTensor) -> TorchTensor:
        rounded = round_codebook(entries.detach().numpy(), self._given.codebook.stored_as)
        return torch.from_numpy(np.where(np.isfinite(rounded), rounded, self._given.codebook.values))

    def value(self) -> TorchTensor:
        stored = _rounded(self._entries, self._stored) * self._kept
        made: TorchTensor = _Looked.apply(stored, self._indices)  # type: ignore[no-untyped-call]
        return made

    def tensor(self) -> Tensor:
        return with_entries(self._given, (self._entries.detach() * self._kept).numpy())


class _Vector:
    """Biases and norms kept element for element, at the precision they have."""

    def __init__(self, tensor: RawTensor) -> None:
        self._given = tensor
        values = tensor.bits
        self._precision = precision_of(values)
        self._unit = float(np.sqrt(np.mean(np.square(values)))) or 1.0
        self._values = torch.from_numpy(values / np.float32(self._unit)).requires_grad_()
        self.groups: list[Group] = [(self._values, _VECTOR_RATE)]

    def _stored(self, values: TorchTensor) -> TorchTensor:
        return torch.from_numpy(round_codebook(values.detach().numpy(), self._precision))

    def value(self) -> TorchTensor:
        return _rounded(self._values * self._unit, self._stored)

    def tensor(self) -> Tensor:
        return with_values(self._given, (self._values.detach() * self._unit).numpy())


def trained_tensor(tensor: Tensor, *, weights: bool) -> Trained | None:
    """Return a tensor's trainable form; None if nothing in it can be changed without more bytes.

    Parameters
    ----------
    tensor : Tensor
    weights : bool
        Whether integers of grids may move.
    """
    if is_free_vector(tensor):
        if isinstance(tensor, AffineTensor):
            return _Bias(tensor)
        assert isinstance(tensor, RawTensor)
        return _Vector(tensor)
    if isinstance(tensor, AffineTensor):
        return _Weights(tensor, moving=weights) if is_plain(tensor) and tensor.k.any() else None
    if isinstance(tensor, CodebookTensor):
        return _Entries(tensor) if is_plain(tensor) and tensor.codebook.values.any() else None
    return None
