"""Methods that benchmarks/posttraining.py compares: method obs, NNCodec, rounding, integers with zstd.

Each yields rows with the bytes of whole files and the share of right answers on the test set. A row that is
known already, by a digest of what decides it, is not measured again.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from posttraining_tasks import Task

import nqformat
from nqconvert import load_source
from nqconvert.baselines import BASELINES, baseline_file
from nqconvert.encoding import Encoding
from nqconvert.obs.surgeon import CalibrationSettings, prepare_surgeon
from nqconvert.presets import preset_settings
from nqconvert.quantization import continuous_weights
from nqconvert.sources import ModelSource

ROOT = Path(__file__).parents[1]
OUR_CODE = ("nqformat", "converters/nqconvert/obs", "converters/nqconvert/repair")
NNCODEC_MODES: dict[str, dict[str, Any]] = {
    "dependent": {"use_dq": True},
    "plain": {"use_dq": False},
    "dependent, opt_qp": {"use_dq": True, "opt_qp": True},
    "plain, opt_qp": {"use_dq": False, "opt_qp": True},
}
LOST = 0.08
_ENOUGH_LOST = 2
_BATCH = 50
_QUIET = ("code", "content", "predicted_loss", "hessian_cpu_seconds", "cpu_seconds", "calibration")

Row = dict[str, Any]


@cache
def code_version() -> str:
    """Digest of the code that decides our files' bytes, without comments and docstrings."""
    found = hashlib.sha256()
    for place in OUR_CODE:
        for file in sorted((ROOT / place).rglob("*.py")):
            tree = ast.parse(file.read_text())
            for node in ast.walk(tree):
                body = getattr(node, "body", None)
                if isinstance(body, list):
                    node.body = [n for n in body if not _is_text(n)]  # type: ignore[attr-defined]
            found.update(ast.dump(tree).encode())
    return found.hexdigest()[:12]


