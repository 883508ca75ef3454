"""Retraining: pruning, sharing and quantizing the weights of any module while it trains.

Importing this package is cheap; torch is loaded by the functions that need it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .batch_norms import fold_batch_norms
    from .distillation import Taught, distillation_loss
    from .pruning.gradual import PruningResult, prune_and_retrain
    from .pruning.heads import HeadGroup, head_scores, heads_to_keep, shrink_heads
    from .pruning.structured import shrink, units_to_keep
    from .pruning.surgery import SurgerySettings, prune_by_surgery
    from .pruning.variational import VariationalSettings, prune_variational
    from .quantized.adaptive import AdaptiveSettings, quantize_adaptively
    from .quantized.entropy import RateSettings, retrain_for_rate
    from .quantized.inq import quantize_incrementally
    from .quantized.straight_through import GridSettings, StraightThrough
    from .records import EpochRecord, TrainingLog
    from .retraining import retrain
    from .sharing.hashed import save_hashed, train_hashed
    from .sharing.soft_weight_sharing import SharingSettings, share_weights_softly
    from .sparse_grids import SparseGridSettings, train_sparse_on_grids
    from .weight_names import prunable_weights

__all__ = [
    "AdaptiveSettings",
    "EpochRecord",
    "GridSettings",
    "HeadGroup",
    "PruningResult",
    "RateSettings",
    "SharingSettings",
    "SparseGridSettings",
    "StraightThrough",
    "SurgerySettings",
    "Taught",
    "TrainingLog",
    "VariationalSettings",
    "distillation_loss",
    "fold_batch_norms",
    "head_scores",
    "heads_to_keep",
    "prunable_weights",
    "prune_and_retrain",
    "prune_by_surgery",
    "prune_variational",
    "quantize_adaptively",
    "quantize_incrementally",
    "retrain",
    "retrain_for_rate",
    "save_hashed",
    "share_weights_softly",
    "shrink",
    "shrink_heads",
    "train_hashed",
    "train_sparse_on_grids",
    "units_to_keep",
]

_HOMES = {
    "AdaptiveSettings": "quantized.adaptive",
    "EpochRecord": "records",
    "GridSettings": "quantized.straight_through",
    "HeadGroup": "pruning.heads",
    "PruningResult": "pruning.gradual",
    "RateSettings": "quantized.entropy",
    "SharingSettings": "sharing.soft_weight_sharing",
    "SparseGridSettings": "sparse_grids",
    "StraightThrough": "quantized.straight_through",
    "SurgerySettings": "pruning.surgery",
    "Taught": "distillation",
    "TrainingLog": "records",
    "VariationalSettings": "pruning.variational",
    "distillation_loss": "distillation",
    "fold_batch_norms": "batch_norms",
    "head_scores": "pruning.heads",
    "heads_to_keep": "pruning.heads",
    "prunable_weights": "weight_names",
    "prune_and_retrain": "pruning.gradual",
    "prune_by_surgery": "pruning.surgery",
    "prune_variational": "pruning.variational",
    "quantize_adaptively": "quantized.adaptive",
    "quantize_incrementally": "quantized.inq",
    "retrain": "retraining",
    "retrain_for_rate": "quantized.entropy",
    "save_hashed": "sharing.hashed",
    "share_weights_softly": "sharing.soft_weight_sharing",
    "shrink": "pruning.structured",
    "shrink_heads": "pruning.heads",
    "train_hashed": "sharing.hashed",
    "train_sparse_on_grids": "sparse_grids",
    "units_to_keep": "pruning.structured",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
