"""``nqz convert``."""

from __future__ import annotations

import argparse
from pathlib import Path

from nqconvert.cli.console import StageLines, call_object, emit, load_object
from nqconvert.cli.model_options import add_model_options, is_factory, model_keywords, model_of
from nqconvert.presets import HESSIANS, PRESETS, REST_DTYPES
from nqconvert.repair.settings import DISTILLATIONS, RepairSettings
from nqconvert.search import byte_count

_SWITCHES = {
    "sequential": "obs: quantize each layer for the inputs that quantized layers before it leave",
    "bias_correction": "obs: give products' outputs the means that they had",
    "batch_norm": "obs: give outputs of batch norms that are not folded the moments that they had",
    "scale_fit": "obs: least squares of every weight's step against the outputs before",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    width = max(map(len, PRESETS))
    parser.epilog = "presets:\n" + "\n".join(f"  {n:{width}}  {p.purpose}" for n, p in PRESETS.items())
    add_model_options(parser)
    parser.add_argument("-o", "--output", help="the .nqz file; default: beside the model, or in this folder")
    parser.add_argument("--preset", default="auto", help="a named bundle of settings (below); default auto")
    parser.add_argument(
        "--method",
        help="obs, kmeans, hessian-kmeans, uniform, ecsq, inq, vq, none, or a quantizer of another package",
    )
    parser.add_argument("--clusters", type=int, help="most codebook entries")
    parser.add_argument("--rest", choices=REST_DTYPES, help="precision of biases, norms and small tensors")
    parser.add_argument("--step", type=float, help="step of uniform grids, in root mean squares")
    parser.add_argument(
        "--rate-penalty",
        type=float,
        help="cost of a bit: ecsq: as a share of the signal; obs: loss that a bit for each weight may cost",
    )
    parser.add_argument("--width", type=int, help="weights that share an index, for vq")
    parser.add_argument(
        "--product", action="store_true", default=None, help="vq: codebooks by place in a row"
    )
    parser.add_argument(
        "--hessian", choices=HESSIANS, help="obs: of the calibration inputs (default), or none looked at"
    )
    _add_repair_options(parser)
    parser.add_argument("--fine-tune", help="package.module:function that returns nqconvert.FineTuning")
    targets = parser.add_mutually_exclusive_group()
    targets.add_argument("--target-bits", type=float, help="most bits of the file for a value of the model")
    targets.add_argument("--target-size", type=byte_count, help="most bytes, such as 20000, 20kB or 1.5MiB")
    targets.add_argument("--target-ratio", type=float, help="how many times smaller at least")
    targets.add_argument(
        "--max-drop",
        type=float,
        help="most percentage points of accuracy to lose, 0 for none on the samples; needs --evaluate",
    )
    parser.add_argument("--train", help="package.module:function that returns nqconvert.Training")
    parser.add_argument(
        "--evaluate",
        help="package.module:function of a runner that returns an accuracy, or right and wrong by sample",
    )
    parser.add_argument("--strict", action="store_true", help="fail if a weight matrix is left raw")
    parser.add_argument("--prefer", choices=("size", "speed"), default="size", help="codings to choose from")
    parser.add_argument("--edge", action="store_true", help="leave the directory uncompressed")
    parser.add_argument("--full-metadata", action="store_true", help="store all settings in the file")
    parser.add_argument("--static-batch", action="store_true", help="fix the batch size to the example's")


def _add_repair_options(parser: argparse.ArgumentParser) -> None:
    """Declare what refines method obs; options that are not given keep the defaults of RepairSettings."""
    parser.add_argument(
        "--distillation",
        choices=DISTILLATIONS,
        help="obs: train steps, codebooks, biases (scales), also integers (weights), to answer as before",
    )
    parser.add_argument("--distillation-epochs", type=int, help="passes over the calibration inputs")
    for name, text in _SWITCHES.items():
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, action=argparse.BooleanOptionalAction, default=None, help=text)


def _repairs(arguments: argparse.Namespace) -> RepairSettings | None:
    names = ("distillation", "distillation_epochs", *_SWITCHES)
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    return RepairSettings(**given) if given else None


def run(arguments: argparse.Namespace) -> int:
    """Convert and print the report."""
    from nqconvert.conversion import convert

    stages = StageLines(arguments)
    try:
        report = convert(
            model_of(arguments),
            _output(arguments),
            **model_keywords(arguments),
            preset=arguments.preset,
            training=call_object(arguments.train) if arguments.train else None,
            evaluate=load_object(arguments.evaluate) if arguments.evaluate else None,
            method=arguments.method,
            clusters=arguments.clusters,
            rest=arguments.rest,
            step=arguments.step,
            rate_penalty=arguments.rate_penalty,
            width=arguments.width,
            product=arguments.product,
            hessian=arguments.hessian,
            repairs=_repairs(arguments),
            fine_tuning=call_object(arguments.fine_tune) if arguments.fine_tune else None,
            target_bits=arguments.target_bits,
            target_size=arguments.target_size,
            target_ratio=arguments.target_ratio,
            max_drop=arguments.max_drop,
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


def _output(arguments: argparse.Namespace) -> Path:
    """Return where to write: beside a model's file, in this folder for a factory's model."""
    if arguments.output:
        return Path(arguments.output)
    if is_factory(arguments.model):
        return Path(f"{arguments.model.rpartition(':')[2]}.nqz")
    return Path(arguments.model).with_suffix(".nqz")
