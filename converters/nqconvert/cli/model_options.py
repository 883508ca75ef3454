"""The options that ``nqz convert`` and ``nqz compare`` share: a model, and data to measure it with."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from nqconvert.cli.console import call_object, load_object, read_arrays, read_calibration
from nqconvert.quantizers.settings import SCOPES
from nqconvert.sensitivity.images import ImageFolder

__all__ = ["add_model_options", "is_factory", "model_keywords", "model_of"]


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options; commands set defaults of their own."""
    parser.add_argument(
        "model", help=".onnx, .safetensors, .pt state dict, or package.module:factory of a torch module"
    )
    parser.add_argument("--weights", help="state dict for a module")
    parser.add_argument(
        "--example-input",
        help=".npy, .npz or shape=1,1,28,28: needed for a module; outputs are compared on it",
    )
    parser.add_argument(
        "--scope", choices=SCOPES, help="one codebook for each tensor, for all, or for each channel"
    )
    parser.add_argument("--density", type=float, help="share of weights that pruning keeps")
    parser.add_argument(
        "--sensitivity", help="how errors are weighted: auto, fisher, becker, activation, adam, none, ..."
    )
    parser.add_argument(
        "--sensitivity-power", type=float, help="sensitivities are raised to it; default 1, try 0.5"
    )
    parser.add_argument(
        "--samples",
        "--calibration-count",
        type=int,
        help="most calibration samples to use; default 1000",
    )
    parser.add_argument(
        "--calibration",
        help=".npy or .npz of inputs (labels as 'targets'), a folder of images, shape=..., or "
        "package.module:function that returns inputs or a loader",
    )
    parser.add_argument("--image-size", type=_numbers, help="height,width if the model leaves it open")
    parser.add_argument("--image-scale", type=float, default=1.0, help="what white is: 1 (default) or 255")
    parser.add_argument("--image-mean", type=_numbers, default=(0.0,), help="such as 0.485,0.456,0.406")
    parser.add_argument("--image-std", type=_numbers, default=(1.0,), help="such as 0.229,0.224,0.225")
    parser.add_argument("--loss", help="package.module:function of outputs and targets")
    parser.add_argument("--optimizer-state", help="file with the state of an Adam optimizer")
    parser.add_argument("--seed", type=int)


def model_of(arguments: argparse.Namespace) -> Any:
    """Return the model: a path, or the module that a factory makes."""
    text: str = arguments.model
    return call_object(text) if is_factory(text) else Path(text)


def is_factory(text: str) -> bool:
    """Whether the model is written as ``package.module:factory``, and no file has that name."""
    return ":" in text and not Path(text).exists() and "/" not in text.partition(":")[0]


def _numbers(text: str) -> tuple[float, ...]:
    """Read numbers between commas."""
    return tuple(float(part) for part in text.split(","))


def _calibration(arguments: argparse.Namespace) -> Any:
    """Return what the options say of calibration inputs; a folder's images are read later."""
    text: str = arguments.calibration
    if Path(text).is_dir():
        size = arguments.image_size
        return ImageFolder(
            folder=text,
            size=None if size is None else tuple(int(side) for side in size),  # type: ignore[arg-type]
            full_scale=arguments.image_scale,
            mean=arguments.image_mean,
            std=arguments.image_std,
        )
    return load_object(text) if is_factory(text) else read_calibration(text)


def model_keywords(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the shared options as keyword arguments of ``convert`` and ``compare``, files read."""
    return {
        "example_inputs": read_arrays(arguments.example_input) if arguments.example_input else None,
        "weights": arguments.weights,
        "scope": arguments.scope,
        "density": arguments.density,
        "sensitivity": arguments.sensitivity,
        "samples": arguments.samples,
        "sensitivity_power": arguments.sensitivity_power,
        "calibration": _calibration(arguments) if arguments.calibration else None,
        "loss": load_object(arguments.loss) if arguments.loss else None,
        "optimizer_state": arguments.optimizer_state,
        "seed": arguments.seed,
    }
