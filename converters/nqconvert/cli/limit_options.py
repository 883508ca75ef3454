"""The option that bounds what reading a file may allocate."""

from __future__ import annotations

import argparse

from nqformat import Limits

__all__ = ["add_limit_options", "limits_of"]


def add_limit_options(parser: argparse.ArgumentParser) -> None:
    """Declare the option of commands that read .nqz files."""
    parser.add_argument(
        "--max-bytes",
        type=_byte_count,
        metavar="SIZE",
        help="most bytes of decoded arrays, such as 500MB; default: half of the memory, at most 64 GiB",
    )


def limits_of(arguments: argparse.Namespace) -> Limits:
    """Return the limits that the command line asks for."""
    return Limits() if arguments.max_bytes is None else Limits(materialised_bytes=arguments.max_bytes)


def _byte_count(text: str) -> int:
    # imported when the option is used: reading a file needs nothing of the converter
    from nqconvert.search import byte_count

    return byte_count(text)
