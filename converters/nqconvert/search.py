"""Search for the best quantization whose file stays below a bound."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from nqformat.errors import ConversionError

from .accuracy import Drop
from .presets import ConvertSettings
from .quantization import QuantizedModel

__all__ = ["SEARCHING", "Attempt", "Target", "byte_count", "search_drop", "search_rate"]

SEARCHING = "searching: "
"""How lines about a try begin."""

_MAX_ROUNDS = 14
_CLOSE_ENOUGH = 0.998
_FINEST_CLUSTERS = 1024
_COARSER = 0.01
_MAX_EVALUATIONS = 10
_NEAR_ENOUGH = 1.01


def byte_count(text: str) -> int:
    """Read a number of bytes: plain, or with kB, MB, GB (powers of 1000), KiB, MiB or GiB.

    Raises
    ------
    ValueError
        If it is none of these.

    Examples
    --------
    >>> byte_count("20kB"), byte_count("1.5 MiB")
    (20000, 1572864)
    """
    found = re.fullmatch(r"\s*([0-9.]+)\s*([kKMG]?)(i?)[bB]?\s*", text)
    try:
        number = float(found.group(1)) if found else -1.0
    except ValueError:
        number = -1.0
    if found is None or number <= 0:
        raise ValueError(f"{text!r} is no number of bytes such as 20000, 20kB or 1.5MiB")
    power = "KMG".find(found.group(2).upper()) + 1 if found.group(2) else 0
    return int(number * (1024 if found.group(3) else 1000) ** power)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A bound on the whole file; at most one is given.

    Attributes
    ----------
    bits : float or None
        Bits of the file for each value of the model.
    size : float or None
        Bytes.
    ratio : float or None
        Bytes of the original tensors over bytes of the file.
    """

    bits: float | None = None
    size: float | None = None
    ratio: float | None = None

    def __post_init__(self) -> None:
        given = [(n, getattr(self, n)) for n in ("bits", "size", "ratio") if getattr(self, n) is not None]
        if len(given) > 1:
            raise ValueError("only one of target_bits, target_size and target_ratio can be given")
        for name, number in given:
            if not number > 0:
                raise ValueError(f"target_{name} must be positive, not {number}")

    def max_bytes(self, *, original_bytes: int, n_values: int) -> int | None:
        """Return the largest file allowed, or None without a bound.

        Examples
        --------
        >>> Target(bits=2.5).max_bytes(original_bytes=4000, n_values=1000)
        312
        """
        if self.bits is not None:
            return int(self.bits * n_values / 8)
        if self.ratio is not None:
            return int(original_bytes / self.ratio)
        return None if self.size is None else int(self.size)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """A quantized model, the bytes of its file and its (weighted) squared error."""

    settings: ConvertSettings
    model: QuantizedModel
    file_bytes: int
    distortion: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Knob:
    """A setting that trades bytes for error, from its finest to its coarsest value, in equal ratios."""

    name: str
    finest: float
    coarsest: float
    whole: bool = False
    n_coarser: int = 0

    def settings(self, base: ConvertSettings, coarseness: float) -> ConvertSettings:
        """Return settings at `coarseness` of 0 to 1."""
        value = self.finest * (self.coarsest / self.finest) ** coarseness
        if self.name == "clusters":
            return replace(base, clusters=max(1, round(value)))
        return replace(base, step=value) if self.name == "step" else replace(base, rate_penalty=value)

    def told(self, settings: ConvertSettings) -> str:
        """Say how the setting stands."""
        return f"{self.name.replace('_', ' ')} {getattr(settings, self.name):.3g}"


_KNOBS = {
    "uniform": _Knob(name="step", finest=1e-3, coarsest=16.0, n_coarser=8),
    "ecsq": _Knob(name="rate_penalty", finest=1e-7, coarsest=100.0),
    "obs": _Knob(name="rate_penalty", finest=1e-6, coarsest=100.0),
}
_CLUSTERS = _Knob(name="clusters", finest=_FINEST_CLUSTERS, coarsest=1, whole=True)


