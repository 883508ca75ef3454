"""What a method of retraining adds to the loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["Place", "Run", "Technique"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a run is.

    Attributes
    ----------
    stage : int
    step : int
        Optimizer steps in this stage before this one.
    fraction : float
        Part of the stage that is done, 0 to 1.
    """

    stage: int
    step: int
    fraction: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What a technique may look at.

    Attributes
    ----------
    module : torch.nn.Module
    parameters : mapping of str to torch.nn.Parameter
        By name, shared ones under each.
    optimizer : torch.optim.Optimizer
        Of the stage that has begun.
    """

    module: torch.nn.Module
    parameters: Mapping[str, torch.nn.Parameter]
    optimizer: torch.optim.Optimizer


class Technique:
    """A method of retraining; each hook may be left as it is, which does nothing.

    The loop keeps the weights that the optimizer moves (latent ones) apart from those that the network
    computes with (effective ones). For each batch it calls :meth:`before_step`, computes the loss of the
    effective weights, passes their gradients on to the latent ones as they are (straight through; Bengio,
    Leonard, Courville 2013), adds the gradients of :meth:`penalty` at the latent weights, calls
    :meth:`after_backward`, steps, and calls :meth:`after_step`. A finished run leaves the effective weights
    in the module.
    """

    def groups(self, lr: float) -> list[dict[str, Any]]:
        """Return groups of further parameters for the optimizer, with their learning rates."""
        return []

    def begin(self, run: Run, stage: int) -> None:
        """Prepare for a stage; `run` holds from now on."""

    def before_step(self, run: Run, place: Place) -> None:
        """Change masks, steps or tables before the next batch."""

    def effective(self, values: dict[str, torch.Tensor]) -> None:
        """Replace entries of `values`, the weights by parameter name, by what the network computes with."""

    def penalty(self, run: Run) -> torch.Tensor | None:
        """Return what is added to the loss, a scalar in nats, a function of the latent weights."""
        return None

    def after_backward(self, run: Run) -> None:
        """Change gradients."""

    def after_step(self, run: Run, place: Place) -> None:
        """Change weights after the optimizer's step."""

    def close(self) -> None:
        """Take back what :meth:`begin` or :meth:`resume` did to the module; the run has ended or stopped."""

    def density(self) -> float | None:
        """Return the kept share of the weights if the technique prunes."""
        return None

    def state(self) -> dict[str, Any]:
        """Return everything a resumed run needs: tensors, numbers, strings, lists and dicts of them."""
        return {}

    def resume(self, run: Run) -> None:
        """Do to the module what :meth:`begin` did, in a run that goes on; :meth:`restore` came before."""

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what :meth:`state` returned; a stage that goes on is not begun again."""

    def describe(self) -> str:
        """Return text that differs for techniques that must not share a checkpoint."""
        return type(self).__name__
