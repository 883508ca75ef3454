"""Tell whether two ONNX models are the same up to names of inner values and places of their constants."""

from __future__ import annotations

import os
from dataclasses import dataclass

from nqformat.dtypes import storage_bits

__all__ = ["ModelComparison", "compare_models"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelComparison:
    """How two models differ.

    Attributes
    ----------
    same_graph : bool
        Same nodes in the same order with the same attributes and connections, same inputs and outputs.
    n_tensors : int
        Tensors of the first model.
    differing : tuple of str
        Tensors that only one model has, or that have other bits.
    """

    same_graph: bool
    n_tensors: int
    differing: tuple[str, ...]


def compare_models(first: str | os.PathLike[str], second: str | os.PathLike[str]) -> ModelComparison:
    """Compare two .onnx files: graphs with constants hoisted and inner names shortened, and tensors by bits.

    Raises
    ------
    ConversionError
        If a file is no ONNX model.
    """
    from nqconvert.sources import load_source

    one, other = (load_source(path, fold_batch_norms=False) for path in (first, second))
    bits = [{n: storage_bits(a).tobytes() for n, a in source.tensors.items()} for source in (one, other)]
    names = {*bits[0], *bits[1]}
    return ModelComparison(
        same_graph=one.graph == other.graph,
        n_tensors=len(one.tensors),
        differing=tuple(sorted(name for name in names if bits[0].get(name) != bits[1].get(name))),
    )
