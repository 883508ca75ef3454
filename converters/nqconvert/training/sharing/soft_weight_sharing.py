"""Soft weight-sharing: retraining under a mixture prior, then every weight takes the mean it belongs to."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, field
from typing import Any

import torch

from nqconvert.training.loop import TrainingLoop
from nqconvert.training.records import Progress, TrainingLog
from nqconvert.training.stages import LoopSettings, Stage
from nqconvert.training.technique import Place, Run, Technique
from nqconvert.training.training_data import Loss, TrainingData, count_samples
from nqconvert.training.weight_names import checked_names

from .mixture import Component, Mixture, MixtureSettings, merged_components
from .tied_values import TiedValues

__all__ = ["SharedWeights", "SharingSettings", "SoftWeightSharing", "share_weights_softly"]

_CHECK_STEPS = 50
_LEAST_KEPT = 1e-3
_BLOCK = 1 << 18


@dataclass(frozen=True, slots=True, kw_only=True)
class SharingSettings:
    """Strength of the prior and learning rates.

    Attributes
    ----------
    tau : float
        Factor of the prior; the paper has 0.05 in its text and 0.003 in its code.
    mixture : MixtureSettings
    mean_lr, precision_lr, share_lr : float
        Learning rates of means, log precisions and mixing logits, in units of the weights'.
    warm_up : float
        Part of the run over which the prior comes in, which keeps weights from being stranded.
    collapse_share : float
        A tensor of which a smaller share belongs to components besides zero has collapsed; the prior is
        then halved for it until it has recovered.
    closeness : float
        Components nearer than this divergence are merged at the end.
    """

    tau: float = 5e-3
    mixture: MixtureSettings = field(default_factory=MixtureSettings)
    mean_lr: float = 0.2
    precision_lr: float = 6.0
    share_lr: float = 6.0
    warm_up: float = 0.1
    collapse_share: float = _LEAST_KEPT
    closeness: float = 1e-10

    def __post_init__(self) -> None:
        if not self.tau >= 0:
            raise ValueError(f"tau must not be negative, but is {self.tau}")
        for what in ("mean_lr", "precision_lr", "share_lr"):
            if not getattr(self, what) > 0:
                raise ValueError(f"{what} must be positive, not {getattr(self, what)}")
        if not 0.0 <= self.warm_up <= 1.0:
            raise ValueError(f"warm_up must be 0 to 1, not {self.warm_up}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedWeights:
    """Outcome of :func:`share_weights_softly`.

    Attributes
    ----------
    components : tuple of Component
        After merging; the weights are their means, moved on in the final epochs.
    density : float
        Share of weights that are not zero.
    collapsed : tuple of str
        Tensors for which the prior had to be weakened.
    log : TrainingLog
    """

    components: tuple[Component, ...]
    density: float
    collapsed: tuple[str, ...]
    log: TrainingLog


class SoftWeightSharing(Technique):
    """The mixture prior as a penalty, with its components trained beside the weights.

    Parameters
    ----------
    module : torch.nn.Module
    names : sequence of str
        Parameters under the prior.
    settings : SharingSettings
    n_samples : int
        Of the training data.

    Source : Ullrich, Meeds, Welling 2017, eq. (4) to (8), sections 3 and 4
    """

    def __init__(
        self, module: torch.nn.Module, names: Sequence[str], settings: SharingSettings, *, n_samples: int
    ) -> None:
        if n_samples < 1:
            raise ValueError(f"n_samples must be at least 1, not {n_samples}")
        parameters = dict(module.named_parameters(remove_duplicate=False))
        largest = max(float(parameters[name].detach().abs().max()) for name in names)
        self._names, self._settings, self._n_samples = tuple(names), settings, n_samples
        self.mixture = Mixture(settings.mixture, largest)
        self._share = 0.0
        self._strength = dict.fromkeys(self._names, 1.0)
        self._collapsed: dict[str, None] = {}
        self._kept = 1.0

    @property
    def collapsed(self) -> tuple[str, ...]:
        """Tensors for which the prior had to be weakened."""
        return tuple(self._collapsed)

    def groups(self, lr: float) -> list[dict[str, Any]]:
        """Return the mixture's parameters."""
        settings = self._settings
        rates = (settings.mean_lr, settings.precision_lr, settings.share_lr)
        return [
            {"params": [parameter], "lr": lr * rate}
            for parameter, rate in zip(self.mixture.parameters(), rates, strict=True)
        ]

    def begin(self, run: Run, stage: int) -> None:
        """Give the weights their means when the first stage is over."""
        if stage > 0:
            self.share(run.module)

    def before_step(self, run: Run, place: Place) -> None:
        """Let the prior in by and by, and look for collapse; there is none once weights are shared."""
        if place.stage > 0:
            self._share = 0.0
            return
        warm_up = self._settings.warm_up
        self._share = min(1.0, place.fraction / warm_up) if warm_up else 1.0
        if place.step % _CHECK_STEPS == 0:
            self._look_for_collapse(run)

    def _look_for_collapse(self, run: Run) -> None:
        components = self.mixture.components()
        n_kept, n_all = 0, 0
        for name in self._names:
            weight = run.parameters[name].detach()
            kept = int((assigned(weight, components) != 0).sum())
            n_kept, n_all = n_kept + kept, n_all + weight.numel()
            if kept == 0 or kept < self._settings.collapse_share * weight.numel():
                self._strength[name] *= 0.5
                self._collapsed[name] = None
            else:
                self._strength[name] = min(1.0, 2.0 * self._strength[name])
        self._kept = n_kept / n_all

    def penalty(self, run: Run) -> torch.Tensor | None:
        """Return minus the log prior for one sample."""
        factor = self._settings.tau * self._share / self._n_samples
        if factor == 0.0:
            return None
        weights = [_weakened(run.parameters[name], self._strength[name]) for name in self._names]
        return factor * self.mixture.loss(weights)

    def density(self) -> float | None:
        """Return the share of weights that belong to components besides zero."""
        return self._kept

    @property
    def components(self) -> tuple[Component, ...]:
        """The merged components."""
        return tuple(merged_components(self.mixture.components(), self._settings.closeness))

    def share(self, module: torch.nn.Module) -> None:
        """Give every weight of `module` the mean of the merged component that it belongs to."""
        components = self.components
        parameters = dict(module.named_parameters(remove_duplicate=False))
        means = torch.tensor([component.mean for component in components])
        n_kept, n_all = 0, 0
        for name in self._names:
            weight = parameters[name].data
            weight.copy_(means[assigned(weight, components)] + 0.0)
            n_kept, n_all = n_kept + int((weight != 0).sum()), n_all + weight.numel()
        self._kept = n_kept / n_all

    def state(self) -> dict[str, Any]:
        """Return the mixture and what is known of collapse."""
        return {
            "mixture": self.mixture.state(),
            "strength": dict(self._strength),
            "collapsed": list(self._collapsed),
            "kept": self._kept,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take up the mixture."""
        self.mixture.restore(state["mixture"])
        self._strength, self._kept = dict(state["strength"]), state["kept"]
        self._collapsed = dict.fromkeys(state["collapsed"])

    def describe(self) -> str:
        """Return names and settings."""
        return repr(("soft weight-sharing", self._names, astuple(self._settings), self._n_samples))


class _Weakened(torch.autograd.Function):
    """The identity, with a fraction of the gradient."""

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, strength: float) -> torch.Tensor:
        ctx.strength = strength
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient * ctx.strength, None


def _weakened(weight: torch.Tensor, strength: float) -> torch.Tensor:
    if strength == 1.0:
        return weight
    made: torch.Tensor = _Weakened.apply(weight, strength)  # type: ignore[no-untyped-call]
    return made


def assigned(weight: torch.Tensor, components: Sequence[Component]) -> torch.Tensor:
    """Return the places of the components that weights most probably come from.

    That is the highest ``share sqrt(precision) exp(-precision (w - mean)^2 / 2)``.

    Source : Ullrich, Meeds, Welling 2017, section 3.3

    Examples
    --------
    >>> import torch
    >>> two = [Component(0.9, 0.0, 100.0), Component(0.1, 1.0, 100.0)]
    >>> assigned(torch.tensor([0.1, 0.9]), two).tolist()
    [0, 1]
    """
    offsets = [math.log(c.share) + 0.5 * math.log(c.precision) for c in components]
    offset = torch.tensor(offsets)[:, None]
    mean = torch.tensor([c.mean for c in components])[:, None]
    precision = torch.tensor([c.precision for c in components])[:, None]
    parts = [
        (offset - 0.5 * precision * (part - mean) ** 2).argmax(0)
        for part in weight.detach().reshape(-1).cpu().split(_BLOCK)
    ]
    return torch.cat(parts).view_as(weight)


def share_weights_softly(
    module: torch.nn.Module,
    loader: Iterable[Any],
    loss: Loss,
    *,
    settings: SharingSettings | None = None,
    epochs: int = 40,
    final_epochs: int = 5,
    lr: float = 5e-4,
    seed: int = 0,
    n_samples: int | None = None,
    validation: Iterable[Any] | None = None,
    parameters: Sequence[str] | None = None,
    techniques: Sequence[Technique] = (),
    progress: Progress | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = True,
) -> SharedWeights:
    """Retrain a trained `module` in place until its weights are a few shared values, most of them zero.

    Parameters
    ----------
    module, loader, loss, lr, seed, validation, progress, checkpoint, resume
        As in :func:`nqconvert.training.retrain`; `loss` is a mean over samples in nats.
    settings : SharingSettings or None
    epochs : int
    final_epochs : int
        Epochs after sharing: shared values, each tensor's own, and what is under no prior are trained on, of
        which the best by validation loss is kept. The paper has none.
    n_samples : int or None
        Of the training data; None: counted in a pass over the loader unless it has a dataset.
    parameters : sequence of str, optional
        Parameters under the prior; None: all linear and convolution weights.
    techniques : sequence of Technique
        Further methods.

    Returns
    -------
    SharedWeights

    Raises
    ------
    As :func:`nqconvert.training.retrain`.

    Source : Ullrich, Meeds, Welling 2017, "Soft weight-sharing for neural network compression"
    """
    names = checked_names(module, parameters)
    technique = SoftWeightSharing(
        module,
        names,
        settings or SharingSettings(),
        n_samples=count_samples(loader) if n_samples is None else n_samples,
    )
    loop = TrainingLoop(
        module,
        TrainingData(loader=loader, loss=loss, validation=validation),
        stages=[
            Stage(n_epochs=epochs, lr=lr, schedule="constant"),
            Stage(n_epochs=final_epochs, lr=lr, schedule="cosine", choose_best=validation is not None),
        ],
        settings=LoopSettings(optimizer="adam", weight_decay=0.0, seed=seed),
        techniques=[technique, TiedValues(names, first_stage=1), *techniques],
        progress=progress,
        checkpoint=checkpoint,
        resume=resume,
    )
    log = loop.run()
    return SharedWeights(
        components=technique.components,
        density=technique.density() or 0.0,
        collapsed=technique.collapsed,
        log=log,
    )
