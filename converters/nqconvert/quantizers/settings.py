"""Settings that quantizers share, and the shape of a quantizer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from nqformat.dtypes import DType
from nqformat.tensor import Tensor

__all__ = ["MAX_CLUSTERS", "SCOPES", "Quantizer", "QuantizerSettings"]

MAX_CLUSTERS = 1 << 16
SCOPES = ("layer", "global", "channel")
MAX_WIDTH = 64
_CODEBOOK_DTYPES = (DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizerSettings:
    """What the caller may choose for any quantizer.

    Attributes
    ----------
    clusters : int
        Most entries of a codebook, not counting the zero that pruned tensors keep besides; 1 to 65,536.
    scope : {"layer", "global", "channel"}
        One codebook for each tensor, one for all tensors of a dtype, or one for each channel: each index of
        the first axis that has several (outputs of linear layers and convolutions, rows of embeddings);
        method ``uniform`` has one step for each then. ``vq`` has one codebook for each tensor always.
    codebook_dtype : DType
        FLOAT32, FLOAT16 or BFLOAT16: how entries made by the quantizer are stored, where that does no harm.
    keep_zeros : bool
        Whether the zeros of a pruned tensor stay exactly zero.
    step : float or None
        Step of uniform grids, in units of the pool's root mean square; None: as `clusters` allows.
    rate_penalty : float or None
        What one bit costs, as a share of the mean (weighted) square of the values; None: the method's own.
    width : int
        Elements of an entry (method ``vq``), 1 to 64.
    product : bool
        A codebook for each place in a row (product quantization, method ``vq``).
    seed : int
        For quantizers that draw random numbers; exact k-means does not.
    """

    clusters: int = 256
    scope: str = "layer"
    codebook_dtype: DType = DType.FLOAT16
    keep_zeros: bool = True
    step: float | None = None
    rate_penalty: float | None = None
    width: int = 4
    product: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.clusters <= MAX_CLUSTERS:
            raise ValueError(f"clusters must be 1 to {MAX_CLUSTERS}, not {self.clusters}")
        if self.scope not in SCOPES:
            raise ValueError(f"scope must be one of {', '.join(SCOPES)}, not {self.scope!r}")
        if not 1 <= self.width <= MAX_WIDTH:
            raise ValueError(f"width must be 1 to {MAX_WIDTH}, not {self.width}")
        if self.codebook_dtype not in _CODEBOOK_DTYPES:
            raise ValueError(
                f"codebook_dtype must be float32, float16 or bfloat16, not {self.codebook_dtype!r}"
            )
        if self.step is not None and not (math.isfinite(self.step) and self.step > 0):
            raise ValueError(f"step must be a positive number, not {self.step}")
        if self.rate_penalty is not None and not (
            math.isfinite(self.rate_penalty) and self.rate_penalty >= 0
        ):
            raise ValueError(f"rate_penalty must not be negative, but is {self.rate_penalty}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, but is {self.seed}")


class Quantizer(Protocol):
    """A function from arrays to compressed tensors; it keeps every name, shape and dtype."""

    def __call__(
        self,
        weights: Mapping[str, np.ndarray],
        sensitivities: Mapping[str, np.ndarray] | None,
        settings: QuantizerSettings,
        /,
    ) -> dict[str, Tensor]:
        """Quantize all `weights`; `sensitivities` are diagonal Hessians of the same names and shapes."""
        ...
