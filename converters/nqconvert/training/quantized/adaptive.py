"""Adaptive quantization: every weight gets the shortest binary fraction that a bound on the loss allows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from nqconvert.training.batch_loss import batch_loss
from nqconvert.training.training_data import Loss
from nqconvert.training.weight_names import checked_names
from nqformat.errors import ConversionError

__all__ = [
    "AdaptiveRecord",
    "AdaptiveResult",
    "AdaptiveSettings",
    "quantize_adaptively",
    "shortest_fractions",
    "tolerances",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptiveSettings:
    """Bound on the loss and the trust region.

    Attributes
    ----------
    max_rise : float
        Of the mean loss over `loader`, in nats.
    iterations : int
        The bound rises to `max_rise` in as many equal parts: weights that fall a little each time are told
        apart better than those that are cut at once.
    radius : float
        First bound of the change of a weight, relative to its tensor's scale (a power of two not below its
        largest magnitude).
    least_radius : float
        The search ends below it.
    max_bits : int
        Longest fraction; all start from it, and weights of steep slopes keep it.
    """

    max_rise: float = 0.01
    iterations: int = 40
    radius: float = 1.0 / 16
    least_radius: float = 1e-4
    max_bits: int = 8

    def __post_init__(self) -> None:
        if not self.max_rise > 0:
            raise ValueError(f"max_rise must be positive, not {self.max_rise}")
        if self.iterations < 1 or not 1 <= self.max_bits <= 16:
            raise ValueError(f"iterations from 1, max_bits 1 to 16, not {self.iterations}, {self.max_bits}")
        if not 0 < self.least_radius <= self.radius <= 1:
            raise ValueError(f"0 < least_radius <= radius <= 1, not {self.least_radius}, {self.radius}")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptiveRecord:
    """One iteration.

    Attributes
    ----------
    iteration : int
    loss : float
        Of the weights that were tried.
    predicted : float
        Rise of the loss to first order, at most.
    radius : float
    accepted : bool
    bits : float
        Mean bits of a weight after it.
    """

    iteration: int
    loss: float
    predicted: float
    radius: float
    accepted: bool
    bits: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptiveResult:
    """Outcome of :func:`quantize_adaptively`.

    Attributes
    ----------
    bits : dict of parameter name to ndarray of uint8
        Bits after the binary point of each weight; 0 for zeros. The paper counts these, a file has to tell
        them apart, too.
    loss_before, loss : float
    records : tuple of AdaptiveRecord
    """

    bits: dict[str, np.ndarray]
    loss_before: float
    loss: float
    records: tuple[AdaptiveRecord, ...]

    @property
    def mean_bits(self) -> float:
        """Bits of a weight, as the paper counts them."""
        return sum(int(b.sum()) for b in self.bits.values()) / sum(b.size for b in self.bits.values())


def tolerances(gradient: torch.Tensor, slack: float, radius: float) -> torch.Tensor:
    """Return how far each weight may move so that the bits saved are most, to first order.

    Minimizes ``-sum log2 t_i`` under ``sum |g_i| t_i <= slack`` and ``t_i <= radius``: the solution is
    ``t_i = min(radius, 1 / (m |g_i|))`` with the multiplier m that uses the slack up.

    Parameters
    ----------
    gradient : tensor of float, shape (n,)
    slack : float
        At least 0; what the loss may rise.
    radius : float, above 0

    Returns
    -------
    tensor, shape (n,)

    Source : Khoram, Li 2018, "Adaptive quantization of neural networks", section 3; closed form from the
        Karush-Kuhn-Tucker conditions

    Examples
    --------
    >>> import torch
    >>> tolerances(torch.tensor([1.0, 2.0, 0.0]), 0.4, 1.0).tolist()
    [0.20000000298023224, 0.10000000149011612, 1.0]
    """
    size = gradient.abs().double()
    if float(size.sum()) * radius <= slack:
        return torch.full_like(gradient, radius)
    steepest, _ = size.sort(descending=True)
    # with the j steepest below the radius: j / m + radius * (sum of the others) = slack
    others = size.sum() - steepest.cumsum(0)
    n_inside = torch.arange(1, size.numel() + 1, dtype=torch.float64)
    level = (slack - radius * others) / n_inside
    inside = (level > 0) & (level <= radius * steepest)
    chosen = level[int(torch.nonzero(inside)[-1])] if bool(inside.any()) else torch.tensor(0.0)
    return torch.minimum(chosen / size.clamp_min(1e-300), torch.tensor(radius).double()).to(gradient.dtype)


def shortest_fractions(
    values: torch.Tensor, tolerance: torch.Tensor, max_bits: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the shortest binary fractions within `tolerance` of `values`, and their bits.

    ``round(2^n v) / 2^n`` for the least n up to `max_bits` that is near enough; with n = `max_bits` whether
    it is or not.

    Parameters
    ----------
    values, tolerance : tensors of float
        Values from -1 to 1.

    Returns
    -------
    (tensor of float, tensor of uint8)

    Source : Khoram, Li 2018, section 2

    Examples
    --------
    >>> import torch
    >>> shortest_fractions(torch.tensor([0.3, 0.3]), torch.tensor([0.1, 0.02]), 8)
    (tensor([0.2500, 0.3125]), tensor([2, 4], dtype=torch.uint8))
    """
    made, bits = torch.zeros_like(values), torch.full(values.shape, max_bits, dtype=torch.uint8)
    left = torch.ones_like(values, dtype=torch.bool)
    for n in range(max_bits + 1):
        rounded = (values * 2.0**n).round() / 2.0**n
        here = left & (((rounded - values).abs() <= tolerance) | (n == max_bits))
        made[here], bits[here] = rounded[here], n
        left &= ~here
    return made + 0.0, bits


