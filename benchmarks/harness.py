"""Timing shared by the benchmarks: CPU time, all candidates in turn, medians, machine and versions."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


_ROUND_SECONDS = 0.005


def cpu_seconds(call: Callable[[], Any], repeats: int = 1) -> float:
    """CPU time that this process spends in one call, all threads together: the mean of `repeats`."""
    started = time.process_time()
    for _ in range(repeats):
        call()
    return (time.process_time() - started) / repeats


def compare(calls: dict[str, Callable[[], Any]], *, rounds: int = 25) -> dict[str, dict[str, float]]:
    """Time candidates in turn, so that a busy machine disturbs all alike; the first round is not counted.

    Short calls are repeated until a round takes about 5 ms, which drowns the cost of reading the clock.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    repeats = {}
    for name, call in calls.items():
        call()
        repeats[name] = max(1, round(_ROUND_SECONDS / max(cpu_seconds(call), 1e-6)))
    for _ in range(rounds):
        for name, call in calls.items():
            seconds[name].append(cpu_seconds(call, repeats[name]))
    return {
        name: {"median": statistics.median(taken), "best": min(taken), "worst": max(taken)}
        for name, taken in seconds.items()
    }


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


def write(name: str, results: dict[str, Any]) -> Path:
    """Write results as JSON into benchmarks/results."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(results, indent=2) + "\n")
    return path
