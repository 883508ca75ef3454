"""Quantizers by name; other packages add theirs as entry points of the group ``nqconvert.quantizers``."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from typing import cast

from .settings import Quantizer, QuantizerSettings

__all__ = ["ENTRY_POINT_GROUP", "Quantizer", "QuantizerSettings", "get_quantizer", "quantizer_names"]

ENTRY_POINT_GROUP = "nqconvert.quantizers"

_BUILT_IN = {
    "ecsq": "nqconvert.quantizers.ecsq:quantize_ecsq",
    "hessian-kmeans": "nqconvert.quantizers.kmeans:quantize_hessian_kmeans",
    "inq": "nqconvert.quantizers.inq:quantize_inq",
    "kmeans": "nqconvert.quantizers.kmeans:quantize_kmeans",
    "none": "nqconvert.quantizers.lossless:quantize_lossless",
    "uniform": "nqconvert.quantizers.uniform:quantize_uniform",
    "vq": "nqconvert.quantizers.vq:quantize_vq",
}


def quantizer_names() -> list[str]:
    """Return the names that :func:`get_quantizer` knows, sorted.

    Examples
    --------
    >>> {"kmeans", "none"} <= set(quantizer_names())
    True
    """
    return sorted(_BUILT_IN.keys() | {point.name for point in entry_points(group=ENTRY_POINT_GROUP)})


def get_quantizer(name: str) -> Quantizer:
    """Return the quantizer registered as `name`; our own names cannot be taken over by other packages.

    Raises
    ------
    ValueError
        If no quantizer has this name; the message lists those that exist.

    Examples
    --------
    >>> get_quantizer("kmeans").__name__
    'quantize_kmeans'
    """
    if name in _BUILT_IN:
        module, _, attribute = _BUILT_IN[name].partition(":")
        return cast(Quantizer, getattr(import_module(module), attribute))
    for point in entry_points(group=ENTRY_POINT_GROUP, name=name):
        return cast(Quantizer, point.load())
    raise ValueError(f"unknown quantizer {name!r}; known: {', '.join(quantizer_names())}")
