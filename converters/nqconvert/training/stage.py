"""The pruning stage: a module with retraining, or tensors by magnitude alone."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nqconvert.presets import ConvertSettings
from nqconvert.quantization import is_weight
from nqformat.errors import ConversionError

from .pruning import apply_masks, magnitude_masks
from .training_data import TrainingData

__all__ = ["DEFAULT_DENSITY", "Training", "prune_module", "prune_tensors"]

DEFAULT_DENSITY = 0.1
"""Share of weights kept if retraining data is given and no density (Han et al. keep 8 to 11 %)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Training(TrainingData):
    """What pruning with retraining needs, besides the data.

    Attributes
    ----------
    steps, epochs_per_step : int
        Pruning steps, and epochs after each.
    final_epochs : int or None
        Epochs after the last step's own; None: as many as in all steps together.
    lr : float
    scope : {"layer", "global"}
        The same density in each layer, or one magnitude threshold for all: smaller for networks whose
        layers have like scales, dangerous for others.
    per_layer : mapping of parameter name to float
        Final densities of single layers.
    checkpoint : path-like, optional
        File from which an interrupted run goes on.
    """

    steps: int = 10
    epochs_per_step: int = 2
    final_epochs: int | None = None
    lr: float = 1e-3
    scope: str = "layer"
    per_layer: Mapping[str, float] = field(default_factory=dict)
    checkpoint: str | os.PathLike[str] | None = None


def prune_module(
    model: Any,
    settings: ConvertSettings,
    training: Training | None,
    weights: Any,
    progress: Callable[[str], None],
) -> tuple[Any | None, tuple[str, ...]]:
    """Prune and retrain a copy of a torch module.

    Returns
    -------
    (torch.nn.Module or None, notes)
        None if there is nothing to train on: then `model` is used as it is.

    Raises
    ------
    ConversionError
        If training data is given for something that is no module.
    """
    if training is None:
        return None, ()
    if not hasattr(model, "named_parameters"):
        raise ConversionError("retraining needs a torch module; files and state dicts cannot be trained")
    from nqconvert.sources.torch_module import module_with_weights
    from nqconvert.training import prune_and_retrain

    pruned = copy.deepcopy(model) if weights is None else module_with_weights(model, weights)
    was_training = pruned.training
    pruned.train()
    density = DEFAULT_DENSITY if settings.density is None else settings.density
    n_epochs = training.steps * training.epochs_per_step
    n_epochs += n_epochs if training.final_epochs is None else training.final_epochs
    done = 0

    def report(record: Any) -> None:
        nonlocal done
        done += 1
        progress(
            f"pruning and retraining: epoch {done} of {n_epochs}, density {100 * record.density:.1f} %, "
            f"loss {record.train_loss:.4f}"
        )

    result = prune_and_retrain(
        pruned,
        training.loader,
        training.loss,
        density=density,
        per_layer=training.per_layer,
        scope=training.scope,
        steps=training.steps,
        epochs_per_step=training.epochs_per_step,
        final_epochs=training.final_epochs,
        lr=training.lr,
        seed=settings.seed,
        validation=training.validation,
        checkpoint=training.checkpoint,
        progress=report,
    )
    pruned.train(was_training)
    return pruned, (f"pruned to {100 * result.density:.1f} % of the weights and retrained {n_epochs} epochs",)


def prune_tensors(tensors: Mapping[str, np.ndarray], density: float) -> dict[str, np.ndarray]:
    """Prune every weight tensor by magnitude, without retraining; the rest stays as it is."""
    weights = {name: array for name, array in tensors.items() if is_weight(array)}
    return {**tensors, **apply_masks(weights, magnitude_masks(weights, density))}
