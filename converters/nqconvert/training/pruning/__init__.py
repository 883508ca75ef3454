"""Pruning: which weights stay, and training while they go."""

from __future__ import annotations

from .magnitude import apply_masks, magnitude_masks

__all__ = ["apply_masks", "magnitude_masks"]
