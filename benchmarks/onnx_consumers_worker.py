"""Run exported models in what is installed beside this interpreter; started by onnx_consumers.py.

``python onnx_consumers_worker.py FOLDER`` prints JSON: for each consumer and model the largest relative
difference from the expected outputs, or the first line of the error. Needs NumPy only.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import multiprocessing
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

_MOST_SECONDS = 120
Feeds = dict[str, np.ndarray]
LEVELS = {"none": "DISABLE_ALL", "basic": "ENABLE_BASIC", "extended": "ENABLE_EXTENDED", "all": "ENABLE_ALL"}


def onnxruntime_at(level: str) -> Callable[[Path, Feeds], list[np.ndarray]]:
    def run(path: Path, feeds: Feeds) -> list[np.ndarray]:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 4, 1
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_{level}")
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]).run(
            None, feeds
        )

    return run


def onnx_reference(path: Path, feeds: Feeds) -> list[np.ndarray]:
    from onnx.reference import ReferenceEvaluator

    return ReferenceEvaluator(str(path)).run(None, feeds)


def openvino(path: Path, feeds: Feeds) -> list[np.ndarray]:
    import openvino as ov

    # without the second option activations are rounded to 8 bits before integer weights
    settings = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
    compiled = ov.Core().compile_model(ov.Core().read_model(str(path)), "CPU", settings)
    results = compiled(feeds)
    return [results[port] for port in compiled.outputs]


def opencv(path: Path, feeds: Feeds) -> list[np.ndarray]:
    import cv2

    net = cv2.dnn.readNetFromONNX(str(path))
    for name, array in feeds.items():
        net.setInput(array, name)
    return [net.forward()]


def tract(path: Path, feeds: Feeds) -> list[np.ndarray]:
    import tract as library

    model = library.onnx().load(str(path))
    for place, array in enumerate(feeds.values()):
        kind = {"float32": "f32", "int64": "i64"}[array.dtype.name]
        model.set_input_fact(place, ",".join([*map(str, array.shape), kind]))
    runnable = model.into_model().into_runnable()
    return [value.to_numpy() for value in runnable.run(list(feeds.values()))]


CONSUMERS: dict[str, tuple[str, Callable[[Path, Feeds], list[np.ndarray]]]] = {
    **{f"ONNX Runtime, optimization {k}": ("onnxruntime", onnxruntime_at(v)) for k, v in LEVELS.items()},
    "onnx.reference": ("onnx", onnx_reference),
    "OpenVINO": ("openvino", openvino),
    "OpenCV dnn": ("opencv-python-headless", opencv),
    "tract": ("tract", tract),
}

MODULES = {"opencv-python-headless": "cv2", "onnx": "onnx.reference"}


def difference(expected: list[np.ndarray], found: list[np.ndarray]) -> float:
    if len(expected) != len(found) or any(a.shape != b.shape for a, b in zip(expected, found, strict=True)):
        return float("inf")
    return max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in zip(expected, found, strict=True))


def outcome(run: Callable[[Path, Feeds], list[np.ndarray]], path: Path) -> Any:
    arrays = np.load(path.with_suffix(".npz"))
    feeds = {name.partition(":")[2]: arrays[name] for name in arrays.files if name.startswith("in:")}
    expected = [arrays[name] for name in arrays.files if name.startswith("out:")]
    try:
        return difference(expected, run(path, feeds))
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"[:300]


def isolated(run: Callable[[Path, Feeds], list[np.ndarray]], path: Path) -> Any:
    """Run a model in a process of its own: some programs crash on graphs that they do not expect."""
    context = multiprocessing.get_context("fork")
    receiving, sending = context.Pipe(duplex=False)
    child = context.Process(target=lambda: sending.send(outcome(run, path)))
    child.start()
    sending.close()
    try:
        return receiving.recv() if receiving.poll(_MOST_SECONDS) else "no answer in time"
    except EOFError:
        child.join()
        return f"crashed with signal {-(child.exitcode or 0)}"
    finally:
        child.kill()


def main() -> None:
    folder = Path(sys.argv[1])
    results: dict[str, Any] = {}
    for title, (package, run) in CONSUMERS.items():
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
        importlib.import_module(MODULES.get(package, package))
        rows = {path.stem: isolated(run, path) for path in sorted(folder.glob("*.onnx"))}
        results[title] = {"version": version, "models": rows}
    print(json.dumps(results))


if __name__ == "__main__":
    main()
