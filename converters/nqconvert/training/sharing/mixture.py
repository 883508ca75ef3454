"""A mixture of Gaussians over all weights, its likelihood summed in blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

__all__ = ["Component", "Mixture", "MixtureSettings", "merged_components", "mixture_loss"]

_BLOCK = 1 << 12
_LEAST_EXPONENT = -80.0
_LOG_ROOT_TAU = 0.5 * math.log(2.0 * math.pi)


@dataclass(frozen=True, slots=True, kw_only=True)
class MixtureSettings:
    """The mixture at its start and its hyperpriors.

    Attributes
    ----------
    components : int
        Besides the one at zero.
    zero_share : float
        Fixed mixing proportion of the component at zero.
    spread : float or None
        Means start evenly from -spread to spread; None: the range of the weights.
    deviation : float or None
        First standard deviation; None: half the distance of neighbouring means.
    zero_prior, prior : (float, float)
        Shape and rate of Gamma priors of the precisions: of the component at zero and of the others. They
        keep components from collapsing to points and from growing over everything.
    """

    components: int = 16
    zero_share: float = 0.99
    spread: float | None = None
    deviation: float | None = None
    zero_prior: tuple[float, float] = (5e3, 2.0)
    prior: tuple[float, float] = (2.5e2, 0.1)

    def __post_init__(self) -> None:
        if self.components < 2:
            raise ValueError(f"components must be at least 2, not {self.components}")
        if not 0.0 < self.zero_share < 1.0:
            raise ValueError(f"zero_share must be between 0 and 1, not {self.zero_share}")
        for what, value in (("spread", self.spread), ("deviation", self.deviation)):
            if value is not None and not value > 0:
                raise ValueError(f"{what} must be positive, not {value}")


class Component(NamedTuple):
    """One Gaussian: mixing proportion, mean and precision (one over the variance)."""

    share: float
    mean: float
    precision: float


class Mixture:
    """The trained parameters of the mixture: means, log precisions, mixing logits.

    Component 0 has mean 0 and the share of the settings; the others share the rest by a softmax.

    Source : Ullrich, Meeds, Welling 2017, "Soft weight-sharing for neural network compression", eq. (5), (6)
    """

    def __init__(self, settings: MixtureSettings, largest: float) -> None:
        spread = settings.spread or largest or 1.0
        n = settings.components
        deviation = settings.deviation or spread / (n - 1)
        self.settings = settings
        self.means = torch.linspace(-spread, spread, n).requires_grad_()
        self.log_precisions = torch.full((n + 1,), -2.0 * math.log(deviation)).requires_grad_()
        self.logits = torch.zeros(n).requires_grad_()

    def parameters(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return means (J), log precisions (J + 1), and mixing logits (J)."""
        return self.means, self.log_precisions, self.logits

    def log_shares(self) -> torch.Tensor:
        """Return the log mixing proportions, shape (J + 1,)."""
        zero = self.settings.zero_share
        others = torch.log_softmax(self.logits, 0) + math.log1p(-zero)
        return torch.cat([torch.tensor([math.log(zero)]), others])

    def loss(self, weights: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return minus the log likelihood of all weights and of the precisions' priors, in nats."""
        means = torch.cat([torch.zeros(1), self.means])
        shares, total = self.log_shares(), self._prior()
        for weight in weights:
            total = total + mixture_loss(weight, means, self.log_precisions, shares)
        return total

    def _prior(self) -> torch.Tensor:
        """Return minus the log density of the Gamma priors, without constants."""
        total = torch.zeros(())
        settings, gamma = self.settings, self.log_precisions
        for part, (shape, rate) in ((gamma[:1], settings.zero_prior), (gamma[1:], settings.prior)):
            total = total + ((1.0 - shape) * part + rate * part.exp()).sum()
        return total

    def components(self) -> list[Component]:
        """Return all components as numbers, the one at zero first."""
        with torch.no_grad():
            shares = self.log_shares().exp().tolist()
            precisions = self.log_precisions.exp().tolist()
        return [Component(*row) for row in zip(shares, [0.0, *self.means.tolist()], precisions, strict=True)]

    def state(self) -> dict[str, torch.Tensor]:
        """Return copies of the parameters."""
        names = ("means", "log_precisions", "logits")
        return {name: value.detach().clone() for name, value in zip(names, self.parameters(), strict=True)}

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        """Take up parameters."""
        for name, value in state.items():
            getattr(self, name).data.copy_(value)


class _MixtureLoss(torch.autograd.Function):
    """Loss and gradients in one pass over blocks of weights: no array of weights x components exists."""

    @staticmethod
    def forward(
        ctx: Any,
        weight: torch.Tensor,
        means: torch.Tensor,
        log_precisions: torch.Tensor,
        log_shares: torch.Tensor,
    ) -> torch.Tensor:
        mean, precision = means[:, None], log_precisions.exp()[:, None]
        offset = (log_shares + 0.5 * log_precisions - _LOG_ROOT_TAU)[:, None]
        flat = weight.detach().reshape(-1).float()
        gradient = torch.empty_like(flat)
        sums = torch.zeros(3, means.numel(), dtype=torch.float64)
        total = 0.0
        for start in range(0, flat.numel(), _BLOCK):
            part = flat[start : start + _BLOCK]
            distance = part - mean
            pull = precision * distance
            exponent = torch.addcmul(offset, pull, distance, value=-0.5)
            top = exponent.amax(0)
            responsibility = exponent.sub_(top).clamp_(min=_LEAST_EXPONENT).exp_()
            norm = responsibility.sum(0)
            total -= float((norm.log() + top).sum(dtype=torch.float64))
            responsibility /= norm
            pulled = responsibility * pull
            torch.sum(pulled, 0, out=gradient[start : start + _BLOCK])
            sums[0] += responsibility.sum(1)
            sums[1] += pulled.sum(1)
            sums[2] += pulled.mul_(distance).sum(1)
        n_members, pulls, squares = sums.to(means.dtype)
        ctx.save_for_backward(gradient.view_as(weight), -pulls, 0.5 * (squares - n_members), -n_members)
        return torch.tensor(total, dtype=means.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(gradient * saved for saved in ctx.saved_tensors)


def mixture_loss(
    weight: torch.Tensor, means: torch.Tensor, log_precisions: torch.Tensor, log_shares: torch.Tensor
) -> torch.Tensor:
    """Return minus the log likelihood of a tensor under a mixture of Gaussians, with exact gradients.

    Time is proportional to weights times components; memory is the gradient of the weights and a block of
    4,096 weights times components.

    Parameters
    ----------
    weight : tensor of any shape
    means, log_precisions, log_shares : tensors, shape (components,)

    Returns
    -------
    tensor, scalar, in nats

    Source : Ullrich, Meeds, Welling 2017, eq. (5); the block-wise sum is what its appendix C asks for

    Examples
    --------
    >>> import torch
    >>> one = torch.zeros(1)
    >>> round(float(mixture_loss(torch.zeros(3), one, one, one)), 4)  # 3 log sqrt(2 pi)
    2.7568
    """
    made: torch.Tensor = _MixtureLoss.apply(weight, means, log_precisions, log_shares)  # type: ignore[no-untyped-call]
    return made


def merged_components(components: Sequence[Component], closeness: float = 1e-10) -> list[Component]:
    """Merge components that are all but the same, and put the mean nearest zero at zero.

    Two components merge while the smaller of their divergences ``KL(i || j)`` is below `closeness`; the
    merged one has the sum of the shares, the share-weighted mean and the share-weighted variance.

    Source : Ullrich, Meeds, Welling 2017, section 3.3 and eq. (8)

    Examples
    --------
    >>> merged_components([Component(0.5, 0.0, 4.0), Component(0.25, 1.0, 4.0), Component(0.25, 1.0, 4.0)])
    [Component(share=0.5, mean=0.0, precision=4.0), Component(share=0.5, mean=1.0, precision=4.0)]
    """
    left = list(components)
    while True:
        pairs = [
            (min(_divergence(left[i], left[j]), _divergence(left[j], left[i])), i, j)
            for i in range(len(left))
            for j in range(i + 1, len(left))
        ]
        closest = min(pairs, default=(math.inf, 0, 0))
        if closest[0] >= closeness:
            break
        _, i, j = closest
        left[i] = _merged(left[i], left.pop(j))
    zero = min(range(len(left)), key=lambda place: abs(left[place].mean))
    left[zero] = left[zero]._replace(mean=0.0)
    return left


def _divergence(first: Component, second: Component) -> float:
    """KL divergence between two Gaussians, in nats."""
    ratio = second.precision / first.precision
    distance = (first.mean - second.mean) ** 2 * second.precision
    return 0.5 * (ratio + distance - 1.0 - math.log(ratio))


def _merged(first: Component, second: Component) -> Component:
    share = first.share + second.share
    part = first.share / share
    variance = part / first.precision + (1 - part) / second.precision
    return Component(share, part * first.mean + (1 - part) * second.mean, 1.0 / variance)
