"""Run by benchmarks/peer_codecs.py in the Python that has NNCodec: codes the int32 tensors of .npz files.

    python nncodec_worker.py tensors.npz ...

Prints a JSON list with an object for each file: bytes, and CPU seconds of encoding and decoding (first runs
not counted).
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROUNDS = 5


def timed(call: Any) -> dict[str, float]:
    taken = []
    for _ in range(ROUNDS + 1):
        started = time.process_time()
        call()
        taken.append(time.process_time() - started)
    return {"median": statistics.median(taken[1:]), "best": min(taken[1:]), "worst": max(taken[1:])}


def main() -> None:
    sys.path.insert(0, os.environ.get("NQZ_PEERS", ""))
    with contextlib.suppress(ImportError):
        importlib.import_module("nnc_shim")
    codec = importlib.import_module("nncodec.nn")
    with contextlib.redirect_stdout(io.StringIO()):
        rows = [measured(codec, dict(np.load(path))) for path in sys.argv[1:]]
    print(json.dumps(rows))


def measured(codec: Any, tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        encoding = timed(lambda: codec.encode(tensors, args={"verbose": False, "results": folder}))
        content = bytearray(next(Path(folder).glob("*.nnc")).read_bytes())
    decoding = timed(lambda: codec.decode(content))
    decoded = codec.decode(content)
    if not all(np.array_equal(decoded[name], array) for name, array in tensors.items()):
        raise SystemExit("NNCodec gave back other integers")
    return {"bytes": len(content), "encode": encoding, "decode": decoding}


if __name__ == "__main__":
    main()
