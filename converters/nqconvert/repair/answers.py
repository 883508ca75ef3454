"""How far a network's answers are from those it gave before."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

__all__ = ["divergence"]

_TEMPERATURE = 2.0


def divergence(before: Tensor, now: Tensor) -> Tensor:
    """Return the mean over positions of the divergence between two answers.

    Scores of classes (two or three axes) differ by their Kullback-Leibler divergence at temperature 2, times
    its square; other outputs by their squared error as a share of the square of `before`.

    Source : Hinton, Vinyals, Dean 2015, section 2
    """
    if before.ndim not in (2, 3) or before.shape[-1] < 2:
        return (now - before).square().mean() / before.square().mean().clamp_min(1e-12)
    expected = functional.log_softmax(before.float() / _TEMPERATURE, dim=-1)
    found = functional.log_softmax(now.float() / _TEMPERATURE, dim=-1)
    return _TEMPERATURE**2 * (expected.exp() * (expected - found)).sum(dim=-1).mean()