def quantize_adaptively(
    module: torch.nn.Module,
    loader: Iterable[Any],
    loss: Loss,
    *,
    settings: AdaptiveSettings | None = None,
    parameters: Sequence[str] | None = None,
    progress: Callable[[AdaptiveRecord], None] | None = None,
) -> AdaptiveResult:
    """Quantize the weights of a trained `module` in place while the loss on `loader` keeps to a bound.

    Each iteration takes the gradient at the present weights, lets every weight move within a tolerance that
    the gradient and the trust region allow, and gives it the shortest fraction there. The step is kept if
    the loss keeps to the part of the bound that is due; the region grows after good steps and shrinks after
    bad ones. The module computes in evaluation mode, and each iteration is one pass over the loader.

    Parameters
    ----------
    module : torch.nn.Module
    loader : iterable of (inputs, targets)
        Gives the same samples each time; a few thousand will do.
    loss : callable
        Mean over the samples of a batch.
    settings : AdaptiveSettings or None
    parameters : sequence of str, optional
        Parameters to quantize; None: all linear and convolution weights.
    progress : callable, optional
        Called with an :class:`AdaptiveRecord` after each iteration.

    Returns
    -------
    AdaptiveResult

    Raises
    ------
    ConversionError
        If the loss is NaN or infinite to begin with.

    Source : Khoram, Li 2018, "Adaptive quantization of neural networks", algorithm 1
    """
    chosen = settings or AdaptiveSettings()
    was_training = module.training
    module.eval()
    try:
        return _Search(module, loader, loss, checked_names(module, parameters), chosen).run(progress)
    finally:
        module.train(was_training)


@dataclass(slots=True)
class _Region:
    """How far the slopes are trusted.

    They bound the rise of the loss if all weights move against it; most moves cancel out, so that once the
    radius is the whole range, `optimism` tells how many times the slack the bound may be.
    """

    radius: float
    optimism: float = 1.0

    def grow(self) -> None:
        if self.radius < 1.0:
            self.radius = min(1.0, 2.0 * self.radius)
        else:
            self.optimism *= 2.0

    def shrink(self) -> None:
        if self.optimism > 1.0:
            self.optimism /= 2.0
        else:
            self.radius /= 2.0


