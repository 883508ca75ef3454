"""Sparse variational dropout: weights whose own noise drowns them are pruned."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Any

from nqconvert.training.records import Progress
from nqconvert.training.technique import Place, Run, Technique
from nqconvert.training.training_data import Loss, count_samples
from nqconvert.training.weight_names import checked_names
from nqformat.optional_packages import require_package

from .gradual import PruningResult
from .masking import Masking, train_in_two_stages

if TYPE_CHECKING:
    import torch

__all__ = ["VariationalDropout", "VariationalSettings", "dropout_divergence", "prune_variational"]

_K1, _K2, _K3 = 0.63576, 1.87320, 1.48695
_EPSILON = 1e-8
_LOG_ALPHA_LIMIT = 8.0


@dataclass(frozen=True, slots=True, kw_only=True)
class VariationalSettings:
    """How noise grows and when a weight is pruned.

    Attributes
    ----------
    threshold : float
        Of log alpha, the noise's variance over the weight's square; weights above it are pruned.
    start : float
        First log variance.
    warm_up : float
        Part of the first stage over which the divergence comes in.
    strength : float
        Factor of the divergence; 1 is the bound of the paper.
    noise_lr : float
        Learning rate of log variances, in units of the weights'.
    """

    threshold: float = 3.0
    start: float = -10.0
    warm_up: float = 0.3
    strength: float = 1.0
    noise_lr: float = 10.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.warm_up <= 1.0:
            raise ValueError(f"warm_up must be 0 to 1, not {self.warm_up}")
        if not (self.strength >= 0 and self.noise_lr > 0):
            raise ValueError(f"strength and noise_lr must be positive, not {self.strength}, {self.noise_lr}")


def dropout_divergence(log_alpha: torch.Tensor) -> torch.Tensor:
    """Return the Kullback-Leibler divergence from the log-uniform prior, in nats for each weight.

    An approximation whose error is below 0.02; 0 where alpha is infinite.

    Source : Molchanov, Ashukha, Vetrov 2017, "Variational dropout sparsifies deep neural networks", eq. (14)

    Examples
    --------
    >>> import torch
    >>> [round(float(x), 3) for x in dropout_divergence(torch.tensor([-3.0, 8.0]))]
    [2.116, 0.0]
    """
    import torch

    kept = _K1 * torch.sigmoid(_K2 + _K3 * log_alpha) - 0.5 * torch.nn.functional.softplus(-log_alpha)
    return _K1 - kept


class VariationalDropout(Masking):
    """Gaussian noise on every weight in the first stage, with variances of its own that are trained.

    The noise is added to the layers' outputs (local reparametrization): for inputs x and variances s^2 an
    output has the variance ``sum x^2 s^2``. In later stages there is no noise and the masks stay.

    Parameters
    ----------
    module : torch.nn.Module
    names : sequence of str
        Weights of linear and convolution layers.
    settings : VariationalSettings
    n_samples : int
        Of the training data; the divergence of all weights is divided by it.

    Source : Molchanov, Ashukha, Vetrov 2017, eq. (11) (additive noise), (14), (17)
    """

    def __init__(
        self, module: torch.nn.Module, names: Sequence[str], settings: VariationalSettings, *, n_samples: int
    ) -> None:
        import torch

        if n_samples < 1:
            raise ValueError(f"n_samples must be at least 1, not {n_samples}")
        super().__init__()
        parameters = dict(module.named_parameters(remove_duplicate=False))
        self._settings, self._n_samples = settings, n_samples
        self._log_variance = {
            name: torch.full_like(parameters[name], settings.start).requires_grad_() for name in names
        }
        self._layers = _layers_of(module, {id(parameters[name]): name for name in names})
        self._handles: list[Any] = []
        self._share = 0.0
        self._alpha_density = 1.0
        self._inside = False

    def groups(self, lr: float) -> list[dict[str, Any]]:
        """Return the log variances."""
        return [{"params": list(self._log_variance.values()), "lr": lr * self._settings.noise_lr}]

    def begin(self, run: Run, stage: int) -> None:
        """Let the noise in, or prune."""
        if stage == 0:
            self._add_noise()
            return
        self.close()
        if not self._keep:
            for name, log_alpha in self._log_alphas(run).items():
                self._keep[name] = log_alpha.detach() <= self._settings.threshold
        self._zero_pruned_weights(run)

    def resume(self, run: Run) -> None:
        """Let the noise in again if the first stage goes on."""
        if not self._keep:
            self._add_noise()

    def close(self) -> None:
        """Stop the noise."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def before_step(self, run: Run, place: Place) -> None:
        """Let the divergence in by and by."""
        warm_up = self._settings.warm_up
        self._share = min(1.0, place.fraction / warm_up) if warm_up else 1.0

    def penalty(self, run: Run) -> torch.Tensor | None:
        """Return the divergence for one sample."""
        if self._keep:
            return None
        total: Any = 0.0
        n_kept, n_all = 0, 0
        for log_alpha in self._log_alphas(run).values():
            total = total + dropout_divergence(log_alpha).sum()
            n_kept += int((log_alpha.detach() <= self._settings.threshold).sum())
            n_all += log_alpha.numel()
        self._alpha_density = n_kept / max(n_all, 1)
        divergence: torch.Tensor = self._settings.strength * self._share / self._n_samples * total
        return divergence

    def after_backward(self, run: Run) -> None:
        """Leave pruned weights alone."""
        self._zero_pruned_gradients(run)

    def density(self) -> float | None:
        """Return the share of weights below the threshold."""
        return super().density() if self._keep else self._alpha_density

    def state(self) -> dict[str, Any]:
        """Return variances and masks."""
        return {
            "log_variance": {name: value.detach() for name, value in self._log_variance.items()},
            "keep": dict(self._keep),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take up variances and masks."""
        for name, value in state["log_variance"].items():
            self._log_variance[name].data.copy_(value)
        self._keep = dict(state["keep"])

    def describe(self) -> str:
        """Return names and settings."""
        return repr(("variational", list(self._log_variance), astuple(self._settings), self._n_samples))

    def _log_alphas(self, run: Run) -> dict[str, torch.Tensor]:
        import torch

        made = {}
        for name, log_variance in self._log_variance.items():
            weight = run.parameters[name]
            log_alpha = log_variance - torch.log(weight.square() + _EPSILON)
            made[name] = log_alpha.clamp(-_LOG_ALPHA_LIMIT, _LOG_ALPHA_LIMIT)
        return made

    def _add_noise(self) -> None:
        for layer, name in self._layers:
            self._handles.append(layer.register_forward_hook(self._noise_of(name)))

    def _noise_of(self, name: str) -> Any:
        """Return a hook that adds the noise of a layer's weights to its output."""
        import torch

        def add(layer: torch.nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor | None:
            if not layer.training or self._inside:
                return None
            values = {"weight": self._log_variance[name].exp()}
            if getattr(layer, "bias", None) is not None:
                values["bias"] = torch.zeros_like(layer.bias)  # type: ignore[arg-type]
            self._inside = True
            try:
                variance = torch.func.functional_call(layer, values, (inputs[0].square(),))
            finally:
                self._inside = False
            return output + (variance + _EPSILON).sqrt() * torch.randn_like(output)

        return add


def _layers_of(module: torch.nn.Module, names: dict[int, str]) -> list[tuple[torch.nn.Module, str]]:
    """Return the layers that own the weights, each with the weight's name."""
    import torch

    kinds = (torch.nn.Linear, torch.nn.modules.conv._ConvNd)
    found = [
        (layer, names[id(layer.weight)])
        for layer in module.modules()
        if isinstance(layer, kinds) and id(layer.weight) in names
    ]
    missing = set(names.values()) - {name for _, name in found}
    if missing:
        raise ValueError(f"no linear or convolution layer has the weights {', '.join(sorted(missing))}")
    return found


def prune_variational(
    module: torch.nn.Module,
    loader: Iterable[Any],
    loss: Loss,
    *,
    settings: VariationalSettings | None = None,
    epochs: int = 30,
    final_epochs: int = 10,
    lr: float = 1e-3,
    optimizer: str = "adam",
    seed: int = 0,
    n_samples: int | None = None,
    validation: Iterable[Any] | None = None,
    patience: int | None = None,
    parameters: Sequence[str] | None = None,
    techniques: Sequence[Technique] = (),
    progress: Progress | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = True,
) -> PruningResult:
    """Prune a `module` in place by sparse variational dropout, then train what is left without noise.

    How much is pruned follows from the data: nothing but `settings.strength` trades loss for weights.

    Parameters
    ----------
    module, loader, loss, lr, optimizer, seed, validation, patience, progress, checkpoint, resume
        As in :func:`nqconvert.training.retrain`; `loss` is a mean over samples in nats.
    settings : VariationalSettings or None
    epochs, final_epochs : int
        With noise, and after pruning.
    n_samples : int or None
        Of the training data; None: counted in a pass over the loader unless it has a dataset.
    parameters : sequence of str, optional
        Weights of linear and convolution layers; None: all.
    techniques : sequence of Technique
        Further methods.

    Returns
    -------
    PruningResult

    Raises
    ------
    As :func:`nqconvert.training.retrain`.

    Source : Molchanov, Ashukha, Vetrov 2017, "Variational dropout sparsifies deep neural networks"
    """
    require_package("torch")
    chosen = settings or VariationalSettings()
    names = checked_names(module, parameters)
    technique = VariationalDropout(
        module, names, chosen, n_samples=count_samples(loader) if n_samples is None else n_samples
    )
    return train_in_two_stages(
        module,
        loader,
        loss,
        masking=technique,
        techniques=techniques,
        epochs=epochs,
        final_epochs=final_epochs,
        lr=lr,
        optimizer=optimizer,
        weight_decay=0.0,
        seed=seed,
        validation=validation,
        patience=patience,
        progress=progress,
        checkpoint=checkpoint,
        resume=resume,
    )
