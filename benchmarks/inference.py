"""Running from compressed weights, beside ONNX Runtime and others on the decoded ones.

    NQZ_DATA=... python benchmarks/inference.py [PATTERN] [--quick] [--missing] [--prepare] [--files FOLDER]

Layers of random weights, and networks whose weights are pruned by magnitude and rounded to 16 values (only
their speed counts here). All engines of a row take turns, some runs each; wall times, since threads are
compared. PATTERN is a regular expression that the labels of the rows to measure match somewhere; results are
merged into benchmarks/results/inference.json. Trained networks are left out without NQZ_DATA. 4-bit and 8-bit
peers round the weights once more, so that their outputs are others.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from harness import machine, read, write
from inference_files import Row, layer_rows, network_rows, prepared
from inference_peers import peers

from nqruntime import InferenceSession, compile_kernels

ROUNDS, QUICK_ROUNDS = 15, 4
_BLOCK_SECONDS, _MOST_RUNS = 0.004, 40
_PAUSE_SECONDS = 0.003
_PROCESS = """
import sys, time
engine, path = sys.argv[1:3]
import numpy as np
if engine == "torch":
    import inference_files, torch
    torch.set_num_threads(1)
    [row] = [row for row in inference_files.network_rows() if row.label == sys.argv[3]]
    module, example = row.module()
    run = lambda: module(example)
else:
    import nqruntime
    session = nqruntime.InferenceSession(path, engine=engine, threads=1)
    feeds = session.made_up_inputs()
    run = lambda: session.run(None, feeds)
run()
seconds = time.process_time()
for _ in range(3):
    run()
