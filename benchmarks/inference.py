"""Running from compressed weights, beside ONNX Runtime on the decoded ones.

    NQZ_DATA=... python benchmarks/inference.py [--quick]

Layers of synthetic weights, and networks whose trained weights are pruned by magnitude (only their speed
counts here). Both engines take turns on the same file; wall times, since threads are compared. Writes
benchmarks/results/inference.json. Networks are left out without NQZ_DATA.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from harness import data_folder, loaders, machine, write
from onnx import TensorProto, helper

import nqformat
from nqformat import Codebook, CodebookTensor
from nqruntime import InferenceSession

ROUNDS = 25
N_LEVELS = 16
_FIRST_OUTPUT = (
    "import sys, time, numpy as np, nqruntime;"
    "s = nqruntime.InferenceSession(sys.argv[1], engine=sys.argv[2]);"
    "x = s.get_inputs()[0]; shape = [d if isinstance(d, int) else 1 for d in x.shape];"
    "s.run(None, {x.name: np.zeros(shape, np.float32)});"
    "print(time.process_time())"
)


def levels_of(weights: np.ndarray, density: float) -> CodebookTensor:
    """Prune by magnitude and round to evenly spaced levels, one of which is zero."""
    size = np.abs(weights)
    kept = size > 0 if density == 1 else (size > 0) & (size >= np.quantile(size, 1 - density))
    bound = float(np.abs(weights).max()) or 1.0
    values = np.linspace(-bound, bound, N_LEVELS - 1, dtype=np.float32)
    values = np.concatenate([[np.float32(0)], values[values != 0]])
    nearest = 1 + np.abs(weights[..., None] - values[1:]).argmin(-1)
    indices = np.where(kept, nearest, 0).astype(np.uint8)
    return CodebookTensor(indices=indices, codebook=Codebook(values=values))


def layer_file(path: Path, operator: str, shape: tuple[int, ...], density: float, x: tuple[int, ...]) -> None:
    """Write a file of one layer."""
    rng = np.random.default_rng(len(shape))
    values = np.concatenate([[0], rng.normal(size=N_LEVELS - 1)]).astype(np.float32)
    kept = rng.random(shape) < density
    indices = np.where(kept, rng.integers(1, N_LEVELS, shape), 0).astype(np.uint8)
    attributes = {"pads": [1] * 4} if operator == "Conv" and shape[-1] == 3 else {}
    node = helper.make_node(operator, ["x", "w"], ["y"], **attributes)
    declared = helper.make_tensor_value_info("x", TensorProto.FLOAT, x)
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    model = helper.make_model(
        helper.make_graph([node], "layer", [declared], [result]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    weight = CodebookTensor(indices=indices, codebook=Codebook(values=values))
    nqformat.save_file({"w": weight}, path, graph=model.SerializeToString())


LAYERS = {
    "FC 4096 x 4096, 9 %, batch 1": ("MatMul", (4096, 4096), 0.09, (1, 4096)),
    "FC 4096 x 4096, 9 %, batch 64": ("MatMul", (4096, 4096), 0.09, (64, 4096)),
    "FC 4096 x 4096, 16 clusters, batch 1": ("MatMul", (4096, 4096), 1.0, (1, 4096)),
    "FC 4096 x 4096, 16 clusters, batch 8": ("MatMul", (4096, 4096), 1.0, (8, 4096)),
    "FC 4096 x 4096, 16 clusters, batch 64": ("MatMul", (4096, 4096), 1.0, (64, 4096)),
    "FC 384 x 1536, 16 clusters, batch 1": ("MatMul", (384, 1536), 1.0, (1, 384)),
    "FC 384 x 1536, 16 clusters, batch 64": ("MatMul", (384, 1536), 1.0, (64, 384)),
    "conv 3x3, 128 channels, 28 x 28, 10 %": ("Conv", (128, 128, 3, 3), 0.1, (1, 128, 28, 28)),
    "conv 3x3, 128 channels, 28 x 28, 20 %": ("Conv", (128, 128, 3, 3), 0.2, (1, 128, 28, 28)),
    "conv 1x1, 256 channels, 14 x 14, 10 %": ("Conv", (256, 256, 1, 1), 0.1, (1, 256, 14, 14)),
}


def networks(folder: Path) -> Iterator[tuple[str, Path]]:
    """Write files of the trained networks, pruned to a density, and name them."""
    source = data_folder()
    if source is None:
        return
    import networks as trained
    import torch

    import nqconvert

    for name, make, shape, densities in (
        ("LeNet-300-100", trained.lenet300, (1, 1, 28, 28), (0.08,)),
        ("LeNet-5", trained.lenet5, (1, 1, 28, 28), (0.08,)),
        ("ResNet-32", trained.resnet32, (1, 3, 32, 32), (0.1, 0.2, 1.0)),
    ):
        network = make(source, loaders(source))
        whole = folder / "whole.nqz"
        nqconvert.convert(network.module, whole, example_inputs=torch.zeros(shape), preset="lossless")
        with nqformat.safe_open(whole) as file:
            graph = file.graph()
            tensors = dict(file.tensors())
        for density in densities:
            path = folder / f"{name}-{density}.nqz"
            packed = {n: levels_of(a, density) if a.ndim > 1 else a for n, a in tensors.items()}
            nqformat.save_file(packed, path, graph=graph)
            yield f"{name}, {100 * density:.0f} %, batch 1", path


def feeds_of(path: Path) -> dict[str, np.ndarray]:
    """Noise for every input, with one row where the batch is free."""
    rng = np.random.default_rng(1)
    with InferenceSession(path, engine="ort", threads=1) as session:
        return {
            value.name: rng.normal(
                size=[size if isinstance(size, int) else 1 for size in value.shape or []]
            ).astype(np.float32)
            for value in session.get_inputs()
        }


def timed(path: Path, threads: int, rounds: int) -> dict[str, Any]:
    """Run both engines in turn; their times, difference, weight memory, and what ``auto`` takes."""
    feeds = feeds_of(path)
    seconds: dict[str, list[float]] = {"native": [], "ort": []}
    sessions = {name: InferenceSession(path, engine=name, threads=threads) for name in seconds}
    outputs = {name: session.run(None, feeds)[0] for name, session in sessions.items()}
    for _ in range(rounds):
        for name, session in sessions.items():
            started = time.perf_counter()
            session.run(None, feeds)
            seconds[name].append(time.perf_counter() - started)
    largest = float(np.abs(outputs["ort"]).max()) or 1.0
    with InferenceSession(path, threads=threads) as chosen:
        auto = chosen.engine
    row = {
        "milliseconds": {
            name: {"best": 1000 * min(taken), "median": 1000 * median(taken)}
            for name, taken in seconds.items()
        },
        "ratio_best": min(seconds["ort"]) / min(seconds["native"]),
        "ratio_median": median(seconds["ort"]) / median(seconds["native"]),
        "auto": auto,
        "relative_difference": float(np.abs(outputs["native"] - outputs["ort"]).max()) / largest,
        "weight_bytes": {name: session.weight_bytes for name, session in sessions.items()},
        "kernels": sorted({choice.kernel for choice in sessions["native"].explain()}),
    }
    for session in sessions.values():
        session.close()
    return row


def cold_start(path: Path, rounds: int) -> dict[str, float]:
    """CPU seconds of a new process from its start to the first output, by engine."""
    found = {}
    for engine in ("native", "ort"):
        taken = []
        for _ in range(rounds):
            command = [sys.executable, "-c", _FIRST_OUTPUT, str(path), engine]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ)
            taken.append(float(done.stdout))
        found[engine] = median(taken)
    return found


def main() -> None:
    """Time everything and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few rounds, one thread")
    quick = parser.parse_args().quick
    rounds, all_threads = (5, (1,)) if quick else (ROUNDS, (1, 2))
    rows: dict[str, Any] = {}
    cold: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = []
        for layer, (operator, shape, density, x) in LAYERS.items():
            path = folder / f"layer{len(files)}.nqz"
            layer_file(path, operator, shape, density, x)
            files.append((layer, path))
        files += list(networks(folder))
        for label, path in files:
            rows[label] = {str(threads): timed(path, threads, rounds) for threads in all_threads}
            shown = ", ".join(
                f"{threads} thread: {row['ratio_best']:.2f} ({row['ratio_median']:.2f}) x ONNX Runtime, "
                f"auto {row['auto']}"
                for threads, row in rows[label].items()
            )
            print(f"{label}: {shown}", flush=True)
            if "batch 1" in label and "Net" in label:
                cold[label] = cold_start(path, 3 if quick else 7)
    results = {
        "machine": machine("numpy", "numba", "onnx", "onnxruntime"),
        "rounds": rounds,
        "rows": rows,
        "cold_start_cpu_seconds": cold,
    }
    print(json.dumps(cold, indent=2))
    print(f"wrote {write('inference', results)}")


if __name__ == "__main__":
    main()
