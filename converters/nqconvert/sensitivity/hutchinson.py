"""Diagonal of the exact Hessian by random probes."""

from __future__ import annotations

from typing import Any

import numpy as np

from nqconvert.sources.torch_module import evaluation_mode
from nqformat.optional_packages import require_package

from .calibration import calibration_batches, torch_batch
from .gradients import parameters_of, sensitivity_arrays
from .losses import loss_of, sampled_targets
from .settings import SensitivitySettings

__all__ = ["hessian_diagonal", "measure_hutchinson"]


def measure_hutchinson(module: Any, calibration: Any, settings: SensitivitySettings) -> dict[str, np.ndarray]:
    """Estimate the Hessian's diagonal as the mean of z * (H z) over random signs z (method ``hutchinson``).

    Unbiased for the loss as it is, cross terms of layers included; `probes` vectors for each batch. Estimates
    below zero become 0. Without targets in the calibration data, labels are drawn from the model. Memory: a
    few times the parameters, and the graph of one batch.

    Source : Hutchinson 1990, "A stochastic estimator of the trace of the influence matrix"; Bekas,
    Kokiopoulou, Saad 2007, "An estimator for the diagonal of a matrix"
    """
    sums, count = hessian_diagonal(module, calibration, settings)
    return sensitivity_arrays(sums, count)


def hessian_diagonal(
    module: Any, calibration: Any, settings: SensitivitySettings
) -> tuple[dict[str, Any], float]:
    """Return sums of z * (H z), signs kept, and what to divide them by."""
    torch = require_package("torch")
    parameters = parameters_of(module)
    leaves = list(parameters.values())
    sums = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    device = leaves[0].device if leaves else "cpu"
    generator = torch.Generator(device=device).manual_seed(settings.seed)
    loss, done = loss_of(settings), 0
    with evaluation_mode(module):
        for given in calibration_batches(
            calibration, batch_size=settings.batch_size, samples=settings.samples
        ):
            batch = torch_batch(given, module)
            outputs = torch.func.functional_call(module, parameters, batch.args, batch.kwargs)
            targets = batch.targets
            if targets is None:
                targets = sampled_targets(outputs, settings, generator)
            slopes = torch.autograd.grad(loss(outputs, targets), leaves, create_graph=True, allow_unused=True)
            for _ in range(settings.probes):
                signs = [_random_signs(leaf, generator) for leaf in leaves]
                along = [
                    (slope * sign).sum()
                    for slope, sign in zip(slopes, signs, strict=True)
                    if slope is not None and slope.requires_grad
                ]
                if not along:
                    break
                products = torch.autograd.grad(sum(along), leaves, retain_graph=True, allow_unused=True)
                for name, sign, product in zip(parameters, signs, products, strict=True):
                    if product is not None:
                        sums[name] += sign * product * batch.n_samples
            done += batch.n_samples
            settings.progress(f"sensitivity: {done} of at most {settings.samples} samples")
    return sums, float(done * settings.probes)


def _random_signs(like: Any, generator: Any) -> Any:
    torch = require_package("torch")
    bits = torch.randint(0, 2, like.shape, generator=generator, device=like.device)
    return (2 * bits - 1).to(like.dtype)