lines = [line.split() for line in open("/proc/self/status")] if sys.platform == "linux" else []
found = {words[0]: 1024 * int(words[1]) for words in lines if words[0] in ("VmHWM:", "VmRSS:")}
print(seconds, found.get("VmHWM:", 0), found.get("VmRSS:", 0))
"""


def timed(runs: dict[str, Callable[[], Any]], rounds: int, *, pause: bool) -> dict[str, dict[str, float]]:
    """Best and median milliseconds of one run; engines take turns, some runs each.

    Parameters
    ----------
    pause : bool
        Wait before each turn until the threads of the one before have stopped spinning.
    """
    counts, seconds = {}, {}
    for name, run in runs.items():
        run()
        started = time.perf_counter()
        run()
        taken = time.perf_counter() - started
        counts[name] = max(1, min(_MOST_RUNS, math.ceil(_BLOCK_SECONDS / max(taken, 1e-7))))
        seconds[name] = [taken]
    for _ in range(rounds):
        for name, run in runs.items():
            if pause:
                time.sleep(_PAUSE_SECONDS)
            for _ in range(counts[name]):
                started = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - started)
    return {
        name: {"best": 1000 * min(taken), "median": 1000 * median(taken)} for name, taken in seconds.items()
    }


def measure(row: Row, path: Path, threads: int, rounds: int) -> dict[str, Any]:
    """Times, difference and weight memory of both engines; times of peers; the choice of ``auto``."""
    sessions = {name: InferenceSession(path, engine=name, threads=threads) for name in ("native", "ort")}
    feeds = sessions["ort"].made_up_inputs()
    outputs = {name: session.run(None, feeds)[0] for name, session in sessions.items()}
    runs: dict[str, Callable[[], Any]] = {
        name: lambda session=session: session.run(None, feeds)  # type: ignore[misc]
        for name, session in sessions.items()
    }
    others = peers(row, path, feeds, threads)
    torch_run = {name: others.pop(name) for name in ("torch",) if name in others}
    times = timed(runs | others, rounds, pause=threads > 1)
    times |= timed(torch_run, max(1, rounds // 3), pause=False)
    largest = float(np.abs(outputs["ort"]).max()) or 1.0
    found = {
        "milliseconds": times,
        "ratio_best": times["ort"]["best"] / times["native"]["best"],
        "ratio_median": times["ort"]["median"] / times["native"]["median"],
        "relative_difference": float(np.abs(outputs["native"] - outputs["ort"]).max()) / largest,
        "weight_bytes": {name: session.weight_bytes for name, session in sessions.items()},
        "file_bytes": path.stat().st_size,
        "kernels": sorted({c.kernel for c in sessions["native"].explain() if "within" not in c.kernel}),
    }
    if row.module is not None:
        with InferenceSession(path, threads=threads) as chosen:
            found["auto"] = chosen.engine
    for session in sessions.values():
        session.close()
    return found


def process(row: Row, path: Path, rounds: int) -> dict[str, dict[str, float]]:
    """CPU seconds of a new process from its start to the first output, and its memory in bytes, by engine."""
    found = {}
    engines = ("native", "ort", "torch") if row.module is not None else ("native", "ort")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    for engine in engines:
        taken = []
        for _ in range(rounds if engine != "torch" else 1):
            command = [sys.executable, "-c", _PROCESS, engine, str(path), row.label]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
            taken.append([float(word) for word in done.stdout.split()])
        seconds, peak, steady = (median(column) for column in zip(*taken, strict=True))
        found[engine] = {"cpu_seconds": seconds, "peak_bytes": peak, "steady_bytes": steady}
    return found


def _wants_process(row: Row) -> bool:
    return row.module is not None or (row.linear is not None and row.linear[:2] == (1, 9216))


def _shown(label: str, threads: int, row: dict[str, Any]) -> str:
    ours = row["milliseconds"]["native"]["best"]
    rest = ", ".join(
        f"{name} {cell['best'] / ours:.2f}"
        for name, cell in row["milliseconds"].items()
        if name not in ("native", "ort")
    )
    return (
        f"{label}, {threads} threads: {1000 * ours:.1f} us, ONNX Runtime {row['ratio_best']:.2f} "
        f"({row['ratio_median']:.2f}) times as long; {rest}; difference {row['relative_difference']:.1g}"
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("pattern", nargs="?", default="", help="regular expression for labels")
    parser.add_argument("--quick", action="store_true", help="a few rounds")
    parser.add_argument("--threads", default="1,2", help="numbers of threads")
    parser.add_argument("--missing", action="store_true", help="leave out rows that have been measured")
    parser.add_argument("--prepare", action="store_true", help="write the files and measure nothing")
    parser.add_argument("--files", type=Path, default=Path(tempfile.gettempdir()) / "nqz-inference")
    return parser.parse_args()


def main() -> None:
    """Time what is asked for and merge the results."""
    arguments = _arguments()
    arguments.files.mkdir(parents=True, exist_ok=True)
    if not compile_kernels():
        raise SystemExit("there are no compiled kernels on this machine: is Numba installed?")
    rounds = QUICK_ROUNDS if arguments.quick else ROUNDS
    results = read("inference")
    rows: dict[str, Any] = results.get("rows", {}) if "processes" in results else {}
    processes: dict[str, Any] = results.get("processes", {})
    everything = [*layer_rows(), *network_rows()]
    for row in (row for row in everything if re.search(arguments.pattern, row.label)):
        path = prepared(row, arguments.files)
        if arguments.prepare:
            continue
        for threads in map(int, arguments.threads.split(",")):
            if arguments.missing and str(threads) in rows.get(row.label, {}):
                continue
            found = measure(row, path, threads, rounds)
            rows.setdefault(row.label, {})[str(threads)] = found
            print(_shown(row.label, threads, found), flush=True)
        if _wants_process(row) and not (arguments.missing and row.label in processes):
            processes[row.label] = process(row, path, 1 if arguments.quick else 3)
            print(json.dumps(processes[row.label]), flush=True)
    labels = [row.label for row in everything]
    if not arguments.prepare:
        merged = {
            "machine": machine("numpy", "numba", "onnx", "onnxruntime", "torch", "scipy"),
            "rounds": rounds,
            "rows": {label: rows[label] for label in labels if label in rows},
            "processes": {label: processes[label] for label in labels if label in processes},
        }
        print(f"wrote {write('inference', merged)}")


if __name__ == "__main__":
    main()
