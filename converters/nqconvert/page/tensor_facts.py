"""What a page tells of each tensor."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

import nqformat
from nqconvert.verification import signal_to_noise_db
from nqformat.accounting import TensorBytes

__all__ = ["TensorFacts", "tensor_facts"]

N_BINS = 48


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorFacts:
    """One tensor.

    Attributes
    ----------
    bytes : TensorBytes
        Its account in the file.
    shape : tuple of int
    dtype : str
    sources : tuple of str
        What a view or a hashed tensor takes its elements from.
    n_nonzero : int
    counts : tuple of int
        Finite values that are not zero, in N_BINS equal steps from `low` to `high`; empty without any.
    low, high : float
    snr_db : float or None
        Of the original against it, infinite if equal; None if the original has no such tensor.
    """

    bytes: TensorBytes
    shape: tuple[int, ...]
    dtype: str
    sources: tuple[str, ...]
    n_nonzero: int
    counts: tuple[int, ...] = ()
    low: float = 0.0
    high: float = 0.0
    snr_db: float | None = None

    @property
    def density(self) -> float:
        """Share of elements that are not zero; 0 of none."""
        return self.n_nonzero / self.bytes.n_elements if self.bytes.n_elements else 0.0


def tensor_facts(
    file: nqformat.NqzFile, accounts: Mapping[str, TensorBytes], original: Mapping[str, np.ndarray]
) -> Iterator[TensorFacts]:
    """Decode every tensor, one after the other, and describe it.

    Parameters
    ----------
    file : NqzFile
        Opened with ``bfloat16="float32"``.
    accounts : mapping of str to TensorBytes
    original : mapping of str to ndarray
        Tensors of the same name and shape are compared.

    Raises
    ------
    FormatError, UnsupportedFeatureError
        If a tensor cannot be decoded.
    """
    for name, values in file.tensors():
        info = file.info(name)
        before = original.get(name)
        counts, low, high = _histogram(values)
        yield TensorFacts(
            bytes=accounts[name],
            shape=info.shape,
            dtype="" if info.dtype is None else info.dtype.label,
            sources=info.sources,
            n_nonzero=int(np.count_nonzero(values)),
            counts=counts,
            low=low,
            high=high,
            snr_db=None if before is None or before.shape != values.shape else _snr_db(before, values),
        )


def _snr_db(before: np.ndarray, values: np.ndarray) -> float:
    """Return the signal-to-noise ratio; infinite for equal arrays, numbers that are no numbers included."""
    if np.array_equal(before, values, equal_nan=values.dtype.kind == "f" == before.dtype.kind):
        return math.inf
    with np.errstate(invalid="ignore", over="ignore"):
        return signal_to_noise_db([before], [values])


def _histogram(values: np.ndarray) -> tuple[tuple[int, ...], float, float]:
    """Count finite values that are not zero."""
    if values.dtype.kind not in "fiu":
        return (), 0.0, 0.0
    kept = values[(values != 0) & np.isfinite(values)]
    if not kept.size:
        return (), 0.0, 0.0
    low, high = float(kept.min()), float(kept.max())
    middle = (low, high) if high > low else (low - 0.5, high + 0.5)
    counts, _ = np.histogram(kept.astype(np.float64), bins=N_BINS, range=middle)
    return tuple(int(count) for count in counts), low, high