def _is_text(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def digest(*parts: Any) -> str:
    """Name of a row: a digest of what decides it."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(slots=True, kw_only=True)
class Bench:
    """A task, the rows that are known, and what several methods need.

    Attributes
    ----------
    rows : dict of str to dict
        Known rows by digest.
    keep : callable
        Called with new rows and keys of stale ones.
    """

    task: Task
    rows: dict[str, Row]
    keep: Callable[[dict[str, Row], Collection[str]], None]
    _source: ModelSource | None = None

    @property
    def source(self) -> ModelSource:
        """The network as the converter sees it: batch norms folded, named tensors and a graph."""
        if self._source is None:
            self._source = load_source(self.task.module, example_inputs=self.task.calibration(0)[:2])
        return self._source

    def add(self, key: str, row: Row, answers: np.ndarray) -> None:
        """Judge answers on the test set and keep the row."""
        correct = answers == self.task.test[1]
        self.rows[key] = {**row, "test": float(correct.mean())}
        told = [f"{name} {value}" for name, value in row.items() if name not in _QUIET]
        print(f"{self.task.name}: {', '.join(told)}, test {correct.mean():.4f}", flush=True)
        self.keep({key: self.rows[key]}, ())

    def add_file(self, key: str, row: Row, content: bytes) -> None:
        """Keep the row of a .nqz file; one that is the same as a known one, to the bit, is not run again."""
        name = hashlib.sha256(content).hexdigest()[:16]
        known = next((r for r in self.rows.values() if r.get("content") == name), None)
        made = {**row, "file_bytes": len(content), "content": name}
        if known is None:
            self.add(key, made, file_answers(content, self.task.test[0]))
        else:
            self.rows[key] = {**made, "test": known["test"]}
            self.keep({key: self.rows[key]}, ())

    def forget(self, method: str, wanted: set[str]) -> None:
        """Drop rows of a method that are not of the present settings and code."""
        stale = [key for key, row in self.rows.items() if row["method"] == method and key not in wanted]
        for key in stale:
            del self.rows[key]
        if stale:
            self.keep({}, stale)


def module_answers(module: Any, inputs: np.ndarray) -> np.ndarray:
    """Largest class of each answer of a module, its constants folded."""
    with torch.inference_mode():
        traced = torch.jit.trace(module, torch.from_numpy(inputs[:_BATCH]))
        frozen = torch.jit.optimize_for_inference(torch.jit.freeze(traced))
    return _answers(lambda part: frozen(torch.from_numpy(part)).numpy(), inputs)


def file_answers(content: bytes, inputs: np.ndarray) -> np.ndarray:
    """Largest class of each answer of a .nqz file, run by nqruntime through ONNX Runtime."""
    from nqruntime import InferenceSession

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.nqz"
        path.write_bytes(content)
        with InferenceSession(path, engine="ort", threads=1) as session:
            name = session.get_inputs()[0].name
            return _answers(lambda part: session.run(None, {name: part})[0], inputs)


def _answers(run: Callable[[np.ndarray], np.ndarray], inputs: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        starts = range(0, len(inputs), _BATCH)
        return np.concatenate([run(inputs[start : start + _BATCH]).argmax(-1) for start in starts])


def obs(bench: Bench) -> None:
    """Files at all rates and calibration seeds, of one set of Hessians for each seed."""
    task = bench.task
    wanted: dict[int, dict[str, float]] = {}
    for rate in task.rates:
        for seed in task.seeds(rate):
            key = digest(task.name, "obs", rate, seed, code_version())
            wanted.setdefault(seed, {})[key] = rate
    for seed, rates in wanted.items():
        missing = {key: rate for key, rate in rates.items() if key not in bench.rows}
        if missing:
            _obs_rows(bench, seed, missing)
    bench.forget("obs", {key for keys in wanted.values() for key in keys})


def _obs_rows(bench: Bench, seed: int, rates: Mapping[str, float]) -> None:
    inputs = bench.task.calibration(seed)
    settings = preset_settings("post-training", samples=len(inputs), seed=seed)
    started = time.process_time()
    measured = CalibrationSettings(samples=settings.samples, seed=seed, progress=lambda line: None)
    weights = continuous_weights(bench.source.tensors)
    surgeon = prepare_surgeon(bench.source, weights, inputs, measured)
    hessians = time.process_time() - started
    encoding = Encoding(source=bench.source, surgeon=surgeon)
    for key, rate in rates.items():
        started = time.process_time()
        tried = preset_settings("post-training", samples=len(inputs), seed=seed, rate_penalty=rate)
        model = encoding.quantize(tried)
        content = encoding.content(tried, model)
        row = {
            "method": "obs",
            "rate_penalty": rate,
            "seed": seed,
            "calibration": len(inputs),
            "predicted_loss": model.loss,
            "hessian_cpu_seconds": hessians,
            "cpu_seconds": time.process_time() - started,
            "code": code_version(),
        }
        bench.add_file(key, row, content)


def original(bench: Bench) -> None:
    """The network itself."""
    key = digest(bench.task.name, "original")
    if key not in bench.rows:
        row = {"method": "original", "file_bytes": bench.task.fp32_bytes}
        bench.add(key, row, module_answers(bench.task.module, bench.task.test[0]))


def nncodec(bench: Bench) -> None:
    """NNCodec on the parameters as they are, with dependent quantization and without; tensors alone.

    A mode ends with the second coarse setting that loses more than `LOST`, as all further ones would.
    """
    python = os.environ.get("NQZ_PEERS_PYTHON")
    if not python:
        print("NNCodec not measured: set NQZ_PEERS and NQZ_PEERS_PYTHON")
        return
    task = bench.task
    state = {name: value.clone() for name, value in task.module.state_dict().items()}
    tensors = {name: value.numpy() for name, value in state.items() if value.dtype is torch.float32}
    floor = bench.rows[digest(task.name, "original")]["test"] - LOST
    for mode, qps in task.qps.items():
        options = NNCODEC_MODES[mode]
        keys = {digest(task.name, "nncodec", mode, qp): qp for qp in sorted(qps)}
        if sum(bench.rows[key]["test"] < floor for key in keys if key in bench.rows) >= _ENOUGH_LOST:
            continue
        missing = {key: qp for key, qp in keys.items() if key not in bench.rows}
        wanted = [{**options, "qp": qp} for qp in missing.values()]
        n_lost = 0
        for (key, qp), (size, decoded) in zip(missing.items(), _coded(python, tensors, wanted), strict=True):
            filled = {name: torch.from_numpy(array) for name, array in decoded.items()}
            task.module.load_state_dict({**state, **filled})
            try:
                answers = module_answers(task.module, task.test[0])
            finally:
                task.module.load_state_dict(state)
            bench.add(key, {"method": "nncodec", "mode": mode, "qp": qp, "file_bytes": size}, answers)
            n_lost += bench.rows[key]["test"] < floor
            if n_lost >= _ENOUGH_LOST:
                break


def _coded(
    python: str, tensors: Mapping[str, np.ndarray], options: list[dict[str, Any]]
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Yield bytes and decoded tensors for each of the options."""
    worker = Path(__file__).parent / "nncodec_model.py"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.savez(folder / "tensors.npz", **tensors)
        command = [python, str(worker), str(folder / "tensors.npz"), str(folder), json.dumps(options)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        for number, size in enumerate(json.loads(done.stdout.splitlines()[-1])):
            yield size, dict(np.load(folder / f"{number}.npz"))


def plain(bench: Bench) -> None:
    """Rounding to the nearest of a uniform grid, in .nqz files; int8 and int4 by channel with zstd."""
    task = bench.task
    steps = {digest(task.name, "round", step, code_version()): step for step in task.steps}
    for key, step in steps.items():
        if key not in bench.rows:
            settings = preset_settings(
                "auto", method="uniform", step=step, smaller_of_lossless=False, rest="bfloat16"
            )
            encoding = Encoding(source=bench.source)
            content = encoding.content(settings, encoding.quantize(settings))
            row = {"method": "round", "step": step, "code": code_version()}
            bench.add_file(key, row, content)
    bench.forget("round", set(steps))
    for baseline in BASELINES:
        key = digest(task.name, baseline.name)
        if baseline.compressor == "zstd" and key not in bench.rows:
            size, decoded = baseline_file(baseline, bench.source)
            content = nqformat.save({**decoded, **bench.source.views}, graph=bench.source.graph)
            row = {"method": baseline.name, "file_bytes": size}
            bench.add(key, row, file_answers(content, task.test[0]))


METHODS: dict[str, Callable[[Bench], None]] = {"plain": plain, "nncodec": nncodec, "obs": obs}
"""Besides :func:`original`, which comes first."""
