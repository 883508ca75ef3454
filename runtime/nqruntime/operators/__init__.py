"""Operators of the native engine, a small function each."""

from . import (
    activations,
    arithmetic,
    comparison,
    convolution,
    creation,
    indexing,
    linear,
    normalization,
    padding,
    pooling,
    recurrent,
    reductions,
    resizing,
    shapes,
    transposed_convolution,
)
from .registry import MAX_OPSET, NodeContext, Prepared, Run, find_operator, operator_names

__all__ = [
    "MAX_OPSET",
    "NodeContext",
    "Prepared",
    "Run",
    "activations",
    "arithmetic",
    "comparison",
    "convolution",
    "creation",
    "find_operator",
    "indexing",
    "linear",
    "normalization",
    "operator_names",
    "padding",
    "pooling",
    "recurrent",
    "reductions",
    "resizing",
    "shapes",
    "transposed_convolution",
]
