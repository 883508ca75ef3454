"""The plot of a comparison; needs matplotlib."""

from __future__ import annotations

import os
from collections.abc import Sequence

from nqformat.errors import ConversionError
from nqformat.optional_packages import require_package

from .comparison_row import ComparisonRow

__all__ = ["draw_comparison"]


def draw_comparison(rows: Sequence[ComparisonRow], path: str | os.PathLike[str]) -> None:
    """Draw accuracy with its intervals over file bytes, a line for each method."""
    canvas = require_package("matplotlib.backends.backend_agg").FigureCanvasAgg
    judged = [row for row in rows if row.accuracy is not None and row.file_bytes is not None]
    if not judged:
        raise ConversionError("a plot of size against accuracy needs a test")
    figure = require_package("matplotlib.figure").Figure(figsize=(8, 5))
    canvas(figure)
    axes = figure.add_subplot()
    reference = next((row.accuracy for row in judged if row.method == "original"), None)
    if reference is not None:
        axes.axhline(100 * reference, color="grey", linewidth=0.8, label="original")
    for method in dict.fromkeys(row.method for row in judged if row.method != "original"):
        points = sorted((row for row in judged if row.method == method), key=lambda row: row.file_bytes or 0)
        accuracies = [100 * (row.accuracy or 0.0) for row in points]
        spans = [
            [100 * ((row.accuracy or 0.0) - (row.low or 0.0)) for row in points],
            [100 * ((row.high or 0.0) - (row.accuracy or 0.0)) for row in points],
        ]
        axes.errorbar(
            [row.file_bytes or 0 for row in points],
            accuracies,
            yerr=spans,
            marker="o",
            capsize=2,
            label=method,
        )
    axes.set_xscale("log")
    axes.set_xlabel("bytes of the whole file")
    axes.set_ylabel("top-1 accuracy, %, with 95 % intervals")
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path)
