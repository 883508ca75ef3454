"""One line of a comparison: a method at a bound."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ComparisonRow"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonRow:
    """One method at one bound.

    Attributes
    ----------
    method : str
        Name of a quantizer, ``original``, ``pruned``, or a baseline such as ``int8+lzma``.
    target : str
        The bound, as given; empty without one.
    file_bytes : int or None
        None if the bound was missed or there is no file.
    setting : str
        The value of the searched setting.
    accuracy, low, high : float or None
        Top-1, with Wilson's 95 % interval.
    lost, won : int or None
        Test samples that the original gets right and this one wrong, and the reverse: the paired comparison.
    seconds : float
        Search, quantization and encoding.
    peak_bytes : int or None
        Largest resident memory above that at the start of this work; None if the system does not tell.
    note : str
        Why there is no file.
    """

    method: str
    target: str = ""
    file_bytes: int | None = None
    setting: str = ""
    accuracy: float | None = None
    low: float | None = None
    high: float | None = None
    lost: int | None = None
    won: int | None = None
    seconds: float = 0.0
    peak_bytes: int | None = None
    note: str = ""
