"""Entropy-penalized retraining: the bits that the file's codec spends on the weights are part of the loss."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
import torch

import nqformat
from nqconvert.quantizers.lossless import lossless_tensor
from nqconvert.training.loop import TrainingLoop
from nqconvert.training.records import Progress, TrainingLog
from nqconvert.training.stages import LoopSettings, Stage
from nqconvert.training.technique import Place, Run, Technique
from nqconvert.training.training_data import Loss, TrainingData
from nqconvert.training.weight_names import checked_names

from .straight_through import GridSettings, StraightThrough

__all__ = ["CodeRate", "EntropyPenalty", "RateSettings", "retrain_for_rate"]

_MARGIN = 2
_PSEUDO_COUNT = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class RateSettings:
    """What a bit costs.

    Attributes
    ----------
    penalty : float
        Loss, in nats, that one bit for every weight may cost, as of method ``obs``.
    every : int
        Steps between new tables of code lengths.
    coded_every : int
        Steps between encodings by the file's codec, whose bytes the tables are scaled to.
    """

    penalty: float = 0.01
    every: int = 50
    coded_every: int = 500

    def __post_init__(self) -> None:
        if not self.penalty >= 0:
            raise ValueError(f"penalty must not be negative, but is {self.penalty}")
        if self.every < 1 or self.coded_every < 1:
            raise ValueError(f"every and coded_every must be at least 1: {self.every}, {self.coded_every}")


class CodeRate:
    """Bits of each integer of a tensor on a grid, and between integers by straight lines.

    A zero costs ``-log2(1 - d)`` at density d; another number costs its place, ``-log2 d``, and its codeword,
    ``-log2`` of its share among those that are not zero.

    Parameters
    ----------
    integers : tensor of float
        As they are now.
    factor : float
        Of all bits.

    Source : Oktay, Balle, Singh, Shrivastava 2020, "Scalable model compression by entropy penalized
        reparameterization", eq. (3), with the code lengths of this file format for their density model
    """

    def __init__(self, integers: torch.Tensor, factor: float = 1.0) -> None:
        flat = integers.detach().reshape(-1).long()
        self.limit = int(flat.abs().max()) + _MARGIN if flat.numel() else _MARGIN
        counts = torch.bincount(flat + self.limit, minlength=2 * self.limit + 1).double() + _PSEUDO_COUNT
        n_zero, n_all = counts[self.limit].clone(), counts.sum()
        density = 1.0 - n_zero / n_all
        counts[self.limit] = 1.0
        kept = counts / (n_all - n_zero)
        table = -torch.log2(kept) - torch.log2(density)
        table[self.limit] = -torch.log2(1.0 - density)
        self.table = (table * factor).float()

    @classmethod
    def of_table(cls, table: torch.Tensor, limit: int) -> CodeRate:
        """Return a rate with a known table, of integers from -limit to limit."""
        made = cls(torch.zeros(0))
        made.table, made.limit = table, limit
        return made

    def bits(self, integers: torch.Tensor) -> torch.Tensor:
        """Return the bits of numbers on and between the integers."""
        low, part = self._low(integers)
        return torch.lerp(self.table[low], self.table[low + 1], part)

    def slope(self, integers: torch.Tensor) -> torch.Tensor:
        """Return the derivative of :meth:`bits`."""
        low, _ = self._low(integers)
        return self.table[low + 1] - self.table[low]

    def _low(self, integers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        shifted = (integers + self.limit).clamp(0, 2 * self.limit - 1e-3)
        low = shifted.floor()
        return low.long(), shifted - low


class EntropyPenalty(Technique):
    """The slope of the bits, added to the gradient of every weight on a grid.

    Parameters
    ----------
    names : sequence of str
        Weights that `grids` rounds.
    grids : StraightThrough
    settings : RateSettings

    Source : Oktay et al. 2020, eq. (3)
    """

    def __init__(
        self, names: Sequence[str], grids: StraightThrough, settings: RateSettings | None = None
    ) -> None:
        self._names, self._grids = tuple(names), grids
        self._settings = settings or RateSettings()
        self._rates: dict[str, CodeRate] = {}
        self._factor = 1.0
        self._n_weights = 1

    def before_step(self, run: Run, place: Place) -> None:
        """Count anew, and encode now and then."""
        if not all(name in self._grids.steps for name in self._names):
            return
        if place.step % self._settings.every and self._rates:
            return
        integers = {name: self._integers(run, name) for name in self._names}
        self._n_weights = sum(numbers.numel() for numbers in integers.values())
        if place.step % self._settings.coded_every == 0:
            plain = sum(float(CodeRate(k).bits(k).sum()) for k in integers.values())
            self._factor = 8.0 * self._coded_bytes(integers) / max(plain, 1.0)
        self._rates = {name: CodeRate(numbers, self._factor) for name, numbers in integers.items()}

    def _integers(self, run: Run, name: str) -> torch.Tensor:
        return (run.parameters[name].detach() / self._grids.steps[name]).round()

    def _coded_bytes(self, integers: dict[str, torch.Tensor]) -> int:
        """Return what the weights take beyond a file without numbers."""
        arrays = {
            name: numbers.cpu().numpy().astype(np.float32) * np.float32(self._grids.steps[name])
            for name, numbers in integers.items()
        }
        full = nqformat.save({name: lossless_tensor(array) for name, array in arrays.items()})
        empty = nqformat.save({name: lossless_tensor(np.zeros_like(array)) for name, array in arrays.items()})
        return len(full) - len(empty)

    def after_backward(self, run: Run) -> None:
        """Add the slope."""
        factor = self._settings.penalty / self._n_weights
        for name, rate in self._rates.items():
            weight, step = run.parameters[name], self._grids.steps[name]
            if weight.grad is not None:
                slope = rate.slope(weight.detach() / step)
                weight.grad.add_(slope, alpha=factor / step)

    def bits(self, run: Run) -> float:
        """Return the bits of all weights by the present tables."""
        return sum(float(rate.bits(self._integers(run, name)).sum()) for name, rate in self._rates.items())

    def state(self) -> dict[str, Any]:
        """Return the tables."""
        rates = {name: (rate.table, rate.limit) for name, rate in self._rates.items()}
        return {"factor": self._factor, "rates": rates, "n_weights": self._n_weights}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up the tables."""
        self._factor, self._n_weights = state["factor"], state["n_weights"]
        self._rates = {name: CodeRate.of_table(*rate) for name, rate in state["rates"].items()}

    def describe(self) -> str:
        """Return names and settings."""
        return repr(("entropy", self._names, astuple(self._settings)))


