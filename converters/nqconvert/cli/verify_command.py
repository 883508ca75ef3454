"""``nqz verify``."""

from __future__ import annotations

import argparse

import nqformat
from nqconvert.cli.console import emit
from nqconvert.cli.limit_options import add_limit_options, limits_of
from nqconvert.report import SCHEMA_VERSION
from nqformat.errors import CorruptError
from nqformat.reencoding import check_streams


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("file")
    depth = parser.add_mutually_exclusive_group()
    depth.add_argument("--fast", action="store_true", help="checksums and structure only; decode no tensor")
    depth.add_argument(
        "--deep", action="store_true", help="encode every stream again and compare it with the file"
    )
    add_limit_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Check the file; an error ends the command with exit code 3 or 4."""
    with nqformat.safe_open(arguments.file, limits=limits_of(arguments), bfloat16="uint16") as file:
        file.verify_checksums()
        file.metadata()
        n_needed = _check_graph(file)
        if not arguments.fast:
            for _ in file.tensors():
                pass
        n_streams = check_streams(file) if arguments.deep else None
        checked = "checksums and structure" if arguments.fast else "checksums, structure and every tensor"
        checked += "" if n_streams is None else f", {n_streams} streams encoded again"
        graph = "no graph" if n_needed is None else f"graph finds its {n_needed} tensors"
        text = f"{arguments.file}: ok ({checked}; {len(file)} tensors; {graph})"
        result = {
            "schema_version": SCHEMA_VERSION,
            "ok": True,
            "n_tensors": len(file),
            "n_graph_tensors": n_needed,
            "decoded": not arguments.fast,
            "n_streams_encoded_again": n_streams,
        }
    emit(arguments, text, result)
    return 0


def _check_graph(file: nqformat.NqzFile) -> int | None:
    """Parse the graph and look up every tensor it needs; returns their number."""
    from nqruntime.graph_reader import read_model

    graph = file.graph()
    if graph is None:
        return None
    needed = read_model(graph).graph.free_names
    missing = sorted(name for name in needed if name not in file)
    if missing:
        raise CorruptError(
            f"the graph needs tensors that the file lacks: {', '.join(missing)}", section="GRAPH"
        )
    return len(needed)
