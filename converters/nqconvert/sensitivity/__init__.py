"""Sensitivities of weights: diagonal Hessians and their substitutes, by name.

Quantizers weight the squared error of a weight with its sensitivity (Choi, El-Khamy, Lee 2017, eq. 7). Other
packages add methods as entry points of the group ``nqconvert.sensitivities``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np

from nqconvert.method_registry import MethodRegistry

from .settings import SensitivityMethod, SensitivitySettings

__all__ = [
    "ENTRY_POINT_GROUP",
    "SensitivityMethod",
    "SensitivitySettings",
    "get_sensitivity",
    "measure_sensitivities",
    "predicted_loss_change",
    "sensitivity_names",
]

ENTRY_POINT_GROUP = "nqconvert.sensitivities"

_BUILT_IN = {
    "activation": "nqconvert.sensitivity.activation:measure_activation",
    "adam": "nqconvert.sensitivity.adam:measure_adam",
    "becker": "nqconvert.sensitivity.becker:measure_becker",
    "empirical": "nqconvert.sensitivity.gradients:measure_empirical",
    "fisher": "nqconvert.sensitivity.gradients:measure_fisher",
    "hutchinson": "nqconvert.sensitivity.hutchinson:measure_hutchinson",
    "none": "nqconvert.sensitivity:_measure_none",
}

_METHODS = MethodRegistry(kind="sensitivity", group=ENTRY_POINT_GROUP, built_in=_BUILT_IN)


def _measure_none(model: Any, calibration: Any, settings: SensitivitySettings) -> dict[str, np.ndarray]:
    """Give every weight the same sensitivity (method ``none``)."""
    return {}


def sensitivity_names() -> list[str]:
    """Return the names that :func:`get_sensitivity` knows, sorted.

    Examples
    --------
    >>> {"fisher", "none"} <= set(sensitivity_names())
    True
    """
    return _METHODS.names()


def get_sensitivity(name: str) -> SensitivityMethod:
    """Return the method registered as `name`.

    Raises
    ------
    ValueError
        If there is none; the message lists those that exist.

    Examples
    --------
    >>> get_sensitivity("fisher").__name__
    'measure_fisher'
    """
    return cast(SensitivityMethod, _METHODS.find(name))


def measure_sensitivities(
    module: Any, calibration: Any = None, *, method: str = "fisher", **settings: Any
) -> dict[str, np.ndarray]:
    """Measure the sensitivity of every parameter of a torch module.

    Parameters
    ----------
    module : torch.nn.Module
        Measured in evaluation mode and left as it was; for ``adam`` also a mapping of names to arrays, for
        ``activation`` a :class:`~nqconvert.ModelSource`.
    calibration : array, tuple, mapping or iterable
        See :func:`nqconvert.sensitivity.calibration.calibration_batches`.
    method : str
        One of :func:`sensitivity_names`.
    **settings
        Fields of :class:`SensitivitySettings`.

    Returns
    -------
    dict of str to ndarray of float32
        Not negative, by parameter name and in the parameter's shape. The same inputs and seed give the same
        numbers.

    Raises
    ------
    ConversionError
        If the method cannot work on this model, loss or data; says what to do.
    ValueError
        If the method is unknown or a setting out of range.

    Examples
    --------
    >>> import torch
    >>> module = torch.nn.Linear(3, 2)
    >>> inputs = torch.tensor([[1.0, 0.0, 2.0]])
    >>> h = measure_sensitivities(module, inputs, method="becker")["weight"]
    >>> bool((h[:, 1] == 0).all()), round(float(h[0, 2] / h[0, 0]), 4)
    (True, 4.0)
    """
    return dict(get_sensitivity(method)(module, calibration, SensitivitySettings(**settings)))


def predicted_loss_change(
    before: Mapping[str, np.ndarray],
    after: Mapping[str, np.ndarray],
    sensitivities: Mapping[str, np.ndarray],
) -> float:
    """Return half the sum of sensitivity times squared change: what a loss at its minimum should rise by.

    Source : Choi, El-Khamy, Lee 2017, eq. (5) and (7)

    Examples
    --------
    >>> import numpy as np
    >>> one = {"w": np.ones(2)}
    >>> predicted_loss_change(one, {"w": np.array([1.0, 2.0])}, {"w": np.array([9.0, 4.0])})
    2.0
    """
    total = 0.0
    for name, sensitivity in sensitivities.items():
        if name in before and name in after:
            change = after[name].astype(np.float64) - before[name].astype(np.float64)
            total += float((sensitivity * np.square(change)).sum())
    return 0.5 * total
