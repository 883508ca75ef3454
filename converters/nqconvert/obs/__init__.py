"""Post-training quantization with error feedback through full layer Hessians (method ``obs``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn

import numpy as np

from nqconvert.quantizers.settings import QuantizerSettings
from nqformat.errors import ConversionError

__all__ = ["NO_CALIBRATION", "quantize_obs"]

NO_CALIBRATION = (
    "method 'obs' needs a model with a graph and calibration inputs, a few hundred without labels; "
    "without inputs there are hessian 'identity', on request, and the methods 'ecsq' and 'uniform'"
)


def quantize_obs(
    weights: Mapping[str, np.ndarray],
    sensitivities: Mapping[str, np.ndarray] | None = None,
    settings: QuantizerSettings | None = None,
) -> NoReturn:
    """Refuse to quantize tensors without their network; see :class:`nqconvert.obs.surgeon.Surgeon`.

    Raises
    ------
    ConversionError
        Always: errors are fed back through Hessians, which calibration inputs and a graph give.
    """
    raise ConversionError(NO_CALIBRATION)
