"""One huge tensor: seconds and peak memory of writing and of reading it, each in a process of its own.

    python benchmarks/huge.py [--elements 576000000]

Writes benchmarks/results/huge.json. The tensor has 16 values and rows of 24,000; its indices follow from the
row, so that the reader compares every weight without another copy of the tensor. Peak memory is that of the
whole process, tensor included.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from harness import machine, peak_bytes, write

import nqformat
from nqformat import Codebook, CodebookTensor

ROW = 24_000
BLOCK_ROWS = 256
VALUES = np.linspace(-1, 1, 16).astype(np.float32)
# shares of the 16 values: a discrete bell, 3.1 bits
_SHARES = np.exp(-0.5 * ((np.arange(16) - 7.5) / 2.1) ** 2)
_BOUNDS = np.cumsum(_SHARES / _SHARES.sum())
_LOOKUP = np.searchsorted(_BOUNDS, (np.arange(65_536) + 0.5) / 65_536).astype(np.uint8)


def block(first_row: int, n_rows: int) -> np.ndarray:
    """Indices of some rows, pseudo-random from their numbers alone."""
    drawn = np.random.default_rng(first_row).integers(0, 65_536, size=(n_rows, ROW), dtype=np.uint16)
    return _LOOKUP[drawn]


def blocks(n_rows: int) -> Any:
    for first in range(0, n_rows, BLOCK_ROWS):
        yield first, block(first, min(BLOCK_ROWS, n_rows - first))


def write_tensor(path: str, n_rows: int) -> dict[str, Any]:
    """Make the tensor and write it."""
    indices = np.empty((n_rows, ROW), dtype=np.uint8)
    for first, part in blocks(n_rows):
        indices[first : first + len(part)] = part
    tensor = CodebookTensor(indices=indices, codebook=Codebook(values=VALUES))
    seconds = timed(lambda: nqformat.save_file({"w": tensor}, path, prefer="speed"))
    return {**seconds, "file_bytes": Path(path).stat().st_size}


def read_tensor(path: str, n_rows: int) -> dict[str, Any]:
    """Read the tensor and compare every weight."""
    found: dict[str, np.ndarray] = {}
    with nqformat.safe_open(path, threads=1) as file:
        seconds = timed(lambda: found.update(w=file.get_tensor("w")))
    weights = found["w"]
    assert weights.shape == (n_rows, ROW)
    equal = all(np.array_equal(weights[i : i + len(part)], VALUES[part]) for i, part in blocks(n_rows))
    return {**seconds, "equal": bool(equal), "array_bytes": weights.nbytes}


def timed(call: Any) -> dict[str, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}


PHASES = {"write": write_tensor, "read": read_tensor}


def phase(name: str, path: Path, n_rows: int) -> dict[str, Any]:
    """Run one phase in a process of its own; adds its peak memory."""
    command = [
        sys.executable,
        __file__,
        "--phase",
        name,
        "--path",
        str(path),
        "--elements",
        str(n_rows * ROW),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} failed with code {done.returncode}:\n{done.stderr}")
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(
        f"{name}: {row['seconds']:.1f} s ({row['cpu_seconds']:.1f} s CPU, "
        f"{n_rows * ROW / row['cpu_seconds'] / 1e6:.0f} Msym/s), peak memory {row['peak_bytes'] / 1e9:.2f} GB"
    )
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--elements", type=int, default=576_000_000)
    parser.add_argument("--phase", choices=PHASES, help=argparse.SUPPRESS)
    parser.add_argument("--path", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    n_rows = arguments.elements // ROW
    if arguments.phase:
        row = PHASES[arguments.phase](arguments.path, n_rows)
        print(json.dumps({**row, "peak_bytes": peak_bytes()}))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "huge.nqz"
        results = {
            "machine": machine("numpy", "numba"),
            "elements": n_rows * ROW,
            **{name: phase(name, path, n_rows) for name in PHASES},
        }
    if not results["read"]["equal"]:
        raise SystemExit("the tensor read differs from the one written")
    bits = 8 * results["write"]["file_bytes"] / results["elements"]
    print(f"equal; {results['write']['file_bytes']:,} bytes, {bits:.3f} bits a weight")
    print(f"written to {write('huge', results)}")


if __name__ == "__main__":
    main()
