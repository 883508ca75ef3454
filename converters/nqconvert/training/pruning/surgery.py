"""Pruning that repairs its mistakes: weights are cut and spliced while the dense network trains."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Any

from nqconvert.training.records import Progress
from nqconvert.training.technique import Place, Run, Technique
from nqconvert.training.training_data import Loss
from nqconvert.training.weight_names import checked_names
from nqformat.optional_packages import require_package

from .gradual import PruningResult
from .masking import Masking, train_in_two_stages
from .schedule import cubic_density

if TYPE_CHECKING:
    import torch

__all__ = ["Surgery", "SurgerySettings", "prune_by_surgery", "surgery_thresholds"]

_SCOPES = ("layer", "global")
_SCORES = ("magnitude", "sensitivity")


@dataclass(frozen=True, slots=True, kw_only=True)
class SurgerySettings:
    """How masks follow the weights.

    Attributes
    ----------
    density : float or None
        Share of weights kept at the end, reached by a cubic schedule; None: thresholds from `spread`.
    per_layer : tuple of (name, density)
        Final densities of single layers, with `density`.
    scope : {"layer", "global"}
        With `density`: the same one in each layer, or one ranking of all weights.
    score : {"magnitude", "sensitivity"}
        What a global ranking goes by: ``|w|``, or ``w^2`` times the layer's mean second moment of gradients
        (Adam's), the rise of the loss to second order with one curvature for each layer. Single weights'
        moments are too noisy: they did worse in trials on MNIST.
    spread : float
        Without `density`: the paper's c; the lower threshold of a layer is ``0.9 max(mean + c std, 0)`` of
        the magnitudes at the start, the upper one ``1.1`` times the same.
    margin : float
        With `density`: a kept weight's score counts this much more, which keeps masks from flickering.
    every : int
        Steps between changes of the masks.
    decay : float
        Pruned weights are multiplied by it at each change, so that idle ones do not come back by chance.
    until : float
        Part of the first stage after which `density` is reached.
    """

    density: float | None = 0.1
    per_layer: tuple[tuple[str, float], ...] = ()
    scope: str = "global"
    score: str = "sensitivity"
    spread: float = 1.0
    margin: float = 0.1
    every: int = 16
    decay: float = 0.98
    until: float = 0.75

    def __post_init__(self) -> None:
        for what, share in [("density", self.density), *self.per_layer]:
            if share is not None and not 0.0 < share <= 1.0:
                raise ValueError(f"density must be above 0 and at most 1, but {what} is {share}")
        if self.scope not in _SCOPES:
            raise ValueError(f"scope must be one of {', '.join(_SCOPES)}, not {self.scope!r}")
        if self.score not in _SCORES:
            raise ValueError(f"score must be one of {', '.join(_SCORES)}, not {self.score!r}")
        if self.every < 1 or not 0.0 < self.until <= 1.0:
            raise ValueError(f"every must be at least 1 and until 0 to 1, not {self.every} and {self.until}")
        if not self.margin >= 0 or not 0.0 <= self.decay <= 1.0:
            raise ValueError(f"margin must not be negative and decay be 0 to 1: {self.margin}, {self.decay}")


def surgery_thresholds(magnitudes: torch.Tensor, spread: float) -> tuple[float, float]:
    """Return the magnitudes below which a weight is cut and above which it is spliced.

    Source : Guo, Yao, Chen 2016, "Dynamic network surgery", section 3.3 and the authors' settings

    Examples
    --------
    >>> import torch
    >>> low, high = surgery_thresholds(torch.tensor([1.0, 3.0]), 1.0)
    >>> round(low, 4), round(high, 4)
    (2.7, 3.3)
    """
    middle = max(float(magnitudes.mean() + spread * magnitudes.std(correction=0)), 0.0)
    return 0.9 * middle, 1.1 * middle


class Surgery(Masking):
    """Masks that follow the weights in the first stage and stay as they are in later ones.

    The network computes with masked weights, but the gradient reaches all of them (eq. 2 of the paper), so
    that a weight that was cut too early grows and comes back (eq. 3).

    Parameters
    ----------
    names : sequence of str
        Parameters to prune.
    settings : SurgerySettings

    Source : Guo, Yao, Chen 2016, "Dynamic network surgery for efficient DNNs", eq. (2), (3)
    """

    def __init__(self, names: Sequence[str], settings: SurgerySettings) -> None:
        for name, _ in settings.per_layer:
            if name not in names:
                raise ValueError(f"per_layer names {name!r}, which is not pruned; pruned: {', '.join(names)}")
        super().__init__()
        self._names = tuple(names)
        self._settings = settings
        self._thresholds: dict[str, tuple[float, float]] = {}
        self._frozen = False

    def begin(self, run: Run, stage: int) -> None:
        """Measure thresholds and start with all weights, or freeze the masks."""
        import torch

        self._frozen = stage > 0
        if stage > 0:
            self._zero_pruned_weights(run)
            return
        for name in self._names:
            weight = run.parameters[name].detach()
            self._keep[name] = torch.ones_like(weight, dtype=torch.bool)
            self._thresholds[name] = surgery_thresholds(weight.abs(), self._settings.spread)

    def before_step(self, run: Run, place: Place) -> None:
        """Cut and splice now and then."""
        import torch

        if self._frozen or place.step % self._settings.every:
            return
        with torch.no_grad():
            if self._settings.density is None:
                self._follow_thresholds(run)
            else:
                self._follow_density(run, min(1.0, place.fraction / self._settings.until))
            for name, keep in self._keep.items():
                weight = run.parameters[name].data
                weight.copy_(torch.where(keep, weight, weight * self._settings.decay))

    def _follow_thresholds(self, run: Run) -> None:
        for name, keep in self._keep.items():
            low, high = self._thresholds[name]
            magnitude = run.parameters[name].detach().abs()
            self._keep[name] = (magnitude >= low) & (keep | (magnitude >= high))

    def _follow_density(self, run: Run, fraction: float) -> None:
        """Keep the best scores, those of kept weights counted higher."""
        settings = self._settings
        assert settings.density is not None
        own = dict(settings.per_layer)
        scores = {name: self._score(run, name) for name in self._names}
        pooled = [n for n in self._names if n not in own] if settings.scope == "global" else []
        for name in self._names:
            if name not in pooled:
                share = cubic_density(own.get(name, settings.density), fraction)
                self._keep[name] = _best(scores[name].reshape(-1), share).view_as(scores[name])
        if not pooled:
            return
        together = _joined([scores[name].reshape(-1) for name in pooled])
        chosen = _best(together, cubic_density(settings.density, fraction))
        for name, part in zip(pooled, chosen.split([scores[n].numel() for n in pooled]), strict=True):
            self._keep[name] = part.view_as(scores[name])

    def _score(self, run: Run, name: str) -> torch.Tensor:
        weight = run.parameters[name]
        score = weight.detach().square()
        moment = run.optimizer.state.get(weight, {}).get("exp_avg_sq")
        if self._settings.score == "sensitivity" and moment is not None:
            score = score * moment.mean()
        return score * (1.0 + ((1.0 + self._settings.margin) ** 2 - 1.0) * self._keep[name])

    def after_backward(self, run: Run) -> None:
        """Leave pruned weights alone once masks are frozen."""
        if self._frozen:
            self._zero_pruned_gradients(run)

    def state(self) -> dict[str, Any]:
        """Return masks and thresholds."""
        return {"keep": self._keep, "thresholds": self._thresholds, "frozen": self._frozen}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up masks and thresholds."""
        self._keep, self._thresholds = dict(state["keep"]), dict(state["thresholds"])
        self._frozen = state["frozen"]

    def describe(self) -> str:
        """Return settings and names."""
        return repr(("surgery", self._names, astuple(self._settings)))


def _joined(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Join flat tensors on the device of the first."""
    import torch

    return torch.cat([part.to(parts[0].device) for part in parts])


def _best(scores: torch.Tensor, share: float) -> torch.Tensor:
    """Return a mask of the highest of flat `scores`, of equal ones the first."""
    import torch

    n_kept = min(scores.numel(), max(1, round(share * scores.numel())))
    threshold = scores.kthvalue(scores.numel() - n_kept + 1).values
    mask = scores > threshold
    at_threshold = torch.nonzero(scores == threshold)[:, 0]
    mask[at_threshold[: n_kept - int(mask.sum())]] = True
    return mask


def prune_by_surgery(
    module: torch.nn.Module,
    loader: Iterable[Any],
    loss: Loss,
    *,
    settings: SurgerySettings | None = None,
    epochs: int = 20,
    final_epochs: int = 10,
    lr: float = 1e-3,
    optimizer: str = "adam",
    weight_decay: float = 0.0,
    seed: int = 0,
    validation: Iterable[Any] | None = None,
    patience: int | None = None,
    parameters: Sequence[str] | None = None,
    techniques: Sequence[Technique] = (),
    progress: Progress | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = True,
) -> PruningResult:
    """Prune a trained `module` in place, cutting and splicing weights while all of them train.

    For `epochs` the masks follow the weights at a constant learning rate; then they stay for `final_epochs`
    at a falling one, of which the best by validation loss is kept.

    Parameters
    ----------
    module, loader, loss, lr, optimizer, weight_decay, seed, validation, patience, progress, checkpoint,
    resume
        As in :func:`nqconvert.training.retrain`.
    settings : SurgerySettings or None
    epochs, final_epochs : int
    parameters : sequence of str, optional
        Parameters to prune; None: all linear and convolution weights.
    techniques : sequence of Technique
        Further methods, such as quantization in the final epochs (stage 1).

    Returns
    -------
    PruningResult

    Raises
    ------
    As :func:`nqconvert.training.retrain`.

    Source : Guo, Yao, Chen 2016, "Dynamic network surgery for efficient DNNs"

    Examples
    --------
    >>> import torch
    >>> module = torch.nn.Linear(20, 2)
    >>> batches = [(torch.randn(16, 20), torch.zeros(16, 2))] * 40
    >>> result = prune_by_surgery(
    ...     module, batches, torch.nn.functional.mse_loss,
    ...     settings=SurgerySettings(density=0.25), epochs=2, final_epochs=1,
    ... )
    >>> result.density, int((module.weight != 0).sum())
    (0.25, 10)
    """
    require_package("torch")
    surgery = Surgery(checked_names(module, parameters), settings or SurgerySettings())
    return train_in_two_stages(
        module,
        loader,
        loss,
        masking=surgery,
        techniques=techniques,
        epochs=epochs,
        final_epochs=final_epochs,
        lr=lr,
        optimizer=optimizer,
        weight_decay=weight_decay,
        seed=seed,
        validation=validation,
        patience=patience,
        progress=progress,
        checkpoint=checkpoint,
        resume=resume,
    )
