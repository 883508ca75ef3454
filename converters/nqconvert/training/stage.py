"""The pruning stage: a module with retraining, or tensors by magnitude alone."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from nqconvert.presets import ConvertSettings
from nqconvert.quantization import is_weight
from nqformat.errors import ConversionError

from .pruning import apply_masks, magnitude_masks
from .training_data import TrainingData

if TYPE_CHECKING:
    from .methods import Retrained

__all__ = ["DEFAULT_DENSITY", "Training", "prune_module", "prune_tensors"]

NEEDS_TRAINING = ("soft-weight-sharing", "adaptive", "hashed")
DEFAULT_DENSITY = 0.1
"""Share of weights kept if retraining data is given and no density (Han et al. keep 8 to 11 %)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Training(TrainingData):
    """What retraining needs, besides the data.

    Attributes
    ----------
    method : str or None
        A name of :data:`nqconvert.training.methods.METHODS`: ``magnitude``, ``surgery``, ``variational``
        (prune), ``soft-weight-sharing``, ``inq``, ``adaptive``, ``rate`` (quantize; the file keeps what they
        make with method ``none``, unless the exporter folds a batch norm into them: fold it before),
        ``hashed`` (the same with any method). None:
        what the preset is about, else ``magnitude``.
    epochs : int
        Of all methods but ``magnitude`` and ``adaptive``.
    steps, epochs_per_step : int
        Pruning steps, and epochs after each (``magnitude``).
    final_epochs : int or None
        Epochs after the last step's own; None: as many as in all steps together.
    lr : float
    scope : {"layer", "global"}
        The same density in each layer, or one magnitude threshold for all: smaller for networks whose
        layers have like scales, dangerous for others.
    per_layer : mapping of parameter name to float
        Final densities of single layers.
    patience : int or None
        Stop after so many epochs without a better loss on `validation`, in methods that prune.
    options : mapping of str to number
        Further settings of the method, such as ``tau`` of soft weight-sharing; those of its settings class.
    checkpoint : path-like, optional
        File from which an interrupted run goes on.
    """

    method: str | None = None
    epochs: int = 30
    steps: int = 10
    epochs_per_step: int = 2
    final_epochs: int | None = None
    lr: float = 1e-3
    scope: str = "layer"
    per_layer: Mapping[str, float] = field(default_factory=dict)
    patience: int | None = None
    options: Mapping[str, float] = field(default_factory=dict)
    checkpoint: str | os.PathLike[str] | None = None


def prune_module(
    model: Any,
    settings: ConvertSettings,
    training: Training | None,
    weights: Any,
    progress: Callable[[str], None],
) -> tuple[Any, Retrained] | None:
    """Retrain a copy of a torch module by the method that the training data or the preset names.

    Returns
    -------
    (torch.nn.Module, Retrained) or None
        None if there is nothing to train on: then `model` is used as it is.

    Raises
    ------
    ConversionError
        If training data is given for something that is no module, or missing for a preset that retrains, or
        if data and preset name different methods.
    """
    if training is None:
        if settings.preset in NEEDS_TRAINING:
            raise ConversionError(
                f"preset {settings.preset} retrains the network: it needs training data (Training, --train)"
            )
        return None
    if not hasattr(model, "named_parameters"):
        raise ConversionError("retraining needs a torch module; files and state dicts cannot be trained")
    from nqconvert.sources.torch_module import module_with_weights

    from .methods import PRESET_METHODS, retrain_by_method

    own = PRESET_METHODS.get(settings.preset)
    if settings.preset in NEEDS_TRAINING and training.method not in (None, own):
        raise ConversionError(
            f"preset {settings.preset} retrains by its own method, but the training data asks for "
            f"{training.method!r}: leave out one of the two"
        )
    pruned = copy.deepcopy(model) if weights is None else module_with_weights(model, weights)
    was_training = pruned.training
    pruned.train()
    done = retrain_by_method(
        training.method or own or "magnitude",
        pruned,
        training,
        density=DEFAULT_DENSITY if settings.density is None else settings.density,
        seed=settings.seed,
        tell=progress,
    )
    pruned.train(was_training)
    return pruned, done


def prune_tensors(tensors: Mapping[str, np.ndarray], density: float) -> dict[str, np.ndarray]:
    """Prune every weight tensor by magnitude, without retraining; the rest stays as it is."""
    weights = {name: array for name, array in tensors.items() if is_weight(array)}
    return {**tensors, **apply_masks(weights, magnitude_masks(weights, density))}
