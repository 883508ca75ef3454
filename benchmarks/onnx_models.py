"""ONNX models in and out: round trips, sizes of export forms, cost in ONNX Runtime.

``python benchmarks/onnx_models.py [round-trips] [forms] [trained] [costs] [--wheels FOLDER]`` keeps the other
parts of results/onnx_models.json; `trained` adds rows of trained networks of the data folder to the forms.
Packages silero-vad and basic-pitch are used where they are installed, or from wheels that ``pip download
--no-deps silero-vad basic-pitch`` brought into a folder.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from harness import compare, loaders, machine, read, required_data_folder, write
from networks import lenet5, lenet300
from onnx_networks import TORCH_NETWORKS, export_network, light_models, packaged_models, reduced

import nqformat
from nqconvert import convert, export_onnx
from nqconvert.graphs.ort_session import relative_difference
from nqconvert.model_comparison import compare_models
from nqconvert.sources import load_source
from nqformat.errors import ConversionError

FORMS = ("dense", "codebook", "sparse", "auto", "qdq", "ort-nbits")
LOADED_FORMS = ("dense", "codebook", "sparse")
TRAINED = {"LeNet-300-100": lenet300, "LeNet-5": lenet5}
_MEMORY = """
import sys, onnxruntime
def resident():
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmRSS")).split()[1]) * 1024
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
before = resident()
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
print(resident() - before)
"""


def session_of(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def all_models(folder: Path, wheels: Path | None, names: Iterable[str] = TORCH_NETWORKS) -> dict[str, Path]:
    """Every model, some networks only; exported into a folder where it is not a file already."""
    models = {}
    for name in names:
        models[name] = folder / f"{name.replace(' ', '-')}.onnx"
        export_network(name, models[name])
    return {**models, **packaged_models(wheels, folder), **light_models()}


def feeds_of(path: Path) -> dict[str, np.ndarray] | None:
    """Inputs for models of speech detection, which run on blocks of certain lengths only."""
    shapes = {value.name: value.shape for value in session_of(path).get_inputs()}
    if "state" not in shapes:
        return None
    n_samples = shapes["input"][1] if isinstance(shapes["input"][1], int) else 512
    feeds = {"input": np.random.default_rng(0).normal(size=(1, n_samples)).astype(np.float32)}
    feeds["state"] = np.zeros((2, 1, 128), np.float32)
    return feeds | ({"sr": np.array(16000)} if "sr" in shapes else {})


def round_trip(path: Path, folder: Path) -> dict[str, Any]:
    """.onnx -> .nqz -> .onnx, compared."""
    file, back = folder / "m.nqz", folder / "back.onnx"
    report = convert(path, file, preset="lossless")
    exported = export_onnx(file, back, feeds=feeds_of(path))
    comparison = compare_models(path, back)
    return {
        "original_bytes": path.stat().st_size,
        "nqz_bytes": file.stat().st_size,
        "export_bytes": exported.total_bytes,
        "tensors": comparison.n_tensors,
        "differing_tensors": list(comparison.differing),
        "same_graph": comparison.same_graph,
        "max_difference": exported.max_difference,
        "left_in_graph": len(load_source(path, fold_batch_norms=False).reasons),
        "notes": list(report.notes),
    }


def form_rows(path: Path, folder: Path) -> dict[str, Any]:
    """Bytes of each form, weights rounded to 16 steps: dense ones, and 8 % of them."""
    source = load_source(path)
    rows: dict[str, Any] = {}
    for label, density in (("dense", None), ("8 %", 0.08)):
        tensors = reduced(source.tensors, density=density)
        file = folder / "m.nqz"
        nqformat.save_file({**tensors, **source.views}, file, graph=source.graph)
        weights = [t for t in tensors.values() if not isinstance(t, np.ndarray)]
        rows[label] = {
            "nqz_bytes": file.stat().st_size,
            "graph_bytes": len(source.graph or b""),
            "other_bytes": sum(t.nbytes for t in tensors.values() if isinstance(t, np.ndarray)),
            "weights": sum(t.k.size for t in weights),
            **export_sizes(file, folder),
        }
    return rows


def trained_rows(title: str, folder: Path) -> dict[str, Any]:
    """Bytes of each form for a trained network of which 8 % of the weights are left, 16 values a layer."""
    data = required_data_folder()
    network = TRAINED[title](data, loaders(data))
    file = folder / "m.nqz"
    example = network.calibration[:256]
    convert(network.module, file, example_inputs=example, preset="deep-compression")
    return {"8 %": {"nqz_bytes": file.stat().st_size, **export_sizes(file, folder)}}


def export_sizes(file: Path, folder: Path) -> dict[str, Any]:
    """Bytes of each form of a file, or why it is refused."""
    row: dict[str, Any] = {}
    for form in FORMS:
        try:
            report = export_onnx(file, folder / "m.onnx", form=form)
        except ConversionError as error:
            row[form] = {"refused": str(error)}
            continue
        row[form] = {"bytes": report.total_bytes, "max_difference": report.max_difference}
    return row


def resident_bytes(path: Path) -> int:
    """Growth of a fresh process while it loads a model."""
    command = [sys.executable, "-c", _MEMORY, str(path)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def cost_row(path: Path, folder: Path) -> dict[str, Any]:
    """Run time and memory of forms that are dense once loaded; the sparse one has 8 % of the weights."""
    source = load_source(path)
    paths = {form: folder / f"{form}.onnx" for form in LOADED_FORMS}
    for form, target in paths.items():
        file = folder / "m.nqz"
        tensors = reduced(source.tensors, density=0.08 if form == "sparse" else None)
        nqformat.save_file({**tensors, **source.views}, file, graph=source.graph)
        export_onnx(file, target, form=form)
    sessions = {form: session_of(target) for form, target in paths.items()}
    feeds = {
        value.name: np.ones([d if isinstance(d, int) else 2 for d in value.shape], np.int64)
        if "int" in value.type
        else np.random.default_rng(0).normal(size=value.shape).astype(np.float32)
        for value in sessions["dense"].get_inputs()
    }
    outputs = {form: session.run(None, feeds) for form, session in sessions.items()}
    times = compare({form: lambda s=s: s.run(None, feeds) for form, s in sessions.items()}, rounds=41)
    memory = {form: min(resident_bytes(target) for _ in range(3)) for form, target in paths.items()}
    return {
        "difference": max(map(relative_difference, outputs["dense"], outputs["codebook"])),
        "run_milliseconds": {form: 1000 * row["median"] for form, row in times.items()},
        "run_ratio": {form: times[form]["median"] / times["dense"]["median"] for form in LOADED_FORMS[1:]},
        "resident_bytes": memory,
        "resident_ratio": {form: memory[form] / memory["dense"] for form in LOADED_FORMS[1:]},
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="*", metavar="PART", help="round-trips, forms, trained or costs")
    parser.add_argument("--wheels", type=Path, help="folder with wheels of packages that hold models")
    parser.add_argument("--networks", nargs="+", default=list(TORCH_NETWORKS), choices=list(TORCH_NETWORKS))
    arguments = parser.parse_args()
    parts = arguments.parts or ["round-trips", "forms", "costs"]
    shown = arguments.networks
    results = read("onnx_models")
    results["machine"] = machine("onnx", "onnxruntime", "torch", "numpy")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        models = all_models(folder, arguments.wheels, arguments.networks)
        jobs: dict[str, tuple[str, Iterable[str], Callable[[str], dict[str, Any]]]] = {
            "round-trips": ("round_trips", models, lambda title: round_trip(models[title], folder)),
            "forms": ("forms", shown, lambda title: form_rows(models[title], folder)),
            "trained": ("forms", TRAINED, lambda title: trained_rows(title, folder)),
            "costs": ("costs", shown, lambda title: cost_row(models[title], folder)),
        }
        for part in parts:
            key, titles, measure = jobs[part]
            rows = results.setdefault(key, {})
            for title in titles:
                name = f"{title}, trained" if part == "trained" else title
                rows[name] = measure(title)
                print(part, name, rows[name], flush=True)
                write("onnx_models", results)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
