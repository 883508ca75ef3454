"""Quantize one layer under a rate penalty, errors fed back through its Hessian."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from nqconvert.kernels import feed_back
from nqconvert.quantizers.rate import estimate_bits
from nqformat.tensor import AffineTensor

from .layer import Layer, Row
from .scratch import release

__all__ = ["LayerResult", "quantize_layer", "step_at"]

_BLOCK = 96
_ROUNDS = 2
_ROW_ROUNDS = 3
_MAX_REACH = 1 << 15
_BITS_OF_ZERO = 0.2
_BITS_OF_ONE = 4.0
_BITS_PER_OCTAVE = 1.5
_SMOOTHING = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerResult:
    """A quantized layer.

    Attributes
    ----------
    integers : ndarray of int8, int16 or int32, shape of the weight
    step : float
        A float32 number.
    bias : ndarray of float64, shape (outputs,), or None
        With the weights' errors made up for.
    loss : float
        Predicted rise of the loss, mean over samples.
    bits : float
        Estimated size in a file.
    """

    integers: np.ndarray
    step: float
    bias: np.ndarray | None
    loss: float
    bits: float

    def cost(self, penalty: float, premium: float = 0.0) -> float:
        """Loss plus penalised bits, and what weights that are not zero cost besides."""
        kept = premium * np.count_nonzero(self.integers) if premium else 0.0
        return float(self.loss + penalty * self.bits + kept)


def step_at(curvature: float, penalty: float) -> float:
    """Return the step at which a finer uniform grid costs as much in bits as it saves in loss.

    ``d/ds (curvature s^2 / 24 - penalty log2 s) = 0``.

    Source : Gish, Pierce 1968 (high-rate theory of entropy-coded uniform quantization)

    Examples
    --------
    >>> round(step_at(12.0, 1.0), 4)
    1.2011
    """
    return math.sqrt(12.0 * penalty / (math.log(2.0) * curvature))


def quantize_layer(layer: Layer, step: float, penalty: float, premium: float = 0.0) -> LayerResult:
    """Quantize with a given step; the code that decisions are charged by is refined in a few rounds.

    Parameters
    ----------
    layer : Layer
    step : float
        A float32 number.
    penalty : float
        Loss that one bit may cost. In a layer with Hessians of single outputs also decides which weights go.
    premium : float
        Loss that a weight may cost to be zero, besides.
    """
    largest = float(np.abs(layer.matrices).max(initial=0.0))
    reach = int(min(2.0 * largest / step + 8.0, _MAX_REACH))
    bits = _first_bits(reach)
    above_zero = np.where(np.arange(-reach, reach + 1) == 0, 0.0, premium)
    for _ in range((_ROW_ROUNDS if layer.rows else _ROUNDS) if penalty > 0 else 1):
        integers, bias, loss = _quantized(layer, step, penalty * bits + above_zero)
        bits = _bits_of(integers, reach)
    shaped = layer.statistics.product.restored(integers)
    size = estimate_bits(AffineTensor(k=shaped, step=step))
    return LayerResult(integers=_narrowed(shaped), step=step, bias=bias, loss=loss, bits=size)


def _narrowed(integers: np.ndarray) -> np.ndarray:
    """Return the integers in the smallest type that holds them: many results are kept."""
    largest = int(np.abs(integers).max(initial=0))
    return integers.astype(np.int8 if largest < 1 << 7 else np.int16 if largest < 1 << 15 else np.int32)


def _first_bits(reach: int) -> np.ndarray:
    distance = np.abs(np.arange(-reach, reach + 1))
    bits: np.ndarray = np.where(
        distance == 0, _BITS_OF_ZERO, _BITS_OF_ONE + _BITS_PER_OCTAVE * np.log2(1.0 + distance)
    )
    return bits


def _bits_of(integers: np.ndarray, reach: int) -> np.ndarray:
    """Bits of each integer from -reach to reach in an ideal code of these integers."""
    counts = np.bincount(integers.reshape(-1) + reach, minlength=2 * reach + 1)
    distance = np.abs(np.arange(-reach, reach + 1))
    bits: np.ndarray = math.log2(max(1, integers.size)) - np.log2(counts + _SMOOTHING / (1.0 + distance) ** 2)
    return bits


def _quantized(layer: Layer, step: float, prices: np.ndarray) -> tuple[np.ndarray, np.ndarray | None, float]:
    integers = np.zeros(layer.matrices.shape, np.int32)
    bias = None if layer.bias is None else layer.bias.copy()
    if layer.rows:
        loss = _quantize_rows(layer, step, prices, integers, bias)
    else:
        loss = _quantize_groups(layer, step, prices, integers, bias)
    return integers, bias, loss


def _quantize_rows(
    layer: Layer, step: float, prices: np.ndarray, integers: np.ndarray, bias: np.ndarray | None
) -> float:
    flat = layer.matrices.reshape(-1, layer.matrices.shape[2])
    made = integers.reshape(flat.shape)
    reach = prices.size // 2
    threshold = float(prices[reach + 1] + prices[reach - 1]) / 2 - float(prices[reach])
    loss = 0.0
    for place, (row, weights) in enumerate(zip(layer.rows, flat, strict=True)):
        left, values, removed_loss = _without_cheap(row, weights, threshold)
        loss += removed_loss
        if not values.size:
            continue
        chosen, shift, lost = _quantize_row(row, left, values, step, prices)
        made[place, row.kept[left]] = chosen
        loss += lost
        if bias is not None:
            bias[place] += shift
    return loss


def _without_cheap(row: Row, weights: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Remove weights whose removal costs less than `threshold`.

    Returns
    -------
    (left, values, loss)
        Weights that stay; their new values, and the bias's change behind them; what the removal costs.
    """
    n = row.kept.size
    n_removed = int(np.searchsorted(row.losses, threshold))
    removed = row.order[:n_removed]
    values = np.append(weights[row.kept], np.zeros(row.hessian.shape[0] - n))
    if not n_removed:
        return np.arange(n), values, 0.0
    stays = np.ones(n, dtype=bool)
    stays[removed] = False
    left = np.flatnonzero(stays)
    places = np.append(left, np.arange(n, row.hessian.shape[0]))
    gone = values[removed]
    pull = row.hessian[np.ix_(places, removed)] @ gone
    shift = np.linalg.solve(row.hessian[np.ix_(places, places)], pull)
    loss = 0.5 * float(gone @ row.hessian[np.ix_(removed, removed)] @ gone - pull @ shift)
    return left, values[places] + shift, loss


