"""The command ``nqz``."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module

import nqformat
from nqformat.errors import (
    FormatError,
    MissingDependencyError,
    NqError,
    UnsupportedFeatureError,
    UnsupportedVersionError,
)

__all__ = ["main"]

COMMANDS = {
    "convert": "turn a trained model into a .nqz file",
    "inspect": "show what a .nqz file holds and where its bytes go",
    "report": "write a page about a .nqz file: tensors, bytes, values, and what differs from the original",
    "verify": "check a .nqz file: checksums, structure, every tensor, graph against tensors",
    "run": "run a .nqz file on inputs",
    "export": "write a .nqz file as ONNX",
    "compare": "show every quantizer on a model: bytes against accuracy",
    "tune": "search the settings of retraining for the smallest file; logs every trial",
    "bench": "time loading, decoding and running a .nqz file",
    "decompress": "write the decoded tensors as safetensors",
}

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_CORRUPT = 3
EXIT_UNSUPPORTED = 4
EXIT_MISSING = 5

_EPILOG = """exit codes: 0 ok, 1 failed, 2 usage, 3 invalid or corrupt file, 4 unsupported feature or version,
5 missing extra"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``nqz`` and return its exit code.

    Examples
    --------
    >>> main(["inspect", "no-such-file.nqz", "--quiet"])
    1
    """
    arguments = _parser(sys.argv[1:] if argv is None else list(argv))
    if not arguments.quiet:
        _show_compilations()
    try:
        code = int(arguments.run(arguments))
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except Exception as error:
        if arguments.verbose > 1:
            traceback.print_exc()
        print(f"nqz: {_message(error)}", file=sys.stderr)
        return _exit_code(error)
    except KeyboardInterrupt:
        print("nqz: interrupted", file=sys.stderr)
        return 130


def _show_compilations() -> None:
    """Print a line on standard error when kernels are compiled, which takes seconds."""
    log = logging.getLogger("nqformat.kernels")
    if not log.handlers:
        handler = _StandardError()
        handler.setFormatter(logging.Formatter("nqz: %(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)


class _StandardError(logging.Handler):
    """Writes to what standard error is at the time."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one message."""
        print(self.format(record), file=sys.stderr, flush=True)


def _parser(argv: list[str]) -> argparse.Namespace:
    """Parse the command line; only the wanted command's module is imported."""
    parser = argparse.ArgumentParser(
        prog="nqz", description="Small neural-network files that run.", epilog=_EPILOG
    )
    parser.add_argument("--version", action="version", version=f"nqz {nqformat.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    wanted = next((word for word in argv if word in COMMANDS), None)
    for name, purpose in COMMANDS.items():
        command = commands.add_parser(name, help=purpose, description=purpose[0].upper() + purpose[1:] + ".")
        command.add_argument("-q", "--quiet", action="store_true", help="print errors only")
        command.add_argument("-v", "--verbose", action="count", default=0, help="twice: tracebacks")
        command.add_argument("--json", action="store_true", help="print one JSON object on standard output")
        if name == wanted:
            module = import_module(f"{__name__}.{name}_command")
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    return parser.parse_args(argv)


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None and not isinstance(error, NqError):
        return f"{os.fspath(error.filename)}: {error.strerror or error}"
    if isinstance(error, NqError | OSError | ValueError | TypeError | KeyError):
        return str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return f"{type(error).__name__}: {error} (run with -v -v for the traceback)"


def _exit_code(error: Exception) -> int:
    if isinstance(error, MissingDependencyError):
        return EXIT_MISSING
    if isinstance(error, UnsupportedFeatureError | UnsupportedVersionError):
        return EXIT_UNSUPPORTED
    if isinstance(error, FormatError):
        return EXIT_CORRUPT
    if isinstance(error, ValueError | TypeError) and not isinstance(error, NqError):
        return EXIT_USAGE
    return EXIT_FAILED
