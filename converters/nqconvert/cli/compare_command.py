"""``nqz compare``."""

from __future__ import annotations

import argparse
from typing import Any

from nqconvert.cli.console import StageLines, emit, read_calibration
from nqconvert.cli.model_options import add_model_options, model_keywords, model_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_model_options(parser)
    parser.set_defaults(scope="global", sensitivity="auto", samples=1000, sensitivity_power=1.0, seed=0)
    parser.add_argument("--methods", default="all", help="quantizers, separated by commas; default all")
    parser.add_argument(
        "--targets", default="3,4,5bits", help="bounds on the file such as 3,4,5bits or 10kB,20kB or 20x,40x"
    )
    parser.add_argument("--test", help=".npz of inputs and 'targets' (labels) for the accuracy")
    parser.add_argument("--no-baselines", action="store_true", help="leave out int8 and int4 with zstd, lzma")
    parser.add_argument("--batch-size", type=int, default=250, help="test samples in a run")
    parser.add_argument("--plot", help="image file for size against accuracy (needs matplotlib)")


def run(arguments: argparse.Namespace) -> int:
    """Compare and print the table."""
    from nqconvert.comparison import compare

    stages = StageLines(arguments)
    try:
        comparison = compare(
            model_of(arguments),
            **model_keywords(arguments),
            methods="all" if arguments.methods == "all" else arguments.methods.split(","),
            targets=split_targets(arguments.targets),
            test=_labelled(arguments.test) if arguments.test else None,
            baselines=not arguments.no_baselines,
            batch_size=arguments.batch_size,
            progress=stages,
        )
    finally:
        stages.done()
    if arguments.plot:
        comparison.save_plot(arguments.plot)
    emit(arguments, str(comparison), comparison.to_json())
    return 0


def split_targets(text: str) -> list[str]:
    """Split a list of targets; one without a unit has that of the next.

    Examples
    --------
    >>> split_targets("3,4,5bits,20kB")
    ['3bits', '4bits', '5bits', '20kB']
    """
    unit, found = "", []
    for part in reversed([part.strip() for part in text.split(",")]):
        n_digits = len(part) - len(part.lstrip("0123456789."))
        unit = part[n_digits:] or unit
        found.append(part[:n_digits] + unit)
    return found[::-1]


def _labelled(text: str) -> tuple[Any, Any]:
    found = read_calibration(text)
    if not isinstance(found, tuple):
        raise ValueError(f"{text} must be an .npz file with inputs and an entry 'targets'")
    return found