def _quantize_row(
    row: Row, left: np.ndarray, values: np.ndarray, step: float, prices: np.ndarray
) -> tuple[np.ndarray, float, float]:
    """Return integers of the weights that are left, the bias's change and the loss."""
    places = np.append(left, np.arange(row.kept.size, row.hessian.shape[0]))
    inverse = np.linalg.inv(row.hessian[np.ix_(places, places)])
    factor = np.ascontiguousarray(np.linalg.cholesky((inverse + inverse.T) / 2).T)
    column = np.ascontiguousarray(values[:, None])
    zeros = np.zeros((left.size, 1), dtype=bool)
    chosen, _, loss = feed_back(column, factor, np.ones(1), step, prices, zeros)
    return chosen[:, 0], float(column[-1, 0]) if places.size > left.size else 0.0, loss


def _quantize_groups(
    layer: Layer, step: float, prices: np.ndarray, integers: np.ndarray, bias: np.ndarray | None
) -> float:
    loss = 0.0
    n_outputs = layer.matrices.shape[1]
    for group, factors in enumerate(layer.factors):
        scales = np.ascontiguousarray(layer.statistics.scales[group])
        for part in factors:
            places = part.places[: part.places.size - part.n_free]
            values = np.zeros((part.places.size, n_outputs))
            values[: places.size] = layer.matrices[group].T[places]
            zeros = np.zeros((places.size, n_outputs), dtype=bool)
            if layer.zeros is not None:
                zeros[:] = layer.zeros[group].T[places]
            chosen, lost = _quantize_inputs(values, part.factor, scales, step, prices=prices, zeros=zeros)
            release(part.factor)
            integers[group][:, places] = chosen.T
            loss += lost
            if bias is not None and part.n_free:
                bias[group * n_outputs : (group + 1) * n_outputs] += values[-1]
    return loss


def _quantize_inputs(
    values: np.ndarray,
    factor: np.ndarray,
    scales: np.ndarray,
    step: float,
    *,
    prices: np.ndarray,
    zeros: np.ndarray,
) -> tuple[np.ndarray, float]:
    """Quantize inputs in blocks; what a block leaves to later inputs is one matrix product.

    Source : lazy batch updates of Frantar et al. 2022, section 4
    """
    chosen = np.zeros(zeros.shape, np.int32)
    loss = 0.0
    for start in range(0, zeros.shape[0], _BLOCK):
        stop = min(start + _BLOCK, zeros.shape[0])
        slab = np.ascontiguousarray(values[start:stop])
        within = np.ascontiguousarray(factor[start:stop, start:stop], dtype=np.float64)
        chosen[start:stop], errors, lost = feed_back(
            slab, within, scales, step, prices, np.ascontiguousarray(zeros[start:stop])
        )
        loss += lost
        if stop < values.shape[0]:
            values[stop:] -= factor[start:stop, stop:].T.astype(np.float64) @ errors
    return chosen, loss
