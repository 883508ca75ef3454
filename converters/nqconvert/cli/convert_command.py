"""``nqz convert``."""

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
from nqconvert.presets import PRESETS, REST_DTYPES
from nqconvert.quantizers.settings import SCOPES
from nqconvert.search import byte_count


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    width = max(map(len, PRESETS))
    parser.epilog = "presets:\n" + "\n".join(f"  {n:{width}}  {p.purpose}" for n, p in PRESETS.items())
    parser.add_argument(
        "model", help=".onnx, .safetensors, .pt state dict, or package.module:factory of a torch module"
    )
    parser.add_argument("-o", "--output", help="the .nqz file; default: beside the model, or in this folder")
    parser.add_argument("--weights", help="state dict for a module")
    parser.add_argument(
        "--example-input",
        help=".npy, .npz or shape=1,1,28,28: needed for a module; outputs are compared on it",
    )
    parser.add_argument("--preset", default="auto", help="a named bundle of settings (below); default auto")
    parser.add_argument(
        "--method",
        help="kmeans, hessian-kmeans, uniform, ecsq, inq, vq, none, or a quantizer of another package",
    )
    parser.add_argument("--clusters", type=int, help="most codebook entries")
    parser.add_argument(
        "--scope", choices=SCOPES, help="one codebook for each tensor, for all, or for each channel"
    )
    parser.add_argument("--density", type=float, help="share of weights that pruning keeps")
    parser.add_argument("--rest", choices=REST_DTYPES, help="precision of biases, norms and small tensors")
    parser.add_argument("--step", type=float, help="step of uniform grids, in root mean squares")
    parser.add_argument("--rate-penalty", type=float, help="cost of a bit for ecsq, as a share of the signal")
    parser.add_argument("--width", type=int, help="weights that share an index, for vq")
    parser.add_argument(
        "--product", action="store_true", default=None, help="vq: codebooks by place in a row"
    )
    parser.add_argument(
        "--sensitivity", help="how errors are weighted: auto, fisher, becker, activation, adam, none, ..."
    )
    parser.add_argument("--samples", type=int, help="most calibration samples to use; default 1000")
    parser.add_argument("--calibration", help=".npy or .npz of inputs (labels as 'targets'), or shape=...")
    parser.add_argument("--loss", help="package.module:function of outputs and targets")
    parser.add_argument("--optimizer-state", help="file with the state of an Adam optimizer")
    parser.add_argument("--fine-tune", help="package.module:function that returns nqconvert.FineTuning")
    targets = parser.add_mutually_exclusive_group()
    targets.add_argument("--target-bits", type=float, help="most bits of the file for a value of the model")
    targets.add_argument("--target-size", type=byte_count, help="most bytes, such as 20000, 20kB or 1.5MiB")
    targets.add_argument("--target-ratio", type=float, help="how many times smaller at least")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--train", help="package.module:function that returns nqconvert.Training")
    parser.add_argument("--evaluate", help="package.module:function of a runner that returns an accuracy")
    parser.add_argument("--strict", action="store_true", help="fail if a weight matrix is left raw")
    parser.add_argument("--prefer", choices=("size", "speed"), default="size", help="codings to choose from")
    parser.add_argument("--edge", action="store_true", help="leave the directory uncompressed")
    parser.add_argument("--full-metadata", action="store_true", help="store all settings in the file")
    parser.add_argument("--static-batch", action="store_true", help="fix the batch size to the example's")


def run(arguments: argparse.Namespace) -> int:
    """Convert and print the report."""
    from nqconvert.conversion import convert

    model, output = _model_and_output(arguments)
    stages = StageLines(arguments)
    try:
        report = convert(
            model,
            output,
            example_inputs=read_arrays(arguments.example_input) if arguments.example_input else None,
            weights=arguments.weights,
            preset=arguments.preset,
            training=call_object(arguments.train) if arguments.train else None,
            evaluate=load_object(arguments.evaluate) if arguments.evaluate else None,
            method=arguments.method,
            clusters=arguments.clusters,
            scope=arguments.scope,
            density=arguments.density,
            rest=arguments.rest,
            step=arguments.step,
            rate_penalty=arguments.rate_penalty,
            width=arguments.width,
            product=arguments.product,
            sensitivity=arguments.sensitivity,
            samples=arguments.samples,
            calibration=read_calibration(arguments.calibration) if arguments.calibration else None,
            loss=load_object(arguments.loss) if arguments.loss else None,
            optimizer_state=arguments.optimizer_state,
            fine_tuning=call_object(arguments.fine_tune) if arguments.fine_tune else None,
            target_bits=arguments.target_bits,
            target_size=arguments.target_size,
            target_ratio=arguments.target_ratio,
            seed=arguments.seed,
            strict=arguments.strict,
            edge=arguments.edge,
            prefer=arguments.prefer,
            full_metadata=arguments.full_metadata,
            dynamic_batch=not arguments.static_batch,
            progress=stages,
        )
    finally:
        stages.done()
    emit(arguments, str(report), report.to_json())
    return 0


def _model_and_output(arguments: argparse.Namespace) -> tuple[Any, Path]:
    """Return the model (a path, or the module a factory makes) and where to write."""
    text: str = arguments.model
    if ":" in text and not Path(text).exists() and "/" not in text.partition(":")[0]:
        output = Path(arguments.output or f"{text.rpartition(':')[2]}.nqz")
        return call_object(text), output
    path = Path(text)
    return path, Path(arguments.output) if arguments.output else path.with_suffix(".nqz")
