"""``nqz run``."""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import numpy as np

from nqconvert.cli.console import emit, finite_or_none, read_arrays
from nqconvert.cli.limit_options import add_limit_options, limits_of
from nqconvert.report import SCHEMA_VERSION

_SHOWN_VALUES = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("file")
    parser.add_argument(
        "-i",
        "--input",
        required=True,
        help=".npy, .npz with inputs by name, or shape=1,1,28,28 for random numbers",
    )
    parser.add_argument("-o", "--output", help="write the outputs to this .npz file")
    parser.add_argument("--engine", default="auto", choices=("auto", "native", "ort"))
    parser.add_argument("--threads", type=int)
    parser.add_argument("--memory", default="default", choices=("default", "low"))
    parser.add_argument("--repeat", type=int, default=1, help="run so often and show the median time")
    parser.add_argument("--explain", action="store_true", help="show which kernel runs each node")
    add_limit_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the file on the inputs."""
    from nqruntime import InferenceSession

    if arguments.repeat < 1:
        raise ValueError("--repeat must be at least 1")
    given = read_arrays(arguments.input)
    with InferenceSession(
        arguments.file,
        engine=arguments.engine,
        threads=arguments.threads,
        memory=arguments.memory,
        limits=limits_of(arguments),
    ) as session:
        names = [value.name for value in session.get_inputs()]
        feeds = given if isinstance(given, dict) else _single_feed(names, given)
        seconds = []
        for _ in range(arguments.repeat):
            started = time.perf_counter()
            outputs = session.run(None, feeds)
            seconds.append(time.perf_counter() - started)
        output_names = [value.name for value in session.get_outputs()]
        rows = session.explain() if arguments.explain else []
        engine = session.engine
    if arguments.output:
        named: dict[str, Any] = dict(zip(output_names, outputs, strict=True))
        np.savez(arguments.output, **named)
    median_ms = 1e3 * statistics.median(seconds)
    described = [_describe(n, o) for n, o in zip(output_names, outputs, strict=True)]
    lines = [_output_line(d) for d in described]
    lines += [str(row) for row in rows]
    lines.append(
        f"engine {engine}, {median_ms:.3f} ms" + (f" (median of {len(seconds)})" if len(seconds) > 1 else "")
    )
    as_json = {
        "schema_version": SCHEMA_VERSION,
        "engine": engine,
        "milliseconds": median_ms,
        "outputs": described,
        "explain": [str(row) for row in rows],
    }
    emit(arguments, "\n".join(lines), as_json)
    return 0


def _single_feed(names: list[str], array: np.ndarray) -> dict[str, np.ndarray]:
    if len(names) != 1:
        raise ValueError(
            f"the model has {len(names)} inputs ({', '.join(names)}); give them by name in an .npz file"
        )
    return {names[0]: array}


def _describe(name: str, output: np.ndarray) -> dict[str, Any]:
    first = [finite_or_none(float(v)) for v in output.reshape(-1)[:_SHOWN_VALUES]]
    described: dict[str, Any] = {
        "name": name,
        "shape": list(output.shape),
        "dtype": output.dtype.name,
        "first_values": first,
    }
    if output.ndim >= 2 and output.shape[-1] >= 2 and output.size:
        described["argmax"] = output.argmax(axis=-1).reshape(-1)[:_SHOWN_VALUES].tolist()
    return described


def _output_line(described: dict[str, Any]) -> str:
    values = ", ".join("nan" if v is None else f"{v:.5g}" for v in described["first_values"])
    line = f"{described['name']} {described['dtype']}{described['shape']}: {values}"
    if "argmax" in described:
        line += f"; largest at {described['argmax']}"
    return line
