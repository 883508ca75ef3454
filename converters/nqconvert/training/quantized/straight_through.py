"""Training with weights rounded to uniform grids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from nqconvert.training.technique import Run, Technique

if TYPE_CHECKING:
    import torch

__all__ = ["GridSettings", "StraightThrough", "on_grid"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GridSettings:
    """Grids of weights and of vectors.

    Attributes
    ----------
    coarseness : float
        Step of a weight's grid over its smallest magnitude that is not zero when grids are laid; below 2 no
        kept weight rounds to zero at first. A layer that is not pruned has its root mean square instead.
    vector_bits : int or None
        Bits of biases and norms; None leaves them as they are.
    first_stage : int
        Stage at whose start grids are laid.
    """

    coarseness: float = 1.5
    vector_bits: int | None = 6
    first_stage: int = 1

    def __post_init__(self) -> None:
        if not self.coarseness > 0:
            raise ValueError(f"coarseness must be positive, not {self.coarseness}")
        if self.vector_bits is not None and not 2 <= self.vector_bits <= 16:
            raise ValueError(f"vector_bits must be 2 to 16, not {self.vector_bits}")
        if self.first_stage < 0:
            raise ValueError(f"first_stage must not be negative, but is {self.first_stage}")


def on_grid(values: torch.Tensor, step: float) -> torch.Tensor:
    """Round to multiples of `step`, exactly the numbers that a file with that step decodes to (spec 6.2).

    Examples
    --------
    >>> import torch
    >>> on_grid(torch.tensor([0.2, 0.3, -0.9]), 0.5).tolist()
    [0.0, 0.5, -1.0]
    """
    return ((values / step).round().double() * step).to(values.dtype) + 0.0


class StraightThrough(Technique):
    """Weights and vectors rounded to uniform grids, with the gradient of the identity.

    Parameters
    ----------
    weights, vectors : sequence of str
        Parameter names; each has a step of its own.
    settings : GridSettings
    steps : mapping of str to float, optional
        Steps that are known already; no others are laid for these names.

    Source : Bengio, Leonard, Courville 2013, "Estimating or propagating gradients through stochastic
        neurons", section 4 (straight-through estimator)
    """

    def __init__(
        self,
        weights: Sequence[str],
        vectors: Sequence[str] = (),
        settings: GridSettings | None = None,
        *,
        steps: Mapping[str, float] | None = None,
    ) -> None:
        self._settings = settings or GridSettings()
        self.steps = dict(steps or {})
        self._weights = tuple(name for name in weights if name not in self.steps)
        self._vectors = tuple(name for name in vectors if name not in self.steps)
        self._known = tuple(self.steps.items())

    def begin(self, run: Run, stage: int) -> None:
        """Lay the grids."""
        if stage != self._settings.first_stage:
            return
        for name in self._weights:
            self.steps[name] = _weight_step(run.parameters[name].detach(), self._settings.coarseness)
        for name in self._vectors if self._settings.vector_bits else ():
            largest = float(run.parameters[name].detach().abs().max())
            self.steps[name] = _float32(largest / (2 ** (self._settings.vector_bits - 1) - 1)) or 1.0

    def effective(self, values: dict[str, torch.Tensor]) -> None:
        """Round."""
        for name, step in self.steps.items():
            values[name] = on_grid(values[name], step)

    def state(self) -> dict[str, Any]:
        """Return the steps."""
        return {"steps": dict(self.steps)}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up the steps."""
        self.steps = dict(state["steps"])

    def describe(self) -> str:
        """Return names and settings."""
        return repr(("straight through", self._weights, self._vectors, astuple(self._settings), self._known))


def _weight_step(weight: torch.Tensor, coarseness: float) -> float:
    magnitudes = weight.abs()
    kept = magnitudes[magnitudes > 0]
    if kept.numel() == 0:
        return 1.0
    pruned = kept.numel() < magnitudes.numel()
    unit = float(kept.min()) if pruned else float(kept.square().mean().sqrt())
    return _float32(coarseness * unit)


def _float32(value: float) -> float:
    """Return the number that a file stores."""
    return float(np.float32(value))
