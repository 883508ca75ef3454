"""``nqz run``."""

from __future__ import annotations

import argparse
import statistics
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from nqconvert.cli.console import emit, finite_or_none, read_arrays
from nqconvert.cli.limit_options import add_limit_options, limits_of
from nqconvert.report import SCHEMA_VERSION

if TYPE_CHECKING:
    from nqruntime import InferenceSession
    from nqruntime.explanation import Explanation

_SHOWN_VALUES = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("file")
    parser.add_argument(
        "-i",
        "--input",
        help=".npy, .npz with inputs by name, or shape=1,1,28,28 for random numbers; may be left out with "
        "--explain",
    )
    parser.add_argument("-o", "--output", help="write the outputs to this .npz file")
    parser.add_argument("--engine", default="auto", choices=("auto", "native", "ort"))
    parser.add_argument("--threads", type=int)
    parser.add_argument("--memory", default="default", choices=("default", "low"))
    parser.add_argument(
        "--precision",
        default="float32",
        choices=("float32", "int8"),
        help="int8: round inputs and weights to 8-bit integers where that is faster; shows the loss",
    )
    parser.add_argument("--repeat", type=int, default=1, help="run so often and show the median time")
    parser.add_argument(
        "--explain", action="store_true", help="show for each node its kernel, its time and its memory"
    )
    parser.add_argument(
        "--compare", action="store_true", help="with --explain: show the time of ONNX Runtime as well"
    )
    add_limit_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the file on the inputs."""
    _check(arguments)
    given = read_arrays(arguments.input) if arguments.input else None
    with _session(arguments, arguments.engine) as session:
        names = [value.name for value in session.get_inputs()]
        feeds = session.made_up_inputs() if given is None else _named_feeds(names, given)
        seconds = []
        for _ in range(arguments.repeat):
            started = time.perf_counter()
            outputs = session.run(None, feeds)
            seconds.append(time.perf_counter() - started)
        output_names = [value.name for value in session.get_outputs()]
        explanation = _explanation(arguments, session, feeds) if arguments.explain else None
        loss = None
        if arguments.precision == "int8":
            loss = session.precision_report(feeds if given is not None else None)
        engine = session.engine
    if arguments.output:
        named: dict[str, Any] = dict(zip(output_names, outputs, strict=True))
        np.savez(arguments.output, **named)
    median_ms = 1e3 * statistics.median(seconds)
    described = [_describe(n, o) for n, o in zip(output_names, outputs, strict=True)]
    lines = [_output_line(d) for d in described] if given is not None else ["made-up inputs"]
    if explanation is None:
        median = f" (median of {len(seconds)})" if len(seconds) > 1 else ""
        lines.append(f"engine {engine}, {median_ms:.3f} ms{median}")
    else:
        lines.append(str(explanation))
    if loss is not None:
        lines.append(str(loss))
    as_json = {
        "schema_version": SCHEMA_VERSION,
        "engine": engine,
        "milliseconds": median_ms,
        "outputs": described,
        "explain": None if explanation is None else explanation.to_json(),
        "precision": None if loss is None else loss.to_json(),
    }
    emit(arguments, "\n".join(lines), as_json)
    return 0


def _check(arguments: argparse.Namespace) -> None:
    if arguments.repeat < 1:
        raise ValueError("--repeat must be at least 1")
    if not arguments.input and not arguments.explain:
        raise ValueError("give inputs with -i, or --explain")
    if arguments.compare and not arguments.explain:
        raise ValueError("--compare goes with --explain")


def _session(arguments: argparse.Namespace, engine: str) -> InferenceSession:
    from nqruntime import InferenceSession

    return InferenceSession(
        arguments.file,
        engine=engine,
        threads=arguments.threads,
        memory=arguments.memory,
        limits=limits_of(arguments),
        precision=arguments.precision if engine != "ort" or arguments.engine == "ort" else "float32",
    )


def _explanation(
    arguments: argparse.Namespace, session: InferenceSession, feeds: dict[str, np.ndarray]
) -> Explanation:
    from nqruntime.explanation import explain_session

    if not arguments.compare or session.engine == "ort":
        return explain_session(session, feeds)
    with _session(arguments, "ort") as rival:
        return explain_session(session, feeds, rival=rival)


def _named_feeds(names: list[str], array: Any) -> dict[str, np.ndarray]:
    if isinstance(array, dict):
        return array
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
