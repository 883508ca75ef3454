"""``nqz decompress``."""

from __future__ import annotations

import argparse
from pathlib import Path

from nqconvert.cli.console import emit
from nqconvert.cli.limit_options import add_limit_options, limits_of
from nqconvert.report import SCHEMA_VERSION


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("file")
    parser.add_argument("-o", "--output", help="the .safetensors file; default: beside the .nqz file")
    add_limit_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Decode every tensor into a safetensors file."""
    import nqformat
    from nqconvert.decompression import save_safetensors

    source = Path(arguments.file)
    target = Path(arguments.output) if arguments.output else source.with_suffix(".safetensors")
    tensors = nqformat.load_file(source, limits=limits_of(arguments))
    n_bytes = save_safetensors(tensors, target)
    text = f"{target}: {len(tensors)} tensors, {n_bytes:,} bytes"
    emit(arguments, text, {"schema_version": SCHEMA_VERSION, "path": str(target), "file_bytes": n_bytes})
    return 0
