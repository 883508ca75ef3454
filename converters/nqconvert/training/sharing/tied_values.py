"""Training of shared values while every weight keeps the value that it shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from nqconvert.training.technique import Run, Technique

__all__ = ["TiedValues"]


@dataclass(slots=True)
class _Groups:
    """Which elements of a tensor have the same value.

    Attributes
    ----------
    places : tensor of int64, shape (elements,)
        Group of each element.
    first : tensor of int64, shape (groups,)
        An element of each group.
    moves : tensor of bool, shape (groups,)
        False for the group of zeros.
    """

    places: torch.Tensor
    first: torch.Tensor
    moves: torch.Tensor

    @classmethod
    def of(cls, weight: torch.Tensor) -> _Groups:
        flat = weight.detach().reshape(-1)
        values, places = torch.unique(flat, return_inverse=True)
        first = torch.empty(values.numel(), dtype=torch.int64, device=flat.device)
        first[places] = torch.arange(flat.numel(), device=flat.device)
        return cls(places, first, values != 0)


class TiedValues(Technique):
    """Elements of a weight that are equal when a stage begins stay equal, and zeros stay zero.

    The gradient of a shared value is the sum over the elements that share it.

    Parameters
    ----------
    names : sequence of str
        Parameters; each has groups of its own.
    first_stage : int
        At whose start equal elements are tied.

    Source : Han, Mao, Dally 2016, "Deep compression", eq. (3)
    """

    def __init__(self, names: Sequence[str], first_stage: int = 0) -> None:
        self._names, self._first_stage = tuple(names), first_stage
        self._groups: dict[str, _Groups] = {}

    def begin(self, run: Run, stage: int) -> None:
        """Find equal elements."""
        if stage == self._first_stage:
            self._groups = {name: _Groups.of(run.parameters[name]) for name in self._names}

    def effective(self, values: dict[str, torch.Tensor]) -> None:
        """Give every element its group's value."""
        for name, groups in self._groups.items():
            flat = values[name].reshape(-1)
            values[name] = flat[groups.first][groups.places].view_as(values[name])

    def after_backward(self, run: Run) -> None:
        """Give every element the gradient of its group."""
        for name, groups in self._groups.items():
            gradient = run.parameters[name].grad
            if gradient is None:
                continue
            flat = gradient.reshape(-1).double()
            sums = torch.bincount(groups.places, weights=flat, minlength=groups.first.numel())
            tied = torch.where(groups.moves, sums, torch.zeros_like(sums))[groups.places]
            gradient.copy_(tied.view_as(gradient))

    def state(self) -> dict[str, Any]:
        """Return the groups."""
        return {
            name: {"places": groups.places, "first": groups.first, "moves": groups.moves}
            for name, groups in self._groups.items()
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take up the groups."""
        self._groups = {name: _Groups(**parts) for name, parts in state.items()}

    def describe(self) -> str:
        """Return names and stage."""
        return repr(("tied values", self._names, self._first_stage))
