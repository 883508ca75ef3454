"""Which engine is faster for a file on this machine: measured once, then remembered."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from nqformat import __version__
from nqformat.errors import FormatError
from nqruntime.graph import Model
from nqruntime.kernels.library import COMPUTE
from nqruntime.lowering.racing import best_of_each
from nqruntime.made_up import made_up_feeds
from nqruntime.remembering import keep, recall

from .engine import Engine, EngineSettings

_SECONDS = 0.01
_TOLERANCE = 1.02

_WHAT = "engine"


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Best seconds of one run with each engine."""

    native: float
    ort: float

    @property
    def native_wins(self) -> bool:
        """Whether the native engine is as fast, within two hundredths."""
        return self.native <= _TOLERANCE * self.ort

    def __str__(self) -> str:
        """Say it in a sentence."""
        return (
            f"a run takes {1000 * self.native:.3g} ms with the native engine and {1000 * self.ort:.3g} ms "
            "with ONNX Runtime on this machine"
        )


def compare(model: Model, native: Engine, ort: Engine) -> Timings | None:
    """Time both engines in turn on made-up inputs; None if these do not run."""
    feeds = made_up_feeds(model.graph.inputs, model.graph.initializers)
    if feeds is None:
        return None
    names = [value.name for value in model.graph.outputs]
    try:
        native_seconds, ort_seconds = best_of_each(
            [lambda: native.run(names, feeds), lambda: ort.run(names, feeds)], seconds=_SECONDS
        )
    except (FormatError, ValueError, RuntimeError):
        return None
    return Timings(native=native_seconds, ort=ort_seconds)


def remembered(key: str) -> Timings | None:
    """Return what was measured before, in this process or another of this user."""
    found = recall(_WHAT, key)
    try:
        return Timings(native=float(found["native"]), ort=float(found["ort"]))
    except (ValueError, TypeError, KeyError):
        return None


def remember(key: str, timings: Timings) -> None:
    """Keep a measurement for later processes too, where there is a cache folder."""
    keep(_WHAT, key, asdict(timings))


def choice_key(file_header: bytes, settings: EngineSettings | None) -> str:
    """Return what a measurement depends on: the file, the machine, the versions and the settings.

    Parameters
    ----------
    file_header : bytes
        The header of the .nqz file, whose checksum stands for the checksums of all other bytes.
    settings : EngineSettings or None
        None for what must be the same at any number of threads: which kernels run.
    """
    threads = "" if settings is None else str(settings.threads)
    words = [platform.machine(), _processor(), platform.node(), threads]
    words.append(COMPUTE.digest())
    words += [__version__, *(_stamp(package) for package in ("numpy", "numba", "onnxruntime"))]
    return hashlib.sha256(file_header + "\0".join(words).encode()).hexdigest()


def _processor() -> str:
    """Name the processor, without starting a process as `platform` does where a file says it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("model name", "CPU part"))), "")


def _stamp(package: str) -> str:
    """Return what another version of a package changes, without importing it."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        return ""
    status = os.stat(found.origin)
    return f"{status.st_mtime_ns} {status.st_size}"


def faster(
    model: Model, key: str, make_native: Callable[[], Engine], make_ort: Callable[[], Engine | None]
) -> tuple[Engine, str | None]:
    """Return the faster engine, and why it is not the native one; the other is not kept.

    Where a measurement is remembered, only the engine that it names is made.

    Parameters
    ----------
    make_native, make_ort : callable
        Make the engines; the second returns None if ONNX Runtime is not installed.
    """
    known = remembered(key)
    if known is not None and not known.native_wins:
        ort = make_ort()
        if ort is not None:
            return ort, str(known)
    native = make_native()
    ort = make_ort() if known is None else None
    if ort is None:
        return native, None
    known = compare(model, native, ort)
    if known is not None:
        remember(key, known)
        if known.native_wins:
            ort.close()
            return native, None
    native.close()
    return ort, str(known) if known is not None else "the engines could not be compared on made-up inputs"
