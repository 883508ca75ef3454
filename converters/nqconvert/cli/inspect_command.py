"""``nqz inspect``."""

from __future__ import annotations

import argparse
import json
from typing import Any

import nqformat
from nqconvert.cli.console import emit
from nqconvert.report import SCHEMA_VERSION, file_json, file_table
from nqformat.accounting import account


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("file")
    parser.add_argument("--all", action="store_true", help="list every tensor of a long file")


def run(arguments: argparse.Namespace) -> int:
    """Print the tables."""
    with nqformat.safe_open(arguments.file, bfloat16="uint16") as file:
        accounts = account(file)
        metadata = file.metadata()
        version = f"{file.header.major}.{file.header.minor}"
        described = [_describe(file, name) for name in file]
    lines = [
        f"{arguments.file}: format {version}, {accounts.file_bytes:,} bytes, {len(described)} tensors",
        f"metadata: {json.dumps(metadata, sort_keys=True)}",
        "",
        file_table(accounts, max_rows=len(described) if arguments.all else 60),
    ]
    lines += [f"unsupported: {d['name']}: {d['unsupported']}" for d in described if d["unsupported"]]
    as_json: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "format_version": version,
        "metadata": metadata,
        **file_json(accounts),
    }
    for entry, more in zip(as_json["tensors"], described, strict=True):
        entry.update(more)
    emit(arguments, "\n".join(lines), as_json)
    return 0


def _describe(file: nqformat.NqzFile, name: str) -> dict[str, Any]:
    info = file.info(name)
    return {
        "name": name,
        "dtype": None if info.dtype is None else info.dtype.label,
        "shape": list(info.shape),
        "n_stored": info.n_stored,
        "codebook_entries": info.codebook_entries,
        "codebook_groups": info.codebook_groups,
        "codebook_width": info.codebook_width,
        "n_scales": info.n_scales,
        "sources": list(info.sources),
        "unsupported": info.unsupported,
    }
