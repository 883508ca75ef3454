"""Run by benchmarks/posttraining.py in the Python that has NNCodec: codes a model's float tensors.

    python nncodec_model.py tensors.npz folder '[{"qp": -20, "use_dq": true}, ...]'

Writes folder/N.npz, what the N-th coding decodes to, and prints a JSON list of bytes.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np


def coded(codec: Any, tensors: dict[str, np.ndarray], options: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        codec.encode(tensors, args={**options, "verbose": False, "results": folder})
        content = next(Path(folder).rglob("*.nnc")).read_bytes()
    found = codec.decode(bytearray(content))
    return len(content), {n: np.asarray(found[n], np.float32).reshape(a.shape) for n, a in tensors.items()}


def main() -> None:
    sys.path.insert(0, os.environ.get("NQZ_PEERS", ""))
    with contextlib.suppress(ImportError):
        importlib.import_module("nnc_shim")
    codec = importlib.import_module("nncodec.nn")
    tensors, folder = dict(np.load(sys.argv[1])), Path(sys.argv[2])
    n_bytes = []
    with contextlib.redirect_stdout(io.StringIO()):
        for number, options in enumerate(json.loads(sys.argv[3])):
            size, decoded = coded(codec, tensors, options)
            n_bytes.append(size)
            np.savez(folder / f"{number}.npz", **decoded)
    print(json.dumps(n_bytes))


if __name__ == "__main__":
    main()
