"""Packages that the extras bring, imported by the functions that need them."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from .errors import MissingDependencyError

__all__ = ["require_package"]

_EXTRA_OF_PACKAGE = {
    "PIL": "images",
    "matplotlib": "report",
    "ml_dtypes": "convert",
    "onnx": "convert",
    "onnxruntime": "ort",
    "onnxscript": "convert",
    "optuna": "tune",
    "safetensors": "convert",
    "torch": "convert",
    "zstandard": "dev",
}


def require_package(name: str) -> Any:
    """Import and return a package that an extra brings, or a module of it.

    Parameters
    ----------
    name : str
        Such as ``"torch"`` or ``"safetensors.numpy"``.

    Raises
    ------
    MissingDependencyError
        If it cannot be imported; names the package and its extra.

    Examples
    --------
    >>> require_package("ml_dtypes").__name__
    'ml_dtypes'
    """
    package = name.partition(".")[0]
    extra = _EXTRA_OF_PACKAGE[package]
    try:
        return import_module(name)
    except ImportError:
        raise MissingDependencyError(package, extra) from None
