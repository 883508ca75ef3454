"""What a module answers to a batch, and the loss of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .training_data import Loss, n_items

if TYPE_CHECKING:
    import torch

__all__ = ["answers_of", "batch_loss"]


def batch_loss(module: torch.nn.Module, loss: Loss, inputs: Any, targets: Any) -> tuple[torch.Tensor, int]:
    """Return the loss of a batch, computed where the module is, and the batch's number of samples.

    Parameters
    ----------
    module : torch.nn.Module
    loss : callable
        ``loss(outputs, targets)``.
    inputs : tensor, or tuple or list of arguments
    targets : tensor, or nested tuple or list of tensors
    """
    targets = _to_device(targets, next(module.parameters()).device)
    return loss(answers_of(module, inputs), targets), n_items(targets)


def answers_of(module: torch.nn.Module, inputs: Any) -> Any:
    """Return the outputs for a tensor or a tuple or list of arguments, computed where the module is."""
    held = next(module.parameters(), None)
    inputs = inputs if held is None else _to_device(inputs, held.device)
    return module(*inputs) if isinstance(inputs, (tuple, list)) else module(inputs)


def _to_device(value: Any, device: torch.device) -> Any:
    if isinstance(value, (tuple, list)):
        return [_to_device(item, device) for item in value]
    return value.to(device, non_blocking=True) if hasattr(value, "to") else value
