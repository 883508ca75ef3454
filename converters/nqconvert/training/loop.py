"""The loop behind retraining and pruning: stages of epochs, masked weights, checkpoints."""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from nqformat.errors import ConversionError

from .checkpoint import load_checkpoint, save_checkpoint
from .pruning import magnitude_masks
from .training_data import TrainingData

if TYPE_CHECKING:
    import torch

__all__ = ["EpochRecord", "LoopSettings", "Stage", "TrainingLog", "TrainingLoop"]

_OPTIMIZERS = ("adam", "adamw", "sgd")
_SCHEDULES = ("cosine", "constant")
_SCOPES = ("layer", "global")
_SGD_MOMENTUM = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochRecord:
    """What one epoch came to.

    Attributes
    ----------
    stage, epoch : int
        Counted from 0; plain retraining has one stage, gradual pruning one for each step and a last one.
    n_epochs : int
        Epochs of the stage.
    density : float
        Kept share of the weights that have masks; 1.0 if none has.
    train_loss : float
        Mean over the epoch.
    validation_loss : float or None
    lr : float
        At the start of the epoch.
    """

    stage: int
    epoch: int
    n_epochs: int
    density: float
    train_loss: float
    validation_loss: float | None
    lr: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingLog:
    """History of a run.

    Attributes
    ----------
    records : tuple of EpochRecord
        All epochs, those before a resumption included.
    best_validation_loss : float or None
        That of the weights that were restored at the end, if validation chose them.
    n_resumed : int
        How many of the epochs were taken from the checkpoint.
    """

    records: tuple[EpochRecord, ...]
    best_validation_loss: float | None
    n_resumed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopSettings:
    """What stays the same in all stages.

    Attributes
    ----------
    optimizer : {"adam", "adamw", "sgd"}
        sgd has momentum 0.9.
    weight_decay : float
    seed : int
    scope : {"layer", "global"}
        Of the pruning threshold.
    """

    optimizer: str
    weight_decay: float
    seed: int
    scope: str = "layer"

    def __post_init__(self) -> None:
        if self.optimizer not in _OPTIMIZERS:
            raise ValueError(f"optimizer must be one of {', '.join(_OPTIMIZERS)}, not {self.optimizer!r}")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise ValueError(f"weight_decay must not be negative, but is {self.weight_decay}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, but is {self.seed}")
        if self.scope not in _SCOPES:
            raise ValueError(f"scope must be one of {', '.join(_SCOPES)}, not {self.scope!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Epochs with one optimizer and one set of masks.

    Attributes
    ----------
    n_epochs : int
    lr : float
    schedule : {"cosine", "constant"}
    density : float or None
        Prune the prunable weights to this density first; None keeps the masks as they are.
    per_layer : tuple of (name, density)
        Densities of single tensors.
    choose_best : bool
        End with the weights of least validation loss, those at the start of the stage included.
    """

    n_epochs: int
    lr: float
    schedule: str
    density: float | None = None
    per_layer: tuple[tuple[str, float], ...] = ()
    choose_best: bool = False

    def __post_init__(self) -> None:
        if self.n_epochs < 0:
            raise ValueError(f"epochs must not be negative, but are {self.n_epochs}")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise ValueError(f"lr must be a positive number, not {self.lr}")
        if self.schedule not in _SCHEDULES:
            raise ValueError(f"schedule must be one of {', '.join(_SCHEDULES)}, not {self.schedule!r}")

    def lr_at(self, fraction: float) -> float:
        """Return the learning rate after a `fraction` of the stage."""
        if self.schedule == "constant":
            return self.lr
        return self.lr * 0.5 * (1.0 + math.cos(math.pi * fraction))


class TrainingLoop:
    """One run over all its stages.

    Each epoch starts from a random state of its own, derived from the seed, and ends with a checkpoint. A run
    that is interrupted anywhere and resumed therefore repeats at most one epoch and ends with the same
    weights, if the loader draws its order from torch's global generator or always gives the same order.

    Parameters
    ----------
    module : torch.nn.Module
        Trained in place.
    data : TrainingData
    stages : sequence of Stage
    settings : LoopSettings
    masks : mapping of parameter name to ndarray or tensor of bool
        Masks to begin with.
    prunable : sequence of str
        Parameters that stages with a density prune.
    progress : callable or None
        Called with an EpochRecord after each epoch.
    checkpoint : path-like or None
    resume : bool
        Whether to go on from an existing checkpoint.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        data: TrainingData,
        *,
        stages: Sequence[Stage],
        settings: LoopSettings,
        masks: Mapping[str, Any] | None = None,
        prunable: Sequence[str] = (),
        progress: Callable[[EpochRecord], None] | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        resume: bool = True,
    ) -> None:
        self._module = module
        self._data = data
        self._stages = tuple(stages)
        self._settings = settings
        self._prunable = tuple(prunable)
        self._progress = progress
        self._checkpoint = checkpoint
        self._resume = resume
        self._parameters = dict(module.named_parameters(remove_duplicate=False))
        self._keep = {name: self._checked_mask(name, mask) for name, mask in (masks or {}).items()}
        if not any(parameter.requires_grad for parameter in self._parameters.values()):
            raise ValueError("the module has no parameters to train")
        self._fingerprint = self._describe_run()
        self._records: list[EpochRecord] = []
        self._best: dict[str, torch.Tensor] | None = None
        self._best_loss = math.inf
        self._stage = 0
        self._epoch = 0
        self._optimizer: torch.optim.Optimizer | None = None

    @property
    def masks(self) -> dict[str, np.ndarray]:
        """The masks as they are now: True where a weight is kept."""
        return {name: keep.cpu().numpy().copy() for name, keep in self._keep.items()}

    def run(self) -> TrainingLog:
        """Train through all stages and return the history."""
        import torch

        was_training = self._module.training
        n_resumed = self._load() if self._resume else 0
        cuda = {p.device.index for p in self._parameters.values() if p.device.type == "cuda"}
        try:
            with torch.random.fork_rng(devices=sorted(cuda)):
                if n_resumed == 0:
                    self._save()
                while self._stage < len(self._stages):
                    self._run_stage(self._stages[self._stage])
        finally:
            self._zero_pruned()
            self._module.train(was_training)
        best = None if math.isinf(self._best_loss) else self._best_loss
        return TrainingLog(records=tuple(self._records), best_validation_loss=best, n_resumed=n_resumed)

    def _run_stage(self, stage: Stage) -> None:
        if self._optimizer is None:
            self._begin_stage(stage)
        while self._epoch < stage.n_epochs:
            self._run_epoch(stage)
            self._epoch += 1
            self._save()
        if stage.choose_best and self._best is not None:
            self._module.load_state_dict(self._best)
        self._stage, self._epoch, self._optimizer = self._stage + 1, 0, None
        self._save()

    def _begin_stage(self, stage: Stage) -> None:
        if stage.density is not None:
            self._prune(stage.density, dict(stage.per_layer))
        self._zero_pruned()
        self._optimizer = self._new_optimizer(stage.lr)
        if stage.choose_best and self._data.validation is not None:
            self._keep_best(self._validation_loss())

    def _run_epoch(self, stage: Stage) -> None:
        import torch

        place = self._stage * 1_000_003 + self._epoch
        torch.manual_seed((self._settings.seed * 1_000_000_007 + place) % (1 << 63))
        train_loss = self._train_epoch(stage)
        validation_loss = None
        if self._data.validation is not None and stage.choose_best:
            validation_loss = self._validation_loss()
            self._keep_best(validation_loss)
        record = EpochRecord(
            stage=self._stage,
            epoch=self._epoch,
            n_epochs=stage.n_epochs,
            density=self._density(),
            train_loss=train_loss,
            validation_loss=validation_loss,
            lr=stage.lr_at(self._epoch / stage.n_epochs),
        )
        self._records.append(record)
        if self._progress is not None:
            self._progress(record)

    def _train_epoch(self, stage: Stage) -> float:
        """Run one epoch; returns the mean loss."""
        assert self._optimizer is not None
        self._module.train()
        pruned = [(self._parameters[name], ~keep) for name, keep in self._keep.items()]
        n_batches = _length(self._data.loader)
        total, n_seen = 0.0, 0
        for index, (inputs, targets) in enumerate(self._data.loader):
            within = index / n_batches if n_batches else 0.0
            for group in self._optimizer.param_groups:
                group["lr"] = stage.lr_at((self._epoch + within) / stage.n_epochs)
            self._optimizer.zero_grad(set_to_none=True)
            value, n_items = self._batch_loss(inputs, targets)
            number = float(value.detach())
            if not math.isfinite(number):
                raise ConversionError(
                    f"training diverged: the loss is {number} in epoch {self._epoch} of stage {self._stage}; "
                    "try a smaller lr"
                )
            value.backward()
            for parameter, dropped in pruned:
                if parameter.grad is not None:
                    parameter.grad.masked_fill_(dropped, 0)
            self._optimizer.step()
            for parameter, dropped in pruned:
                parameter.data.masked_fill_(dropped, 0)
            total, n_seen = total + number * n_items, n_seen + n_items
        if n_seen == 0:
            raise ValueError("the loader gave no batch")
        return total / n_seen

    def _batch_loss(self, inputs: Any, targets: Any) -> tuple[Any, int]:
        device = next(iter(self._parameters.values())).device
        inputs, targets = _to_device(inputs, device), _to_device(targets, device)
        outputs = self._module(*inputs) if isinstance(inputs, (tuple, list)) else self._module(inputs)
        first = targets
        while isinstance(first, (tuple, list)) and first:
            first = first[0]
        n_items = int(first.shape[0]) if getattr(first, "ndim", 0) else 1
        return self._data.loss(outputs, targets), n_items

    def _validation_loss(self) -> float:
        import torch

        assert self._data.validation is not None
        self._module.eval()
        total, n_seen = 0.0, 0
        with torch.no_grad():
            for inputs, targets in self._data.validation:
                value, n_items = self._batch_loss(inputs, targets)
                total, n_seen = total + float(value) * n_items, n_seen + n_items
        if n_seen == 0:
            raise ValueError("validation gave no batch")
        return total / n_seen

    def _keep_best(self, loss: float) -> None:
        if loss < self._best_loss:
            self._best_loss = loss
            self._best = {name: tensor.detach().clone() for name, tensor in self._module.state_dict().items()}

    def _prune(self, density: float, per_layer: Mapping[str, float]) -> None:
        import torch

        weights = {name: self._parameters[name].detach().cpu().float().numpy() for name in self._prunable}
        masks = magnitude_masks(weights, density, scope=self._settings.scope, per_layer=per_layer)
        for name, mask in masks.items():
            keep = torch.from_numpy(mask).to(self._parameters[name].device)
            self._keep[name] = keep & self._keep[name] if name in self._keep else keep

    def _zero_pruned(self) -> None:
        for name, keep in self._keep.items():
            self._parameters[name].data.masked_fill_(~keep, 0)

    def _density(self) -> float:
        n_weights = sum(keep.numel() for keep in self._keep.values())
        return sum(int(keep.sum()) for keep in self._keep.values()) / n_weights if n_weights else 1.0

    def _checked_mask(self, name: str, mask: Any) -> torch.Tensor:
        import torch

        keep = torch.as_tensor(mask)
        if name not in self._parameters:
            raise ValueError(f"a mask names {name!r}, which is no parameter of the module")
        parameter = self._parameters[name]
        if keep.dtype is not torch.bool or keep.shape != parameter.shape:
            raise ValueError(
                f"mask of {name!r} must be bool of shape {tuple(parameter.shape)}, "
                f"not {keep.dtype} of shape {tuple(keep.shape)}"
            )
        return keep.detach().clone().to(parameter.device)

    def _new_optimizer(self, lr: float) -> torch.optim.Optimizer:
        import torch

        trained = [parameter for parameter in self._module.parameters() if parameter.requires_grad]
        decay = self._settings.weight_decay
        if self._settings.optimizer == "sgd":
            return torch.optim.SGD(trained, lr=lr, momentum=_SGD_MOMENTUM, weight_decay=decay)
        if self._settings.optimizer == "adamw":
            return torch.optim.AdamW(trained, lr=lr, weight_decay=decay)
        return torch.optim.Adam(trained, lr=lr, weight_decay=decay)

    def _describe_run(self) -> str:
        """Return text that differs for runs that must not share a checkpoint."""
        shapes = [(name, tuple(parameter.shape)) for name, parameter in self._parameters.items()]
        masks = [(name, zlib.crc32(mask.tobytes())) for name, mask in self.masks.items()]
        stages = [astuple(stage) for stage in self._stages]
        settings = astuple(self._settings)
        return repr((stages, settings, self._prunable, shapes, masks, self._data.validation is not None))

    def _save(self) -> None:
        if self._checkpoint is None:
            return
        content = {
            "fingerprint": self._fingerprint,
            "stage": self._stage,
            "epoch": self._epoch,
            "module": self._module.state_dict(),
            "optimizer": None if self._optimizer is None else self._optimizer.state_dict(),
            "masks": self._keep,
            "best": self._best,
            "best_loss": self._best_loss,
            "records": [astuple(record) for record in self._records],
        }
        save_checkpoint(self._checkpoint, content)

    def _load(self) -> int:
        """Take up the checkpoint if there is one; returns how many epochs it has."""
        content = None if self._checkpoint is None else load_checkpoint(self._checkpoint, self._fingerprint)
        if content is None:
            return 0
        self._module.load_state_dict(content["module"])
        self._stage, self._epoch = content["stage"], content["epoch"]
        self._keep = {name: keep.to(self._parameters[name].device) for name, keep in content["masks"].items()}
        self._best, self._best_loss = content["best"], content["best_loss"]
        fields = EpochRecord.__dataclass_fields__
        self._records = [EpochRecord(**dict(zip(fields, row, strict=True))) for row in content["records"]]
        if content["optimizer"] is not None:
            self._optimizer = self._new_optimizer(self._stages[self._stage].lr)
            self._optimizer.load_state_dict(content["optimizer"])
        return len(self._records)


def _length(batches: Any) -> int:
    """Return the number of batches, or 0 if it is not known."""
    try:
        return len(batches)
    except TypeError:
        return 0


def _to_device(value: Any, device: torch.device) -> Any:
    if isinstance(value, (tuple, list)):
        return [_to_device(item, device) for item in value]
    return value.to(device, non_blocking=True) if hasattr(value, "to") else value
