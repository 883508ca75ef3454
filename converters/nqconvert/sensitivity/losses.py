"""Losses as negative log-likelihoods: default loss, sampled targets, second derivatives by the outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nqformat.errors import ConversionError

from .settings import SensitivitySettings

__all__ = ["first_output", "loss_of", "output_curvature", "sampled_targets"]

Loss = Callable[[Any, Any], Any]


def first_output(outputs: Any) -> Any:
    """Return the tensor itself, or the first of a tuple, list, mapping or dataclass of outputs."""
    while not hasattr(outputs, "detach"):
        outputs = next(iter(outputs.values() if hasattr(outputs, "values") else outputs))
    return outputs


def _default_loss(outputs: Any, targets: Any) -> Any:
    """Cross entropy with the classes on the last axis: a mean over samples, summed over positions."""
    import torch

    logits = first_output(outputs)
    flat = torch.nn.functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), targets.reshape(-1), reduction="sum"
    )
    return flat / logits.shape[0]


def loss_of(settings: SensitivitySettings) -> Loss:
    """Return the loss to differentiate."""
    return _default_loss if settings.loss is None else settings.loss


def _kind(loss: Any) -> str:
    """Recognise losses whose likelihood is known: "default", "categorical", "gaussian", "bernoulli" or ""."""
    import torch

    functional, nn = torch.nn.functional, torch.nn
    if loss is None:
        return "default"
    if loss is functional.cross_entropy or isinstance(loss, nn.CrossEntropyLoss):
        return "categorical"
    if loss is functional.mse_loss or isinstance(loss, nn.MSELoss):
        return "gaussian"
    if loss is functional.binary_cross_entropy_with_logits or isinstance(loss, nn.BCEWithLogitsLoss):
        return "bernoulli"
    return ""


def sampled_targets(outputs: Any, settings: SensitivitySettings, generator: Any) -> Any:
    """Draw targets from the distribution that the outputs and the loss describe.

    A mean squared error over d numbers of a sample is, up to a constant, the negative logarithm of a normal
    distribution of variance d / 2.

    Raises
    ------
    ConversionError
        If the loss is none whose distribution is known and `sample_targets` is not given.
    """
    import torch

    if settings.sample_targets is not None:
        return settings.sample_targets(outputs, generator)
    kind = _kind(settings.loss)
    if not kind:
        raise ConversionError(
            "labels cannot be sampled for this loss: give sample_targets, or targets and 'empirical'"
        )
    values = first_output(outputs).detach()
    if kind == "gaussian":
        n_values = values[0].numel() if getattr(settings.loss, "reduction", "mean") == "mean" else 1
        noise = torch.randn(values.shape, generator=generator, dtype=values.dtype, device=values.device)
        return values + noise * (n_values / 2) ** 0.5
    if kind == "bernoulli":
        return torch.bernoulli(torch.sigmoid(values), generator=generator)
    logits = values if kind == "default" else values.movedim(1, -1)
    shares = torch.softmax(logits.reshape(-1, logits.shape[-1]).float(), dim=-1)
    return torch.multinomial(shares, 1, generator=generator).reshape(logits.shape[:-1])


def output_curvature(outputs: Any, targets: Any, settings: SensitivitySettings) -> Any:
    """Return the diagonal second derivative of each sample's loss by its outputs, 0 where negative.

    p (1 - p) for cross entropy; for other losses by differentiating twice, an output at a time: that
    concerns the loss only, never the network. Samples must not interact in the loss.
    """
    import torch

    kind = _kind(settings.loss)
    values = first_output(outputs).detach()
    n_samples = values.shape[0]
    if kind in ("default", "categorical"):
        axis = -1 if kind == "default" else 1
        shares = torch.softmax(values, dim=axis)
        curvature = shares * (1 - shares)
        n_positions = 1 if kind == "default" else max(1, values[0].numel() // values.shape[1])
        return curvature / n_positions
    leaf = values.clone().requires_grad_()
    (slope,) = torch.autograd.grad(loss_of(settings)(leaf, targets), leaf, create_graph=True)
    flat = slope.reshape(n_samples, -1)
    curvature = torch.zeros_like(flat)
    if flat.requires_grad:
        for column in range(flat.shape[1]):
            (second,) = torch.autograd.grad(flat[:, column].sum(), leaf, retain_graph=True, allow_unused=True)
            if second is not None:
                curvature[:, column] = second.reshape(n_samples, -1)[:, column]
    return (curvature.detach().clamp_min(0) * n_samples).reshape(values.shape)
