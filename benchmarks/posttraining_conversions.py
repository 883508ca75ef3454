"""Seconds and memory of whole conversions with preset post-training, each in a process of its own.

    python benchmarks/posttraining_conversions.py NETWORK

prints one JSON object; benchmarks/posttraining.py runs that. A tiny network is converted first: its seconds,
with those of importing and compiling, count; what the libraries take of memory does not.
"""

from __future__ import annotations

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
import torch
from harness import loaders, required_data_folder
from posttraining_methods import code_version
from posttraining_tasks import TASKS
from torch import nn

import nqconvert

N_THREADS = 2
ENCODER_LAYERS, ENCODER_WIDTH, ENCODER_LENGTH = 8, 512, 64
ENCODER_CALIBRATION = 128


class Encoder(nn.Module):
    """Random transformer encoder of 25 million parameters."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        width = ENCODER_WIDTH
        self.attention = nn.ModuleList(
            [nn.ModuleList([nn.Linear(width, width) for _ in range(4)]) for _ in range(ENCODER_LAYERS)]
        )
        self.hidden = nn.ModuleList(
            [
                nn.ModuleList([nn.Linear(width, 4 * width), nn.Linear(4 * width, width)])
                for _ in range(ENCODER_LAYERS)
            ]
        )
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(2 * ENCODER_LAYERS)])
        self.out = nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for number, parts in enumerate(zip(self.attention, self.hidden, strict=True)):
            x = x + self._attended(self.norms[2 * number](x), parts[0])
            wide, narrow = parts[1]
            x = x + narrow(torch.relu(wide(self.norms[2 * number + 1](x))))
        return self.out(x.mean(1))

    def _attended(self, x: torch.Tensor, layers: Any) -> torch.Tensor:
        shape = (-1, ENCODER_LENGTH, 8, ENCODER_WIDTH // 8)
        query, key, value = (layers[i](x).reshape(shape).transpose(1, 2) for i in range(3))
        mixed = (query @ key.transpose(2, 3) / shape[-1] ** 0.5).softmax(-1) @ value
        return layers[3](mixed.transpose(1, 2).reshape(-1, ENCODER_LENGTH, ENCODER_WIDTH))


def _encoder() -> tuple[nn.Module, np.ndarray]:
    rng = np.random.default_rng(0)
    shape = (ENCODER_CALIBRATION, ENCODER_LENGTH, ENCODER_WIDTH)
    return Encoder().eval(), rng.normal(size=shape).astype(np.float32)


def _few_inputs() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)


def _task(name: str) -> Callable[[], tuple[nn.Module, np.ndarray]]:
    def make() -> tuple[nn.Module, np.ndarray]:
        folder = required_data_folder()
        task = TASKS[name](folder, loaders(folder))
        return task.module, task.calibration(0)

    return make


CONVERSIONS: dict[str, Callable[[], tuple[nn.Module, np.ndarray]]] = {
    **{name: _task(name) for name in TASKS},
    "encoder": _encoder,
}


def conversion(name: str, folder: Path) -> dict[str, Any]:
    """Convert in a new process on two threads; seconds by stage, peak memory, bytes."""
    threads = {name: str(N_THREADS) for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS")}
    environment = {**os.environ, **threads, "NQZ_DATA": str(folder)}
    command = [sys.executable, str(Path(__file__).resolve()), name]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"{name} {row}", flush=True)
    return row


def converted(module: nn.Module, inputs: np.ndarray) -> Any:
    """Return the report of a conversion whose file is thrown away."""
    with tempfile.TemporaryDirectory() as folder:
        return nqconvert.convert(
            module,
            Path(folder) / "model.nqz",
            example_inputs=inputs[:2],
            calibration=inputs,
            samples=len(inputs),
            preset="post-training",
        )


def memory_bound(module: nn.Module) -> int:
    """Bytes of the parameters and of four Hessians of the widest layer, as float64."""
    widest = max(parameter[0].numel() for parameter in module.parameters() if parameter.ndim > 1)
    return 4 * sum(parameter.numel() for parameter in module.parameters()) + 4 * 8 * widest**2


def main() -> None:
    torch.set_num_threads(N_THREADS)
    module, inputs = CONVERSIONS[sys.argv[1]]()
    started, started_cpu = time.perf_counter(), time.process_time()
    converted(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).eval(), _few_inputs())
    report = converted(module, inputs)
    row = {
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "calibration": len(inputs),
        "threads": N_THREADS,
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - started_cpu,
        "stage_seconds": dict(report.stage_seconds),
        "peak_bytes": report.peak_bytes,
        "memory_bound": memory_bound(module),
        "file_bytes": report.file_bytes,
        "load_average": os.getloadavg()[0],
        "code": code_version(),
    }
    print(json.dumps(row))


if __name__ == "__main__":
    main()
