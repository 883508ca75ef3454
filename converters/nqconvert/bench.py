"""How long a file takes to load, decode and run."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import nqformat
from nqformat.errors import ConversionError

__all__ = ["FileBench", "Timing", "bench_file"]

_SCHEMA_VERSION = 1
_MEGA = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """One kind of work at one number of threads.

    Attributes
    ----------
    work : str
        ``load`` (open, check the directory, decode nothing), ``decode`` (all tensors), ``start`` (a session
        until it can run) or ``run`` (one inference).
    threads : int
    median_ms, best_ms : float
        Wall-clock milliseconds.
    megabytes : float or None
        What passes by once, in 1e6 bytes: the file for ``load``, decoded tensors for ``decode``.
    """

    work: str
    threads: int
    median_ms: float
    best_ms: float
    megabytes: float | None = None

    @property
    def megabytes_per_second(self) -> float | None:
        """At the median; None where no bytes are counted."""
        return None if self.megabytes is None else 1e3 * self.megabytes / max(self.median_ms, 1e-9)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileBench:
    """Timings of a file.

    Attributes
    ----------
    path : str
    file_bytes, decoded_bytes : int
    engine : str
        That ran it; empty if the file has no graph.
    repeats : int
        Rounds after one that does not count.
    timings : tuple of Timing
    notes : tuple of str
    """

    path: str
    file_bytes: int
    decoded_bytes: int
    engine: str
    repeats: int
    timings: tuple[Timing, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the timings as plain JSON types."""
        rows = [asdict(t) | {"megabytes_per_second": t.megabytes_per_second} for t in self.timings]
        return {
            "schema_version": _SCHEMA_VERSION,
            "path": self.path,
            "file_bytes": self.file_bytes,
            "decoded_bytes": self.decoded_bytes,
            "engine": self.engine,
            "repeats": self.repeats,
            "timings": rows,
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        lines = [
            f"{os.path.basename(self.path)}: {self.file_bytes:,} bytes, {self.decoded_bytes:,} decoded"
            + (f", {self.engine} engine" if self.engine else ""),
            f"{'work':8s}{'threads':>8s}{'median ms':>12s}{'best ms':>12s}{'MB/s':>10s}",
        ]
        for t in self.timings:
            speed = t.megabytes_per_second
            rate = "" if speed is None else f"{speed:,.0f}"
            line = f"{t.work:8s}{t.threads:8d}{t.median_ms:12.3f}{t.best_ms:12.3f}{rate:>10s}"
            lines.append(line.rstrip())
        lines.append(f"medians of {self.repeats} rounds after one that does not count")
        return "\n".join(lines + [f"note: {note}" for note in self.notes])


def bench_file(
    path: str | os.PathLike[str],
    *,
    inputs: np.ndarray | Mapping[str, np.ndarray] | None = None,
    threads: Sequence[int] = (1, 2),
    repeats: int = 7,
    engine: str = "auto",
    progress: Callable[[str], None] | None = None,
) -> FileBench:
    """Time loading, decoding and running a .nqz file.

    Parameters
    ----------
    path : path-like
    inputs : ndarray or mapping of str to ndarray, optional
        For the runs; None: as :meth:`nqruntime.InferenceSession.made_up_inputs`. A single array is the input
        of a model that takes one.
    threads : sequence of int
        Each is timed.
    repeats : int
        Rounds that count.
    engine : {"auto", "native", "ort"}
    progress : callable, optional

    Returns
    -------
    FileBench

    Raises
    ------
    OSError, FormatError, UnsupportedFeatureError, MissingDependencyError
        As :func:`nqformat.safe_open` and :class:`nqruntime.InferenceSession`.
    ConversionError
        If inputs cannot be made up.
    ValueError
        If a number is below one or the inputs do not fit.
    """
    if repeats < 1 or not threads or min(threads) < 1:
        raise ValueError("repeats and threads must be at least 1")
    say = progress or (lambda line: None)
    file_bytes = Path(path).stat().st_size
    with nqformat.safe_open(path, bfloat16="uint16") as file:
        has_graph = file.graph() is not None
    decoded_bytes = sum(a.nbytes for a in _decode(path, 1).values())
    timings: list[Timing] = []
    engine_name = ""
    for count in threads:
        say(f"timing: {count} threads")
        timings.append(_timing("load", count, repeats, partial(_open, path, count), file_bytes))
        timings.append(_timing("decode", count, repeats, partial(_decode, path, count), decoded_bytes))
        if has_graph:
            engine_name, found = _session_timings(path, inputs, count, repeats, engine)
            timings += found
    return FileBench(
        path=os.fspath(path),
        file_bytes=file_bytes,
        decoded_bytes=decoded_bytes,
        engine=engine_name,
        repeats=repeats,
        timings=tuple(timings),
        notes=() if has_graph else ("the file has no graph, so nothing was run",),
    )


def _open(path: str | os.PathLike[str], threads: int) -> None:
    with nqformat.safe_open(path, bfloat16="uint16", threads=threads) as file:
        file.keys()


def _decode(path: str | os.PathLike[str], threads: int) -> dict[str, np.ndarray]:
    return nqformat.load_file(path, bfloat16="uint16", threads=threads)


def _session_timings(
    path: str | os.PathLike[str],
    inputs: np.ndarray | Mapping[str, np.ndarray] | None,
    threads: int,
    repeats: int,
    engine: str,
) -> tuple[str, list[Timing]]:
    from nqruntime import InferenceSession

    def start() -> None:
        with InferenceSession(path, engine=engine, threads=threads):
            pass

    started = _timing("start", threads, repeats, start)
    with InferenceSession(path, engine=engine, threads=threads) as session:
        feeds = _feeds(session, inputs)
        ran = _timing("run", threads, repeats, lambda: session.run(None, feeds))
        return session.engine, [started, ran]


def _timing(
    work: str, threads: int, repeats: int, call: Callable[[], Any], n_bytes: int | None = None
) -> Timing:
    call()
    taken = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        taken.append(1e3 * (time.perf_counter() - started))
    return Timing(
        work=work,
        threads=threads,
        median_ms=statistics.median(taken),
        best_ms=min(taken),
        megabytes=None if n_bytes is None else n_bytes / _MEGA,
    )


def _feeds(session: Any, inputs: np.ndarray | Mapping[str, np.ndarray] | None) -> dict[str, np.ndarray]:
    described = session.get_inputs()
    if isinstance(inputs, Mapping):
        return dict(inputs)
    if inputs is not None:
        if len(described) != 1:
            raise ValueError(f"the model has {len(described)} inputs; give them by name")
        return {described[0].name: inputs}
    try:
        return dict(session.made_up_inputs())
    except ValueError as error:
        raise ConversionError(str(error)) from error
