"""What a conversion did: a table measured from the written file, and the same as JSON."""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass, field
from typing import Any

import nqformat
from nqformat.accounting import FileBytes, TensorBytes, account

from .accuracy import Drop
from .sensitivity.loss_check import LossCheck
from .verification import OutputComparison

__all__ = ["SCHEMA_VERSION", "Report", "bit_cells", "file_json", "file_table"]

SCHEMA_VERSION = 1
_NAME_WIDTH = 34


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Result of a conversion.

    Attributes
    ----------
    path : str
    preset, method : str
    file : FileBytes
        Every byte of the written file on an account.
    original_bytes : int
        Bytes of the original tensors, uncompressed.
    outputs : OutputComparison or None
        Original against re-read file on the example inputs.
    retrained_outputs : OutputComparison or None
        Pruned and retrained network against re-read file, where there was retraining.
    weight_snr_db : float
        Original against decoded tensors.
    accuracy : tuple of float or None
        What `evaluate` gave for the original and for the re-read file.
    exact : dict of str to str
        Why a tensor was not quantized, by name.
    notes, warnings : tuple of str
    seconds : float
    stage_seconds : dict of str to float
        Wall-clock seconds by stage.
    peak_bytes : int or None
        Largest resident memory above that at the start; None if the system does not tell.
    loss_check : LossCheck or None
        Predicted against measured change of the loss, where sensitivities, calibration data and a loss or an
        evaluation were given.
    drop : Drop or None
        Accuracy that was lost, with its interval where the evaluation tells of each sample.
    """

    path: str
    preset: str
    method: str
    file: FileBytes
    original_bytes: int
    outputs: OutputComparison | None
    retrained_outputs: OutputComparison | None
    weight_snr_db: float
    accuracy: tuple[float, float] | None
    exact: dict[str, str]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    seconds: float
    stage_seconds: dict[str, float] = field(default_factory=dict)
    peak_bytes: int | None = None
    loss_check: LossCheck | None = None
    drop: Drop | None = None

    @property
    def file_bytes(self) -> int:
        """Bytes of the whole file."""
        return self.file.file_bytes

    @property
    def ratio(self) -> float:
        """Original bytes over bytes of the whole file."""
        return self.original_bytes / self.file_bytes

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain JSON types."""
        return {
            "schema_version": SCHEMA_VERSION,
            "path": self.path,
            "preset": self.preset,
            "method": self.method,
            "original_bytes": self.original_bytes,
            "ratio": self.ratio,
            "outputs": _outputs_json(self.outputs),
            "retrained_outputs": _outputs_json(self.retrained_outputs),
            "weight_snr_db": _finite(self.weight_snr_db),
            "accuracy": None if self.accuracy is None else list(self.accuracy),
            "drop": None if self.drop is None else asdict(self.drop),
            "exact": self.exact,
            "notes": list(self.notes),
            "warnings": list(self.warnings),
            "seconds": self.seconds,
            "stage_seconds": self.stage_seconds,
            "peak_bytes": self.peak_bytes,
            "loss_check": None if self.loss_check is None else self.loss_check.to_json(),
            **file_json(self.file),
        }

    def __str__(self) -> str:
        lines = [file_table(self.file), ""]
        lines.append(
            f"{os.path.basename(self.path)}: {self.original_bytes:,} -> {self.file_bytes:,} bytes, "
            f"{self.ratio:.1f} times smaller ({self.preset}, {self.seconds:.1f} s)"
        )
        if self.outputs is not None:
            lines.append(f"original against re-read file: {self.outputs}")
            if self.retrained_outputs is not None:
                lines.append(f"retrained network against re-read file: {self.retrained_outputs}")
        elif math.isinf(self.weight_snr_db):
            lines.append("original against re-read file: every weight exact")
        else:
            lines.append(f"original against re-read file: weight SNR {self.weight_snr_db:.1f} dB")
        if self.accuracy is not None:
            before, after = self.accuracy
            told = "" if self.drop is None or self.drop.high is None else f"; {self.drop}"
            lines.append(f"accuracy: {before:.4f} before, {after:.4f} after{told}")
        if self.loss_check is not None:
            lines.append(str(self.loss_check))
        lines += _cost_lines(self.stage_seconds, self.peak_bytes)
        lines += _exact_lines(self.exact)
        lines += [f"note: {note}" for note in self.notes]
        lines += [f"warning: {warning}" for warning in self.warnings]
        return "\n".join(lines)


def _cost_lines(stage_seconds: dict[str, float], peak_bytes: int | None) -> list[str]:
    lines = []
    if stage_seconds:
        lines.append("seconds: " + ", ".join(f"{name} {s:.1f}" for name, s in stage_seconds.items()))
    if peak_bytes is not None:
        lines.append(f"peak memory: {peak_bytes / 1e6:,.0f} MB above that at the start")
    return lines


