"""NNCodec on the networks of benchmarks/quantizers.py, chosen and judged as the quantizers are."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from quantizer_curves import Workbench

__all__ = ["nncodec_files", "smallest_within"]


def nncodec_files(bench: Workbench, qps: Sequence[int]) -> list[dict[str, Any]]:
    """Code the stored tensors at some parameters; empty, with a line, where NNCodec is not there.

    Returns
    -------
    list of dict
        ``qp``, ``bytes`` of the bitstream (tensors alone), ``training`` and ``test`` accuracy of what it
        decodes to.
    """
    python = os.environ.get("NQZ_PEERS_PYTHON")
    if not python:
        print("NNCodec not measured: set NQZ_PEERS and NQZ_PEERS_PYTHON")
        return []
    found = []
    tensors = {n: a for n, a in bench.source.tensors.items() if a.dtype == np.float32}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.savez(folder / "tensors.npz", **tensors)
        worker = Path(__file__).parent / "nncodec_model.py"
        options = json.dumps([{"qp": qp, "use_dq": True} for qp in qps])
        command = [python, str(worker), str(folder / "tensors.npz"), str(folder), options]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        for number, (qp, size) in enumerate(zip(qps, json.loads(done.stdout.splitlines()[-1]), strict=True)):
            content = bench.exact_content(dict(np.load(folder / f"{number}.npz")))
            accuracies = {
                "training": bench.judge(content, bench.network.training)[1],
                "test": bench.judge(content, bench.network.test)[1],
            }
            found.append({"qp": qp, "bytes": size, **accuracies})
            print(f"{bench.network.name}, NNCodec: {found[-1]}", flush=True)
    return found


def smallest_within(files: list[dict[str, Any]], least: float) -> dict[str, Any] | None:
    """Return the smallest whose accuracy on training images is `least` or better."""
    kept = [file for file in files if file["training"] >= least]
    return min(kept, key=lambda file: file["bytes"], default=None)
