"""``nqz report``."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np

import nqformat
from nqconvert.cli.console import emit
from nqconvert.cli.limit_options import add_limit_options, limits_of
from nqconvert.page.file_page import file_page
from nqconvert.page.tensor_facts import tensor_facts
from nqconvert.report import SCHEMA_VERSION
from nqformat.accounting import account
from nqformat.files import write_atomically


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("file")
    parser.add_argument("-o", "--output", help="the .html file; default: beside the .nqz file")
    parser.add_argument(
        "--original",
        metavar="MODEL",
        help="what the file was made from (.onnx, .safetensors, state dict or .nqz): "
        "tensors of the same name and shape are compared",
    )
    add_limit_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Write the page."""
    source = Path(arguments.file)
    target = Path(arguments.output) if arguments.output else source.with_suffix(".html")
    if target.resolve() == source.resolve():
        raise ValueError(f"{target} is the file itself: give -o another name")
    original = {} if arguments.original is None else _original(arguments)
    with nqformat.safe_open(source, limits=limits_of(arguments), bfloat16="float32") as file:
        accounts = account(file)
        by_name = {tensor.name: tensor for tensor in accounts.tensors}
        tensors = list(tensor_facts(file, by_name, original))
        version = f"{file.header.major}.{file.header.minor}"
        text = file_page(source.name, version, accounts, file.metadata(), tensors)
    n_bytes = write_atomically(target, [text.encode()])
    n_compared = sum(tensor.snr_db is not None for tensor in tensors)
    told = "" if arguments.original is None else f", {n_compared} compared with {arguments.original}"
    result = {
        "schema_version": SCHEMA_VERSION,
        "path": str(target),
        "page_bytes": n_bytes,
        "n_tensors": len(tensors),
        "n_compared": n_compared,
    }
    emit(arguments, f"{target}: {len(tensors)} tensors{told}", result)
    return 0


def _original(arguments: argparse.Namespace) -> Mapping[str, np.ndarray]:
    path = Path(arguments.original)
    if path.suffix == ".nqz":
        return nqformat.load_file(path, limits=limits_of(arguments), bfloat16="float32")
    from nqconvert.sources import load_source

    return load_source(path).tensors
