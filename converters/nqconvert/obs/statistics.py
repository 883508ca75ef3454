"""Layer Hessians: second moments of a layer's inputs, weighted by what its outputs do to the answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from nqconvert.graphs.products import Product

from .scratch import Scratch, release

__all__ = ["InputBlock", "LayerHessians", "input_blocks", "largest_hessian_bytes", "new_hessians"]

_MAX_BLOCK = 4096
_MAX_ROW_BYTES = 1 << 28
_SPARSE = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class InputBlock:
    """A range of a layer's inputs with a Hessian of its own.

    Attributes
    ----------
    start, stop : int
        Of the inputs; the constant 1 of a bias counts as the last.
    n_free : int
        1 if the last input is the constant of a bias, else 0.
    """

    start: int
    stop: int
    n_free: int = 0


@dataclass(slots=True, kw_only=True)
class LayerHessians:
    """What is known of one product.

    Attributes
    ----------
    product : Product
    products : list of Product
        All products with this weight, this one first.
    blocks : list of InputBlock
        More than one for layers so wide that one Hessian would be too large.
    shared : list of list of ndarray of float32, or None
        By group and block: shape (inputs, inputs), for all outputs of the group together.
    rows : list of ndarray of float64, or None
        For each output over its kept inputs (and the constant 1): pruned layers.
    kept : list of ndarray of int64
        The nonzero inputs of each output, if there are `rows`.
    scales : ndarray of float64, shape (groups, outputs)
        What an error of each output weighs, over the mean of all; sums until :meth:`finish`.
    """

    product: Product
    products: list[Product]
    blocks: list[InputBlock]
    shared: list[list[np.ndarray]] | None = None
    rows: list[np.ndarray] | None = None
    kept: list[np.ndarray] = field(default_factory=list)
    scales: np.ndarray

    @property
    def n_free(self) -> int:
        """1 if a bias takes up errors, else 0."""
        return self.blocks[-1].n_free

    def finish(self, n_samples: int) -> None:
        """Turn sums over samples into means."""
        for hessian in self._hessians():
            hessian /= n_samples
            release(hessian)
        mean = float(self.scales.mean())
        self.scales = self.scales / mean if mean > 0 else np.ones_like(self.scales)

    def set_identity(self) -> None:
        """Count every weight of every output alike."""
        for hessian in self._hessians():
            np.fill_diagonal(hessian, 1.0)
        self.scales = np.ones_like(self.scales)

    def _hessians(self) -> list[np.ndarray]:
        if self.rows is not None:
            return self.rows
        assert self.shared is not None
        return [hessian for group in self.shared for hessian in group]


def input_blocks(n_inputs: int, n_free: int, most: int = _MAX_BLOCK) -> list[InputBlock]:
    """Split inputs into ranges of at most about `most`.

    Examples
    --------
    >>> [(block.start, block.stop, block.n_free) for block in input_blocks(10, 1, most=6)]
    [(0, 5, 0), (5, 11, 1)]
    """
    n_blocks = -(-n_inputs // most)
    edges = [n_inputs * place // n_blocks for place in range(n_blocks + 1)]
    blocks = [InputBlock(start=a, stop=b) for a, b in pairwise(edges)]
    last = blocks[-1]
    blocks[-1] = InputBlock(start=last.start, stop=last.stop + n_free, n_free=n_free)
    return blocks


def largest_hessian_bytes(product: Product, weight: np.ndarray) -> int:
    """Return the bytes of the largest shared Hessian of a weight."""
    blocks = input_blocks(product.matrices(weight).shape[2], 1 if product.bias is not None else 0)
    return 4 * max(block.stop - block.start for block in blocks) ** 2


def new_hessians(
    products: list[Product],
    weight: np.ndarray,
    *,
    rows: bool,
    most: int = _MAX_BLOCK,
    scratch: Scratch | None = None,
) -> LayerHessians:
    """Return empty sums for a weight.

    Parameters
    ----------
    products : list of Product
        All with this weight and the same matrices; several have no bias that could take up errors.
    weight : ndarray
        Where half of it or more is zero, every output gets a Hessian over its kept inputs.
    rows : bool
        Whether Hessians of single outputs can be measured.
    most : int
        Inputs of one Hessian.
    scratch : Scratch, optional
        Makes the shared Hessians.
    """
    product = products[0]
    matrices = product.matrices(weight)
    n_groups, n_outputs, n_inputs = matrices.shape
    n_free = 1 if product.bias is not None else 0
    blocks = input_blocks(n_inputs, n_free, most)
    scales = np.zeros((n_groups, n_outputs))
    if rows and np.count_nonzero(matrices) < _SPARSE * matrices.size:
        kept = [np.flatnonzero(row) for row in matrices.reshape(-1, n_inputs)]
        sizes = [places.size + n_free for places in kept]
        if 8 * sum(size * size for size in sizes) <= _MAX_ROW_BYTES:
            hessians = [np.zeros((size, size)) for size in sizes]
            return LayerHessians(
                product=product, products=products, blocks=blocks, rows=hessians, kept=kept, scales=scales
            )
    widths = [block.stop - block.start for block in blocks]
    zeros = np.zeros if scratch is None else scratch.zeros
    shared = [[zeros((width, width), np.float32) for width in widths] for _ in range(n_groups)]
    return LayerHessians(product=product, products=products, blocks=blocks, shared=shared, scales=scales)