def retrain_for_rate(
    module: torch.nn.Module,
    loader: Iterable[Any],
    loss: Loss,
    *,
    settings: RateSettings | None = None,
    grids: GridSettings | None = None,
    epochs: int = 20,
    lr: float = 1e-3,
    seed: int = 0,
    validation: Iterable[Any] | None = None,
    parameters: Sequence[str] | None = None,
    progress: Progress | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = True,
) -> TrainingLog:
    """Retrain a trained `module` in place on grids so that the loss and the price of the bits are least.

    Weights become zero where that is worth it, so that no density is to be chosen. Ends with the last epoch:
    validation is reported, but the loss alone does not say which epoch is best.

    Parameters
    ----------
    module, loader, loss, lr, seed, validation, progress, checkpoint, resume
        As in :func:`nqconvert.training.retrain`.
    settings : RateSettings or None
    grids : GridSettings or None
        None: steps of half the root mean square of a tensor, biases of 6 bits.
    epochs : int
    parameters : sequence of str, optional
        Parameters to quantize; None: all linear and convolution weights. Vectors are put on grids, too.

    Returns
    -------
    TrainingLog

    Raises
    ------
    As :func:`nqconvert.training.retrain`.

    Source : Oktay, Balle, Singh, Shrivastava 2020
    """
    names = checked_names(module, parameters)
    vectors = [name for name, parameter in module.named_parameters() if parameter.ndim < 2]
    chosen = grids or GridSettings(coarseness=0.5, vector_bits=6, first_stage=0)
    technique = StraightThrough(names, vectors, chosen)
    loop = TrainingLoop(
        module,
        TrainingData(loader=loader, loss=loss, validation=validation),
        stages=[Stage(n_epochs=epochs, lr=lr, schedule="cosine")],
        settings=LoopSettings(optimizer="adam", weight_decay=0.0, seed=seed),
        techniques=[technique, EntropyPenalty(names, technique, settings)],
        progress=progress,
        checkpoint=checkpoint,
        resume=resume,
    )
    return loop.run()