class _Search:
    def __init__(
        self,
        module: torch.nn.Module,
        loader: Iterable[Any],
        loss: Loss,
        names: Sequence[str],
        settings: AdaptiveSettings,
    ) -> None:
        self._module, self._loader, self._loss, self._settings = module, loader, loss, settings
        known = dict(module.named_parameters(remove_duplicate=False))
        self._weights = {name: known[name] for name in names}
        self._scales = {
            name: 2.0 ** math.ceil(math.log2(max(float(weight.detach().abs().max()), 1e-30)))
            for name, weight in self._weights.items()
        }

    def run(self, progress: Callable[[AdaptiveRecord], None] | None) -> AdaptiveResult:
        settings = self._settings
        start, slopes = self._loss_and_slopes()
        if not math.isfinite(start):
            raise ConversionError(f"the loss is {start} before quantization")
        region, now = _Region(settings.radius), start
        bits = {name: torch.full(w.shape, settings.max_bits) for name, w in self._weights.items()}
        records: list[AdaptiveRecord] = []
        for iteration in range(settings.iterations):
            kept = {name: weight.detach().clone() for name, weight in self._weights.items()}
            slack = start + settings.max_rise * (iteration + 1) / settings.iterations - now
            used = region.radius
            tried, predicted = self._step(slopes, slack * region.optimism, used)
            found, new_slopes = self._loss_and_slopes()
            accepted = math.isfinite(found) and found - now <= slack
            if accepted:
                if found - now <= 0.5 * slack:
                    region.grow()
                bits, now, slopes = tried, found, new_slopes
            else:
                for name, weight in self._weights.items():
                    weight.data.copy_(kept[name])
                region.shrink()
            mean_bits = sum(float(b.sum()) for b in bits.values()) / sum(b.numel() for b in bits.values())
            records.append(
                AdaptiveRecord(
                    iteration=iteration,
                    loss=found,
                    predicted=predicted,
                    radius=used,
                    accepted=accepted,
                    bits=mean_bits,
                )
            )
            if progress is not None:
                progress(records[-1])
            if region.radius < settings.least_radius:
                break
        if not any(record.accepted for record in records):
            bits = self._step(slopes, 0.0, 2.0**-settings.max_bits)[0]
            now = self._loss_and_slopes()[0]
        return AdaptiveResult(
            bits={name: b.numpy().astype(np.uint8) for name, b in bits.items()},
            loss_before=start,
            loss=now,
            records=tuple(records),
        )

    def _step(
        self, slopes: Mapping[str, torch.Tensor], slack: float, radius: float
    ) -> tuple[dict[str, torch.Tensor], float]:
        """Quantize all weights within the tolerances; returns their bits and the predicted rise."""
        flat = torch.cat([(slopes[name] * self._scales[name]).reshape(-1) for name in self._weights])
        allowed = tolerances(flat, max(slack, 0.0), radius)
        bits: dict[str, torch.Tensor] = {}
        predicted, first = 0.0, 0
        for name, weight in self._weights.items():
            scale, n_here = self._scales[name], weight.numel()
            tolerance = allowed[first : first + n_here].view_as(weight)
            first += n_here
            relative = weight.detach() / scale
            made, bits[name] = shortest_fractions(relative, tolerance, self._settings.max_bits)
            predicted += float(((made - relative) * scale * slopes[name]).abs().sum())
            weight.data.copy_(made * scale)
        return bits, predicted

    def _loss_and_slopes(self) -> tuple[float, dict[str, torch.Tensor]]:
        """Return the mean loss over the loader and its gradient."""
        self._module.zero_grad(set_to_none=True)
        total, n_seen = 0.0, 0
        for inputs, targets in self._loader:
            value, n_here = batch_loss(self._module, self._loss, inputs, targets)
            (value * n_here).backward()
            total, n_seen = total + float(value.detach()) * n_here, n_seen + n_here
        if n_seen == 0:
            raise ValueError("the loader gave no batch")
        slopes = {
            name: torch.zeros_like(weight) if weight.grad is None else weight.grad / n_seen
            for name, weight in self._weights.items()
        }
        self._module.zero_grad(set_to_none=True)
        return total / n_seen, slopes
