"""How the density falls."""

from __future__ import annotations

__all__ = ["cubic_density"]


def cubic_density(final: float, fraction: float) -> float:
    """Return the density after a `fraction` of pruning.

    Source : Zhu, Gupta 2017, "To prune, or not to prune", eq. (1)

    Examples
    --------
    >>> cubic_density(0.2, 0.0), cubic_density(0.2, 0.5), cubic_density(0.2, 1.0)
    (1.0, 0.30000000000000004, 0.2)
    """
    return final + (1.0 - final) * (1.0 - fraction) ** 3
