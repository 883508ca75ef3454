"""NNCodec on a network after the same training, coarser and coarser."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .data import Data, errors

_WORKER = Path(__file__).parents[1] / "nncodec_model.py"
_QPS = tuple(range(-32, 1))


def nncodec_rows(module: torch.nn.Module, data: Data) -> list[dict[str, Any]]:
    """Return bytes (tensors alone) and errors for each quantization parameter, with its defaults.

    Empty unless NQZ_PEERS_PYTHON names a Python that has NNCodec.
    """
    python = os.environ.get("NQZ_PEERS_PYTHON")
    if not python:
        print("NNCodec not measured: set NQZ_PEERS and NQZ_PEERS_PYTHON")
        return []
    state = {name: value.clone() for name, value in module.state_dict().items()}
    options = [{"qp": qp} for qp in _QPS]
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.savez(folder / "tensors.npz", **{key: value.numpy() for key, value in state.items()})
        command = [python, str(_WORKER), str(folder / "tensors.npz"), str(folder), json.dumps(options)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        for number, size in enumerate(json.loads(done.stdout.splitlines()[-1])):
            decoded = dict(np.load(folder / f"{number}.npz"))
            module.load_state_dict({key: torch.from_numpy(array) for key, array in decoded.items()})
            rows.append(
                {
                    "qp": _QPS[number],
                    "bytes": size,
                    "validation_percent": _percent(module, data.validation_images, data.validation_labels),
                    "test_percent": _percent(module, data.test_images, data.test_labels),
                }
            )
    module.load_state_dict(state)
    return rows


def _percent(module: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    return 100 * float(errors(module, images, labels).mean())
