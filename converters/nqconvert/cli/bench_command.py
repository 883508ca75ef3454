"""``nqz bench``."""

from __future__ import annotations

import argparse

from nqconvert.cli.console import StageLines, emit, read_arrays


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("file")
    parser.add_argument(
        "-i", "--input", help=".npy, .npz or shape=1,1,28,28; default: random numbers, open axes 1 or 16"
    )
    parser.add_argument("--threads", default="1,2", help="numbers of threads, separated by commas")
    parser.add_argument("--repeats", type=int, default=7, help="rounds that count")
    parser.add_argument("--engine", default="auto", choices=("auto", "native", "ort"))


def run(arguments: argparse.Namespace) -> int:
    """Time the file and print the table."""
    from nqconvert.bench import bench_file

    stages = StageLines(arguments)
    try:
        found = bench_file(
            arguments.file,
            inputs=read_arrays(arguments.input) if arguments.input else None,
            threads=_thread_counts(arguments.threads),
            repeats=arguments.repeats,
            engine=arguments.engine,
            progress=stages,
        )
    finally:
        stages.done()
    emit(arguments, str(found), found.to_json())
    return 0


def _thread_counts(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"--threads must read like 1,2, not {text!r}") from None
