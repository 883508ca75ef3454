"""What a conversion does before it quantizes: a module is retrained, or tensors are pruned by magnitude."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from nqconvert.presets import ConvertSettings
from nqconvert.quantization import is_weight
from nqformat.errors import ConversionError

from .batch_loss import answers_of
from .batch_norms import fold_batch_norms
from .methods import PRESET_METHODS, SETTLING_METHODS, Retrained, retrain_by_method
from .pruning import apply_masks, magnitude_masks
from .training_data import Training

__all__ = ["DEFAULT_DENSITY", "prune_module", "prune_tensors"]

NEEDS_TRAINING = ("sparse-grids", "soft-weight-sharing", "adaptive", "hashed")
_FOLDING_TOLERANCE = 1e-3
DEFAULT_DENSITY = 0.1
"""Share of weights kept if retraining data is given and no density (Han et al. keep 8 to 11 %)."""


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

    own = PRESET_METHODS.get(settings.preset)
    if settings.preset in NEEDS_TRAINING and training.method not in (None, own):
        raise ConversionError(
            f"preset {settings.preset} retrains by its own method, but the training data asks for "
            f"{training.method!r}: leave out one of the two"
        )
    method = training.method or own or "magnitude"
    pruned = copy.deepcopy(model) if weights is None else module_with_weights(model, weights)
    if method in SETTLING_METHODS:
        pruned = _without_batch_norms(pruned, training, progress)
    was_training = pruned.training
    pruned.train()
    done = retrain_by_method(
        method,
        pruned,
        training,
        density=DEFAULT_DENSITY if settings.density is None else settings.density,
        seed=settings.seed,
        tell=progress,
    )
    pruned.train(was_training)
    return pruned, done


def _without_batch_norms(module: Any, training: Training, progress: Callable[[str], None]) -> Any:
    """Fold batch norms, which the exporter would do afterwards; only if the first batch's outputs stay."""
    folded, names = fold_batch_norms(module)
    if not names:
        return module
    for inputs, _ in training.loader:
        if not _answer_alike(module, folded, inputs):
            return module
        break
    progress(f"batch norms folded into the layers before them: {len(names)}")
    return folded


def _answer_alike(module: Any, other: Any, inputs: Any) -> bool:
    first, second = _answers(module, inputs), _answers(other, inputs)
    scale = max((float(value.abs().max()) for value in first if value.numel()), default=0.0)
    pairs = zip(first, second, strict=True)
    return all(float((a - b).abs().max()) <= _FOLDING_TOLERANCE * scale for a, b in pairs if a.numel())


def _answers(module: Any, inputs: Any) -> list[Any]:
    """Return the tensors among the outputs."""
    import torch

    from nqconvert.sources.state_dict import is_torch_tensor
    from nqconvert.sources.torch_module import evaluation_mode

    with evaluation_mode(module), torch.no_grad():
        outputs = answers_of(module, inputs)
    return [leaf for leaf in torch.utils._pytree.tree_leaves(outputs) if is_torch_tensor(leaf)]


def prune_tensors(tensors: Mapping[str, np.ndarray], density: float) -> dict[str, np.ndarray]:
    """Prune every weight tensor by magnitude, without retraining; the rest stays as it is."""
    weights = {name: array for name, array in tensors.items() if is_weight(array)}
    return {**tensors, **apply_masks(weights, magnitude_masks(weights, density))}
