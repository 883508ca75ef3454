"""Which programs accept which export form: writes results/onnx_consumers.json and prints the table.

``python benchmarks/onnx_consumers.py [--python INTERPRETER]... [--node FOLDER]``: consumers are sought beside
this interpreter, beside the others given, and in the node_modules of a folder (``npm install
onnxruntime-node``).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from harness import write
from onnx_networks import export_network, reduced

import nqformat
from nqconvert import export_onnx
from nqconvert.sources import load_source

NETWORKS = ("LeNet-5", "BERT-like encoder", "BiLSTM")
FORMS: dict[str, dict[str, Any]] = {
    "dense": {"form": "dense"},
    "float16": {"form": "dense", "dtype": "float16"},
    "bfloat16": {"form": "dense", "dtype": "bfloat16"},
    "codebook uint4": {"form": "codebook"},
    "codebook uint8": {"form": "codebook", "opset": 18},
    "sparse": {"form": "sparse"},
    "qdq int4": {"form": "qdq"},
    "qdq int8": {"form": "qdq", "opset": 18},
    "ort-nbits": {"form": "ort-nbits"},
}
HERE = Path(__file__).parent


def make_models(folder: Path) -> None:
    """Export the networks, 8 % of their weights left, on 16 steps, in all forms, with inputs and outputs."""
    index: dict[str, Any] = {}
    for network in NETWORKS:
        original, file = folder / "originals" / "model.onnx", folder / "m.nqz"
        original.parent.mkdir(exist_ok=True)
        export_network(network, original)
        source = load_source(original)
        tensors = reduced(source.tensors, density=0.08)
        nqformat.save_file({**tensors, **source.views}, file, graph=source.graph)
        for form, options in FORMS.items():
            path = folder / f"{network.replace(' ', '_')}--{form.replace(' ', '_')}.onnx"
            export_onnx(file, path, **options)
            index[path.stem] = _write_values(path)
    (folder / "models.json").write_text(json.dumps(index))


def _write_values(path: Path) -> dict[str, Any]:
    """Store inputs and the outputs of ONNX Runtime without optimization beside a model."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    feeds = {
        value.name: rng.integers(0, 50, value.shape)
        if "int" in value.type
        else rng.normal(size=value.shape).astype(np.float32)
        for value in session.get_inputs()
    }
    names = [value.name for value in session.get_outputs()]
    outputs = dict(zip(names, session.run(None, feeds), strict=True))
    arrays = {**{f"in:{n}": a for n, a in feeds.items()}, **{f"out:{n}": a for n, a in outputs.items()}}
    np.savez(path.with_suffix(".npz"), **arrays)
    entries = {"file": path.name, "inputs": {}, "outputs": {}}
    for kind, values in (("inputs", feeds), ("outputs", outputs)):
        for place, (name, array) in enumerate(values.items()):
            raw = path.with_suffix(f".{kind}{place}.bin")
            raw.write_bytes(array.tobytes())
            entries[kind][name] = {"file": raw.name, "dtype": array.dtype.name, "shape": list(array.shape)}
    return entries


def try_all(folder: Path, pythons: list[str], node: Path | None) -> dict[str, Any]:
    """Run the workers; return their answers together."""
    commands = [[python, str(HERE / "onnx_consumers_worker.py"), str(folder)] for python in pythons]
    if node is not None:
        commands.append(["node", str(HERE / "onnx_consumers_worker.mjs"), str(folder), str(node)])
    results: dict[str, Any] = {}
    for command in commands:
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        results |= json.loads(done.stdout.splitlines()[-1])
    return results


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--python", action="append", default=[], help="interpreter with further consumers")
    parser.add_argument("--node", type=Path, help="folder with node_modules")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        make_models(Path(name))
        consumers = try_all(Path(name), [sys.executable, *arguments.python], arguments.node)
    write("onnx_consumers", {"networks": NETWORKS, "forms": list(FORMS), "consumers": consumers})
    print(json.dumps(consumers, indent=1))


if __name__ == "__main__":
    main()
