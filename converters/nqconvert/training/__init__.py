"""Retraining: pruning, sharing and quantizing the weights of any module while it trains."""

from __future__ import annotations

from .pruning.gradual import PruningResult, prune_and_retrain
from .records import EpochRecord, TrainingLog
from .retraining import retrain
from .weight_names import prunable_weights

__all__ = ["EpochRecord", "PruningResult", "TrainingLog", "prunable_weights", "prune_and_retrain", "retrain"]
