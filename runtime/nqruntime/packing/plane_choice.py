"""Ways to store the weights of a convolution for the kernels that can take them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nqruntime.symbols import MatrixWeights

from .dense_planes import DensePlanes, pack_dense_planes
from .depthwise import DepthwisePlanes, pack_depthwise_planes
from .int8_planes import Int8Planes, pack_int8_planes
from .int8_weights import int8_weights
from .planes import MOST_TAPS, SparsePlanes, Taps, pack_sparse_planes

_BYTE_ENTRIES = 256

Weights = SparsePlanes | DensePlanes | DepthwisePlanes | Int8Planes


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaneWeights:
    """The weights of a convolution in one form.

    Attributes
    ----------
    label : str
    n_outputs : int
        Of a part.
    parts : tuple of weights
        One for each group.
    """

    label: str
    n_outputs: int
    parts: tuple[Weights, ...]

    @property
    def weight_bytes(self) -> int:
        """Bytes of all arrays."""
        return sum(part.weight_bytes for part in self.parts)

    @property
    def is_int8(self) -> bool:
        """Whether activations are rounded to bytes."""
        return isinstance(self.parts[0], Int8Planes)


def weight_forms(weights: MatrixWeights, taps: Taps, n_parts: int, *, depthwise: bool) -> list[PlaneWeights]:
    """Return the weights of a convolution in every form that suits them.

    Parameters
    ----------
    weights : MatrixWeights
        Shape (outputs, channels of a group * kernel elements); its factors are left to another step.
    taps : Taps
        Of a part.
    n_parts : int
        Groups, each with its share of the outputs.
    depthwise : bool
        The only part has one input channel for each output, or for some outputs.
    """
    n_outputs = weights.shape[0] // n_parts
    if depthwise:
        packed = pack_depthwise_planes(weights.without_factors().decoded(), taps)
        return [PlaneWeights(label="depthwise planes, floats", n_outputs=n_outputs, parts=(packed,))]
    symbols = weights.symbols
    if symbols is None or symbols.codebook.size >= _BYTE_ENTRIES:
        matrix = weights.without_factors().decoded()
        dense = [pack_dense_planes(part, None, taps) for part in np.split(matrix, n_parts)]
        return [PlaneWeights(label="dense planes, floats", n_outputs=n_outputs, parts=tuple(dense))]
    found = []
    every = weights.every_symbol()
    assert every is not None
    numbers, codebook = every
    palette = [pack_dense_planes(part, codebook, taps) for part in np.split(numbers, n_parts)]
    label = f"dense planes, palette of {codebook.size}"
    found.append(PlaneWeights(label=label, n_outputs=n_outputs, parts=tuple(palette)))
    nonzeros = weights.nonzeros()
    if nonzeros is not None:
        rows, columns, sparse = nonzeros
        density = rows.size / max(1, weights.shape[0] * weights.shape[1])
        label = f"sparse planes, {density:.1%}, palette of {sparse.codebook.size}"
        for copied in (False, True) if 1 < taps.offsets.size <= MOST_TAPS else (False,):
            parts = []
            for part in range(n_parts):
                mine = rows // n_outputs == part
                packed_part = pack_sparse_planes(
                    rows=rows[mine] - part * n_outputs,
                    columns=columns[mine],
                    symbols=sparse.symbols[mine],
                    codebook=sparse.codebook,
                    n_rows=n_outputs,
                    taps=taps,
                    copied=copied,
                )
                parts.append(packed_part)
            way = ", copied windows" if copied else ""
            found.append(PlaneWeights(label=label + way, n_outputs=n_outputs, parts=tuple(parts)))
    return found


def int8_form(weights: MatrixWeights, taps: Taps) -> list[PlaneWeights]:
    """Return the weights of a convolution of one group as bytes; none if they cannot be."""
    found = int8_weights(weights)
    if not found:
        return []
    best = found[0] if found[0].is_exact else found[-1]
    label = f"int8 planes{'' if best.is_exact else ', rounded weights'}"
    packed = pack_int8_planes(best, taps)
    return [PlaneWeights(label=label, n_outputs=weights.shape[0], parts=(packed,))]
