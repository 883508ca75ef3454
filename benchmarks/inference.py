"""Running from compressed weights, beside ONNX Runtime and others on the decoded ones.

    NQZ_DATA=... python benchmarks/inference.py [PATTERN] [--quick] [--missing] [--prepare] [--files FOLDER]

Layers of random weights, and networks whose weights are pruned by magnitude and rounded to 16 values (only
their speed counts here). All engines of a row take turns, some runs each; CPU time of one thread, wall time
of two. PATTERN is a regular expression that labels of rows to measure match somewhere; results are merged
into benchmarks/results/inference.json. Trained networks are left out without NQZ_DATA. 4-bit and 8-bit peers
round the weights once more, so that their outputs are others.
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

ROUNDS, QUICK_ROUNDS, PROCESSES = 15, 4, 3
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


def timed(runs: dict[str, Callable[[], Any]], rounds: int, threads: int) -> dict[str, dict[str, float]]:
    """Best and median milliseconds of one run; engines take turns, some runs each.

    One thread is timed by its own CPU time, which on an idle machine is that on the clock and on a busy one
    does not count the time of others. With more threads each turn waits until those of the one before have
    stopped spinning.
    """
    clock = time.thread_time if threads == 1 else time.perf_counter
    counts, seconds = {}, {}
    for name, run in runs.items():
        run()
        started = clock()
        run()
        taken = clock() - started
        counts[name] = max(1, min(_MOST_RUNS, math.ceil(_BLOCK_SECONDS / max(taken, 1e-7))))
        seconds[name] = [taken]
    for _ in range(rounds):
        for name, run in runs.items():
            if threads > 1:
                time.sleep(_PAUSE_SECONDS)
            for _ in range(counts[name]):
                started = clock()
                run()
                seconds[name].append(clock() - started)
    return {
        name: {"best": 1000 * min(taken), "median": 1000 * median(taken)} for name, taken in seconds.items()
    }


def measure(row: Row, path: Path, threads: int, rounds: int, *, with_peers: bool) -> dict[str, Any]:
    """Times, difference and weight memory of both engines; times of peers; the choice of ``auto``."""
    sessions = {name: InferenceSession(path, engine=name, threads=threads) for name in ("native", "ort")}
    sessions["native int8"] = InferenceSession(path, engine="native", threads=threads, precision="int8")
    feeds = sessions["ort"].made_up_inputs()
    outputs = {name: session.run(None, feeds)[0] for name, session in sessions.items()}
    runs: dict[str, Callable[[], Any]] = {
        name: lambda session=session: session.run(None, feeds)  # type: ignore[misc]
        for name, session in sessions.items()
    }
    others = peers(row, path, feeds, threads) if with_peers else {}
    torch_run = {name: others.pop(name) for name in ("torch",) if name in others}
    times = timed(runs | others, rounds, threads)
    times |= timed(torch_run, max(1, rounds // 3), threads)
    largest = float(np.abs(outputs["ort"]).max()) or 1.0
    found = {
        "milliseconds": times,
        "ratio_best": times["ort"]["best"] / times["native"]["best"],
        "ratio_median": times["ort"]["median"] / times["native"]["median"],
        "relative_difference": float(np.abs(outputs["native"] - outputs["ort"]).max()) / largest,
        "weight_bytes": {name: session.weight_bytes for name, session in sessions.items()},
        "int8": {
            "kernels": sorted({c.kernel for c in sessions["native int8"].explain() if "int8" in c.kernel}),
            "relative_error": float(np.linalg.norm(outputs["native int8"] - outputs["native"]))
            / (float(np.linalg.norm(outputs["native"])) or 1.0),
        },
        "file_bytes": path.stat().st_size,
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "kernels": sorted({c.kernel for c in sessions["native"].explain() if "within" not in c.kernel}),
    }
    if row.module is not None:
        with InferenceSession(path, threads=threads) as chosen:
            found["auto"] = chosen.engine
    for session in sessions.values():
        session.close()
    return found


def process(row: Row, path: Path, rounds: int) -> dict[str, dict[str, float]]:
    """CPU seconds of a new process from its start to the first output, and its memory in bytes, by engine.

    As of installed packages: a process before these writes the byte code of modules where there is none.
    """
    found = {}
    engines = ("native", "ort", "torch") if row.module is not None else ("native", "ort")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    environment["PYTHONPYCACHEPREFIX"] = str(path.parent / "bytecode")
    for engine in engines:
        taken = []
        for number in range((rounds if engine != "torch" else 1) + 1):
            command = [sys.executable, "-c", _PROCESS, engine, str(path), row.label]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
            if number:
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
    parser.add_argument("--quick", action="store_true", help="a few rounds, ONNX Runtime alone")
    parser.add_argument("--threads", default="1,2", help="numbers of threads")
    parser.add_argument("--missing", action="store_true", help="leave out rows that have been measured")
    parser.add_argument("--times-only", action="store_true", help="no cold starts and memory of processes")
    parser.add_argument("--prepare", action="store_true", help="write the files and measure nothing")
    parser.add_argument("--files", type=Path, default=Path(tempfile.gettempdir()) / "nqz-inference")
    return parser.parse_args()


def _merge(rounds: int, order: list[str], label: str, threads: int | None, found: dict[str, Any]) -> None:
    """Write one more result: times with some threads, or of processes."""
    results = read("inference")
    rows: dict[str, Any] = results.get("rows", {})
    processes: dict[str, Any] = results.get("processes", {})
    if threads is None:
        processes[label] = found
    else:
        rows.setdefault(label, {})[str(threads)] = found
    merged = {
        "machine": machine("numpy", "numba", "onnx", "onnxruntime", "torch", "scipy"),
        "rounds": rounds,
        "rows": {name: rows[name] for name in order if name in rows},
        "processes": {name: processes[name] for name in order if name in processes},
    }
    write("inference", merged)


def main() -> None:
    """Time what is asked for; every result is written when it is there."""
    arguments = _arguments()
    arguments.files.mkdir(parents=True, exist_ok=True)
    if not compile_kernels():
        raise SystemExit("there are no compiled kernels on this machine: is Numba installed?")
    rounds = QUICK_ROUNDS if arguments.quick else ROUNDS
    everything = [*layer_rows(), *network_rows()]
    order = [row.label for row in everything]
    for row in (row for row in everything if re.search(arguments.pattern, row.label)):
        path = prepared(row, arguments.files)
        if arguments.prepare:
            continue
        known = read("inference") if arguments.missing else {}
        for threads in map(int, arguments.threads.split(",")):
            if str(threads) in known.get("rows", {}).get(row.label, {}):
                continue
            found = measure(row, path, threads, rounds, with_peers=not arguments.quick)
            _merge(rounds, order, row.label, threads, found)
            print(_shown(row.label, threads, found), flush=True)
        times_only = arguments.quick or arguments.times_only
        if _wants_process(row) and not times_only and row.label not in known.get("processes", {}):
            found = process(row, path, PROCESSES)
            _merge(rounds, order, row.label, None, found)
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
