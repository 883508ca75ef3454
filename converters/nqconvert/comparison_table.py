"""The table of a comparison: one row for each method and bound, as text and as JSON."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any

from .comparison_row import ComparisonRow

__all__ = ["Comparison"]

_SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A table of methods.

    Attributes
    ----------
    rows : tuple of ComparisonRow
        The original first.
    original_bytes : int
        Of the tensors, uncompressed.
    n_values, n_test : int
        Values of the model; test samples, 0 without a test.
    notes : tuple of str
    """

    rows: tuple[ComparisonRow, ...]
    original_bytes: int
    n_values: int
    n_test: int
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as plain JSON types."""
        return {
            "schema_version": _SCHEMA_VERSION,
            "original_bytes": self.original_bytes,
            "n_values": self.n_values,
            "n_test": self.n_test,
            "rows": [asdict(row) for row in self.rows],
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        header = (
            "method",
            "target",
            "bytes",
            "ratio",
            "bits/value",
            "accuracy",
            "95 %",
            "-/+",
            "s",
            "peak MB",
            "setting",
        )
        table = [header, *(self._cells(row) for row in self.rows)]
        widths = [max(len(cells[i]) for cells in table) for i in range(len(header))]
        lines = [
            "  ".join(c.ljust(w) for c, w in zip(cells, widths, strict=True)).rstrip() for cells in table
        ]
        lines.insert(1, "  ".join("-" * width for width in widths))
        if self.n_test:
            lines.append(f"accuracy: {self.n_test} test samples; -/+: lost and won against the original")
        return "\n".join(lines + [f"note: {note}" for note in self.notes])

    def _cells(self, row: ComparisonRow) -> tuple[str, ...]:
        if row.file_bytes is None:
            size = ("-", "", "")
        else:
            ratio = self.original_bytes / row.file_bytes
            size = (f"{row.file_bytes:,}", f"{ratio:.1f}", f"{8 * row.file_bytes / self.n_values:.3f}")
        accuracy = "" if row.accuracy is None else f"{100 * row.accuracy:.2f}"
        interval = "" if row.low is None or row.high is None else f"{100 * row.low:.2f}-{100 * row.high:.2f}"
        pair = "" if row.lost is None else f"{row.lost}/{row.won}"
        peak = "" if row.peak_bytes is None else f"{row.peak_bytes / 1e6:.0f}"
        tail = (f"{row.seconds:.1f}", peak, row.note or row.setting)
        return (row.method, row.target, *size, accuracy, interval, pair, *tail)

    def save_plot(self, path: str | os.PathLike[str]) -> None:
        """Draw size against accuracy into an image file.

        Raises
        ------
        MissingDependencyError
            If matplotlib is missing.
        ConversionError
            If no accuracy was measured.
        """
        from .comparison_plot import draw_comparison

        draw_comparison(self.rows, path)
