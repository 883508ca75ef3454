"""Comparison of the original model with the file that was written: weights, outputs, accuracy."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

import nqformat
from nqformat.errors import MissingDependencyError

from .accuracy import Evaluation, Score, score_of
from .memory import return_freed_memory

if TYPE_CHECKING:
    from .network import Network
    from .sources import Runner

__all__ = [
    "MIN_AGREEMENT",
    "MIN_SNR_DB",
    "OutputComparison",
    "Verification",
    "compare_outputs",
    "file_runner",
    "signal_to_noise_db",
    "verify_file",
    "weight_snr_db",
]

_LARGE_BYTES = 1 << 20
_AT_ONCE = 1 << 18
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
    found = _Noise()
    for a, b in zip(reference, other, strict=True):
        found.add(a, b)
    return found.ratio_db


class _Noise:
    """Sums of squares over arrays that come one after the other."""

    def __init__(self) -> None:
        self._signal = self._noise = 0.0

    def add(self, reference: np.ndarray, other: np.ndarray) -> None:
        """Count two arrays of equal shape, a quarter of a million elements at a time."""
        flat, changed = reference.reshape(-1), other.reshape(-1)
        for start in range(0, flat.size, _AT_ONCE):
            wide = flat[start : start + _AT_ONCE].astype(np.float64)
            self._signal += float(np.square(wide).sum())
            wide -= changed[start : start + _AT_ONCE].astype(np.float64)
            self._noise += float(np.square(wide).sum())

    @property
    def ratio_db(self) -> float:
        """Ten times the logarithm of signal over noise; infinite without noise."""
        if self._noise == 0.0:
            return math.inf
        if math.isnan(self._noise) or self._signal == 0.0:
            return -math.inf
        return 10.0 * math.log10(self._signal / self._noise)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What reading a written file back showed.

    Attributes
    ----------
    outputs : OutputComparison or None
        Original against file on the example inputs; None where they could not be compared.
    retrained_outputs : OutputComparison or None
        Retrained network against file, where there was retraining.
    weight_snr_db : float
        Tensors before quantization and magnitude pruning against decoded ones.
    score : Score or None
        What the evaluation gave for the file.
    notes : tuple of str
        Why outputs were not compared.
    """

    outputs: OutputComparison | None
    retrained_outputs: OutputComparison | None
    weight_snr_db: float
    score: Score | None
    notes: tuple[str, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """What to look at; retraining changes the scale of outputs on purpose."""
        if self.outputs is None:
            return ()
        if self.retrained_outputs is None:
            return self.outputs.warnings
        changed = (warning for warning in self.outputs.warnings if "agreement" in warning)
        return (*self.retrained_outputs.warnings, *changed)


def verify_file(
    path: str | os.PathLike[str],
    network: Network,
    feeds: Mapping[str, np.ndarray],
    evaluate: Evaluation | None = None,
) -> Verification:
    """Read a file back and compare it with the network it was made from; the file is opened to run once.

    Raises
    ------
    MissingDependencyError
        If an evaluation is wanted and the file needs a package that is missing to run.
    """
    reason = _reason_not_compared(network, feeds)
    run_file: Runner | None = None
    if not reason or evaluate is not None:
        try:
            run_file = file_runner(path)
        except MissingDependencyError as error:
            if evaluate is not None:
                raise
            reason = f"outputs were not compared: {error}"
    outputs = retrained = None
    if not reason and run_file is not None and network.run is not None:
        written = run_file(feeds)
        outputs = compare_outputs(network.run(feeds), written)
        if network.run_retrained is not None:
            retrained = compare_outputs(network.run_retrained(feeds), written)
    return Verification(
        outputs=outputs,
        retrained_outputs=retrained,
        weight_snr_db=_stored_snr_db(network.source.tensors, path),
        score=None if evaluate is None else score_of(evaluate, run_file),
        notes=(reason,) if reason else (),
    )


def _stored_snr_db(original: Mapping[str, np.ndarray], path: str | os.PathLike[str]) -> float:
    """Read every tensor back and return the ratio of :func:`weight_snr_db`."""
    noise = _Noise()
    with nqformat.safe_open(path) as file:
        for name, array in file.tensors():
            if name in original and original[name].dtype.kind == "f":
                noise.add(original[name], array)
            if array.nbytes >= _LARGE_BYTES:
                del array
                file.release_pages()
                return_freed_memory()
    return noise.ratio_db


def file_runner(path: str | os.PathLike[str]) -> Runner:
    """Return a function that runs a .nqz file; MissingDependencyError if a package for that is missing."""
    from nqruntime import InferenceSession

    session = InferenceSession(path)
    return lambda feeds: session.run(None, feeds)


def _reason_not_compared(network: Network, feeds: Mapping[str, np.ndarray]) -> str:
    """Say why outputs cannot be compared, or return an empty string."""
    if network.run is None or network.source.graph is None:
        return "the model has no graph, so its outputs were not compared"
    return "" if feeds else "no example inputs were given, so outputs were not compared"
