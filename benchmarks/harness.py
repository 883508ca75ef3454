"""Timing shared by the benchmarks: CPU time, all candidates in turn, medians, machine and versions."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


_ROUND_SECONDS = 0.005
_LONG_SECONDS = 0.1
_SLOW_SECONDS, _SLOW_STRIDE, _MANY_ROUNDS = 0.02, 4, 20


def cpu_seconds(call: Callable[[], Any], repeats: int = 1) -> float:
    """CPU time that this process spends in one call, all threads together: the mean of `repeats`."""
    started = time.process_time()
    for _ in range(repeats):
        call()
    return (time.process_time() - started) / repeats


def compare(calls: dict[str, Callable[[], Any]], *, rounds: int = 25) -> dict[str, dict[str, float]]:
    """Time candidates in turn, so that a busy machine disturbs all alike; the first round is not counted.

    Short calls are repeated until a round takes about 5 ms, which drowns the cost of reading the clock; of
    many rounds, slow calls take part in every fourth.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    repeats, strides = {}, {}
    for name, call in calls.items():
        taken = cpu_seconds(call)
        taken = cpu_seconds(call) if taken < _LONG_SECONDS else taken
        repeats[name] = max(1, round(_ROUND_SECONDS / max(taken, 1e-6)))
        strides[name] = _SLOW_STRIDE if taken > _SLOW_SECONDS and rounds > _MANY_ROUNDS else 1
    for number in range(rounds):
        for name, call in calls.items():
            if number % strides[name] == 0:
                seconds[name].append(cpu_seconds(call, repeats[name]))
    return {
        name: {"median": statistics.median(taken), "best": min(taken), "worst": max(taken)}
        for name, taken in seconds.items()
    }


def peak_bytes() -> int:
    """Peak resident memory of this process (Linux counts in KiB, macOS in bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def machine(*packages: str) -> dict[str, Any]:
    """What a result depends on."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.partition(":")[2].strip()
            for line in cpuinfo.read_text().splitlines()
            if "model name" in line
        ]
        model = names[0] if names else model
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "missing"
    return {
        "cpu": model,
        "processors": os.cpu_count(),
        "python": platform.python_version(),
        "packages": found,
        "load_average": os.getloadavg() if hasattr(os, "getloadavg") else None,
    }


def data_folder() -> Path | None:
    """The folder that NQZ_DATA names, or None."""
    folder = os.environ.get("NQZ_DATA")
    return Path(folder) if folder and (Path(folder) / "load.py").exists() else None


def required_data_folder() -> Path:
    """The folder that NQZ_DATA names; ends the program with a clear message if it is not there."""
    folder = data_folder()
    if folder is None:
        raise SystemExit("set NQZ_DATA to the folder with load.py, mnist, pruned_lenets and the other data")
    return folder


def loaders(folder: Path) -> Any:
    """The module load.py of the data folder."""
    found = importlib.util.spec_from_file_location("nqz_data_load", folder / "load.py")
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def state_dict(path: Path) -> dict[str, Any]:
    """Float tensors of a PyTorch state dict, as arrays."""
    import torch

    loaded = torch.load(path, weights_only=True, map_location="cpu")
    loaded = loaded.get("state_dict", loaded)
    return {name.removeprefix("module."): t.numpy() for name, t in loaded.items() if t.dtype is torch.float32}


def write(name: str, results: dict[str, Any]) -> Path:
    """Write results as JSON into benchmarks/results."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    written = path.with_suffix(f".{os.getpid()}.tmp")
    written.write_text(json.dumps(results, indent=2) + "\n")
    written.replace(path)
    return path


def read(name: str) -> dict[str, Any]:
    """Results that an earlier run wrote; empty without one."""
    path = RESULTS / f"{name}.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found
