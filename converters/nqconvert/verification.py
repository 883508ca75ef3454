"""Comparison of the original model with the file that was written, through its outputs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["MIN_AGREEMENT", "MIN_SNR_DB", "OutputComparison", "compare_outputs", "signal_to_noise_db"]

MIN_SNR_DB = 30.0
MIN_AGREEMENT = 0.99


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputComparison:
    """How near the file's outputs are to the original's.

    Attributes
    ----------
    snr_db : float
        Signal-to-noise ratio over all floating-point outputs, in decibels; infinite when equal.
    agreement : float or None
        Share of samples whose largest entry on the last axis is the same; None without an output of two or
        more classes.
    n_samples : int
        Rows that `agreement` was counted on.
    """

    snr_db: float
    agreement: float | None
    n_samples: int

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a user should look at before shipping the file."""
        found = []
        if self.snr_db < MIN_SNR_DB:
            found.append(f"output SNR {self.snr_db:.1f} dB is below {MIN_SNR_DB:.0f} dB")
        if self.agreement is not None and self.agreement < MIN_AGREEMENT:
            found.append(f"top-1 agreement {100 * self.agreement:.2f} % is below {100 * MIN_AGREEMENT:.0f} %")
        return tuple(found)

    def __str__(self) -> str:
        snr = "exact" if math.isinf(self.snr_db) else f"{self.snr_db:.1f} dB"
        text = f"output SNR {snr}"
        if self.agreement is not None:
            text += f", top-1 agreement {100 * self.agreement:.2f} % of {self.n_samples}"
        return text


def signal_to_noise_db(reference: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> float:
    """Return 10 log10(sum of squares / sum of squared differences); infinite without a difference."""
    signal = noise = 0.0
    for a, b in zip(reference, other, strict=True):
        wide = a.astype(np.float64)
        signal += float(np.square(wide).sum())
        noise += float(np.square(wide - b.astype(np.float64)).sum())
    if noise == 0.0:
        return math.inf
    if math.isnan(noise) or signal == 0.0:
        return -math.inf
    return 10.0 * math.log10(signal / noise)


def compare_outputs(original: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> OutputComparison:
    """Compare two lists of outputs of equal shapes.

    The agreement is counted on the first floating-point output with at least two entries on its last axis.

    Examples
    --------
    >>> import numpy as np
    >>> logits = np.array([[1.0, 2.0], [3.0, 0.0]])
    >>> compare_outputs([logits], [logits]).agreement
    1.0
    """
    floats = [i for i, a in enumerate(original) if a.dtype.kind == "f" or a.dtype.name == "bfloat16"]
    snr = signal_to_noise_db([original[i] for i in floats], [other[i] for i in floats])
    for i in floats:
        if original[i].ndim >= 2 and original[i].shape[-1] >= 2 and original[i].size:
            same = original[i].argmax(axis=-1) == other[i].argmax(axis=-1)
            return OutputComparison(snr_db=snr, agreement=float(same.mean()), n_samples=same.size)
    return OutputComparison(snr_db=snr, agreement=None, n_samples=0)


def weight_snr_db(original: Mapping[str, np.ndarray], decoded: Mapping[str, np.ndarray]) -> float:
    """Signal-to-noise ratio over all floating-point tensors of a model, in decibels."""
    names = [n for n, a in original.items() if a.dtype.kind == "f"]
    return signal_to_noise_db([original[n] for n in names], [decoded[n] for n in names])
