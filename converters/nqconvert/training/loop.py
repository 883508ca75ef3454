"""The loop behind retraining and pruning: stages of epochs, masked weights, techniques, checkpoints."""

from __future__ import annotations

import copy
import math
import os
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple
from typing import TYPE_CHECKING, Any

import numpy as np

from nqformat.errors import ConversionError

from .batch_loss import batch_loss
from .checkpoint import load_checkpoint, save_checkpoint
from .pruning.magnitude import magnitude_masks
from .records import EpochRecord, TrainingLog
from .stages import LoopSettings, Stage
from .technique import Place, Run, Technique
from .training_data import TrainingData

if TYPE_CHECKING:
    import torch

__all__ = ["TrainingLoop"]

_SGD_MOMENTUM = 0.9


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
    techniques : sequence of Technique
        Methods that take part in every stage, in this order.
    patience : int or None
        A stage that chooses by validation ends after so many epochs without a better one.
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
        techniques: Sequence[Technique] = (),
        patience: int | None = None,
        progress: Callable[[EpochRecord], None] | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        resume: bool = True,
    ) -> None:
        self._module = module
        self._data = data
        self._stages = tuple(stages)
        self._settings = settings
        self._prunable = tuple(prunable)
        self._techniques = tuple(techniques)
        if patience is not None and patience < 1:
            raise ValueError(f"patience must be at least 1, not {patience}")
        self._patience = patience
        self._progress = progress
        self._checkpoint = checkpoint
        self._resume = resume
        self._parameters = dict(module.named_parameters(remove_duplicate=False))
        self._keep = {name: self._checked_mask(name, mask) for name, mask in (masks or {}).items()}
        if not any(parameter.requires_grad for parameter in self._parameters.values()):
            raise ValueError("the module has no parameters to train")
        self._fingerprint = self._describe_run()
        self._records: list[EpochRecord] = []
        self._best: dict[str, Any] | None = None
        self._best_loss = math.inf
        self._seconds: list[float] = []
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
                self._settle()
        finally:
            for technique in self._techniques:
                technique.close()
            self._zero_pruned()
            self._module.train(was_training)
        best = None if math.isinf(self._best_loss) else self._best_loss
        return TrainingLog(records=tuple(self._records), best_validation_loss=best, n_resumed=n_resumed)

    def _run_stage(self, stage: Stage) -> None:
        if self._optimizer is None:
            self._begin_stage(stage)
        while self._epoch < stage.n_epochs and not self._is_stale():
            self._run_epoch(stage)
            self._epoch += 1
            self._save()
        if stage.choose_best and self._best is not None:
            self._module.load_state_dict(self._best["module"])
            self._restore_techniques(self._best["techniques"])
        self._stage, self._epoch, self._optimizer = self._stage + 1, 0, None
        self._save()

    def _is_stale(self) -> bool:
        """Tell whether the last epochs of this stage, as many as patience has, brought nothing better."""
        if self._patience is None or math.isinf(self._best_loss):
            return False
        losses = [r.validation_loss for r in self._records if r.stage == self._stage][-self._patience :]
        found = [loss for loss in losses if loss is not None]
        return len(found) == self._patience and min(found) > self._best_loss

    def _begin_stage(self, stage: Stage) -> None:
        if stage.density is not None:
            self._prune(stage.density, dict(stage.per_layer))
        self._zero_pruned()
        self._optimizer = self._new_optimizer(stage.lr)
        for technique in self._techniques:
            technique.begin(self._state_of_run(), self._stage)
        if stage.choose_best:
            self._best, self._best_loss = None, math.inf
        if stage.choose_best and self._data.validation is not None:
            self._keep_best(self._validation_loss())

    def _run_epoch(self, stage: Stage) -> None:
        import torch

        place = self._stage * 1_000_003 + self._epoch
        torch.manual_seed((self._settings.seed * 1_000_000_007 + place) % (1 << 63))
        started = time.perf_counter()
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
            seconds=time.perf_counter() - started,
            seconds_left=self._seconds_left(time.perf_counter() - started),
        )
        self._records.append(record)
        if self._progress is not None:
            self._progress(record)

    def _seconds_left(self, seconds: float) -> float:
        """Estimate the rest of the run from the epochs of this process."""
        self._seconds.append(seconds)
        n_left = sum(stage.n_epochs for stage in self._stages[self._stage :]) - self._epoch - 1
        return n_left * float(np.median(self._seconds[-3:]))

    def _train_epoch(self, stage: Stage) -> float:
        """Run one epoch; returns the mean loss."""
        self._module.train()
        n_batches = _length(self._data.loader)
        total, n_seen = 0.0, 0
        for index, (inputs, targets) in enumerate(self._data.loader):
            within = index / n_batches if n_batches else 0.0
            fraction = (self._epoch + within) / stage.n_epochs
            place = Place(stage=self._stage, step=self._epoch * n_batches + index, fraction=fraction)
            number, n_here = self._step(stage, place, inputs, targets)
            total, n_seen = total + number * n_here, n_seen + n_here
        if n_seen == 0:
            raise ValueError("the loader gave no batch")
        return total / n_seen

    def _step(self, stage: Stage, place: Place, inputs: Any, targets: Any) -> tuple[float, int]:
        """Train on one batch; returns its loss and how many items it has."""
        assert self._optimizer is not None
        for group in self._optimizer.param_groups:
            group["lr"] = group["initial_lr"] * stage.lr_at(place.fraction) / stage.lr
        self._optimizer.zero_grad(set_to_none=True)
        run = self._state_of_run()
        for technique in self._techniques:
            technique.before_step(run, place)
        with self._effective_weights():
            value, n_here = batch_loss(self._module, self._data.loss, inputs, targets)
            number = float(value.detach())
            if not math.isfinite(number):
                raise ConversionError(
                    f"training diverged: the loss is {number} in epoch {self._epoch} of stage {self._stage}; "
                    "try a smaller lr"
                )
            value.backward()
        for technique in self._techniques:
            penalty = technique.penalty(run)
            if penalty is not None:
                penalty.backward()  # type: ignore[no-untyped-call]
        for technique in self._techniques:
            technique.after_backward(run)
        pruned = [(self._parameters[name], ~keep) for name, keep in self._keep.items()]
        for parameter, dropped in pruned:
            if parameter.grad is not None:
                parameter.grad.masked_fill_(dropped, 0)
        self._optimizer.step()
        for parameter, dropped in pruned:
            parameter.data.masked_fill_(dropped, 0)
        for technique in self._techniques:
            technique.after_step(run, place)
        return number, n_here

    def _state_of_run(self) -> Run:
        assert self._optimizer is not None
        return Run(module=self._module, parameters=self._parameters, optimizer=self._optimizer)

    def _effective_values(self) -> dict[str, torch.Tensor]:
        """Return what the network computes with, for the parameters that techniques change."""
        latent = {name: parameter.detach() for name, parameter in self._parameters.items()}
        values = dict(latent)
        for technique in self._techniques:
            technique.effective(values)
        return {name: value for name, value in values.items() if value is not latent[name]}

    @contextmanager
    def _effective_weights(self) -> Iterator[None]:
        """Put the effective weights into the module for as long as the context lasts."""
        values = self._effective_values() if self._techniques else {}
        latent = {name: self._parameters[name].data for name in values}
        try:
            for name, value in values.items():
                self._parameters[name].data = value
            yield
        finally:
            for name, value in latent.items():
                self._parameters[name].data = value

    def _settle(self) -> None:
        """Leave the effective weights in the module."""
        for name, value in self._effective_values().items() if self._techniques else ():
            self._parameters[name].data.copy_(value)

    def _restore_techniques(self, states: Sequence[dict[str, Any]]) -> None:
        for technique, state in zip(self._techniques, states, strict=True):
            technique.restore(state)

    def _validation_loss(self) -> float:
        import torch

        assert self._data.validation is not None
        self._module.eval()
        total, n_seen = 0.0, 0
        with torch.no_grad(), self._effective_weights():
            for inputs, targets in self._data.validation:
                value, n_here = batch_loss(self._module, self._data.loss, inputs, targets)
                total, n_seen = total + float(value) * n_here, n_seen + n_here
        if n_seen == 0:
            raise ValueError("validation gave no batch")
        return total / n_seen

    def _keep_best(self, loss: float) -> None:
        if loss < self._best_loss:
            self._best_loss = loss
            weights = {name: tensor.detach().clone() for name, tensor in self._module.state_dict().items()}
            states = [copy.deepcopy(technique.state()) for technique in self._techniques]
            self._best = {"module": weights, "techniques": states}

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
        for technique in self._techniques:
            if (density := technique.density()) is not None:
                return density
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
        groups: list[dict[str, Any]] = [{"params": trained, "lr": lr}]
        for technique in self._techniques:
            groups += ({"weight_decay": 0.0, **group} for group in technique.groups(lr))
        for group in groups:
            group["initial_lr"] = group["lr"]
        decay = self._settings.weight_decay
        if self._settings.optimizer == "sgd":
            return torch.optim.SGD(groups, lr=lr, momentum=_SGD_MOMENTUM, weight_decay=decay)
        if self._settings.optimizer == "adamw":
            return torch.optim.AdamW(groups, lr=lr, weight_decay=decay)
        return torch.optim.Adam(groups, lr=lr, weight_decay=decay)

    def _describe_run(self) -> str:
        """Return text that differs for runs that must not share a checkpoint."""
        shapes = [(name, tuple(parameter.shape)) for name, parameter in self._parameters.items()]
        masks = [(name, zlib.crc32(mask.tobytes())) for name, mask in self.masks.items()]
        stages = [astuple(stage) for stage in self._stages]
        settings = astuple(self._settings)
        described = (stages, settings, self._prunable, shapes, masks, self._data.validation is not None)
        return repr((*described, [technique.describe() for technique in self._techniques]))

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
            "techniques": [technique.state() for technique in self._techniques],
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
        self._restore_techniques(content["techniques"])
        if content["optimizer"] is not None:
            self._optimizer = self._new_optimizer(self._stages[self._stage].lr)
            self._optimizer.load_state_dict(content["optimizer"])
            for technique in self._techniques:
                technique.resume(self._state_of_run())
        return len(self._records)


def _length(batches: Any) -> int:
    """Return the number of batches, or 0 if it is not known."""
    try:
        return len(batches)
    except TypeError:
        return 0
