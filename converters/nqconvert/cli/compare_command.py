"""``nqz compare``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from nqconvert.cli.console import (
    StageLines,
    call_object,
    emit,
    load_object,
    read_arrays,
    read_calibration,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "model", help=".onnx, .safetensors, .pt state dict, or package.module:factory of a torch module"
    )
    parser.add_argument("--weights", help="state dict for a module")
    parser.add_argument("--example-input", help=".npy, .npz or shape=1,1,28,28: needed for a module")
    parser.add_argument("--methods", default="all", help="quantizers, separated by commas; default all")
    parser.add_argument(
        "--targets", default="3,4,5bits", help="bounds on the file such as 3,4,5bits or 10kB,20kB or 20x,40x"
    )
    parser.add_argument("--test", help=".npz of inputs and 'targets' (labels) for the accuracy")
    parser.add_argument("--calibration", help=".npy or .npz of inputs (labels as 'targets'), or shape=...")
    parser.add_argument("--sensitivity", default="auto")
    parser.add_argument("--samples", type=int, default=1000, help="most calibration samples to use")
    parser.add_argument("--loss", help="package.module:function of outputs and targets")
    parser.add_argument("--optimizer-state", help="file with the state of an Adam optimizer")
    parser.add_argument("--scope", choices=("layer", "global"), default="global")
    parser.add_argument("--density", type=float, help="share of weights that pruning keeps")
    parser.add_argument("--no-baselines", action="store_true", help="leave out int8 and int4 with zstd, lzma")
    parser.add_argument("--batch-size", type=int, default=250, help="test samples in a run")
    parser.add_argument("--plot", help="image file for size against accuracy (needs matplotlib)")
    parser.add_argument("--seed", type=int, default=0)


def run(arguments: argparse.Namespace) -> int:
    """Compare and print the table."""
    from nqconvert.comparison import compare

    stages = StageLines(arguments)
    try:
        comparison = compare(
            _model(arguments.model),
            example_inputs=read_arrays(arguments.example_input) if arguments.example_input else None,
            weights=arguments.weights,
            methods="all" if arguments.methods == "all" else arguments.methods.split(","),
            targets=split_targets(arguments.targets),
            test=_labelled(arguments.test) if arguments.test else None,
            calibration=read_calibration(arguments.calibration) if arguments.calibration else None,
            loss=load_object(arguments.loss) if arguments.loss else None,
            optimizer_state=arguments.optimizer_state,
            sensitivity=arguments.sensitivity,
            samples=arguments.samples,
            scope=arguments.scope,
            density=arguments.density,
            baselines=not arguments.no_baselines,
            batch_size=arguments.batch_size,
            seed=arguments.seed,
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


def _model(text: str) -> Any:
    """Return the model (a path, or the module a factory makes)."""
    if ":" in text and not Path(text).exists() and "/" not in text.partition(":")[0]:
        return call_object(text)
    return Path(text)
