"""K-means codebooks, exact in one dimension, for each tensor or for all together."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from nqformat.tensor import Tensor

from .channels import quantize_scoped
from .clustering import cluster_1d
from .pools import PRUNED_SHARE, Fit, Pool
from .settings import QuantizerSettings

__all__ = ["PRUNED_SHARE", "cluster_1d", "quantize_hessian_kmeans", "quantize_kmeans"]


def quantize_kmeans(
    weights: Mapping[str, np.ndarray],
    sensitivities: Mapping[str, np.ndarray] | None = None,
    settings: QuantizerSettings | None = None,
) -> dict[str, Tensor]:
    """Quantize float tensors to the k-means optimum of their values (method ``kmeans``).

    - Pruned tensors (at least 10 % zeros, `keep_zeros`) have their centres fitted to the nonzeros and
      zero as an entry besides; of 16 or 256 clusters one is given up for it, so that an index stays at
      four or eight bits.
    - Centres are rounded to the codebook dtype before each value goes to the nearest (the lower one of
      two); entries that become equal or stay unused are dropped. Where float16 (or bfloat16) overflows
      or adds more than 1 % to the squared error, the codebook is float32. float16 and bfloat16 tensors
      have codebooks of their own dtype.
    - Tensors of at most `clusters` distinct values are kept exactly (-0.0 becomes 0.0), as a codebook or
      raw, whichever is smaller; so are float64 tensors beyond the range of float32, integers and
      booleans.

    Parameters
    ----------
    weights : mapping of name to ndarray
    sensitivities : mapping or None
        Not used; see :func:`quantize_hessian_kmeans`.
    settings : QuantizerSettings or None

    Raises
    ------
    ConversionError
        If a weight is NaN or infinite; names the tensor.

    Source : Han, Mao, Dally 2016, section 3 (with the global optimum in place of Lloyd's iteration)

    Examples
    --------
    >>> import numpy as np
    >>> values = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    >>> tensor = quantize_kmeans({"w": values}, None, QuantizerSettings(clusters=16))["w"]
    >>> tensor.indices.dtype.name, tensor.codebook.values.size
    ('uint8', 16)
    """
    return quantize_scoped(weights, None, settings or QuantizerSettings(), _fit)


def quantize_hessian_kmeans(
    weights: Mapping[str, np.ndarray],
    sensitivities: Mapping[str, np.ndarray] | None = None,
    settings: QuantizerSettings | None = None,
) -> dict[str, Tensor]:
    """Quantize with squared errors weighted by `sensitivities` (method ``hessian-kmeans``).

    All else is as in :func:`quantize_kmeans`.

    Tensors without sensitivities get the mean of the others'; where none is above zero, tensors are clustered
    unweighted.

    Raises
    ------
    ConversionError
        If a weight is NaN or infinite, or sensitivities have another shape, are negative or not finite.

    Source : Choi, El-Khamy, Lee 2017, eq. (9)
    """
    return quantize_scoped(weights, sensitivities, settings or QuantizerSettings(), _fit)


def _fit(pool: Pool, settings: QuantizerSettings) -> Fit:
    values, weights = pool.fitted()
    centres = cluster_1d(values, weights, k=pool.clusters(settings))
    return Fit(centres=np.union1d(centres, [0.0]) if pool.has_zero else centres)
