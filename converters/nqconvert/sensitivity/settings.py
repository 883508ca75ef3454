"""Settings that all sensitivity methods share, and the shape of a method."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

__all__ = ["SensitivityMethod", "SensitivitySettings"]


def _silent(line: str) -> None:
    """Report no progress."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SensitivitySettings:
    """What the caller may choose for any sensitivity method.

    Attributes
    ----------
    samples : int
        Most calibration samples to use; Choi et al. saw no difference between 1,000 and 50,000.
    batch_size : int
        Samples in one forward pass, where the calibration data is not in batches already.
    probes : int
        Random vectors for each batch (``hutchinson``).
    seed : int
        For sampled labels and random vectors.
    loss : callable or None
        ``loss(outputs, targets)`` as a scalar torch tensor, a mean over samples; None: cross entropy of
        integer labels with the classes on the last axis, summed over positions.
    sample_targets : callable or None
        ``sample_targets(outputs, generator)`` draws targets from the model's own distribution (``fisher``,
        and methods that are given no targets). None: known for torch's cross entropy, mean squared error
        and binary cross entropy with logits.
    optimizer_state : path, mapping or None
        State of an Adam optimizer (``adam``).
    power : float
        What measured sensitivities are raised to before a conversion uses them. Single weights are measured
        with large errors, and large changes leave the range of the second-order approximation; 0.5 gave
        smaller files at equal loss on the networks of ``benchmarks/quantizers.py``.
    adam_power : float
        Sensitivity is v to this power (``adam``): 0.5 as Choi et al. 2017 section 5.3 uses, or 1.
    progress : callable
        Called with a line of text.
    """

    samples: int = 1000
    batch_size: int = 50
    probes: int = 4
    seed: int = 0
    loss: Callable[[Any, Any], Any] | None = None
    sample_targets: Callable[[Any, Any], Any] | None = None
    optimizer_state: Any = None
    power: float = 1.0
    adam_power: float = 0.5
    progress: Callable[[str], None] = _silent

    def __post_init__(self) -> None:
        for name in ("samples", "batch_size", "probes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, but is {self.seed}")
        for name in ("power", "adam_power"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")


class SensitivityMethod(Protocol):
    """A function from a model and calibration data to a diagonal Hessian or a substitute for it."""

    def __call__(
        self, model: Any, calibration: Any, settings: SensitivitySettings, /
    ) -> Mapping[str, np.ndarray]:
        """Return arrays that are not negative, by parameter name and in the parameter's shape."""
        ...
