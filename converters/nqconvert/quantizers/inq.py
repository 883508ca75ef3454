"""Codebooks of zero and powers of two."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from nqformat.tensor import Tensor

from .channels import quantize_scoped
from .pools import Fit, Pool
from .settings import QuantizerSettings

__all__ = ["power_entries", "quantize_inq"]

_LEAST_EXPONENT = -126
_MAX_EXPONENTS = 64


def quantize_inq(
    weights: Mapping[str, np.ndarray],
    sensitivities: Mapping[str, np.ndarray] | None = None,
    settings: QuantizerSettings | None = None,
) -> dict[str, Tensor]:
    """Quantize to zero and positive and negative powers of two (method ``inq``).

    `clusters` entries besides zero, half of them of either sign: 16 are the 5 bits of the paper. Exponents go
    down from ``floor(log2(4 s / 3))``, s being the largest magnitude; each weight gets the nearest entry. The
    paper's retraining in between is not part of this method.

    Parameters
    ----------
    weights : mapping of name to ndarray
    sensitivities : mapping or None
        Not used.
    settings : QuantizerSettings or None

    Raises
    ------
    ConversionError
        If a weight is NaN or infinite; names the tensor.

    Source : Zhou, Yao, Guo, Xu, Chen 2017, "Incremental network quantization", eq. (1) to (4)

    Examples
    --------
    >>> import numpy as np
    >>> values = np.random.default_rng(0).uniform(-1, 1, size=(64, 64)).astype(np.float32)
    >>> tensor = quantize_inq({"w": values}, None, QuantizerSettings(clusters=4))["w"]
    >>> tensor.codebook.values.tolist()
    [-1.0, -0.5, 0.0, 0.5, 1.0]
    """
    return quantize_scoped(weights, None, settings or QuantizerSettings(), _fit)


def _fit(pool: Pool, settings: QuantizerSettings) -> Fit:
    return Fit(centres=power_entries(float(np.abs(pool.values).max()), settings.clusters))


def power_entries(largest: float, clusters: int) -> np.ndarray:
    """Return zero and `clusters` (at least 2, at most 128) powers of two of either sign, ascending.

    Examples
    --------
    >>> power_entries(0.8, 4).tolist()
    [-1.0, -0.5, 0.0, 0.5, 1.0]
    """
    if largest == 0:
        return np.zeros(1)
    top = math.floor(math.log2(4.0 / 3.0 * largest))
    n_exponents = min(max(clusters // 2, 1), _MAX_EXPONENTS)
    exponents = np.arange(max(top - n_exponents + 1, min(top, _LEAST_EXPONENT)), top + 1)
    powers = np.ldexp(1.0, exponents)
    return np.concatenate([-powers[::-1], [0.0], powers])
