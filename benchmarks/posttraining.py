"""Post-training quantization (method obs) on trained networks: curves of bytes and accuracy beside NNCodec.

    NQZ_DATA=path/to/data [NQZ_PEERS=path/to/peers NQZ_PEERS_PYTHON=python-with-nncodec] \
        python benchmarks/posttraining.py [NETWORK ...] [--only obs|nncodec|plain|conversion]

Calibration inputs are training data without labels. Sizes are those of whole files; ours hold the graph, too,
NNCodec's do not. Rows that are known stay: a run resumes where another ended, and method obs starts again
when its code changes. Writes benchmarks/results/posttraining.json and draws posttraining.png beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from harness import RESULTS, loaders, machine, read, required_data_folder, write
from posttraining_conversions import CONVERSIONS, conversion
from posttraining_goals import print_goals
from posttraining_methods import METHODS, Bench, Row, original
from posttraining_plot import draw_posttraining
from posttraining_tasks import TASKS

NAME = "posttraining"


@contextlib.contextmanager
def changing() -> Iterator[dict[str, Any]]:
    """Give the results to change; other runs of this program wait."""
    RESULTS.mkdir(exist_ok=True)
    with (Path(tempfile.gettempdir()) / "nqz_posttraining.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        results = read(NAME)
        yield results
        write(NAME, results)


def measure(name: str, methods: list[str], folder: Any, load: Any) -> None:
    """Measure what is missing of a network's rows and write each at once."""
    task = TASKS[name](folder, load)

    def keep(new: dict[str, Row], stale: Collection[str]) -> None:
        with changing() as results:
            results["machine"] = machine("numpy", "torch", "onnxruntime", "numba")
            found = results.setdefault("networks", {}).setdefault(name, {"rows": {}})
            found.update(n_test=int(task.test[1].size), fp32_bytes=task.fp32_bytes)
            found["rows"].update(new)
            for key in stale:
                found["rows"].pop(key, None)

    known = read(NAME).get("networks", {}).get(name, {"rows": {}})
    bench = Bench(task=task, rows=known["rows"], keep=keep)
    original(bench)
    for method in methods:
        METHODS[method](bench)


def measure_conversion(name: str, folder: Any) -> None:
    """Time a whole conversion in a process of its own."""
    row = conversion(name, folder)
    with changing() as results:
        results.setdefault("conversions", {})[name] = row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", choices=[[], *TASKS, *CONVERSIONS])
    parser.add_argument("--only", choices=(*METHODS, "conversion", "figures"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.only != "figures":
        folder = required_data_folder()
        load = loaders(folder)
        for name in arguments.networks or list(dict.fromkeys((*TASKS, *CONVERSIONS))):
            if name in TASKS and arguments.only != "conversion":
                measure(name, [arguments.only] if arguments.only else list(METHODS), folder, load)
            if name in CONVERSIONS and arguments.only in (None, "conversion"):
                measure_conversion(name, folder)
    results = read(NAME)
    print_goals(results)
    draw_posttraining(results, RESULTS / f"{NAME}.png")


if __name__ == "__main__":
    main()
