"""A model over 2 GB in and out: seconds and peak memory of each step, each in a process of its own.

    python benchmarks/onnx_large.py [--layers 9] [--folder FOLDER]

Writes benchmarks/results/onnx_large.json. The model is a stack of products of 8192 x 8192 with weights of 16
values, float32, in external data: 2.4 GB for nine. It is converted without loss, exported in two forms and
every weight of the dense export compared. Peak memory is that of the whole process.
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

WIDTH = 8192
VALUES = (np.linspace(-1, 1, 16) / WIDTH**0.5).astype(np.float32)


def weight(layer: int) -> np.ndarray:
    """Weights of a layer, from its number alone."""
    return VALUES[np.random.default_rng(layer).integers(0, 16, (WIDTH, WIDTH), dtype=np.uint8)]


def make_model(folder: Path, n_layers: int) -> dict[str, Any]:
    """Write model.onnx and model.onnx.data, one layer after the other."""
    import onnx
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [helper.make_node("MatMul", [f"h{i}", f"w{i}"], [f"h{i + 1}"]) for i in range(n_layers)],
        "large",
        [helper.make_tensor_value_info("h0", TensorProto.FLOAT, (1, WIDTH))],
        [helper.make_tensor_value_info(f"h{n_layers}", TensorProto.FLOAT, (1, WIDTH))],
    )
    n_bytes = 4 * WIDTH * WIDTH
    with (folder / "model.onnx.data").open("wb") as data:
        for layer in range(n_layers):
            proto = graph.initializer.add(name=f"w{layer}", data_type=TensorProto.FLOAT, dims=(WIDTH, WIDTH))
            proto.data_location = TensorProto.EXTERNAL
            entries = {"location": "model.onnx.data", "offset": layer * n_bytes, "length": n_bytes}
            for key, value in entries.items():
                proto.external_data.add(key=key, value=str(value))
            data.write(weight(layer).data)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.save(model, folder / "model.onnx")
    return {"bytes": total_bytes(folder / "model.onnx")}


def convert_model(folder: Path, n_layers: int) -> dict[str, Any]:
    """Convert without loss."""
    import nqconvert

    nqconvert.convert(folder / "model.onnx", folder / "m.nqz", preset="lossless", prefer="speed")
    return {"bytes": (folder / "m.nqz").stat().st_size}


def export_model(folder: Path, n_layers: int, *, form: str) -> dict[str, Any]:
    """Export in a form, checked against the decoded weights."""
    import nqconvert

    report = nqconvert.export_onnx(folder / "m.nqz", folder / "back.onnx", form=form)
    return {"bytes": report.total_bytes, "max_difference": report.max_difference}


def compare_weights(folder: Path, n_layers: int) -> dict[str, Any]:
    """Compare every weight of the dense export."""
    import onnx

    model = onnx.load(folder / "back.onnx", load_external_data=False)
    equal = []
    for proto in model.graph.initializer:
        entries = {entry.key: entry.value for entry in proto.external_data}
        found = proto.raw_data
        if entries:
            with (folder / entries["location"]).open("rb") as data:
                data.seek(int(entries["offset"]))
                found = data.read(int(entries["length"]))
        equal.append(found == weight(int(proto.name[1:])).tobytes())
    return {"tensors": len(equal), "equal": sum(equal)}


STEPS = {
    "make": make_model,
    "convert": convert_model,
    "export codebook": lambda folder, n: export_model(folder, n, form="codebook"),
    "export dense": lambda folder, n: export_model(folder, n, form="dense"),
    "compare": compare_weights,
}


def total_bytes(path: Path) -> int:
    """Bytes of a model and its external data."""
    data = path.with_name(f"{path.name}.data")
    return path.stat().st_size + (data.stat().st_size if data.exists() else 0)


def run_step(step: str, folder: Path, n_layers: int) -> dict[str, Any]:
    """Run one step in a process of its own."""
    command = [sys.executable, __file__, "--step", step, "--folder", str(folder), "--layers", str(n_layers)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{step} failed with code {done.returncode}:\n{done.stderr}")
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(
        f"{step}: {row['cpu_seconds']:.0f} s CPU, peak memory {row['peak_bytes'] / 1e9:.2f} GB",
        row,
        flush=True,
    )
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=9)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        wall, cpu = time.perf_counter(), time.process_time()
        row = STEPS[arguments.step](arguments.folder, arguments.layers)
        row |= {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
        print(json.dumps({**row, "peak_bytes": peak_bytes()}))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        rows = {step: run_step(step, Path(name), arguments.layers) for step in STEPS}
    results = {"machine": machine("onnx", "onnxruntime", "numpy"), "layers": arguments.layers, "steps": rows}
    write("onnx_large", results)


if __name__ == "__main__":
    main()
