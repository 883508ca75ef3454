"""Seconds and memory of quantizers on large tensors: parts of benchmarks/quantizers.py.

    python benchmarks/quantizer_costs.py METHOD

converts a model of 25 million parameters in this process and prints seconds and peak memory as JSON.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

N_WEIGHTS = 25_000_000
K = 32
METHODS = ("kmeans", "hessian-kmeans", "uniform", "ecsq", "inq", "vq", "none")
_CHUNK = 1 << 22


def timed(call: Callable[[], Any]) -> tuple[Any, float, float]:
    """The result, wall-clock and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = call()
    return found, time.perf_counter() - wall, time.process_time() - cpu


def squared_error(values: np.ndarray, weights: np.ndarray, centres: np.ndarray) -> float:
    """Weighted squared distance to the nearest centre."""
    edges = (centres[:-1] + centres[1:]) / 2
    total = 0.0
    for start in range(0, values.size, _CHUNK):
        wide = values[start : start + _CHUNK].astype(np.float64)
        error = np.square(wide - centres[np.searchsorted(edges, wide)])
        total += float(np.dot(error, weights[start : start + _CHUNK].astype(np.float64)))
    return total


def numbers_of_25_million() -> tuple[np.ndarray, np.ndarray]:
    """Values and weights, float32."""
    rng = np.random.default_rng(0)
    values = rng.laplace(size=N_WEIGHTS).astype(np.float32)
    return values, np.exp(rng.normal(size=N_WEIGHTS)).astype(np.float32)


def optimum() -> dict[str, Any]:
    """The error of binned k-means against that of the optimum over all distinct values."""
    from nqconvert.kernels import partition_values
    from nqconvert.quantizers.clustering import cluster_1d

    values, weights = numbers_of_25_million()
    error = squared_error(values, weights, cluster_1d(values, weights, k=K))

    def exactly() -> np.ndarray:
        order = np.argsort(values)
        points, starts = np.unique(values[order].astype(np.float64), return_index=True)
        mass = np.add.reduceat(weights[order].astype(np.float64), starts)
        scale = np.abs(points).max()
        bounds = partition_values(points / scale, mass / mass.max(), K)
        return np.add.reduceat(mass * points, bounds[:-1]) / np.add.reduceat(mass, bounds[:-1])

    best, wall, cpu = timed(exactly)
    return {
        "n_weights": N_WEIGHTS,
        "k": K,
        "exact": {"wall": wall, "cpu": cpu},
        "error_over_optimum": error / squared_error(values, weights, best),
    }


def speed() -> dict[str, Any]:
    """Weighted k-means of 25 million numbers beside flash1dkmeans; ecsq of as many."""
    from nqconvert.quantizers import QuantizerSettings
    from nqconvert.quantizers.clustering import cluster_1d
    from nqconvert.quantizers.ecsq import quantize_ecsq

    values, weights = numbers_of_25_million()
    few = slice(0, 1 << 21)
    cluster_1d(values[few], weights[few], k=K)  # compiles
    centres, wall, cpu = timed(lambda: cluster_1d(values, weights, k=K))
    found: dict[str, Any] = {"n_weights": N_WEIGHTS, "k": K, "kmeans": {"wall": wall, "cpu": cpu}}
    error = squared_error(values, weights, centres)
    found["flash1dkmeans"] = flash(values, weights, error)
    quantize_ecsq({"w": values[few]}, {"w": weights[few]}, QuantizerSettings(clusters=K))
    settings = QuantizerSettings(clusters=K, rate_penalty=1e-2)
    _, wall, cpu = timed(lambda: quantize_ecsq({"w": values}, {"w": weights}, settings))
    found["ecsq"] = {"wall": wall, "cpu": cpu}
    return found


def flash(values: np.ndarray, weights: np.ndarray, error: float) -> dict[str, Any] | str:
    """flash1dkmeans on the same numbers; its error is relative to ours."""
    try:
        from flash1dkmeans import kmeans_1d
    except ImportError:
        print("flash1dkmeans is not installed; it is left out", file=sys.stderr)
        return "not installed"
    kmeans_1d(values[:1000], K, sample_weights=weights[:1000], random_state=0)  # compiles
    made, wall, cpu = timed(
        lambda: kmeans_1d(values, K, sample_weights=weights, return_cluster_borders=True, random_state=0)
    )
    centres = np.sort(np.asarray(made[0], dtype=np.float64))
    return {"wall": wall, "cpu": cpu, "error_over_ours": squared_error(values, weights, centres) / error}


def model_of_25_million() -> dict[str, np.ndarray]:
    """Tensors as a convolutional network has them; the largest has 2.36 million weights."""
    rng = np.random.default_rng(1)
    shapes = [(512, 512, 3, 3)] * 8 + [(1024, 1024, 1, 1)] * 4 + [(1000, 2048)]
    tensors = {
        f"layer{i}.weight": (0.03 * rng.standard_normal(shape, dtype=np.float32))
        for i, shape in enumerate(shapes)
    }
    tensors |= {f"layer{i}.bias": np.zeros(shape[0], np.float32) for i, shape in enumerate(shapes)}
    return tensors


def convert_here(method: str) -> dict[str, Any]:
    """Convert in this process: seconds, and the peak of resident memory above that before the model.

    The model counts once; the interpreter with NumPy, Numba, compiled kernels and what one small conversion
    loaded does not.
    """
    import numba  # noqa: F401

    import nqconvert
    import nqconvert.conversion
    import nqconvert.quantizers.ecsq
    import nqconvert.quantizers.kmeans
    import nqconvert.quantizers.lossless
    from nqconvert.memory import return_freed_memory

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.nqz"
        warm = {"w": np.random.default_rng(2).normal(size=(1200, 1000)).astype(np.float32)}
        os.environ["NQFORMAT_KERNELS"] = "numba"  # compiles what the machine has not compiled yet
        nqconvert.convert(warm, path, method=method, clusters=K)
        del warm, os.environ["NQFORMAT_KERNELS"]
        gc.collect()
        return_freed_memory()
        before = _status("VmRSS")
        tensors = model_of_25_million()
        n_bytes, largest = sum(a.nbytes for a in tensors.values()), max(a.nbytes for a in tensors.values())
        return_freed_memory()  # of what making the model took
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
        report, wall, cpu = timed(
            lambda: nqconvert.convert(tensors, path, method=method, clusters=K, scope="layer")
        )
        peak = _status("VmHWM") - before
    return {
        "method": method,
        "seconds": wall,
        "cpu_seconds": cpu,
        "stage_seconds": report.stage_seconds,
        "file_bytes": report.file_bytes,
        "model_bytes": n_bytes,
        "largest_bytes": largest,
        "peak_bytes": peak,
        "bound_bytes": n_bytes + 4 * largest,
        "interpreter_bytes": before,
    }


def memory(method: str) -> dict[str, Any]:
    """Convert 25 million parameters with a method that needs no gradient, in a process of its own."""
    run = subprocess.run([sys.executable, __file__, method], check=True, capture_output=True, text=True)
    row: dict[str, Any] = json.loads(run.stdout)
    print(
        f"{method}: {row['seconds']:.1f} s ({row['cpu_seconds']:.1f} s of CPU), peak "
        f"{row['peak_bytes'] / 1e6:.0f} MB of {row['bound_bytes'] / 1e6:.0f} MB, {row['file_bytes']:,} bytes",
        flush=True,
    )
    return row


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key))


if __name__ == "__main__":
    print(json.dumps(convert_here(sys.argv[1])))