def _outputs_json(outputs: OutputComparison | None) -> dict[str, Any] | None:
    if outputs is None:
        return None
    return {
        "snr_db": _finite(outputs.snr_db),
        "agreement": outputs.agreement,
        "n_samples": outputs.n_samples,
    }


def _finite(number: float) -> float | None:
    """JSON has no infinity: None stands for an exact match."""
    return number if math.isfinite(number) else None


def _exact_lines(exact: dict[str, str]) -> list[str]:
    """One line a reason, with the tensors it holds for."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in exact.items():
        by_reason.setdefault(reason, []).append(name)
    return [f"not quantized ({reason}): {', '.join(names)}" for reason, names in by_reason.items()]


def file_json(file: FileBytes) -> dict[str, Any]:
    """Return a file's accounts as plain JSON types."""
    return {
        "file_bytes": file.file_bytes,
        "overhead_bytes": file.overhead,
        "parts": {
            "header": file.header,
            "checksums": file.checksums,
            "directory": file.directory,
            "metadata": file.metadata,
            "graph": file.graph,
            "padding": file.padding,
        },
        "tensors": [
            {
                "name": t.name,
                "layout": None if t.layout is None else t.layout.name.lower(),
                "codec": t.codec,
                "n_elements": t.n_elements,
                "plain_bytes": t.plain_bytes,
                "stored_bytes": round(t.stored_bytes, 1),
                "bits_per_weight": _bits_per_weight(t.coded_bits, t.n_elements),
                "entropy_bits_per_weight": _bits_per_weight(t.entropy_bits, t.n_elements),
            }
            for t in file.tensors
        ],
    }


def _bits_per_weight(bits: float, n_elements: int) -> float:
    return round(bits / n_elements, 4) if n_elements else 0.0


def file_table(file: FileBytes, *, max_rows: int = 60) -> str:
    """Return a table of all tensors and of the file's own parts; long models show their largest tensors."""
    header = ("tensor", "bytes before", "after", "layout", "codec", "bits/weight", "entropy")
    shown = file.tensors
    if len(shown) > max_rows:
        kept = sorted(file.tensors, key=lambda t: -t.stored_bytes)[:max_rows]
        shown = tuple(t for t in file.tensors if t in kept)
    rows = [_row(t) for t in shown]
    if len(shown) < len(file.tensors):
        hidden = [t for t in file.tensors if t not in shown]
        before, after = sum(t.plain_bytes for t in hidden), sum(t.stored_bytes for t in hidden)
        rows.append((f"({len(hidden)} smaller tensors)", f"{before:,}", f"{after:,.0f}", "", "", "", ""))
    if file.graph:
        rows.append(("(graph)", "", f"{file.graph:,}", "", "deflate", "", ""))
    rows.append(("(header, directory, tables)", "", f"{file.overhead - file.graph:,}", "", "", "", ""))
    plain = sum(t.plain_bytes for t in file.tensors if t.layout is not nqformat.Layout.VIEW)
    rows.append(("total", f"{plain:,}", f"{file.file_bytes:,}", "", "", "", ""))
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    rule = "  ".join("-" * width for width in widths)
    lines = [
        _line(header, widths),
        rule,
        *(_line(row, widths) for row in rows[:-1]),
        rule,
        _line(rows[-1], widths),
    ]
    return "\n".join(lines)


def _row(tensor: TensorBytes) -> tuple[str, ...]:
    name = tensor.name if len(tensor.name) <= _NAME_WIDTH else f"...{tensor.name[3 - _NAME_WIDTH :]}"
    layout = "?" if tensor.layout is None else tensor.layout.name.lower()
    return (
        name,
        f"{tensor.plain_bytes:,}",
        f"{tensor.stored_bytes:,.0f}",
        layout,
        tensor.codec,
        *bit_cells(tensor),
    )


def bit_cells(tensor: TensorBytes) -> tuple[str, str]:
    """Return coded bits for each element and their entropy as text; empty where no numbers are coded."""
    n = tensor.n_elements
    if not n or not tensor.coded_bits:
        return "", ""
    return f"{tensor.coded_bits / n:.3f}", f"{tensor.entropy_bits / n:.3f}"


def _line(cells: tuple[str, ...], widths: list[int]) -> str:
    numeric = {1, 2, 5, 6}
    return "  ".join(
        cell.rjust(width) if i in numeric else cell.ljust(width)
        for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ).rstrip()


def measure_file(path: str | os.PathLike[str], *, limits: nqformat.Limits | None = None) -> FileBytes:
    """Account for every byte of a written file."""
    with nqformat.safe_open(path, limits=limits, bfloat16="uint16") as file:
        return account(file)
