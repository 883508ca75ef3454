"""What an evaluation says of a model, and how sure the drop between two models is."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from nqformat.errors import ConversionError

if TYPE_CHECKING:
    from .sources import Runner

__all__ = ["Drop", "Evaluation", "Score", "drop_between", "score_of"]

Evaluation = Callable[["Runner"], Any]
"""Takes a function from feeds to outputs; returns an accuracy (a share of 1), or one score a sample."""

_Z = 1.959963984540054
"""Two-sided 95 % of the normal distribution."""
_CELL = 0.5
_FEWEST = 2
_WARNED_POINTS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Score:
    """What an evaluation returned.

    Attributes
    ----------
    mean : float
        The accuracy.
    samples : ndarray of float64, shape (n,), or None
        Score of each sample, 1 for a right answer and 0 for a wrong one, where the evaluation tells; of
        scores with more axes the mean over all but the first.
    """

    mean: float
    samples: np.ndarray | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Drop:
    """Accuracy that a model lost, in percentage points; negative where it gained.

    Attributes
    ----------
    points : float
    low, high : float or None
        Ends of the paired 95 % interval; None where the evaluation returned a plain number.
    n_samples : int
        Samples that both models were judged on; 0 if not known.
    """

    points: float
    low: float | None = None
    high: float | None = None
    n_samples: int = 0

    def keeps(self, max_drop: float) -> bool:
        """Whether at most `max_drop` percentage points are lost.

        True if no loss was measured at all, or if the whole interval is within the bound. A plain number
        has no interval and counts as it is.

        Examples
        --------
        >>> Drop(points=0.1, low=-0.1, high=0.3).keeps(0.2), Drop(points=0.1).keeps(0.2)
        (False, True)
        """
        sure = self.points if self.high is None else self.high
        return self.points <= 0.0 or sure <= max_drop

    @property
    def warning(self) -> str:
        """Say so if more than a percentage point is surely lost; else empty."""
        surely = self.points if self.low is None else self.low
        return f"the file's accuracy is {self.points:.1f} points lower" if surely > _WARNED_POINTS else ""

    def __str__(self) -> str:
        text = f"drop {self.points:.3f} points"
        if self.low is None or self.high is None:
            return f"{text}, no interval: the evaluation has one number, not one a sample"
        return f"{text}, 95 % interval {self.low:.3f} to {self.high:.3f}, {self.n_samples:,} samples"


def score_of(evaluate: Evaluation, run: Runner | None) -> Score:
    """Evaluate a model.

    Raises
    ------
    ConversionError
        If the model cannot run.
    ValueError
        If the evaluation returns neither a finite number nor finite scores.
    """
    if run is None:
        raise ConversionError("an evaluation needs a model that can run; a state dict has no graph")
    try:
        found = np.asarray(evaluate(run), dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"evaluate must return a number or one score for each sample: {error}") from error
    if not found.size or not np.isfinite(found).all():
        raise ValueError("evaluate returned no samples, or a score that is not finite")
    if found.ndim == 0:
        return Score(mean=float(found))
    samples = found.reshape(len(found), -1).mean(axis=1)
    return Score(mean=float(samples.mean()), samples=samples)


def drop_between(before: Score, after: Score) -> Drop:
    """Compare two models on the same samples.

    Right and wrong answers have the interval of Agresti and Min, which counts half an answer more in each
    cell of the table of pairs; other scores that of the mean of their differences.

    Raises
    ------
    ValueError
        If the scores are of different numbers of samples.

    Source : Agresti and Min 2005, "Simple improved confidence intervals for comparing matched proportions"

    Examples
    --------
    >>> before, after = (Score(mean=s.mean(), samples=s) for s in (np.ones(1000), np.arange(1000) >= 3.0))
    >>> str(drop_between(before, after))
    'drop 0.300 points, 95 % interval -0.091 to 0.690, 1,000 samples'
    """
    points = 100.0 * (before.mean - after.mean)
    one, other = before.samples, after.samples
    if one is None or other is None:
        return Drop(points=points)
    if one.shape != other.shape:
        raise ValueError(f"evaluate returned scores of {one.size:,} samples, then of {other.size:,}")
    lost = one - other
    if lost.size < _FEWEST:
        return Drop(points=points)
    if np.isin(one, (0.0, 1.0)).all() and np.isin(other, (0.0, 1.0)).all():
        middle, error = _matched_answers(int((lost > 0).sum()), int((lost < 0).sum()), lost.size)
    else:
        middle = float(lost.mean())
        error = float(lost.std(ddof=1)) / math.sqrt(lost.size)
    low, high = 100.0 * (middle - _Z * error), 100.0 * (middle + _Z * error)
    return Drop(points=points, low=low, high=high, n_samples=lost.size)


def _matched_answers(n_lost: int, n_gained: int, n: int) -> tuple[float, float]:
    """Return the middle of the interval and its standard error, as shares."""
    lost, gained, total = n_lost + _CELL, n_gained + _CELL, n + 4 * _CELL
    middle = (lost - gained) / total
    return middle, math.sqrt((lost + gained) / total - middle**2) / math.sqrt(total)
