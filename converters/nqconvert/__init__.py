"""From models to .nqz files and back to ONNX.

Importing this package is cheap; torch, onnx and onnxruntime are loaded by the functions that need them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .comparison import compare
    from .comparison_table import Comparison
    from .conversion import convert
    from .export import export_onnx
    from .repair.settings import RepairSettings
    from .report import Report
    from .sensitivity import measure_sensitivities
    from .sensitivity.images import ImageFolder
    from .sources import ModelSource, load_source
    from .training.fine_tuning import FineTuning
    from .training.training_data import Training

__all__ = [
    "Comparison",
    "FineTuning",
    "ImageFolder",
    "ModelSource",
    "RepairSettings",
    "Report",
    "Training",
    "compare",
    "convert",
    "export_onnx",
    "load_source",
    "measure_sensitivities",
]

_HOMES = {
    "Comparison": "comparison_table",
    "FineTuning": "training.fine_tuning",
    "ImageFolder": "sensitivity.images",
    "ModelSource": "sources",
    "RepairSettings": "repair.settings",
    "Report": "report",
    "Training": "training.training_data",
    "compare": "comparison",
    "convert": "conversion",
    "export_onnx": "export",
    "load_source": "sources",
    "measure_sensitivities": "sensitivity",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
