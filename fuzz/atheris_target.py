"""Coverage-guided fuzzing with Atheris: ``python -m fuzz.atheris_target [libFuzzer options]``.

Inputs are those of ``flat_input``: checksums are added to them, so that the parsers are reached. Golden files
are the first corpus. Without Atheris the command says so and ends with exit code 5.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

MISSING = 5


def main() -> int:
    """Fuzz until stopped or until ``-runs`` or ``-max_total_time`` is reached."""
    try:
        import atheris
    except ImportError:
        print("atheris is not installed; run: pip install atheris", file=sys.stderr)
        return MISSING
    with atheris.instrument_imports(include=["nqformat", "nqruntime"]):
        from . import target
        from .container import take_apart
        from .flat_input import from_input, to_input
        from .golden import golden_files
    target.with_kernels("numpy")

    def one_input(content: bytes) -> None:
        target.read_everything(from_input(content))
        target.read_everything(content)

    with tempfile.TemporaryDirectory() as folder:
        for name, golden in golden_files().items():
            (Path(folder) / name).write_bytes(to_input(take_apart(golden)))
        atheris.Setup([*sys.argv, folder], one_input)
        atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
