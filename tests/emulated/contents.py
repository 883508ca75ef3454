"""Print what this machine writes and reads: a digest of each golden and conformance file and of its tensors.

Needs nqformat and NumPy alone, so that it runs on any machine, emulated ones too.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np

import nqformat
from fuzz.golden import golden_files

VECTORS = Path(__file__).parents[2] / "spec" / "vectors"


def digest(content: bytes) -> str:
    """Return the SHA-256 of bytes."""
    return hashlib.sha256(content).hexdigest()


def little_endian(array: np.ndarray) -> bytes:
    """Return the bytes of an array as a little-endian machine has them."""
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def said_of(content: bytes) -> dict[str, str]:
    """Return a digest of each tensor, or the class of the error that refuses it or the file."""
    try:
        with nqformat.from_bytes(content, bfloat16="uint16") as file:
            said = {}
            for name in file:
                try:
                    array = file.get_tensor(name)
                    said[name] = f"{array.shape} {digest(little_endian(array))}"
                except nqformat.NqError as error:
                    said[name] = type(error).__name__
            return said
    except nqformat.NqError as error:
        return {"file": type(error).__name__}


def main() -> None:
    """Print one JSON object: files made here, and what is read from them and from the conformance files."""
    made = golden_files()
    vectors = {str(path.relative_to(VECTORS)): path.read_bytes() for path in sorted(VECTORS.rglob("*.nqz"))}
    found = {
        "written": {name: digest(content) for name, content in made.items()},
        "read": {name: said_of(content) for name, content in {**made, **vectors}.items()},
    }
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
