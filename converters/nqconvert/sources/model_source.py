"""A model as the converter takes it, wherever it came from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from nqformat.tensor import Tensor, ViewTensor

Runner = Callable[[Mapping[str, np.ndarray]], list[np.ndarray]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """Tensors of a model, its graph if it has one, and a way to run the original.

    Attributes
    ----------
    tensors : dict of str to ndarray
        Each content once.
    views : dict of str to ViewTensor
        Further names for stored tensors: tied or transposed.
    settled : dict of str to Tensor
        What tensors are stored as whatever the method, and further tensors that this needs.
    graph : bytes or None
        Slimmed ONNX ModelProto; None for a state dict.
    reasons : dict of str to str
        Why a weight was left inside the graph, by name.
    run : callable or None
        Computes the outputs of the original model from arrays by input name.
    input_names, output_names : tuple of str
    example_feeds : dict of str to ndarray
        The example inputs by input name; empty when none were given.
    notes : tuple of str
        What the user should know.
    """

    tensors: dict[str, np.ndarray]
    views: dict[str, ViewTensor] = field(default_factory=dict)
    settled: dict[str, Tensor] = field(default_factory=dict)
    graph: bytes | None = None
    reasons: dict[str, str] = field(default_factory=dict)
    run: Runner | None = None
    input_names: tuple[str, ...] = ()
    output_names: tuple[str, ...] = ()
    example_feeds: dict[str, np.ndarray] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
