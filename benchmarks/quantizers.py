"""Quantizers side by side on trained networks: bytes, loss, accuracy, seconds, memory.

    NQZ_DATA=path/to/data [NQZ_PEERS=path NQZ_PEERS_PYTHON=python] python benchmarks/quantizers.py [part ...]

Parts: ordering, why, goals, speed, memory, adam; all without an argument. Each writes its key of
benchmarks/results/quantizers.json. Bytes are of whole files, graph included; losses and accuracies are of the
files, read back. Rates are chosen on training images, never on test images.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from harness import RESULTS, machine, write
from networks import NETWORKS, data_folder, loaders
from quantizer_curves import Point, Workbench, against_first, as_rows, base_settings

CURVES: dict[str, dict[str, Any]] = {
    "kmeans": {"method": "kmeans", "sensitivity": "none"},
    "hessian-kmeans": {"method": "hessian-kmeans", "sensitivity": "fisher"},
    "uniform + fisher": {"method": "uniform", "sensitivity": "fisher"},
    "ecsq + fisher": {"method": "ecsq", "sensitivity": "fisher", "clusters": 64},
    "ecsq + root of fisher": {"method": "ecsq", "sensitivity": "root-fisher", "clusters": 64},
}
RATES: dict[str, dict[str, tuple[float, ...]]] = {
    "lenet300_p8": {
        "clusters": (5, 6, 8, 10, 13, 18),
        "step": (0.7, 0.9, 1.1, 1.4, 1.7, 2.1),
        "ecsq + fisher": (5e-4, 1e-3, 3e-3, 1e-2, 2e-2, 4e-2),
        "ecsq + root of fisher": (1e-2, 3e-2, 5e-2, 1e-1, 1.6e-1, 2.5e-1),
    },
    "lenet5_p8": {
        "clusters": (5, 6, 8, 10, 13, 18),
        "step": (0.7, 0.9, 1.1, 1.4, 1.7, 2.1),
        "ecsq + fisher": (3e-3, 1e-2, 2e-2, 3e-2, 5e-2, 8e-2),
        "ecsq + root of fisher": (3e-2, 5e-2, 8e-2, 1.3e-1, 2e-1, 3e-1),
    },
    "resnet32_jpegft": {
        "clusters": (16, 24, 36, 56),
        "step": (0.12, 0.2, 0.3, 0.45),
        "ecsq + fisher": (2e-4, 1e-3, 3e-3, 1e-2),
        "ecsq + root of fisher": (2e-4, 1e-3, 3e-3, 1e-2),
    },
}


def curve(bench: Workbench, name: str, *, scope: str) -> list[Point]:
    """One method at several rates."""
    rates = RATES[bench.network.name]
    points = []
    if name.startswith("ecsq"):
        values, knob = rates[name], "rate_penalty"
    elif name.startswith("uniform"):
        values, knob = rates["step"], "step"
    else:
        values, knob = rates["clusters"], "clusters"
    for value in values:
        changed = base_settings(scope=scope, **{**CURVES[name], knob: value})
        points.append(bench.point(changed, knob))
        p = points[-1]
        print(
            f"{bench.network.name} {name} {scope} {knob} {value:g}: {p.file_bytes:,} bytes, "
            f"loss {p.loss:.4f}, accuracy {100 * p.accuracy:.2f} %, {p.seconds:.1f} s",
            flush=True,
        )
    return points


def ordering(network: str) -> dict[str, Any]:
    """Choi et al.'s order of methods, and one codebook for all layers against one for each."""
    folder = data_folder()
    bench = Workbench.of(NETWORKS[network](folder, loaders(folder)))
    seconds = bench.measure("fisher")
    bench.add_root("fisher")
    original = bench.original(bench.network.test)
    curves = {name: curve(bench, name, scope="global") for name in CURVES}
    layered = {name: curve(bench, name, scope="layer") for name in ("hessian-kmeans", "ecsq + fisher")}
    scopes = {
        name: against_first({"joint": curves[name], "per layer": points}, original[0])
        for name, points in layered.items()
    }
    kmeans = {name: curves[name] for name in ("kmeans", "hessian-kmeans")}
    return {
        "original": {"loss": original[0], "accuracy": original[1]},
        "n_test": len(bench.network.test[1]),
        "fisher_seconds": seconds,
        "huffman": against_first(curves, original[0]),
        "fixed_length": against_first(kmeans, original[0], fixed=True),
        "scope": scopes,
        "points": [row for points in (*curves.values(), *layered.values()) for row in as_rows(points)],
    }


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    **{f"ordering {name}": (lambda name=name: ordering(name)) for name in NETWORKS},
}


def main() -> None:
    torch.set_num_threads(1)
    wanted = sys.argv[1:]
    for name, part in PARTS.items():
        if wanted and not any(name.startswith(word) or word == name.split()[-1] for word in wanted):
            continue
        started = time.perf_counter()
        found = part()
        found["wall_seconds"] = round(time.perf_counter() - started, 1)
        path = RESULTS / "quantizers.json"
        results = json.loads(path.read_text()) if path.exists() else {}
        results["machine"] = machine("numpy", "numba", "torch", "onnxruntime", "flash1dkmeans")
        results[name] = found
        write("quantizers", results)


if __name__ == "__main__":
    main()