def search_rate(
    base: ConvertSettings,
    attempt: Callable[[ConvertSettings], Attempt],
    max_bytes: int,
    progress: Callable[[str], None],
) -> Attempt:
    """Find the quantization of least (weighted) squared error with a file of at most `max_bytes`.

    Bisects the logarithm of the step (``uniform``), of the rate penalty (``ecsq``) or of the number of
    clusters (all others); every trial is a whole file. The error of a uniform grid does not always fall with
    the step (pruned weights have two humps), so some coarser grids are tried, too.

    Raises
    ------
    ConversionError
        If even the coarsest setting misses the bound; says how many bytes it takes.
    """
    if base.method == "none":
        return _checked(attempt(base), max_bytes)
    knob = _KNOBS.get(base.method, _CLUSTERS)
    best = _checked(attempt(knob.settings(base, 1.0)), max_bytes)
    finest = attempt(knob.settings(base, 0.0))
    if finest.file_bytes <= max_bytes:
        return finest
    low, high = 0.0, 1.0
    too_fine, fitting = finest.settings, best.settings
    for number in range(_MAX_ROUNDS):
        middle = (low + high) / 2
        settings = knob.settings(base, middle)
        if knob.whole and abs(too_fine.clusters - fitting.clusters) <= 1:
            break
        found = attempt(settings)
        progress(f"{SEARCHING}round {number + 1}, {found.file_bytes:,} of {max_bytes:,} bytes")
        if found.file_bytes > max_bytes:
            low, too_fine = middle, settings
            continue
        high, fitting = middle, settings
        best = min(best, found, key=_order)
        if found.file_bytes >= _CLOSE_ENOUGH * max_bytes:
            break
    for step in range(1, knob.n_coarser + 1):
        found = attempt(knob.settings(base, min(1.0, high + step * _COARSER)))
        if found.file_bytes <= max_bytes:
            best = min(best, found, key=_order)
    return best


def search_drop(
    base: ConvertSettings,
    attempt: Callable[[ConvertSettings], Attempt],
    judge: Callable[[Attempt], Drop],
    max_drop: float,
    progress: Callable[[str], None],
) -> Attempt:
    """Find the smallest file that loses at most `max_drop` points, in at most ten evaluations.

    Bisects the same setting as :func:`search_rate`, as if the accuracy only fell with it, until the largest
    file that is known to lose too much is within 1 % of the smallest that is not.

    Parameters
    ----------
    judge : callable
        Returns what an attempt's file loses; :meth:`Drop.keeps` decides.

    Raises
    ------
    ConversionError
        If even the finest setting loses too much; names the best file that was tried.
    ValueError
        If the method has no setting to search.
    """
    if base.method == "none":
        raise ValueError("a bound on the accuracy needs a lossy method")
    knob = _KNOBS.get(base.method, _CLUSTERS)
    kept: Attempt | None = None
    lost: Attempt | None = None
    least: tuple[Drop, Attempt] | None = None
    low, high = 0.0, 1.0
    for number in range(_MAX_EVALUATIONS):
        middle = low if lost is not None and kept is None else (low + high) / 2
        found = attempt(knob.settings(base, middle))
        drop = judge(found)
        keeps = drop.keeps(max_drop)
        progress(
            f"{SEARCHING}evaluation {number + 1}, {knob.told(found.settings)}, {found.file_bytes:,} bytes, "
            f"{drop}: {'kept' if keeps else 'too much'}"
        )
        least = (drop, found) if least is None or drop.points < least[0].points else least
        if keeps:
            low = middle
            kept = found if kept is None or found.file_bytes < kept.file_bytes else kept
        elif middle == 0.0:
            break
        else:
            high, lost = middle, found
        if kept and lost and kept.file_bytes <= _NEAR_ENOUGH * lost.file_bytes:
            break
    if kept is None and least is not None:
        drop, found = least
        raise ConversionError(
            f"a drop of at most {max_drop:g} points cannot be kept with method {base.method!r}; the best of "
            f"{number + 1} tries, {knob.told(found.settings)} with {found.file_bytes:,} bytes, has {drop}"
        )
    assert kept is not None
    return kept


def _order(attempt: Attempt) -> tuple[float, int]:
    return attempt.distortion, -attempt.file_bytes


def _checked(found: Attempt, max_bytes: int) -> Attempt:
    if found.file_bytes > max_bytes:
        raise ConversionError(
            f"the bound of {max_bytes:,} bytes cannot be met: method {found.settings.method!r} needs "
            f"{found.file_bytes:,} at its coarsest; prune more, or choose another method or --rest float16"
        )
    return found
