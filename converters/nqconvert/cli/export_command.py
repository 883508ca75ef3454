"""``nqz export``."""

from __future__ import annotations

import argparse
from pathlib import Path

from nqconvert.cli.console import emit, read_arrays
from nqconvert.cli.limit_options import add_limit_options, limits_of
from nqconvert.form_names import DENSE_DTYPES, EXPORT_FORMS
from nqconvert.report import SCHEMA_VERSION


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("file")
    parser.add_argument("-o", "--output", help="the .onnx file; default: beside the .nqz file")
    parser.add_argument("--form", default="dense", choices=EXPORT_FORMS, help="how weights are held")
    parser.add_argument(
        "--dtype",
        choices=DENSE_DTYPES,
        help="form dense: store float32 tensors in 16 bits, rounded if need be",
    )
    parser.add_argument("--opset", type=int, help="opset to write")
    parser.add_argument(
        "--verify", default="on", choices=("on", "off"), help="reload and compare; default on"
    )
    parser.add_argument(
        "-i",
        "--input",
        help=".npy, .npz with inputs by name, or shape=1,3,32,32 to compare on; default random",
    )
    parser.add_argument("--external-data", action="store_true", help="put large tensors beside the model")
    add_limit_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Export and say what was written."""
    from nqconvert.export import export_onnx

    source = Path(arguments.file)
    target = Path(arguments.output) if arguments.output else source.with_suffix(".onnx")
    report = export_onnx(
        source,
        target,
        form=arguments.form,
        dtype=arguments.dtype,
        opset=arguments.opset,
        verify=arguments.verify == "on",
        external_data=True if arguments.external_data else None,
        feeds=read_arrays(arguments.input) if arguments.input else None,
        limits=limits_of(arguments),
    )
    lines = [f"{target}: {report.total_bytes:,} bytes, form {report.form}, opset {report.opset}"]
    if report.max_difference is not None:
        lines.append(
            f"outputs against the decoded weights: largest relative difference {report.max_difference:.2g}"
        )
    lines += [f"left dense: {t.name}: {t.reason}" for t in report.tensors if t.reason]
    lines += [f"note: {note}" for note in report.notes]
    as_json = {
        "schema_version": SCHEMA_VERSION,
        "path": str(report.path),
        "data_path": None if report.data_path is None else str(report.data_path),
        "form": report.form,
        "opset": report.opset,
        "total_bytes": report.total_bytes,
        "max_difference": report.max_difference,
        "tensors": [
            {
                "name": t.name,
                "form": t.form,
                "stored_bytes": t.stored_bytes,
                "dense_bytes": t.dense_bytes,
                "reason": t.reason,
            }
            for t in report.tensors
        ],
        "notes": list(report.notes),
    }
    emit(arguments, "\n".join(lines), as_json)
    return 0
