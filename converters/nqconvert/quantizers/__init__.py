"""Quantizers by name; other packages add theirs as entry points of the group ``nqconvert.quantizers``."""

from __future__ import annotations

from typing import cast

from nqconvert.method_registry import MethodRegistry

from .settings import Quantizer, QuantizerSettings

__all__ = ["ENTRY_POINT_GROUP", "Quantizer", "QuantizerSettings", "get_quantizer", "quantizer_names"]

ENTRY_POINT_GROUP = "nqconvert.quantizers"

_BUILT_IN = {
    "ecsq": "nqconvert.quantizers.ecsq:quantize_ecsq",
    "hessian-kmeans": "nqconvert.quantizers.kmeans:quantize_hessian_kmeans",
    "inq": "nqconvert.quantizers.inq:quantize_inq",
    "kmeans": "nqconvert.quantizers.kmeans:quantize_kmeans",
    "none": "nqconvert.quantizers.lossless:quantize_lossless",
    "obs": "nqconvert.obs:quantize_obs",
    "uniform": "nqconvert.quantizers.uniform:quantize_uniform",
    "vq": "nqconvert.quantizers.vq:quantize_vq",
}

_METHODS = MethodRegistry(kind="quantizer", group=ENTRY_POINT_GROUP, built_in=_BUILT_IN)


def quantizer_names() -> list[str]:
    """Return the names that :func:`get_quantizer` knows, sorted.

    Examples
    --------
    >>> {"kmeans", "none"} <= set(quantizer_names())
    True
    """
    return _METHODS.names()


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
    return cast(Quantizer, _METHODS.find(name))
