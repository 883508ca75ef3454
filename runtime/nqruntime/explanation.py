"""Where the time and the memory of a network go, node by node, as a table."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .engines.engine import KernelChoice
from .session import InferenceSession

_SECONDS = 0.5
_FEWEST, _MOST = 5, 200
_WIDEST = (32, 24, 64, 16, 20)


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What runs each node of a network.

    Attributes
    ----------
    engine : str
    rows : tuple of KernelChoice
        One for each node.
    run_seconds : float
        Shortest time of one whole run.
    weight_bytes : int
        Held for all weights.
    fallback_reason : str or None
        Why the native engine does not run it.
    ort_seconds : float or None
        Shortest time of one run with ONNX Runtime on the decoded weights; None if it was not compared.
    ort_weight_bytes : int or None
        Of the decoded weights.
    """

    engine: str
    rows: tuple[KernelChoice, ...]
    run_seconds: float
    weight_bytes: int
    fallback_reason: str | None = None
    ort_seconds: float | None = None
    ort_weight_bytes: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON types."""
        return asdict(self) | {"rows": [asdict(row) for row in self.rows]}

    def __str__(self) -> str:
        head = ["node", "operator", "kernel", "time us", "memory bytes"]
        cells = [head, *(_cells(row) for row in self.rows)]
        timed = [row.seconds for row in self.rows if row.seconds is not None]
        total = f"{1e6 * sum(timed):,.1f}" if timed else ""
        cells.append(["total", "", "", total, f"{self.weight_bytes:,}"])
        return "\n".join([*_table(cells), *self._sentences()])

    def _sentences(self) -> list[str]:
        name = "ONNX Runtime" if self.engine == "ort" else f"the {self.engine} engine"
        lines = [f"one run: {1e3 * self.run_seconds:.3f} ms with {name}"]
        if self.engine == "ort":
            lines.append("ONNX Runtime runs the graph as a whole: times and memory of nodes are not known")
        if self.fallback_reason:
            lines.append(f"not with the native engine: {self.fallback_reason}")
        if self.ort_seconds is not None and self.ort_weight_bytes is not None:
            ratio = self.ort_seconds / self.run_seconds
            lines.append(
                f"ONNX Runtime on the decoded weights: {1e3 * self.ort_seconds:.3f} ms ({ratio:.2f} times "
                f"as long), {self.ort_weight_bytes:,} bytes of weights"
            )
        return lines


def _cells(row: KernelChoice) -> list[str]:
    kernel = f"{row.kernel} ({row.reason})" if row.reason else row.kernel
    seconds = "" if row.seconds is None else f"{1e6 * row.seconds:,.1f}"
    held = f"{row.weight_bytes:,}" if row.weight_bytes else ""
    return [row.node, row.operator, kernel, seconds, held]


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Align columns, the last two to the right; words that are too long are cut."""
    cut = [
        [
            cell if len(cell) <= most else f"{cell[: most - 3]}..."
            for cell, most in zip(cells, _WIDEST, strict=True)
        ]
        for cells in rows
    ]
    widths = [max(map(len, column)) for column in zip(*cut, strict=True)]
    lines = []
    for cells in cut:
        padded = [
            cell.ljust(width) if i < 3 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        lines.append("  ".join(padded).rstrip())
    return lines


def explain_session(
    session: InferenceSession,
    feeds: Mapping[str, np.ndarray] | None = None,
    *,
    rival: InferenceSession | None = None,
) -> Explanation:
    """Time a network as a whole and node by node.

    Parameters
    ----------
    session : InferenceSession
    feeds : mapping of str to ndarray, optional
        By default made-up inputs.
    rival : InferenceSession, optional
        The same file with engine ``ort``, for comparison.

    Raises
    ------
    TypeError, ValueError, FormatError
        As :meth:`InferenceSession.run`; ValueError also if no inputs can be made up.

    Examples
    --------
    >>> print(explain_session(session))  # doctest: +SKIP
    """
    given = session.made_up_inputs() if feeds is None else dict(feeds)
    sessions = [session] if rival is None else [session, rival]
    seconds = _best_runs(sessions, given)
    return Explanation(
        engine=session.engine,
        rows=tuple(session.explain(timed=True, feeds=given)),
        run_seconds=seconds[0],
        weight_bytes=session.weight_bytes,
        fallback_reason=session.fallback_reason,
        ort_seconds=None if rival is None else seconds[1],
        ort_weight_bytes=None if rival is None else rival.weight_bytes,
    )


def _best_runs(sessions: Sequence[InferenceSession], feeds: Mapping[str, np.ndarray]) -> list[float]:
    """Run sessions in turn and return the shortest time of each."""
    for session in sessions:
        session.run(None, feeds)
    best = [float("inf")] * len(sessions)
    began, rounds = time.perf_counter(), 0
    while rounds < _FEWEST or (rounds < _MOST and time.perf_counter() - began < _SECONDS):
        for i, session in enumerate(sessions):
            started = time.perf_counter()
            session.run(None, feeds)
            best[i] = min(best[i], time.perf_counter() - started)
        rounds += 1
    return best
